"""What a network computes on its way, kept while it runs: hidden states and attention weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openmvit.model import MViT
from openmvit.nn.fast.attention import by_products
from openmvit.nn.grid import Tokens
from openmvit.nn.ops import autocast
from openmvit.nn.relative import Position


@dataclass
class Recording:
    """What was kept, complete when the block is left.

    `states` are the tokens before the first block and after every block; of a reversible network, whose blocks have two
    streams, before the first block alone. `attentions` are per block `[B, heads, queries, keys]`, the class token first
    in both; where windows are used `[B * windows, ...]`.
    """

    states: list[Tokens] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)


class _Weights(TorchFunctionMode):
    """Notes every attention call, so that its softmax weights can be had afterwards.

    A call with the unit matrix as values gives its weights: no second formula for them exists that could differ.
    They are computed after the pass: outputs are the same with and without, and recomputed blocks find what they kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Tensor]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            query, key, _ = args
            self.calls.append(partial(_fused_weights, query, key, kwargs or {}))
        elif func is by_products:
            query, key, _, position, cls, _ = args
            self.calls.append(partial(_product_weights, query, key, position, cls))
        elif func is Tensor.softmax:  # attention written out, where something else needs the weights too
            self.calls.append(lambda: out)
        return out


def _fused_weights(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> Tensor:
    unit = torch.eye(key.shape[-2], dtype=query.dtype, device=query.device)
    return F.scaled_dot_product_attention(query, key, unit.expand(*key.shape[:-2], -1, -1), **kwargs)


def _product_weights(q: Tensor, k: Tensor, position: Position | None, cls: tuple[Tensor, Tensor] | None) -> Tensor:
    grid, first = k.shape[1:-2], 0 if cls is None else 1
    rows = first + prod(grid)
    unit = torch.eye(rows, dtype=q.dtype, device=q.device)[:, None].expand(len(k), -1, k.shape[-2], -1)
    of_cls = None if cls is None else (cls[0], unit[:, :1])
    return by_products(q, k, unit[:, first:].unflatten(1, grid), position, of_cls, None).flatten(1, -3).transpose(1, 2)


@contextmanager
def recorded(network: MViT, *, states: bool = False, attentions: bool = False) -> Iterator[Recording]:
    """Keep what the forward passes inside the block compute; outputs stay the same to the bit.

    Args:
        states: keep hidden states.
        attentions: keep attention weights, which takes another pass through every attention and their memory.
    """
    kept, hooks = Recording(), []
    blocks, weights, calls = list(network.blocks), _Weights(), []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.states.append(output)

    def collect(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.append(weights.calls)
        weights.calls = []

    if states:
        hooks.append(blocks[0].register_forward_pre_hook(lambda module, inputs: kept.states.append(_tokens(inputs))))
    if states and network.config.reversible == "none":
        hooks += [block.register_forward_hook(keep) for block in blocks]
    try:
        if not attentions:
            yield kept
            return
        hooks += [block.get_submodule("attn").register_forward_hook(collect) for block in blocks]
        with weights:
            yield kept
        with autocast(network.patch_embed.proj.weight):
            for grid, *token in calls:
                kept.attentions.append(torch.cat([*(call() for call in token), grid()], dim=-2))
    finally:
        for hook in hooks:
            hook.remove()


def _tokens(inputs: tuple[Any, ...]) -> Tokens:
    """Of a block's inputs; a reversible one has the streams and a factor."""
    return (inputs[0], inputs[1]) if len(inputs) == 2 else (inputs[0], None)


def as_rows(tokens: Tokens) -> Tensor:
    """Tokens as rows `[B, N, C]`, the class token first."""
    x, cls = tokens
    x = x.flatten(1, -2)
    return x if cls is None else torch.cat([cls, x], dim=1)
