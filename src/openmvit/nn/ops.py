"""The few operations that have faster forms. Each is its plain arithmetic, after one question to `nn/fast/choose`.

`choose` answers with a form that gives the same result on this machine, or with None. `with openmvit.nn.plain():` and
`OPENMVIT_PLAIN=1` make every answer None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.block_config import Size
from openmvit.nn import position as tables
from openmvit.nn import relative
from openmvit.nn.fast import choose
from openmvit.nn.grid import Tokens, conv, each, rows
from openmvit.nn.relative import Position


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Position | None = None,
    cls: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Softmax(Q K^T / sqrt(c) + E) V with E_ij = Q_i . R_ij.

    Args:
        q: `[B, *q_grid, h, c]`. k, v: `[B, *k_grid, h, c]`.
        position: R; without it there is no E.
        cls: key and value of the class token, `[B, 1, h, c]` each: one more key, whose E is 0.
        mask: bool `[windows, Lq, Lk]`, true where a query of the window may see a key; B is a multiple of `windows`.
    Returns:
        `[B, *q_grid, h, c]`.
    Source: MViTv2 (Li et al., 2022), equations 3 and 4, appendix A.4.
    """
    if form := choose.attend(q, k, position, mask):
        return form(q, k, v, position, cls, mask)
    q_grid, k_grid, first = q.shape[1:-2], k.shape[1:-2], 0 if cls is None else 1
    k_cls, v_cls = cls or (None, None)
    # Heads first: [B, h, L, c]
    queries, keys, values = rows(q).transpose(1, 2), rows(k, k_cls).transpose(1, 2), rows(v, v_cls).transpose(1, 2)
    scores = queries * q.shape[-1] ** -0.5 @ keys.mT  # [B, h, Lq, Lk]
    if position is not None and (position.of_queries or position.of_keys):
        scores = scores + F.pad(relative.relative_bias(q, k, position), (first, 0))
    if mask is not None:
        scores = scores.unflatten(0, (-1, len(mask))).masked_fill(~mask[:, None], float("-inf")).flatten(0, 1)
    weights = scores.softmax(-1)
    out = (weights @ values).transpose(1, 2).unflatten(1, q_grid)
    if position is not None and position.of_values:
        weights = weights[..., first:].unflatten(-1, k_grid).unflatten(2, q_grid)
        out = out + relative.value_term(weights, position.of_values, position.groups)
    return out


def relative_rows(table: Tensor, q_grid: Size, k_grid: Size, axes: tuple[int, ...]) -> Tensor:
    """R along some axes: `[*lengths, c]` -> `[*q_sizes, *k_sizes, c]`."""
    if form := choose.relative_rows():
        return form(table, q_grid, k_grid, axes)
    return relative.relative_rows(table, q_grid, k_grid, axes)


def resize_grid(table: Tensor, grid: Size) -> Tensor:
    """An absolute table `[1, *grid0, C]` for another grid, `[1, *grid, C]`."""
    if form := choose.resize_grid(grid):
        return form(table, grid)
    return tables.resize_grid(table, grid)


def project(layers: Sequence[nn.Module], x: Tensor, cls: Tensor | None) -> Iterable[Tokens]:
    """Q, K and V of tokens, one after the other: `[B, *grid, dim]` -> `[B, *grid, h * c]`.

    Args:
        layers: the layers of Q, K and V, or one that gives all three side by side.
    """
    if form := choose.project(layers, x):
        return form(layers, x, cls)
    if len(layers) == 3:
        return (each(layer, x, cls) for layer in layers)
    qkv, qkv_cls = each(layers[0], x, cls)  # [B, *grid, 3 * h * c]
    return zip(qkv.chunk(3, -1), [None] * 3 if qkv_cls is None else qkv_cls.chunk(3, -1), strict=True)


def depthwise(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
    """Depthwise convolution: `[B, *grid, C]` with a filter `[C, 1, *kernel]` -> `[B, *pooled, C]`."""
    if form := choose.depthwise(x, weight, stride, padding):
        return form(x, weight, stride, padding)
    return conv(x, weight, None, stride, padding, groups=x.shape[-1])


def layer_norm(norm: nn.Module, x: Tensor, cls: Tensor | None = None) -> Tokens:
    """A norm over the channels of grid and class token."""
    if form := choose.layer_norm(norm, x):
        return each(lambda t: form(norm, t), x, cls)
    return each(norm, x, cls)


def linear(layer: nn.Module, x: Tensor, cls: Tensor | None = None) -> Tokens:
    """A linear layer on grid and class token: `[..., C] -> [..., C_out]`."""
    if form := choose.linear(layer):
        return form(layer, x, cls)
    return each(layer, x, cls)


def mlp(fc1: nn.Module, act: nn.Module, fc2: nn.Module, x: Tensor, cls: Tensor | None = None) -> Tokens:
    """fc2(act(fc1(x))) on grid and class token: `[..., dim] -> [..., dim_out]`."""
    if form := choose.mlp(fc1, act, fc2):
        return form(fc1, fc2, x, cls)
    return linear(fc2, *each(act, *linear(fc1, x, cls)))


def half_block(block: Any, half: Callable[..., Tokens], x: Tensor, cls: Tensor | None) -> Tokens:
    """Half a block, whose activations may be computed again in the backward pass instead of being kept."""
    if form := choose.half_block(block, x):
        return form(half, x, cls)
    return half(x, cls)


def trunk(network: Any, x: Tensor, cls: Tensor | None) -> list[Tokens]:
    """All blocks, one after the other; tokens after each stage."""
    if form := choose.trunk(network):
        return form(network, x, cls)
    outputs: list[Tokens] = []
    for block, last in zip(network.blocks, network.ends_stage, strict=False):
        x, cls = block(x, cls)
        if last:
            outputs.append((x, cls))
    return outputs


def cast_input(x: Tensor, weight: Tensor) -> Tensor:
    """Pixels in the dtype that a network with such weights computes in."""
    if form := choose.float32(weight):
        return form.cast(x)
    return x


def autocast(weight: Tensor) -> AbstractContextManager[object]:
    """Autocast of a network with such weights: as the caller has set it."""
    if form := choose.float32(weight):
        return form.autocast()
    return nullcontext()
