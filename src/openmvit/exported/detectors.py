"""An exported ONNX file of a detector as a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.checkpoint import architecture_of
from openmvit.convert.cards import METADATA, check_classes
from openmvit.detection.batching import ImageSize, check_images
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detections import Detections
from openmvit.errors import UserError
from openmvit.exported import ExportedNetwork
from openmvit.exported.card import check_graph


class ExportedDetector(ExportedNetwork):
    """A detector that runs on the CPU, one picture after the other, and suppresses as it was exported.

    Raises:
        UserError: if the card names no architecture, another than the graph has, or not what sides are multiples of.
    """

    def __init__(self, path: Path, session: Any, card: dict[str, Any]) -> None:
        super().__init__(path, session, card)
        self.config = DetectorConfig.from_dict(architecture_of(card, path))
        check_graph(path, session, (4, 1, 1), (2, 1, 1, 3))
        check_classes(path, card, self.config.num_classes, METADATA)
        self._step = card.get("export", {}).get("multiple", 0)
        if not self._step:
            raise UserError(f"The metadata of {path} do not say of what the sides are multiples", METADATA.fix)
        square = self.config.square_pad
        if square and any(side != -(-square // self._step) * self._step for side in session.get_inputs()[0].shape[2:]):
            raise UserError(f"The graph of {path} takes no squares of {square}, which its metadata name", METADATA.fix)

    def forward(
        self,
        images: Sequence[Tensor],
        *,
        output_sizes: Sequence[ImageSize] | None = None,
        threshold: float | None = None,
    ) -> list[Detections]:
        """Find objects; arguments and answers as of `Detector`.

        Args:
            threshold: only higher scores count; None for the detector's own.
        """
        check_images(images)
        found = [self._find(image, self.config.score_threshold if threshold is None else threshold) for image in images]
        if output_sizes is None:
            return found
        return [one.rescaled(size) for one, size in zip(found, output_sizes, strict=True)]

    def _find(self, image: Tensor, threshold: float) -> Detections:
        size = (int(image.shape[1]), int(image.shape[2]))
        step, square = self._step, self.config.square_pad
        if square and max(size) > square:
            raise UserError(
                f"A picture of {size[0]} x {size[1]} does not fit the square of {square} that this detector pads to",
                f"Resize pictures to a long side of {square} first",
            )
        height, width = (-(-max(square, n) // step) * step for n in size)
        padded = F.pad(image.float(), (0, width - size[1], 0, height - size[0]))[None]
        boxes, scores, labels, probs = self.run(padded, torch.tensor(size), torch.tensor([threshold]))
        if any(not 0 <= label < self.config.num_classes for label in labels.tolist()):
            raise UserError(
                f"{self.path} finds more classes than the {self.config.num_classes} of its metadata", METADATA.fix
            )
        return Detections(boxes, scores, labels, size, probs)
