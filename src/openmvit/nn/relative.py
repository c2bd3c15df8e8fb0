"""Where tokens are to each other: learned terms of attention, per axis (decomposed) or for several axes (joint).

A *group* is the axes that share a table: `((0,), (1,))` is the decomposed form of an image, `((0, 1),)` the joint one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from openmvit.block_config import Size
from openmvit.nn.position import resize_grid, resize_table

Groups = tuple[tuple[int, ...], ...]
# Letters of einsum for the axes of queries and keys; b, h and c are batch, heads and channels.
_Q, _K = "xyz", "klm"


class Position(NamedTuple):
    """R of equation (4) and of its forms for keys and values: `[*q_sizes, *k_sizes, c]` per group of axes."""

    groups: Groups
    scale: float
    """Factor of E; 1 in the released networks, which scale Q K^T alone."""
    of_queries: list[Tensor]
    of_keys: list[Tensor]
    of_values: list[Tensor]
    windows: int
    """How many rows of the batch are one sample."""


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


def relative_rows(table: Tensor, q_grid: Size, k_grid: Size, axes: tuple[int, ...]) -> Tensor:
    """R: a row of the table for every query and key position along some axes.

    Args:
        table: `[*lengths, c]`; resized first where the grids differ from those of training.
    Returns:
        `[*q_sizes, *k_sizes, c]`, with the sizes of these axes.
    """
    lengths, index = [], []
    for axis in axes:
        lengths.append(2 * max(q_grid[axis], k_grid[axis]) - 1)
        index.append(kept_index(q_grid[axis], k_grid[axis], table.device))
    table = resize_table(table, lengths[0]) if len(axes) == 1 else resize_grid(table[None], tuple(lengths))[0]
    return gather_rows(table, index)


@lru_cache(maxsize=256)
def kept_index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    """`relative_index` on a device, made once."""
    # A tensor made in inference mode could never again take part in training.
    with torch.inference_mode(False):
        return relative_index(q_size, k_size).to(device)


def gather_rows(table: Tensor, index: Sequence[Tensor]) -> Tensor:
    """`[*lengths, c]` -> `[*q_sizes, *k_sizes, c]`, by an index `[Q, K]` of each axis."""
    if len(index) == 1:
        return table.index_select(0, index[0].flatten()).unflatten(0, index[0].shape)
    ndim, places = len(index), []
    for axis, one in enumerate(index):
        shape = [1] * 2 * ndim
        shape[axis], shape[ndim + axis] = one.shape
        places.append(one.view(shape))
    return table[tuple(places)]


def query_terms(q: Tensor, rows: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """Position term of every query with every key position of a group of axes: `Q_i . R_ij`.

    The query enters *unscaled*, as in the released code; the paper divides this term by sqrt(c) too.

    Args:
        q: pooled and normed queries, `[B, *q_grid, h, c]`.
        rows: R, `[*q_sizes, *k_sizes, c]` per group.
    Returns:
        per group `[B, h, *q_grid, *k_sizes]`, with the key sizes of its axes.
    Source: MViTv2 (Li et al., 2022), equation 4.
    """
    axes, terms = _Q[: q.dim() - 3], []
    for r, group in zip(rows, groups, strict=bool(rows)):
        own_q, own_k = _letters(group)
        terms.append(torch.einsum(f"b{axes}hc,{own_q}{own_k}c->bh{axes}{own_k}", q, r.to(q.dtype)))
    return terms


def key_terms(k: Tensor, rows: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """Position term of every key with every query position of a group of axes: `R_ij . K_j`.

    Args:
        k: pooled and normed keys, `[B, *k_grid, h, c]`.
    Returns:
        per group `[B, h, *q_sizes, *k_grid]`, with the query sizes of its axes.
    Source: MViTv2 (Li et al., 2022), appendix A.4.
    """
    axes, terms = _K[: k.dim() - 3], []
    for r, group in zip(rows, groups, strict=bool(rows)):
        own_q, own_k = _letters(group)
        terms.append(torch.einsum(f"b{axes}hc,{own_q}{own_k}c->bh{own_q}{axes}", k, r.to(k.dtype)))
    return terms


def relative_bias(q: Tensor, k: Tensor, position: Position) -> Tensor:
    """E of all pairs of queries and keys: `[B, *q_grid, h, c]` and `[B, *k_grid, h, c]` -> `[B, h, Lq, Lk]`."""
    of_queries = query_terms(q, position.of_queries, position.groups)
    of_keys = key_terms(k, position.of_keys, position.groups)
    if position.scale != 1:
        of_queries, of_keys = ([t * position.scale for t in terms] for terms in (of_queries, of_keys))
    return write_out(of_queries, of_keys, position.groups, q.shape[1:-2], k.shape[1:-2])


def write_out(
    of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], groups: Groups, q_grid: Size, k_grid: Size
) -> Tensor:
    """Sum of all terms, for every pair: `[B, h, prod(q_grid), prod(k_grid)]`."""
    total, ndim = None, len(q_grid)
    for other_side, terms in ((2 + ndim, of_queries), (2, of_keys)):
        for term, group in zip(terms, groups, strict=bool(terms)):
            for axis in range(ndim):  # the sum is broadcast over axes of the other side that a term knows nothing of
                if axis not in group:
                    term = term.unsqueeze(other_side + axis)
            # Contiguous, or the sum, which is as large as all pairs, would have to be copied into the order of pairs.
            total = term.contiguous() if total is None else total + term.contiguous()
    assert total is not None
    return total.expand(-1, -1, *q_grid, *k_grid).flatten(2, 1 + ndim).flatten(3)


def value_term(weights: Tensor, rows: Sequence[Tensor], groups: Groups) -> Tensor:
    """What positions add to the output: `sum_j A_ij R_ij`.

    Args:
        weights: A, attention after the softmax, `[B, h, *q_grid, *k_grid]`.
    Returns:
        `[B, *q_grid, h, c]`.
    Source: MViTv2 (Li et al., 2022), appendix A.4.
    """
    ndim = (weights.dim() - 2) // 2
    total: Tensor | None = None
    for r, group in zip(rows, groups, strict=True):
        # Summed over the other axes first: one small product per group, and nothing as large as pairs times channels.
        others = [2 + ndim + a for a in range(ndim) if a not in group]
        summed = weights.sum(others) if others else weights
        own_q, own_k = _letters(group)
        term = torch.einsum(f"bh{_Q[:ndim]}{own_k},{own_q}{own_k}c->b{_Q[:ndim]}hc", summed, r.to(weights.dtype))
        total = term if total is None else total + term
    assert total is not None
    return total


def _letters(group: tuple[int, ...]) -> tuple[str, str]:
    return "".join(map(_Q.__getitem__, group)), "".join(map(_K.__getitem__, group))
