"""The scores of one validation of a detector, over all processes, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmvit import processes
from openmvit.data.detection_table import DetectionTable
from openmvit.detection.search import run_lengths
from openmvit.evaluation.coco import CocoResult, CocoScorer
from openmvit.training.loading import Batch
from openmvit.validate.detection import gather_finds
from openmvit.validate.pictures import draw_report

if TYPE_CHECKING:
    from openmvit.detection.detections import Detections


class DetectionValidation:
    """COCO's scores of boxes and masks; pictures whose files are unreadable are left out, with their objects.

    Args:
        table: the validation pictures.
        truth: `table.ground_truth()`.
        limit: finds scored per picture.
    """

    def __init__(self, table: DetectionTable, truth: dict[str, Any], limit: int) -> None:
        self._table = table
        self._scorer = CocoScorer(table.classes, table.category_ids, truth, limit=limit)
        self._unread: list[int] = []
        self._result: CocoResult | None = None

    def update(self, output: list[Detections], batch: Batch) -> None:
        """Add what was found in the pictures of a batch, in pixels of the files."""
        for found, index, bad in zip(output, batch["index"].tolist(), batch["bad"].tolist(), strict=True):
            if bad:
                self._unread.append(index)
                continue
            masks = run_lengths(found) if self._scorer.masks else None
            self._scorer.add(self._table.image_id(index), found.boxes, found.scores, found.labels, masks)

    def result(self) -> dict[str, float]:
        """`AP`, `AP50`, ... of boxes and `mask_AP`, ... of masks, 0..1; what has no objects of its size is left out."""
        self._scorer, _ = gather_finds(self._scorer, self._unread, self._table)
        figures: dict[str, float] = {}
        if processes.is_main():
            self._result = self._scorer.result()
            figures = dict(self._result.box)
            if self._result.mask is not None:
                figures |= {f"mask_{name}": value for name, value in self._result.mask.items()}
        figures = processes.broadcast(figures)
        return {name: max(value, 0.0) for name, value in figures.items() if value >= 0 or name == "AP"}

    def one_class(self) -> str:
        """Empty: objects that are found have classes, pictures none."""
        return ""

    def draw(self, folder: Path) -> None:
        """Precision over recall, AP of every class, and a sheet of pictures with what was found in them."""
        assert self._result is not None, "result() comes first"
        draw_report(folder, self._result, self._scorer, self._table)
