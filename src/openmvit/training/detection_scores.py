"""The scores of one validation of a detector, over all processes, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmvit import processes, report
from openmvit.data.detection_table import DetectionTable
from openmvit.data.images import read_image
from openmvit.drawing import draw_detections, sheet
from openmvit.evaluation.coco import CocoResult, CocoScorer
from openmvit.training.loading import Batch

if TYPE_CHECKING:
    from openmvit.detection.detections import Detections

_SHOWN, _COLUMNS, _SURE = 12, 4, 0.5
"""Pictures of the sheet, in a row, and the score from which an object is drawn."""


class DetectionValidation:
    """COCO's scores of boxes and masks; pictures whose files are unreadable are left out, with their objects.

    Args:
        table: the validation pictures.
        truth: `table.ground_truth()`.
    """

    def __init__(self, table: DetectionTable, truth: dict[str, Any]) -> None:
        self._table, self._truth = table, truth
        self._scorer = CocoScorer(table.classes, table.category_ids, truth)
        self._unread: list[int] = []
        self._result: CocoResult | None = None

    def update(self, output: list[Detections], batch: Batch) -> None:
        """Add what was found in the pictures of a batch, in pixels of the files."""
        for found, index, bad in zip(output, batch["index"].tolist(), batch["bad"].tolist(), strict=True):
            if bad:
                self._unread.append(self._table.image_id(index))
                continue
            masks = found.masks() if self._scorer.masks else None
            self._scorer.add(self._table.image_id(index), found.boxes, found.scores, found.labels, masks)

    def result(self) -> dict[str, float]:
        """`AP`, `AP50`, ... of boxes and `mask_AP`, ... of masks, 0..1; what has no objects of its size is left out."""
        parts = processes.gather((self._scorer.state(), self._unread))
        figures: dict[str, float] = {}
        if processes.rank() == 0:
            unread = {image for _, own in parts for image in own}
            if unread:
                self._scorer = CocoScorer(self._table.classes, self._table.category_ids, _without(self._truth, unread))
            self._scorer.merge(state for state, _ in parts)
            self._result = self._scorer.result()
            figures = dict(self._result.box)
            if self._result.mask is not None:
                figures |= {f"mask_{name}": value for name, value in self._result.mask.items()}
        figures = processes.broadcast(figures)
        return {name: max(value, 0.0) for name, value in figures.items() if value >= 0 or name == "AP"}

    def draw(self, folder: Path) -> None:
        """Precision over recall, AP of every class, and a sheet of pictures with what was found in them."""
        assert self._result is not None, "result() comes first"
        result = self._result
        for kind, curves in result.precision.items():
            report.plot_precision(curves, result.classes, folder / f"pr_curves_{kind}.png", kind)
        scores = {kind: result.per_class(kind) for kind in result.precision}
        report.plot_class_ap(scores, result.classes, folder / "class_ap.png")
        pictures = self._pictures()
        if pictures:
            from PIL import Image

            Image.fromarray(sheet(pictures, _COLUMNS)).save(folder / "predictions.png")

    def _pictures(self) -> list[np.ndarray]:
        """Some pictures, spread over the table, with the objects found in them with some certainty."""
        found = {image: parts for image, *parts in self._scorer.state()}
        pictures = []
        for index in np.unique(np.linspace(0, len(self._table) - 1, _SHOWN).astype(int)).tolist():
            if self._table.image_id(index) not in found:
                continue
            boxes, scores, labels, rles = found[self._table.image_id(index)]
            sure = scores >= _SURE
            corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[sure]
            masks = _decoded([rle for rle, keep in zip(rles, sure, strict=True) if keep]) if rles else None
            image = np.asarray(read_image(self._table.path(index)))
            pictures.append(draw_detections(image, corners, labels[sure], scores[sure], self._table.classes, masks))
        return pictures


def _without(truth: dict[str, Any], images: set[int]) -> dict[str, Any]:
    """A ground truth without some pictures and their objects."""
    return truth | {
        "images": [row for row in truth["images"] if row["id"] not in images],
        "annotations": [row for row in truth["annotations"] if row["image_id"] not in images],
    }


def _decoded(rles: list[dict[str, Any]]) -> list[np.ndarray]:
    """Run lengths as bool `[H, W]` each."""
    from faster_coco_eval.core import mask

    return [mask.decode(rle).astype(bool) for rle in rles]
