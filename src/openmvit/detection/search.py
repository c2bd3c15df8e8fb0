"""How pictures of any size are searched for objects: once or by several views, with which suppression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from openmvit.detection.augmentation import View, detect_augmented, selecting
from openmvit.detection.config import DetectorConfig, SoftNms
from openmvit.detection.detections import Detections
from openmvit.detection.detector import Detector, evaluating
from openmvit.errors import UserError
from openmvit.evaluation.rle import encode_masks

SOFT_THRESHOLD = 0.001
"""Score from which boxes take part in soft suppression: it lowers scores, so little is gained if low ones are cut."""

_METHODS = ("none", "linear", "gaussian")


class Graph(Protocol):
    """A detector that was written as a graph: one picture at a time, and no rule but the threshold can change."""

    config: DetectorConfig

    def __call__(
        self, images: Sequence[Tensor], *, output_sizes: Sequence[tuple[int, int]], threshold: float
    ) -> list[Detections]: ...


@dataclass(frozen=True)
class Search:
    """How objects are sought.

    The batch is 1 unless the user says otherwise. Pictures of a batch are padded to one size, and nothing masks the
    padding in attention: what is found in a picture then depends a little on the others. Published scores are those of
    one picture at a time.

    Args:
        score: only higher scores are reported; None for the detector's own threshold.
        soft_nms: `none`, `linear` or `gaussian`; None for the detector's own.
        tta: test-time augmentation: every picture at several sizes and mirrored.
        batch: pictures, or views of one picture, at a time.
    Raises:
        UserError: if a value cannot be used.
    """

    score: float | None = None
    soft_nms: SoftNms | None = None
    tta: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score < 1.0:
            raise UserError(f"score is {self.score}", "Give a number from 0 to below 1")
        if self.soft_nms is not None and self.soft_nms not in _METHODS:
            raise UserError(f"soft_nms is {self.soft_nms!r}", f"Accepted: {', '.join(_METHODS)}")
        if self.batch < 1:
            raise UserError(f"batch is {self.batch}", "Accepted: a whole number of at least 1")

    def rules(self, config: DetectorConfig) -> dict[str, Any]:
        """The fields of the configuration that choose boxes, as this search sets them."""
        soft = config.soft_nms if self.soft_nms is None else self.soft_nms
        threshold = config.score_threshold if self.score is None else self.score
        return {"soft_nms": soft, "score_threshold": threshold if soft == "none" else min(threshold, SOFT_THRESHOLD)}

    def find(
        self, model: Detector | Graph, pictures: Sequence[tuple[Sequence[View], tuple[int, int]]]
    ) -> list[Detections]:
        """What is found in each picture, in its own pixels, on the CPU.

        Args:
            model: left in the mode it is in.
            pictures: views, and height and width that the answer is in; those of one batch.
        Raises:
            UserError: if the search needs more of a graph than a threshold.
        """
        if not pictures:
            return []
        if not isinstance(model, Detector):
            return self._find_by_graph(model, pictures)
        with torch.inference_mode(), evaluating(model), selecting(model, **self.rules(model.config)):
            if self.tta:
                found = [detect_augmented(model, views, size, self.batch) for views, size in pictures]
            else:
                found = model([views[0].image for views, _ in pictures], output_sizes=[size for _, size in pictures])
        return [self._reported(one.to("cpu")) for one in found]

    def _find_by_graph(
        self, model: Graph, pictures: Sequence[tuple[Sequence[View], tuple[int, int]]]
    ) -> list[Detections]:
        rules = self.rules(model.config)
        for name, given in (("tta", self.tta), ("batch", self.batch > 1), ("soft_nms", rules["soft_nms"] != "none")):
            if given:
                raise UserError(
                    f"{name} is given and the detector is an exported graph", "Leave it out, or name the run"
                )
        images, sizes = [views[0].image for views, _ in pictures], [size for _, size in pictures]
        found = model(images, output_sizes=sizes, threshold=rules["score_threshold"])
        return [self._reported(one) for one in found]

    def _reported(self, found: Detections) -> Detections:
        return found if self.score is None else found[found.scores > self.score]


def run_lengths(found: Detections) -> list[dict[str, Any]]:
    """The masks of detections as COCO's run lengths; one of them is in memory at a time.

    Raises:
        UserError: if the detections have no masks.
    """
    rows = torch.arange(len(found), device=found.boxes.device)
    return encode_masks(found[rows[i : i + 1]].masks()[0] for i in range(len(found)))
