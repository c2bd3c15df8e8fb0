"""What a scored detector leaves in a folder: COCO results, precision over recall, AP of classes, sample pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openmvit.data.detection_samples import read_picture
from openmvit.data.detection_table import DetectionTable, Segments
from openmvit.data.samples import FileReadError
from openmvit.drawing import draw_detections, sheet
from openmvit.errors import UserError
from openmvit.evaluation.coco import CocoResult, CocoScorer, write_rows
from openmvit.report import plot_class_ap, plot_precision

SHOWN_SCORE = 0.5
"""Finds with a lower score are not drawn."""
_SAMPLES = 8
_SMALL = 320


def write_report(folder: Path, result: CocoResult, scorer: CocoScorer, table: DetectionTable) -> None:
    """Write results.json and the pictures of `draw_report`.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(scorer.rows(), folder / "results.json")
        draw_report(folder, result, scorer, table)
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error.strerror or error})", "Choose another --out") from error


def draw_report(folder: Path, result: CocoResult, scorer: CocoScorer, table: DetectionTable) -> None:
    """Write pr_curves_box.png, pr_curves_mask.png if masks were scored, class_ap.png and samples.png.

    The samples are eight pictures, spread over those with objects: annotated on the left, found on the right.
    """
    for kind, precision in result.precision.items():
        plot_precision(precision, result.classes, folder / f"pr_curves_{kind}.png", kind)
    scores = {kind: result.per_class(kind) for kind in result.precision}
    plot_class_ap(scores, result.classes, folder / "class_ap.png")
    draw_samples(scorer, table, folder / "samples.png")


def draw_samples(scorer: CocoScorer, table: DetectionTable, path: Path) -> None:
    """Write a sheet of some pictures of a scored table, each as annotated and as found."""
    from PIL import Image

    found = {image: parts for image, *parts in scorer.state()}
    some = table.annotated() if len(table.annotated()) else np.arange(len(table))
    cells: list[np.ndarray] = []
    for place in np.unique(np.linspace(0, len(some) - 1, min(_SAMPLES, len(some))).round().astype(int)):
        index = int(some[place])
        try:
            picture = np.asarray(read_picture(table, index))
        except FileReadError:
            continue
        cells += [_annotated(picture, table, index), _found(picture, table, found.get(table.image_id(index)))]
    if cells:
        Image.fromarray(sheet(cells, 4, headings=("truth", "found") * 2)).save(path)


def _annotated(picture: np.ndarray, table: DetectionTable, index: int) -> np.ndarray:
    known = table.annotations(index)
    kept = np.flatnonzero(~known.crowd)
    masks = [_pixels(known.segments[i], (picture.shape[0], picture.shape[1])) for i in kept]
    return _draw(picture, known.boxes[kept], known.labels[kept], None, table.classes, masks)


def _found(picture: np.ndarray, table: DetectionTable, parts: list[Any] | None) -> np.ndarray:
    if parts is None:
        return _draw(picture, np.zeros((0, 4)), np.zeros(0, int), None, table.classes, None)
    boxes, scores, labels, rles = parts
    sure = np.flatnonzero(scores > SHOWN_SCORE)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[sure]
    size = picture.shape[0], picture.shape[1]
    masks = [_pixels(rles[i], size) for i in sure] if rles else None
    return _draw(picture, corners, labels[sure], scores[sure], table.classes, masks)


def _draw(picture: np.ndarray, boxes: Any, labels: Any, scores: Any, names: Any, masks: Any) -> np.ndarray:
    enlarge = max(1, -(-_SMALL // max(picture.shape)))
    return draw_detections(picture, boxes, labels, scores, names, masks, enlarge=enlarge)


def _pixels(segments: Segments, size: tuple[int, int]) -> np.ndarray:
    """A mask as bool `[h, w]`; nothing where only the box is known."""
    from faster_coco_eval.core import mask as runs

    if segments is None:
        return np.zeros(size, bool)
    if isinstance(segments, list):
        outlines = [polygon.tolist() for polygon in segments if len(polygon) >= 6]
        if not outlines:
            return np.zeros(size, bool)
        segments = runs.merge(runs.frPyObjects(outlines, *size))  # pyright: ignore[reportArgumentType]
    return np.asarray(runs.decode(segments)).astype(bool)  # pyright: ignore[reportArgumentType]
