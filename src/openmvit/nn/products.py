"""Softmax attention as two matrix products on pieces that stay in a processor's cache; forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 2**20
"""Bytes of scores held at a time: about what the second level of a core's cache takes."""


def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T) v` without scale; memory grows with the tokens, not with their pairs.

    The backward pass computes the scores again, and in the keys only the channels that values have get a gradient: the
    rest of them, if there is any, must be constants (see `attend_in_channels`).

    Args:
        q: `[N, Lq, d]`. k: `[N, Lk, d]`. v: `[N, Lk, c]` with c <= d. All contiguous and of one type.
    Returns:
        `[N, Lq, c]`.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return _Products.apply(q, k, v)
    return _forward(q, k, v)


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
    with torch.no_grad():
        for some, rows in _pieces(q, k):
            torch.matmul(_weights(q[some, rows], k[some]), v[some], out=out[some, rows])
    return out


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return _forward(q, k, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            return _backward(q, k, v, out, grad.contiguous())


def _backward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = v.shape[-1]
    # Sums over pieces, and over channels, are kept in at least float32.
    wide = torch.promote_types(q.dtype, torch.float32)
    of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    # What a row of weights gives back through its softmax is the same for all keys, and needs no pairs.
    shared = (grad * out).sum(-1, keepdim=True, dtype=wide).to(q.dtype)
    for some, rows in _pieces(q, k):
        weights = _weights(q[some, rows], k[some])
        of_v[some] += weights.mT @ grad[some, rows]
        of_scores = (grad[some, rows] @ v[some].mT).sub_(shared[some, rows]).mul_(weights)
        of_q[some, rows] = of_scores @ k[some]
        of_k[some][..., :channels] += of_scores.mT @ q[some, rows][..., :channels]
    return of_q, of_k.to(k.dtype), of_v.to(v.dtype)
