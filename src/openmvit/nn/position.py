"""Where a token is: absolute tables added once, and the decomposed relative term of attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.config import Size


def relative_index(q_size: int, k_size: int) -> Tensor:
    """Row of the relative table for every query and key position of one axis, `[Q, K]` int64 on the CPU.

    Distances are counted in tokens of the finer of the two grids: i * rq - j * rk + (K - 1) * rk with
    rq = max(K / Q, 1) and rk = max(Q / K, 1), truncated. Where one size divides the other this is integer arithmetic.
    For the rest the authors' float32 order decides the truncation, and released weights rest on it (78 queries on 10
    keys: 103 of 780 indices differ from exact arithmetic), so it is kept as it is.

    Source: facebookresearch/SlowFast, decomposed relative position.
    """
    if k_size % q_size == 0 or q_size % k_size == 0:
        q_ratio, k_ratio = max(k_size // q_size, 1), max(q_size // k_size, 1)
        i, j = torch.arange(q_size)[:, None], torch.arange(k_size)[None, :]
        return i * q_ratio - j * k_ratio + (k_size - 1) * k_ratio
    q_ratio, k_ratio = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    i = torch.arange(q_size, dtype=torch.float32)[:, None] * q_ratio
    j = torch.arange(k_size, dtype=torch.float32)[None, :] * k_ratio
    return ((i - j) + (k_size - 1) * k_ratio).long()


@lru_cache(maxsize=256)
def _cached_index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    # A tensor made in inference mode could never again take part in training.
    with torch.inference_mode(False):
        return relative_index(q_size, k_size).to(device)


def resize_table(table: Tensor, length: int) -> Tensor:
    """Relative table `[L, c]` resampled linearly to `[length, c]`, as the authors do at run time and at load."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T


def relative_rows(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """Embedding of every query and key position of one axis: `[L, c] -> [Q, K, c]`; the table is resized to fit."""
    table = resize_table(table, 2 * max(q_size, k_size) - 1)
    if torch.compiler.is_compiling():  # sizes may be symbols there, and a cache would pin tensors to a graph
        return table[relative_index(q_size, k_size).to(table.device)]
    return table[_cached_index(q_size, k_size, table.device)]


def axis_terms(q: Tensor, tables: Sequence[Tensor], k_grid: Size) -> list[Tensor]:
    """Position term of every query with every key position of each axis.

    The query enters *unscaled*, as in the released code; the paper divides this term by sqrt(c) too.

    Args:
        q: pooled and normed queries, `[B, *q_grid, h, c]`.
        tables: `[L, c]` per axis, coarsest axis first; resized when a grid differs from training.
        k_grid: tokens of the keys along each axis.
    Returns:
        per axis `[B, h, *q_grid, K]`.
    Source: MViTv2 (Li et al., 2022), equation 4.
    """
    axes = "xyz"[: len(k_grid)]
    terms = []
    for axis, table, q_size, k_size in zip(axes, tables, q.shape[1:-2], k_grid, strict=True):
        rows = relative_rows(table, q_size, k_size)
        terms.append(torch.einsum(f"b{axes}hc,{axis}kc->bh{axes}k", q, rows))
    return terms


def decomposed_bias(terms: Sequence[Tensor]) -> Tensor:
    """Position term of the attention logits, the sum of `axis_terms`: `[B, h, prod(q_grid), prod(k_grid)]`."""
    ndim = len(terms)
    bias: Tensor | None = None
    for i, term in enumerate(terms):
        term = term.view(*term.shape[:-1], *(term.shape[-1] if a == i else 1 for a in range(ndim)))
        bias = term if bias is None else bias + term
    assert bias is not None
    return bias.flatten(2, 1 + ndim).flatten(3)


def key_indicators(k_grid: Size, like: Tensor) -> Tensor:
    """One-hot position of every key along each axis, `[prod(k_grid), sum(k_grid)]`, in the type of `like`.

    The scalar product of a row with a query's `axis_terms` is its `decomposed_bias`.
    """
    parts = []
    for i, size in enumerate(k_grid):
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        eye = eye.view(*(size if a == i else 1 for a in range(len(k_grid))), size)
        parts.append(eye.expand(*k_grid, size))
    return torch.cat(parts, dim=-1).flatten(0, -2)


def resize_grid(table: Tensor, grid: Size) -> Tensor:
    """Absolute table `[1, *grid0, C]` resampled to `[1, *grid, C]`.

    Linear on one axis, bicubic on two, trilinear on three.
    """
    if table.shape[1:-1] == grid:
        return table
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
