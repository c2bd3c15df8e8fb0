"""Softmax attention with the position term as extra channels: by a fused kernel, or by products on pieces that stay in
a processor's cache, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from openmvit.config import Size
from openmvit.nn.gradients import differentiable
from openmvit.nn.relative import Groups, key_indicators, query_terms

How = tuple[Groups, Size, bool]
"""Axis of each table, grid of the keys, and whether the term is divided by the square root of c."""

PIECE = 2**21
"""Bytes of scores for each thread that are held at a time, chosen by measurement (benchmarks/NOTES.md)."""
BLOCK = 64
"""Rows that pieces of one matrix are multiples of, so that products of odd sizes are few."""
MOST_THREADS = 8
"""Threads that pieces grow for: more share the pieces of eight."""


def attend_in_channels(q: Tensor, k: Tensor, v: Tensor, terms: Sequence[Tensor], position: Tensor) -> Tensor:
    """The same softmax with the position term as extra channels, so that no matrix `[Lq, Lk]` is ever held.

    Queries get their `query_terms` and keys a one-hot position per axis: the scalar product of both is the term. A
    class row in front of the keys has zeros there. A fused kernel then needs memory that is linear in the tokens.

    Args:
        q: `[B, Lq, h, c]`. k, v: `[B, Lk, h, c]`.
        terms: per axis `[B, h, *q_grid, K]`.
        position: `key_indicators`, `[prod(k_grid), sum of K]`.
    Returns:
        `[B, Lq, h, c]`.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    channels = q.shape[-1]
    # The fused kernels are at their best where rows of q, k and v are equally wide and multiples of 16 bytes.
    extra = -(channels + position.shape[1]) % 8
    position = F.pad(position, (0, extra, k.shape[-2] - position.shape[0], 0)).expand(*k.shape[:2], -1, -1)
    q = torch.cat([q, *(t.flatten(2, -2).to(q.dtype) for t in terms), q.new_zeros(*q.shape[:-1], extra)], dim=-1)
    k = torch.cat([k * channels**-0.5, position], dim=-1)
    v = F.pad(v, (0, k.shape[-1] - channels))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :channels].transpose(1, 2)


def attend_by_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Sequence[Tensor] = (),
    groups: Groups = (),
    k_grid: Size = (),
    scaled: bool = False,
) -> Tensor:
    """Softmax attention with the position term as extra channels of queries and keys (see `attend_in_channels`).

    Memory grows with the tokens, not with their pairs: scores exist by pieces, and the backward pass computes them and
    the terms again.

    Args:
        q: `[B, *q_grid, h, c]`. k, v: `[B, Lk, h, c]`, rows of a grid with or without a class row in front.
        tables: of the queries, one per axis, or none.
        groups: the axis of each table.
        scaled: divide the term by the square root of c too.
    Returns:
        `[B, *q_grid, h, c]`.
    """
    if has_torch_function((q, k, v)):  # whoever watches the library's calls sees this one too
        return handle_torch_function(attend_by_products, (q, k, v), q, k, v, tables, groups, k_grid, scaled)
    how, q_grid = (groups, k_grid, scaled), q.shape[1:-2]
    q, k = q.to(v.dtype), k.to(v.dtype)
    # A compiler has its own ways to save memory, and a graph that is exported has no pieces.
    compiling = torch.compiler.is_compiling()
    out = _whole(how, q, k, v, tables) if compiling else _Products.apply(how, q, k, v, *tables)
    return out.unflatten(1, q_grid)


def _whole(how: How, q: Tensor, k: Tensor, v: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """The same with all scores at once, by operators that have a gradient of any order."""
    scores = _queries(q, tables, *how[:2]) @ _keys(k, *how).mT
    return _heads_last(scores.softmax(-1) @ v.transpose(1, 2).flatten(0, 1), q)


def _queries(q: Tensor, tables: Sequence[Tensor], groups: Groups, k_grid: Size) -> Tensor:
    """`[B * h, Lq, c + channels]`."""
    terms = query_terms(q, tables, groups, k_grid)
    return torch.cat([q.flatten(1, -3).transpose(1, 2), *(t.flatten(2, -2) for t in terms)], dim=-1).flatten(0, 1)


def _keys(k: Tensor, groups: Groups, k_grid: Size, scaled: bool) -> Tensor:
    """`[B * h, Lk, c + channels]`, scaled by c ** -0.5, since keys are fewer; a class row has zeros as its position."""
    factor, k = k.shape[-1] ** -0.5, k.transpose(1, 2)
    k = k * factor
    if groups:
        position = key_indicators(k_grid, groups, k) * (factor if scaled else 1.0)
        position = F.pad(position, (0, 0, k.shape[-2] - position.shape[0], 0))
        k = torch.cat([k, position.expand(*k.shape[:2], -1, -1)], dim=-1)
    return k.flatten(0, 1).contiguous()


def _heads_first(x: Tensor) -> Tensor:
    """`[B, L, h, c]` -> `[B * h, L, c]`, contiguous."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _heads_last(x: Tensor, like: Tensor) -> Tensor:
    """`[B * h, L, c]` -> `[B, L, h, c]`, with batch and heads of such a tensor."""
    return x.unflatten(0, (like.shape[0], like.shape[-2])).transpose(1, 2)


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[slice | int, slice]]:
    """Which part of the batch and which queries: equal shares of at most `PIECE` of scores a thread, or one query's.

    A single element of the batch is named by its number: the library copies transposed batches of one, and is slower
    with few large matrices at once than with one after the other.
    """
    batch, queries, keys = *q.shape[:2], k.shape[1]
    threads = min(torch.get_num_threads(), MOST_THREADS)
    most, of_query = threads * PIECE, keys * q.element_size()
    if 0 < queries * of_query <= PIECE // 2:
        step = _share(batch, most // (queries * of_query), threads)
        yield from ((slice(first, first + step), slice(queries)) for first in range(0, batch, step))
        return
    step = _share(queries, most // max(1, of_query), BLOCK)
    for one in range(batch):
        yield from ((one, slice(first, min(first + step, queries))) for first in range(0, queries, step))


def _share(total: int, most: int, unit: int) -> int:
    """Step that passes a total in the fewest steps of at most `most`, nearly equal ones of whole units.

    Where `most` is less than a unit, a unit is 1; a step is at least that.
    """
    if total <= most:
        return max(1, total)
    unit = unit if most >= unit else 1
    units = ceil(total / unit)
    return unit * ceil(units / ceil(units / max(1, most // unit)))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT
    return torch.softmax(scores, dim=-1, out=scores)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for some, rows in _pieces(q, k):
        torch.matmul(_weights(q[some, rows], k[some]), v[some], out=out[some, rows])
    return out


def _backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of queries, of the keys without their position, and of values: those that are needed."""
    channels, pieces = v.shape[-1], [*_pieces(q, k)]
    # Sums over pieces are kept in at least float32; where a piece has all queries there are none.
    at_once = bool(pieces) and pieces[0][1].stop == q.shape[1]
    dtype = q.dtype if at_once else torch.promote_types(q.dtype, torch.float32)
    empty = torch.empty_like if at_once else torch.zeros_like
    of_q = torch.empty_like(q) if needed[0] else None
    of_k, of_v = (empty(v, dtype=dtype) if one else None for one in needed[1:3])

    def add(total: Tensor, a: Tensor, b: Tensor) -> None:
        if at_once:
            torch.matmul(a, b, out=total)
        else:
            total += a @ b

    for some, rows in pieces:
        weights = _weights(q[some, rows], k[some])
        if of_v is not None:
            add(of_v[some], weights.mT, grad[some, rows])
        if of_q is None and of_k is None:
            continue
        of_weights = grad[some, rows] @ v[some].mT
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, q.dtype)
        if of_q is not None:
            torch.matmul(of_scores, k[some], out=of_q[some, rows])
        if of_k is not None:
            add(of_k[some], of_scores.mT, q[some, rows][..., :channels])
    return of_q, of_k, of_v


class _Products(torch.autograd.Function):
    # Not in two parts: the library would look the signature up at every call. No transform of `torch.func` comes here.
    @staticmethod
    def forward(ctx: Any, how: How, q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(q, k, v, *tables)
        with torch.autocast(q.device.type, enabled=False):
            out = _forward(_queries(q, tables, *how[:2]), _keys(k, *how), _heads_first(v))
        return _heads_last(out, q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        needed = ctx.needs_input_grad[1:]
        # Where a gradient of the gradient is to come, every step must have one.
        way = _gradients_of_whole if torch.is_grad_enabled() else _gradients
        with torch.autocast(grad.device.type, enabled=False), torch.enable_grad():
            return None, *way(ctx.how, ctx.saved_tensors, grad, needed)


def _gradients_of_whole(
    how: How, tensors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    q, k, v, *tables = tensors
    return differentiable(_whole(how, q, k, v, tables), tensors, needed, grad)


def _gradients(how: How, tensors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]) -> Iterator[Tensor | None]:
    q, k, v, *tables = (t.detach().requires_grad_(one) for t, one in zip(tensors, needed, strict=True))
    queries, behind = _queries(q, tables, *how[:2]), [t for t in (q, *tables) if t.requires_grad]
    with torch.no_grad():
        of_queries, of_k, of_v = _backward(
            queries.detach(), _keys(k, *how), _heads_first(v), _heads_first(grad), (bool(behind), *needed[1:3])
        )
    found = iter(torch.autograd.grad(queries, behind, of_queries) if behind else ())
    of_q = next(found) if needed[0] else None
    if of_k is not None:  # scaled, narrowed and put in the order of k by one pass
        of_k = torch.mul(_heads_last(of_k, q), q.shape[-1] ** -0.5, out=torch.empty_like(k))
    if of_v is not None:
        of_v = torch.empty_like(v).copy_(_heads_last(of_v, q))
    yield from (of_q, of_k, of_v, *(next(found) if t.requires_grad else None for t in tables))
