"""Convolution and pooling on channels-last grids, by number of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.block_config import Size

Tokens = tuple[Tensor, Tensor | None]
"""A grid `[B, *grid, C]` and the class token `[B, 1, C]` beside it, where there is one."""

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def each(function: Callable[[Tensor], Tensor], x: Tensor, cls: Tensor | None) -> Tokens:
    """Apply one function to the grid and to the class token, where there is one."""
    return function(x), None if cls is None else function(cls)


def rows(x: Tensor, cls: Tensor | None = None) -> Tensor:
    """A grid of heads `[B, *grid, h, c]` as rows `[B, L, h, c]`, the class row `[B, 1, h, c]` first."""
    return x.flatten(1, -3) if cls is None else torch.cat([cls, x.flatten(1, -3)], dim=1)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size, padding: Size, groups: int = 1) -> Tensor:
    """Convolution of a channels-last grid.

    Args:
        x: `[B, *grid, C]`.
        weight: `[C_out, C / groups, *kernel]`.
    Returns:
        `[B, *grid_out, C_out]`, contiguous.
    """
    # A contiguous channels-last grid seen channels-first is what the library calls channels_last: no copy is made.
    layer = _CONV[weight.dim() - 2]
    return layer(x.movedim(-1, 1), weight, bias, stride, padding, 1, groups).movedim(1, -1).contiguous()


def max_pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Max pool of `[B, *grid, C]`, padding kernel // 2."""
    padding = [k // 2 for k in kernel]
    return _MAX[len(kernel)](x.movedim(-1, 1), kernel, stride, padding).movedim(1, -1).contiguous()


def avg_pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Average pool of `[B, *grid, C]`, padding kernel // 2; the padding counts, as in the released code."""
    # Padded by hand: the library's own padding refuses clips with fewer frames than the kernel.
    x = F.pad(x, [0, 0, *(k // 2 for k in reversed(kernel) for _ in range(2))])
    return _AVG[len(kernel)](x.movedim(-1, 1), kernel, stride).movedim(1, -1).contiguous()


def partition(x: Tensor, window: Size, shifted: bool = False) -> Tensor:
    """Cut a grid into windows, padded with zeros at the end of each axis.

    Args:
        x: `[B, *grid, ...]`.
        shifted: move the padded grid back by half a window first, round its ends, on axes with several windows (Swin).
    Returns:
        `[B * windows, *window, ...]`, the windows of a sample in row-major order.
    """
    ndim, grid = len(window), x.shape[1 : 1 + len(window)]
    counts = _counts(grid, window)
    padding = [c * w - n for c, w, n in zip(counts, window, grid, strict=True)]
    x = F.pad(x, [0] * 2 * (x.dim() - 1 - ndim) + [p for n in reversed(padding) for p in (0, n)])
    if shifted:
        x = _roll(x, window, -1)
    for axis, (count, side) in enumerate(zip(counts, window, strict=True)):
        x = x.unflatten(1 + 2 * axis, (count, side))
    x = x.movedim(tuple(range(1, 1 + 2 * ndim, 2)), tuple(range(1, 1 + ndim)))
    # A copy in any case, so that an exporter need not ask whether a count is 1.
    return x.clone(memory_format=torch.contiguous_format).flatten(0, ndim)


def merge(x: Tensor, window: Size, grid: Size, shifted: bool = False) -> Tensor:
    """Inverse of `partition`: `[B * windows, *window, ...]` -> `[B, *grid, ...]`."""
    ndim, counts = len(window), _counts(grid, window)
    x = x.unflatten(0, (x.shape[0] // prod(counts), *counts))
    x = x.movedim(tuple(range(1, 1 + ndim)), tuple(range(1, 1 + 2 * ndim, 2)))
    x = x.clone(memory_format=torch.contiguous_format)
    for axis in range(ndim):
        x = x.flatten(1 + axis, 2 + axis)
    if shifted:
        x = _roll(x, window, 1)
    return x[(slice(None), *(slice(n) for n in grid))]


def _counts(grid: Sequence[int], window: Size) -> Size:
    """Windows along each axis, the padded ones too."""
    return tuple((n + w - 1) // w for n, w in zip(grid, window, strict=True))


def _roll(x: Tensor, window: Size, sign: int) -> Tensor:
    steps = [sign * (w // 2) if n > w else 0 for n, w in zip(x.shape[1:], window, strict=False)]
    return x.roll(steps, tuple(range(1, 1 + len(window))))


def same_region(grid: Size, window: Size, k_window: Size, device: torch.device) -> Tensor:
    """Which queries and keys of a shifted window were neighbours before the grid was rolled round its ends.

    Args:
        grid, window: of the queries. k_window: of the keys, whose grid has as many windows.
    Returns:
        bool `[windows, prod(window), prod(k_window)]`.
    """
    counts = _counts(grid, window)
    rows = []
    for sides in (window, k_window):
        regions = torch.zeros(1, *(1,) * len(grid), dtype=torch.int64, device=device)
        for axis, (count, side) in enumerate(zip(counts, sides, strict=True)):
            place = torch.arange(count * side, device=device)
            # Only the last window holds tokens from both ends of the axis.
            wrapped = (place >= count * side - side // 2) & (count > 1)
            regions = 2 * regions + wrapped.view([-1 if a == axis + 1 else 1 for a in range(1 + len(grid))])
        rows.append(partition(regions, sides).flatten(1))
    return rows[0][:, :, None] == rows[1][:, None, :]
