"""What a detector finds in one picture, and how it moves to another size of the same picture."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openmvit.detection import boxes as geometry
from openmvit.detection.masks import paste_masks
from openmvit.errors import UserError

Target = dict[str, Any]
"""Objects of one training picture, in pixels of the network's input: `boxes` float32 `[N, 4]`, `labels` int64 `[N]`,
and `masks`, bool `[N, h, w]` or a list of N lists of polygons (float64 arrays x0 y0 x1 y1 ...). N may be 0."""


@dataclass(frozen=True)
class Detections:
    """Objects found in one picture, best first.

    Args:
        boxes: float32 `[D, 4]`, x0 y0 x1 y1, continuous pixels of a picture of `size`.
        scores: float32 `[D]`, 0..1.
        labels: int64 `[D]`, 0-based classes.
        size: `(h, w)`.
        mask_probs: float32 `[D, 28, 28]`, 0..1, stretched over the boxes; None if no masks were asked for.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: tuple[int, int]
    mask_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Detections:
        """Those of some rows: indices, or bool `[D]`."""
        probs = None if self.mask_probs is None else self.mask_probs[rows]
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.size, probs)

    def masks(self, threshold: float = 0.5) -> Tensor:
        """The pixels of each object, bool `[D, h, w]`.

        Raises:
            UserError: if masks were not asked for.
        """
        if self.mask_probs is None:
            raise UserError("These detections have boxes only", "Ask the detector for masks too")
        return paste_masks(self.mask_probs, self.boxes, self.size, threshold)

    def to(self, device: torch.device | str) -> Detections:
        """The same on a device."""
        probs = None if self.mask_probs is None else self.mask_probs.to(device)
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), self.size, probs)

    def rescaled(self, size: tuple[int, int]) -> Detections:
        """The same objects in the picture of another size `(h, w)`: boxes end at its edges, and empty ones are gone."""
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        scaled = self.boxes.clone()
        scaled[:, 0::2] *= across
        scaled[:, 1::2] *= down
        moved = dataclasses.replace(self, boxes=geometry.clip(scaled, size), size=size)
        return moved[geometry.nonempty(moved.boxes)]
