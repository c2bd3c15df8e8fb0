"""Forms of attention: the framework's kernel, and R as extra channels, in a kernel or by products on pieces.

Queries get their position terms Q_i . R_ij as channels and keys a one-hot position per axis: the scalar product of both
is E_ij. Pieces of the scores stay in a processor's cache, forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from openmvit.block_config import Size
from openmvit.nn.fast.gradients import differentiable
from openmvit.nn.grid import rows
from openmvit.nn.relative import Groups, Position, query_terms, relative_bias

Cls = tuple[Tensor, Tensor] | None
"""Key and value of the class token, `[B, 1, h, c]` each."""
How = tuple[Groups, Size, float]
"""Axis of each R, grid of the keys, and the factor of E."""

PIECE = 2**21
"""Bytes of scores for each thread that are held at a time, chosen by measurement (benchmarks/NOTES.md)."""
BLOCK = 64
"""Rows that pieces of one matrix are multiples of, so that products of odd sizes are few."""
MOST_THREADS = 8
"""Threads that pieces grow for: more share the pieces of eight."""


def by_kernel(q: Tensor, k: Tensor, v: Tensor, position: Position | None, cls: Cls, mask: Tensor | None) -> Tensor:
    """`ops.attend` by the framework's kernel, with E of all pairs written out."""
    k_cls, v_cls = cls or (None, None)
    bias = None if position is None else relative_bias(q, k, position)
    if bias is not None and cls is not None:
        bias = F.pad(bias, (1, 0))
    if mask is not None:
        hidden = ~mask.repeat(q.shape[0] // mask.shape[0], 1, 1)[:, None]
        bias = q.new_zeros(hidden.shape) if bias is None else bias
        bias = bias.masked_fill(hidden, float("-inf"))
    queries, keys, values = (t.transpose(1, 2) for t in (rows(q), rows(k, k_cls), rows(v, v_cls)))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return out.transpose(1, 2).unflatten(1, q.shape[1:-2])


def in_channels(q: Tensor, k: Tensor, v: Tensor, position: Position, cls: Cls, mask: None) -> Tensor:
    """`ops.attend` by the framework's kernel without E, so that no matrix `[Lq, Lk]` is ever held.

    A fused kernel then needs memory that is linear in the tokens.
    """
    k_grid, channels, (k_cls, v_cls) = k.shape[1:-2], q.shape[-1], cls or (None, None)
    terms = query_terms(q, position.of_queries, position.groups)
    one_hot = key_indicators(k_grid, position.groups, position.scale, k)
    q, k, v = (t.transpose(1, 2) for t in (rows(q), rows(k, k_cls), rows(v, v_cls)))  # [B, h, L, c]
    # The fused kernels are at their best where rows of q, k and v are equally wide and multiples of 16 bytes.
    extra = -(channels + one_hot.shape[1]) % 8
    one_hot = F.pad(one_hot, (0, extra, k.shape[-2] - one_hot.shape[0], 0)).expand(*k.shape[:2], -1, -1)
    wide_q = torch.cat([q, *(t.flatten(2, -2).to(q.dtype) for t in terms), q.new_zeros(*q.shape[:-1], extra)], dim=-1)
    wide_k = torch.cat([k * channels**-0.5, one_hot], dim=-1)
    wide_v = F.pad(v, (0, wide_k.shape[-1] - channels))
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, scale=1.0)[..., :channels]
    return out.transpose(1, 2).unflatten(1, terms[0].shape[2:-1])


def by_products(q: Tensor, k: Tensor, v: Tensor, position: Position | None, cls: Cls, mask: None) -> Tensor:
    """`ops.attend` by two products, with memory that grows with the tokens and not with their pairs.

    Scores exist by pieces, and the backward pass computes them and the terms again.
    """
    if has_torch_function((q, k, v)):  # whoever watches the library's calls sees this one too
        return handle_torch_function(by_products, (q, k, v), q, k, v, position, cls, mask)
    q_grid, k_grid, (k_cls, v_cls) = q.shape[1:-2], k.shape[1:-2], cls or (None, None)
    groups, scale, r = ((), 1.0, []) if position is None else (position.groups, position.scale, position.of_queries)
    how, k, v = (groups, k_grid, scale), rows(k, k_cls), rows(v, v_cls)
    q, k = q.to(v.dtype), k.to(v.dtype)
    # A compiler has its own ways to save memory, and a graph that is exported has no pieces.
    compiling = torch.compiler.is_compiling()
    out = _whole(how, q, k, v, r) if compiling else _Products.apply(how, q, k, v, *r)
    return out.unflatten(1, q_grid)


def key_indicators(k_grid: Size, groups: Groups, scale: float, like: Tensor) -> Tensor:
    """One-hot position of every key along the axis of each group of one, times a scale, in the dtype of `like`.

    The scalar product of a row with a query's `query_terms` is what `write_out` gives.

    Returns:
        `[prod(k_grid), sum of the axes' sizes]`.
    """
    parts = []
    for (axis,) in groups:
        size, before, after = k_grid[axis], (1,) * axis, (1,) * (len(k_grid) - axis - 1)
        eye = torch.eye(size, dtype=like.dtype, device=like.device)
        parts.append(eye.view(*before, size, *after, size).expand(*k_grid, size))
    one_hot = torch.cat(parts, dim=-1).flatten(0, -2)
    return one_hot if scale == 1 else one_hot * scale


def _whole(how: How, q: Tensor, k: Tensor, v: Tensor, r: Sequence[Tensor]) -> Tensor:
    """The same with all scores at once, by operators that have a gradient of any order."""
    scores = _queries(q, r, how[0]) @ _keys(k, *how).mT
    return _heads_last(scores.softmax(-1) @ v.transpose(1, 2).flatten(0, 1), q)


def _queries(q: Tensor, r: Sequence[Tensor], groups: Groups) -> Tensor:
    """`[B * h, Lq, c + channels]`."""
    terms = query_terms(q, r, groups)
    return torch.cat([q.flatten(1, -3).transpose(1, 2), *(t.flatten(2, -2) for t in terms)], dim=-1).flatten(0, 1)


def _keys(k: Tensor, groups: Groups, k_grid: Size, scale: float) -> Tensor:
    """`[B * h, Lk, c + channels]`, scaled by c ** -0.5, since keys are fewer; a class row has zeros as its position."""
    k = k.transpose(1, 2) * k.shape[-1] ** -0.5
    if groups:
        one_hot = F.pad(key_indicators(k_grid, groups, scale, k), (0, 0, k.shape[-2] - prod(k_grid), 0))
        k = torch.cat([k, one_hot.expand(*k.shape[:2], -1, -1)], dim=-1)
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
    batch, queries, of_query = *q.shape[:2], k.shape[1] * q.element_size()
    threads = min(torch.get_num_threads(), MOST_THREADS)
    most = threads * PIECE
    if 0 < queries * of_query <= PIECE // 2:
        step = _share(batch, most // (queries * of_query), threads)
        for first in range(0, batch, step):
            yield slice(first, first + step), slice(queries)
        return
    step = _share(queries, most // max(1, of_query), BLOCK)
    for one in range(batch):
        for first in range(0, queries, step):
            yield one, slice(first, min(first + step, queries))


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
    return torch.softmax(scores := q @ k.mT, dim=-1, out=scores)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for some, part in _pieces(q, k):
        torch.matmul(_weights(q[some, part], k[some]), v[some], out=out[some, part])
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

    for some, part in pieces:
        weights = _weights(q[some, part], k[some])
        if of_v is not None:
            add(of_v[some], weights.mT, grad[some, part])
        if of_q is None and of_k is None:
            continue
        of_weights = grad[some, part] @ v[some].mT
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, q.dtype)
        if of_q is not None:
            torch.matmul(of_scores, k[some], out=of_q[some, part])
        if of_k is not None:
            add(of_k[some], of_scores.mT, q[some, part][..., :channels])
    return of_q, of_k, of_v


class _Products(torch.autograd.Function):
    # Not in two parts: the library would look the signature up at every call. No transform of `torch.func` comes here.
    @staticmethod
    def forward(ctx: Any, how: How, q: Tensor, k: Tensor, v: Tensor, *r: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(q, k, v, *r)
        with torch.autocast(q.device.type, enabled=False):
            return _heads_last(_forward(_queries(q, r, how[0]), _keys(k, *how), _heads_first(v)), q)

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
    q, k, v, *r = tensors
    return differentiable(_whole(how, q, k, v, r), tensors, needed, grad)


def _gradients(how: How, tensors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]) -> Iterator[Tensor | None]:
    q, k, v, *r = (t.detach().requires_grad_(one) for t, one in zip(tensors, needed, strict=True))
    queries, behind = _queries(q, r, how[0]), [t for t in (q, *r) if t.requires_grad]
    with torch.no_grad():
        of_queries, of_k, of_v = _backward(
            queries.detach(), _keys(k, *how), _heads_first(v), _heads_first(grad), (bool(behind), *needed[1:3])
        )
    found = iter(torch.autograd.grad(queries, behind, of_queries) if behind else ())
    of_q = next(found) if needed[0] else None
    if of_k is not None:  # scaled, cast and put in the order of k by one pass
        of_k = torch.mul(_heads_last(of_k, q), q.shape[-1] ** -0.5, out=torch.empty_like(k))
    if of_v is not None:
        of_v = torch.empty_like(v).copy_(_heads_last(of_v, q))
    yield from (of_q, of_k, of_v, *(next(found) if t.requires_grad else None for t in r))
