"""Where a token is: absolute tables, added once, and the resizing of every kind of table between grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.block_config import Size


def resize_table(table: Tensor, length: int) -> Tensor:
    """Relative table `[L, c]` resampled linearly to `[length, c]`, as the authors do at run time and at load."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T


def resize_grid(table: Tensor, grid: Size) -> Tensor:
    """Absolute table `[1, *grid0, C]` resampled to `[1, *grid, C]` where the grids differ."""
    return table if table.shape[1:-1] == grid else interpolate_grid(table, grid)


def interpolate_grid(table: Tensor, grid: Size) -> Tensor:
    """`[1, *grid0, C]` -> `[1, *grid, C]`: linear on one axis, bicubic on two, trilinear on three."""
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(grid)]
    return F.interpolate(table.movedim(-1, 1), size=grid, mode=mode, align_corners=False).movedim(1, -1)


def sincos_table(grid: Size, dim: int) -> Tensor:
    """Fixed sine and cosine table `[1, *grid, dim]`.

    Two axes share the channels equally, the last axis first; with three the first has a quarter and the two others
    share the rest. Source: facebookresearch/SlowFast, fixed 3-D table.
    """
    if len(grid) == 3:
        time = _sincos(grid[0], dim // 4)[:, None, None].expand(*grid, -1)
        space = sincos_table(grid[1:], dim - dim // 4).expand(*grid, -1)
        return torch.cat([time, space], dim=-1)[None]
    parts = [
        _sincos(n, dim // len(grid)).view(*(n if a == i else 1 for a in range(len(grid))), -1).expand(*grid, -1)
        for i, n in enumerate(grid)
    ]
    return torch.cat(parts[::-1], dim=-1)[None]


def _sincos(length: int, dim: int) -> Tensor:
    rates = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
