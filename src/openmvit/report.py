"""Pictures from arrays: curves of a run, the confusion matrix, precision over recall and AP of every class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from openmvit.fonts import drawable, families, font

LABELLED_CLASSES = 40
"""Classes up to which the confusion matrix carries their names."""

CURVED_CLASSES = 12
"""Classes up to which every precision-recall curve has a colour and a name."""

BARRED_CLASSES = 80
"""Most classes whose AP is shown as bars; of more, the best and the worst."""


def plot_results(csv_path: Path, png_path: Path) -> None:
    """Curves of a run's results.csv: losses, scores and learning rate over epochs.

    Args:
        csv_path: one row per epoch; an empty cell is an epoch without that figure.
        png_path: the picture to write.
    """
    with csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = ("top1", "top5", "mAP", "AP", "AP50", "mask_AP", "mask_AP50")
    panels = (("loss", ("loss", "val_loss")), ("score", scores), ("learning rate", ("lr",)))
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
    classes = [drawable(name) for name in classes]
    image = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set(xlabel="guessed", ylabel="true", title="confusion (share of the true class)")
    if named:
        family = families(classes)
        axis.set_xticks(range(len(classes)), classes, rotation=90, family=family, parse_math=False)
        axis.set_yticks(range(len(classes)), classes, family=family, parse_math=False)
    if len(classes) <= 20:
        for i, j in matrix.nonzero().tolist():
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.04)
    figure.savefig(png_path, dpi=110)


def plot_clips(rows: Sequence[tuple[str, Tensor]], png_path: Path, heading: str = "") -> None:
    """Contact sheet: the frames of a clip side by side, a row per clip under its title.

    Args:
        rows: title and frames uint8 `[T, H, W, 3]` of every clip.
        png_path: the picture to write.
        heading: what the titles say, above the first.
    """
    from PIL import Image, ImageDraw

    height = max(frames.shape[1] for _, frames in rows)
    width = max(frames.shape[0] * (frames.shape[2] + 2) for _, frames in rows)
    head = 18 if heading else 0
    sheet = Image.new("RGB", (width, head + len(rows) * (height + 18)), (220, 220, 220))
    draw = ImageDraw.Draw(sheet)
    draw.text((3, 2), heading, fill="black", font=font(heading, 12))
    for row, (title, frames) in enumerate(rows):
        top = head + row * (height + 18)
        title = drawable(title)
        draw.text((3, top + 2), title, fill="black", font=font(title, 12))
        for column, frame in enumerate(frames.numpy()):
            sheet.paste(Image.fromarray(frame), (column * (frames.shape[2] + 2), top + 18))
    sheet.save(png_path)


def plot_precision(precision: np.ndarray, classes: Sequence[str], png_path: Path, title: str = "box") -> None:
    """Precision over recall: every class and their mean at IoU 0.5, and the mean at every IoU.

    Args:
        precision: `[10, 101, K]` at IoU 0.5, 0.55 .. 0.95, recall 0, 0.01 .. 1 and class; -1 throughout for a class
            without objects, which is left out.
        png_path: the picture to write.
        title: what was scored.
    """
    figure, (single, means) = _canvas(2, (12.5, 5.0))
    classes = [drawable(name) for name in classes]
    recall, present = np.linspace(0, 1, precision.shape[1]), [k for k in range(len(classes)) if precision[0, 0, k] >= 0]
    named = len(present) <= CURVED_CLASSES
    for place, k in enumerate(sorted(present, key=lambda k: -precision[0, :, k].mean())):
        label = f"{classes[k]} {precision[0, :, k].mean():.3f}" if named else "_"
        look = {"color": f"C{place % 10}", "linestyle": "-" if place < 10 else "--"} if named else {"color": "0.75"}
        single.plot(recall, precision[0, :, k], linewidth=1.3 if named else 0.6, label=label, **look)
    single.set_title(f"{title}: classes at IoU 0.5")
    means.set_title(f"{title}: no objects")
    if present:
        mean = precision[:, :, present].mean(axis=2)
        single.plot(recall, mean[0], color="black", linewidth=2.6, label=f"mean {mean[0].mean():.3f}")
        for i, (curve, colour) in enumerate(zip(mean, _shades(len(mean)), strict=True)):
            means.plot(recall, curve, color=colour, label=f"{0.5 + 0.05 * i:.2f}  {curve.mean():.3f}")
        means.set_title(f"{title}: mean of classes, AP {mean.mean():.3f}")
    for axis, heading in ((single, "AP50"), (means, "IoU  AP")):
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        if axis.lines:
            letters = {"family": families([text.get_label() for text in axis.lines]), "size": 8}
            axis.legend(title=heading, prop=letters, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.savefig(png_path, dpi=110)


def plot_class_ap(scores: dict[str, np.ndarray], classes: Sequence[str], png_path: Path) -> None:
    """AP of every class as bars, best first.

    Args:
        scores: `[K]` for each kind, such as "box" and "mask"; the first decides the order, and classes where it is
            negative (without objects) are left out. No more than `BARRED_CLASSES` are shown, the best and the worst.
        png_path: the picture to write.
    """
    first = next(iter(scores.values()))
    order = sorted((k for k in range(len(classes)) if first[k] >= 0), key=lambda k: -first[k])
    half, title = BARRED_CLASSES // 2, "AP of every class"
    if len(order) > BARRED_CLASSES:
        title, order = (
            f"AP of the best {half} and the worst {half} of {len(order)} classes",
            order[:half] + order[-half:],
        )
    figure, (axis,) = _canvas(1, (7.0, 1.4 + 0.26 * max(len(order), 1)))
    end = 1.12 * max(0.1, *(float(values.max()) for values in scores.values() if len(values)))
    thick = 0.8 / len(scores)
    for number, (kind, values) in enumerate(scores.items()):
        shown = [max(float(values[k]), 0.0) for k in order]
        places = [row + (number - (len(scores) - 1) / 2) * thick for row in range(len(order))]
        axis.barh(places, shown, height=thick, label=kind, color=f"C{number}")
        for place, value in zip(places, shown, strict=True):
            axis.text(value + 0.006 * end, place, f"{value:.3f}", va="center", fontsize=max(5, 8 - len(scores)))
    names = [drawable(classes[k]) for k in order]
    axis.set_yticks(range(len(order)), names, fontsize=8, family=families(names), parse_math=False)
    axis.set(title=title, xlabel="AP", xlim=(0, end), ylim=(max(len(order), 1) - 0.4, -0.6))
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(loc="lower right")
    figure.savefig(png_path, dpi=110)


def _shades(count: int) -> list[Any]:
    """Colours from dark to light of one scale."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * i / max(count - 1, 1)) for i in range(count)]


def _canvas(columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])
