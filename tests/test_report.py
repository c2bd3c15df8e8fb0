"""Pictures are written from what runs really leave behind, whatever the number of classes or missing figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openmvit import report


def colours(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_curves_are_drawn_for_the_figures_there_are(tmp_path: Path) -> None:
    csv = tmp_path / "results.csv"
    csv.write_text("epoch,loss,lr,val_loss,top1,top5\n1,2.3,1e-4,,,\n2,2.0,2e-4,2.1,0.3,0.7\n3,1.8,1e-4,1.9,0.4,0.8\n")
    report.plot_results(csv, tmp_path / "full.png")
    full = colours(tmp_path / "full.png")
    assert full.shape[1] > 2 * full.shape[0] > 400
    csv.write_text("epoch,loss,lr\n1,2.3,1e-4\n2,2.0,2e-4\n3,1.8,1e-4\n")
    report.plot_results(csv, tmp_path / "less.png")
    drawn = [(colours(tmp_path / name) != 255).any(axis=2).sum() for name in ("full.png", "less.png")]
    assert drawn[0] > drawn[1] > 1000


@pytest.mark.parametrize("classes", [3, 30, 300])
def test_confusion_shows_the_diagonal(tmp_path: Path, classes: int) -> None:
    matrix = torch.diag(torch.full((classes,), 7))
    matrix[0] = 0  # a class without samples
    report.plot_confusion(matrix, [f"class {i}" for i in range(classes)], tmp_path / "confusion.png")
    pixels = colours(tmp_path / "confusion.png").astype(int)
    dark_blue = (pixels[..., 2] > 80) & (pixels[..., 0] < 40)
    cells = dark_blue[:, : int(pixels.shape[1] * 0.8)]
    assert cells.any(axis=1).sum() > pixels.shape[0] / 3
