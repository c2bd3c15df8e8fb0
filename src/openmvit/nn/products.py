"""Softmax attention as two matrix products on pieces that stay in a processor's cache; forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from openmvit.config import Size
from openmvit.nn.relative import Groups, key_indicators, query_terms

PIECE = 2**20
"""Bytes of scores held at a time: about what the second level of a core's cache takes."""


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
    if torch.compiler.is_compiling():  # a compiler has its own ways to save memory
        scores = _queries(q, tables, *how) @ _keys(k, groups, k_grid).mT
        out = scores.softmax(-1) @ v.transpose(1, 2).flatten(0, 1)
        out = out.unflatten(0, (q.shape[0], q.shape[-2])).transpose(1, 2)
    else:
        out = _Products.apply(how, q, k, v, *tables)
    return out.unflatten(1, q_grid)


def _queries(q: Tensor, tables: Sequence[Tensor], groups: Groups, k_grid: Size, scaled: bool) -> Tensor:
    """`[B * h, Lq, c + channels]`."""
    factor = q.shape[-1] ** -0.5
    parts = [q.flatten(1, -3).transpose(1, 2) * factor]
    parts += [t.flatten(2, -2) * factor if scaled else t.flatten(2, -2) for t in query_terms(q, tables, groups, k_grid)]
    return torch.cat(parts, dim=-1).flatten(0, 1)


def _keys(k: Tensor, groups: Groups, k_grid: Size) -> Tensor:
    """`[B * h, Lk, c + channels]`; a class row has zeros as its position."""
    k = k.transpose(1, 2)
    if groups:
        position = key_indicators(k_grid, groups, k)
        position = F.pad(position, (0, 0, k.shape[-2] - position.shape[0], 0))
        k = torch.cat([k, position.expand(*k.shape[:2], -1, -1)], dim=-1)
    return _heads_first(k)


def _heads_first(x: Tensor) -> Tensor:
    return x.flatten(0, 1).contiguous()


def _pieces(q: Tensor, k: Tensor) -> Iterator[tuple[slice | int, slice]]:
    """Which part of the batch and which queries: at most `PIECE` of scores, or one query's.

    A single element of the batch is named by its number: the library copies transposed batches of one.
    """
    batch, queries, keys = *q.shape[:2], k.shape[1]
    whole = PIECE // (queries * keys * q.element_size())
    if whole > 1:
        for first in range(0, batch, whole):
            yield slice(first, first + whole), slice(queries)
        return
    rows = max(1, PIECE // (keys * q.element_size()))
    for one in range(batch):
        for first in range(0, queries, rows):
            yield one, slice(first, min(first + rows, queries))


def _weights(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT
    return torch.softmax(scores, dim=-1, out=scores)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = q.new_empty(*q.shape[:2], v.shape[-1])
    for some, rows in _pieces(q, k):
        torch.matmul(_weights(q[some, rows], k[some]), v[some], out=out[some, rows])
    return out


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, of the keys without their position, and of values."""
    channels = v.shape[-1]
    # Sums over pieces are kept in at least float32.
    wide = torch.promote_types(q.dtype, torch.float32)
    of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(v, dtype=wide), torch.zeros_like(v, dtype=wide)
    for some, rows in _pieces(q, k):
        weights = _weights(q[some, rows], k[some])
        of_v[some] += weights.mT @ grad[some, rows]
        of_weights = grad[some, rows] @ v[some].mT
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, q.dtype)
        torch.matmul(of_scores, k[some], out=of_q[some, rows])
        of_k[some] += of_scores.mT @ q[some, rows][..., :channels]
    return of_q, of_k.to(k.dtype), of_v.to(v.dtype)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(how: tuple[Groups, Size, bool], q: Tensor, k: Tensor, v: Tensor, *tables: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            keys, values = _keys(k, *how[:2]), _heads_first(v.transpose(1, 2))
            out = _forward(_queries(q, tables, *how), keys, values)
        return out.unflatten(0, (q.shape[0], q.shape[-2])).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.how, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, *tables = (t.detach() for t in ctx.saved_tensors)
        with torch.autocast(q.device.type, enabled=False):
            with torch.enable_grad():
                inputs = [t.requires_grad_() for t in (q, *tables)]
                queries = _queries(q, tables, *ctx.how)
            keys, values = _keys(k, *ctx.how[:2]), _heads_first(v.transpose(1, 2))
            grads = _backward(queries.detach(), keys, values, _heads_first(grad.transpose(1, 2)))
            of_q, *of_tables = torch.autograd.grad(queries, inputs, grads[0])
        of_k, of_v = (g.unflatten(0, (q.shape[0], q.shape[-2])).transpose(1, 2) for g in grads[1:])
        return None, of_q, of_k, of_v, *of_tables
