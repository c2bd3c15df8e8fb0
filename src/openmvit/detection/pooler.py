"""Features of boxes: each box is read from the map whose cells suit its size, aligned to the half pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision import ops

from openmvit.errors import UserError

_REFERENCE_SIDE = 224
"""Side in pixels of the boxes that begin the level below."""
_REFERENCE_LEVEL = 4
"""Base-two logarithm of the stride of their map."""


def level_of(boxes: Tensor, lowest: int, highest: int) -> Tensor:
    """Which of the maps with strides `2**lowest .. 2**highest` each box is pooled from.

    Args:
        boxes: float32 `[N, 4]`, x0 y0 x1 y1 in pixels.

    Returns:
        int64 `[N]`, 0 for the finest map. Boxes without area, or with coordinates that are no numbers, go there.

    Source: Feature Pyramid Networks (Lin et al. 2017), equation 1; the summand 1e-8 is that of the released detectors.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    side = torch.nan_to_num(area, nan=0.0).clamp(min=0).sqrt()
    level = torch.floor(_REFERENCE_LEVEL + torch.log2(side / _REFERENCE_SIDE + 1e-8))
    return level.clamp(lowest, highest).to(torch.int64) - lowest


class RoiPooler(nn.Module):
    """Cuts `size` x `size` cells out of one of several maps for each box; coordinates stay float32 under autocast.

    Args:
        size: cells per side of the result.
        strides: pixels per cell of each map, finest first; each twice the one before, the first a power of two.

    Raises:
        UserError: if the strides are not so.
    """

    def __init__(self, size: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        lowest = round(math.log2(strides[0]))
        if any(stride != 2 ** (lowest + i) for i, stride in enumerate(strides)) and len(strides) > 1:
            raise UserError(
                f"Boxes cannot be pooled from maps with strides {strides}",
                "Each must be twice the one before, from 2**n",
            )
        self.size, self.lowest = size, lowest
        self.strides: tuple[int, ...] = strides

    def forward(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Rows of image 0, then of image 1, and so on.

        Args:
            maps: `[B, C, h, w]` each, as many as strides.
            boxes: `[R, 4]` per image, R may be 0.

        Returns:
            `[sum of R, C, size, size]` in the maps' dtype.
        """
        if len(maps) != len(self.strides):
            raise UserError(f"{len(maps)} maps are given to boxes pooled from {len(self.strides)}", "Give as many")
        work = torch.promote_types(maps[0].dtype, torch.float32)
        image = torch.cat([b.new_full([b.shape[0]], i, dtype=torch.float32) for i, b in enumerate(boxes)])
        # A coordinate that is no number would ask the kernel for an endless grid of samples.
        flat = torch.nan_to_num(torch.cat(boxes).detach().float(), nan=0.0, posinf=0.0, neginf=0.0)
        rows = torch.cat([image[:, None], flat], dim=1).to(work)
        with torch.autocast(maps[0].device.type, enabled=False):
            if len(maps) == 1:
                return self._pool(maps[0], rows, self.strides[0])
            level = level_of(flat, self.lowest, self.lowest + len(maps) - 1)
            chosen = [torch.nonzero(level == i).squeeze(1) for i in range(len(maps))]
            # Maps that no box is read from are pooled too: their parameters get a gradient, zero.
            parts = [self._pool(m, rows[c], s) for m, c, s in zip(maps, chosen, self.strides, strict=True)]
            return torch.cat(parts)[torch.argsort(torch.cat(chosen))]

    def _pool(self, features: Tensor, rows: Tensor, stride: int) -> Tensor:
        pooled = ops.roi_align(features.to(rows.dtype), rows, self.size, 1 / stride, sampling_ratio=0, aligned=True)
        return pooled.to(features.dtype)
