"""Non-maximum suppression within groups, in eager mode and in graphs."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import ops

from openmvit.nn.fast.tracing import is_exporting

_TILES = 64
"""Groups side by side in one row of tiles."""


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, limit: int) -> Tensor:
    """Which boxes stay when each takes out the worse ones of its group that it overlaps.

    Args:
        boxes: `[N, 4]` inside a picture, without negative coordinates.
        scores: `[N]`.
        groups: int64 `[N]`, from 0; boxes of different groups leave each other alone.
        overlap: above it the worse of two boxes goes.
        limit: boxes that stay at most.
    Returns:
        int64 row numbers, best first.
    """
    if not is_exporting():
        return ops.batched_nms(boxes, scores, groups, overlap)[:limit]
    # A graph has no loop over groups and no choice by their number: each gets a tile of the plane to itself. Tiles in
    # rows keep coordinates, and so their rounding, small.
    side = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    column, row = groups % _TILES, groups // _TILES
    corner = torch.stack([column, row, column, row], dim=1).to(boxes.dtype) * side
    keep = ops.nms(boxes + corner, scores, overlap)
    return keep[torch.arange(keep.shape[0], device=keep.device) < limit]
