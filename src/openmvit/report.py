"""Pictures from arrays: curves of a run and the confusion matrix."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

LABELLED_CLASSES = 40
"""Classes up to which the confusion matrix carries their names."""


def plot_results(csv_path: Path, png_path: Path) -> None:
    """Curves of a run's results.csv: losses, scores and learning rate over epochs.

    Args:
        csv_path: one row per epoch; an empty cell is an epoch without that figure.
        png_path: the picture to write.
    """
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels = (("loss", ("loss", "val_loss")), ("score", ("top1", "top5", "mAP")), ("learning rate", ("lr",)))
    figure, axes = _canvas(len(panels), (4.2 * len(panels), 3.4))
    for axis, (title, columns) in zip(axes, panels, strict=True):
        for column in columns:
            points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
            if points:
                axis.plot(
                    *zip(*points, strict=True), marker="o" if len(points) < 30 else "", markersize=3, label=column
                )
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    figure.savefig(png_path, dpi=110)


def plot_confusion(matrix: Tensor, classes: Sequence[str], png_path: Path) -> None:
    """Confusion matrix as a picture, each row in shares of its class.

    Args:
        matrix: counts `[num_classes, num_classes]`, row true class, column first guess.
        png_path: the picture to write.
    """
    named = len(classes) <= LABELLED_CLASSES
    side = min(max(4.0, 0.42 * len(classes) + 1.5), 18.0) if named else 9.0
    figure, axes = _canvas(1, (side + 0.8, side))
    axis, counts = axes[0], matrix.double()
    shares = (counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    image = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set(xlabel="guessed", ylabel="true", title="confusion (share of the true class)")
    if named:
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
    if len(classes) <= 20:
        for i, j in matrix.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.04)
    figure.savefig(png_path, dpi=110)


def plot_clips(rows: Sequence[tuple[str, Tensor]], png_path: Path) -> None:
    """Contact sheet: the frames of a clip side by side, a row per clip under its title.

    Args:
        rows: title and frames uint8 `[T, H, W, 3]` of every clip.
        png_path: the picture to write.
    """
    from PIL import Image, ImageDraw

    height = max(frames.shape[1] for _, frames in rows)
    width = max(frames.shape[0] * (frames.shape[2] + 2) for _, frames in rows)
    sheet = Image.new("RGB", (width, len(rows) * (height + 18)), (220, 220, 220))
    draw = ImageDraw.Draw(sheet)
    for row, (title, frames) in enumerate(rows):
        top = row * (height + 18)
        draw.text((3, top + 3), title, fill="black")
        for column, frame in enumerate(frames.numpy()):
            sheet.paste(Image.fromarray(frame), (column * (frames.shape[2] + 2), top + 18))
    sheet.save(png_path)


def _canvas(columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
