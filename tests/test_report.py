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


def curves(levels: list[float]) -> np.ndarray:
    """Precision `[10, 101, K]` that falls with recall and IoU from a level; negative for a class without objects."""
    fall = np.linspace(1, 0, 101)[None, :, None] * np.linspace(1, 0.1, 10)[:, None, None]
    return np.where(np.array(levels) < 0, -1.0, fall * np.array(levels))


def share(pixels: np.ndarray, test: np.ndarray) -> float:
    return float(test.sum() / pixels.shape[0] / pixels.shape[1])


def test_precision_shows_a_colour_per_class_and_the_mean(tmp_path: Path) -> None:
    few, many = curves([1.0, 0.8, -1.0, 0.5]), curves([i / 100 for i in range(90)])
    drawn = {}
    for name, data in (("few", few), ("many", many), ("none", curves([-1.0, -1.0]))):
        classes = [f"class {k}" for k in range(data.shape[2])]
        report.plot_precision(data, classes, tmp_path / f"{name}.png", "mask")
        pixels = colours(tmp_path / f"{name}.png").astype(int)
        drawn[name] = pixels[:, : pixels.shape[1] // 2]
    coloured = {name: share(pixels, np.ptp(pixels, axis=2) > 60) for name, pixels in drawn.items()}
    assert coloured["few"] > 0.004 > coloured["many"] == coloured["none"] == 0
    grey = {name: share(pixels, (pixels[..., 0] > 170) & (pixels[..., 0] < 215)) for name, pixels in drawn.items()}
    assert grey["many"] > 5 * grey["few"]
    black = {name: share(pixels, pixels.max(axis=2) < 40) for name, pixels in drawn.items()}
    assert min(black["few"], black["many"]) > 1.2 * black["none"]


@pytest.mark.parametrize("count", [3, 80, 300])
def test_bars_stand_for_the_classes_that_have_objects(tmp_path: Path, count: int) -> None:
    box = np.linspace(0.9, 0.1, count)
    box[1] = -1.0
    classes = [f"class {i}" for i in range(count)]
    report.plot_class_ap({"box": box, "mask": box * 0.5}, classes, tmp_path / "bars.png")
    pixels = colours(tmp_path / "bars.png").astype(int)
    middle = pixels[:, : pixels.shape[1] // 2]
    blue = (middle[..., 2] > 150) & (middle[..., 0] < 60)
    starts = np.diff(blue.any(axis=1).astype(int)) == 1
    assert starts.sum() == min(count - 1, report.BARRED_CLASSES)
    report.plot_class_ap({"box": np.array([-1.0])}, ["nothing"], tmp_path / "none.png")
    assert colours(tmp_path / "none.png").shape[1] == pixels.shape[1]
