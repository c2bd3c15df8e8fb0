"""Where tokens are to each other: learned terms of attention, per axis (decomposed) or for several axes (joint).

A *group* is the axes that share a table: `((0,), (1,))` is the decomposed form of an image, `((0, 1),)` the joint one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from openmvit.config import Size
from openmvit.nn.position import resize_grid, resize_table
from openmvit.nn.symbolic import is_symbolic, larger, symbolic_index

Groups = tuple[tuple[int, ...], ...]
# Letters of einsum for the axes of queries and keys; b, h and c are batch, heads and channels.
_Q, _K = "xyz", "klm"


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


def relative_rows(table: Tensor, q_sizes: Size, k_sizes: Size) -> Tensor:
    """Embedding of every query and key position: `[*lengths, c]` -> `[*q_sizes, *k_sizes, c]`; resized to fit."""
    lengths = tuple(2 * larger(q, k) - 1 for q, k in zip(q_sizes, k_sizes, strict=True))
    if len(lengths) == 1:
        index = _index(q_sizes[0], k_sizes[0], table.device)
        return resize_table(table, lengths[0]).index_select(0, index.flatten()).unflatten(0, index.shape)
    places, ndim = [], len(lengths)
    for axis, (q, k) in enumerate(zip(q_sizes, k_sizes, strict=True)):
        shape = [1] * 2 * ndim
        shape[axis], shape[ndim + axis] = q, k
        places.append(_index(q, k, table.device).view(shape))
    return resize_grid(table[None], lengths)[0][tuple(places)]


def _index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    if is_symbolic(q_size, k_size):
        return symbolic_index(q_size, k_size, device)
    if torch.compiler.is_compiling():  # sizes may be symbols there, and a cache would pin tensors to a graph
        if k_size % q_size == 0 or q_size % k_size == 0:
            return symbolic_index(q_size, k_size, device)  # made on the device: a copy has no place in a CUDA graph
        return relative_index(q_size, k_size).to(device)
    return _cached_index(q_size, k_size, device)


def query_terms(q: Tensor, tables: Sequence[Tensor], groups: Groups, k_grid: Size) -> list[Tensor]:
    """Position term of every query with every key position of a group of axes: `q_i . R(i, j)`.

    The query enters *unscaled*, as in the released code; the paper divides this term by sqrt(c) too.

    Args:
        q: pooled and normed queries, `[B, *q_grid, h, c]`.
        tables: `[*lengths, c]` per group; resized when a grid differs from training.
        k_grid: tokens of the keys along each axis.
    Returns:
        per group `[B, h, *q_grid, *k_sizes]`, with the key sizes of its axes.
    Source: MViTv2 (Li et al., 2022), equation 4.
    """
    terms, axes = [], _Q[: len(k_grid)]
    for table, group in zip(tables, groups, strict=True):
        rows = relative_rows(table, *_sizes(group, q.shape[1:-2], k_grid)).to(q.dtype)
        own_q, own_k = _letters(group)
        terms.append(torch.einsum(f"b{axes}hc,{own_q}{own_k}c->bh{axes}{own_k}", q, rows))
    return terms


def key_terms(k: Tensor, tables: Sequence[Tensor], groups: Groups, q_grid: Size) -> list[Tensor]:
    """Position term of every key with every query position of a group of axes: `R(i, j) . k_j`.

    Args:
        k: pooled and normed keys, `[B, *k_grid, h, c]`.
    Returns:
        per group `[B, h, *q_sizes, *k_grid]`, with the query sizes of its axes.
    Source: MViTv2 (Li et al., 2022), appendix A.4.
    """
    terms, axes = [], _K[: len(q_grid)]
    for table, group in zip(tables, groups, strict=True):
        rows = relative_rows(table, *_sizes(group, q_grid, k.shape[1:-2])).to(k.dtype)
        own_q, own_k = _letters(group)
        terms.append(torch.einsum(f"b{axes}hc,{own_q}{own_k}c->bh{own_q}{axes}", k, rows))
    return terms


def write_out(
    of_queries: Sequence[Tensor], of_keys: Sequence[Tensor], groups: Groups, q_grid: Size, k_grid: Size
) -> Tensor:
    """Sum of all terms, for every pair: `[B, h, prod(q_grid), prod(k_grid)]`."""
    total, ndim = None, len(q_grid)
    for term, group in zip(of_queries, groups, strict=len(of_queries) > 0):
        sizes = dict(zip(group, term.shape[2 + ndim :], strict=True))
        # Contiguous, or the sum, which is as large as all pairs, would have to be copied into the order of pairs.
        term = term.contiguous().view(*term.shape[: 2 + ndim], *(sizes.get(a, 1) for a in range(ndim)))
        total = term if total is None else total + term
    for term, group in zip(of_keys, groups, strict=len(of_keys) > 0):
        sizes = dict(zip(group, term.shape[2:], strict=False))
        term = term.view(*term.shape[:2], *(sizes.get(a, 1) for a in range(ndim)), *term.shape[2 + len(group) :])
        total = term if total is None else total + term
    assert total is not None
    return total.expand(-1, -1, *q_grid, *k_grid).flatten(2, 1 + ndim).flatten(3)


def value_term(weights: Tensor, tables: Sequence[Tensor], groups: Groups) -> Tensor:
    """What positions add to the output: `sum_j A_ij R(i, j)`.

    Args:
        weights: attention after the softmax, `[B, h, *q_grid, *k_grid]`.
    Returns:
        `[B, *q_grid, h, c]`.
    Source: MViTv2 (Li et al., 2022), appendix A.4.
    """
    ndim = (weights.dim() - 2) // 2
    q_grid, k_grid = weights.shape[2 : 2 + ndim], weights.shape[2 + ndim :]
    total: Tensor | None = None
    for table, group in zip(tables, groups, strict=True):
        rows = relative_rows(table, *_sizes(group, q_grid, k_grid)).to(weights.dtype)
        # Summed over the other axes first: one small product per group, and nothing as large as pairs times channels.
        others = [2 + ndim + a for a in range(ndim) if a not in group]
        summed = weights.sum(others) if others else weights
        own_q, own_k = _letters(group)
        term = torch.einsum(f"bh{_Q[:ndim]}{own_k},{own_q}{own_k}c->b{_Q[:ndim]}hc", summed, rows)
        total = term if total is None else total + term
    assert total is not None
    return total


def key_indicators(k_grid: Size, groups: Groups, like: Tensor) -> Tensor:
    """One-hot position of every key along the axis of each group of one, in the type of `like`.

    The scalar product of a row with a query's `query_terms` is what `write_out` gives.

    Returns:
        `[prod(k_grid), sum of the axes' sizes]`.
    """
    parts = []
    for (axis,) in groups:
        size = k_grid[axis]
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        parts.append(eye.view(*(size if a == axis else 1 for a in range(len(k_grid))), size).expand(*k_grid, size))
    return torch.cat(parts, dim=-1).flatten(0, -2)


def _sizes(group: tuple[int, ...], q_grid: Sequence[int], k_grid: Sequence[int]) -> tuple[Size, Size]:
    return tuple(q_grid[a] for a in group), tuple(k_grid[a] for a in group)


def _letters(group: tuple[int, ...]) -> tuple[str, str]:
    return "".join(_Q[a] for a in group), "".join(_K[a] for a in group)
