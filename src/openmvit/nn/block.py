"""A transformer block whose attention pools: norm, attention, skip, norm, MLP."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from openmvit.config import BlockConfig
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.fast import apply_linear, is_untouched, layer_norm
from openmvit.nn.grid import Tokens, each, max_pool
from openmvit.nn.recompute import drops_activations, recomputed


class Mlp(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, dim: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim_out)

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tensor | Tokens:
        """`[..., dim] -> [..., dim_out]`; with a class token beside the grid, both."""
        if is_untouched(self.act, nn.GELU) and self.act.approximate == "none":
            # With a gradient only what enters the GELU is kept: its output is the widest tensor of a block.
            before = torch.is_grad_enabled()
            hidden = apply_linear(self.fc1, x, cls, gelu_after=not before)
            out = apply_linear(self.fc2, *hidden, gelu_before=before)
        else:
            out = apply_linear(self.fc2, *each(self.act, *apply_linear(self.fc1, x, cls)))
        return out[0] if cls is None else out


class DropPath(nn.Module):
    """Stochastic depth: drop a whole sample's branch, and divide the kept ones by the keep probability.

    Grid and class token of a sample share one draw.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f"{self.rate:g}"

    def forward(self, x: Tensor, cls: Tensor | None) -> Tokens:
        if not self.training or self.rate == 0:
            return x, cls
        keep = x.new_empty(x.shape[0]).bernoulli_(1 - self.rate) / (1 - self.rate)
        return each(lambda t: t * keep.view(-1, *(1,) * (t.dim() - 1)), x, cls)


class MultiscaleBlock(nn.Module):
    """One block of the network, on a grid with any number of axes.

    Where the width changes the skip path reads the *normed* input through `proj`; otherwise it is the raw input. The
    skip of a block that pools its query is max pooled.

    Source: facebookresearch/mvit, multi-scale block.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = MultiscaleAttention(config)
        self.norm2 = nn.LayerNorm(config.dim_attn, eps=config.norm_eps)
        self.mlp = Mlp(config.dim_attn, int(config.dim_attn * config.mlp_ratio), config.dim_out)
        self.proj = nn.Linear(config.dim, config.dim_out) if config.dim != config.dim_out else None
        self.drop_path = DropPath(config.drop_path)
        self.recompute_large = True
        if config.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((config.dim_attn,), config.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((config.dim_out,), config.layer_scale))

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[B, *grid, dim]` -> `[B, *q_grid, dim_out]`, and the class token beside it."""
        again = self.training and self.recompute_large and drops_activations(x)
        for half in (self._attend, self._transform):
            x, cls = recomputed(half, x, cls) if again else half(x, cls)
        return x, cls

    def _attend(self, x: Tensor, cls: Tensor | None) -> Tokens:
        normed = each(partial(layer_norm, self.norm1), x, cls)
        branch = self._branch("gamma_1", *self.attn(*normed))
        skip = self._widen(*normed) if self.config.dim != self.config.dim_attn else (x, cls)
        if self.config.skip_kernel:
            skip = max_pool(skip[0], self.config.skip_kernel, self.config.stride_q), skip[1]
        return _add(skip, branch)

    def _transform(self, x: Tensor, cls: Tensor | None) -> Tokens:
        normed = each(partial(layer_norm, self.norm2), x, cls)
        mixed: Tokens = (self.mlp(normed[0]), None) if cls is None else self.mlp(*normed)
        branch = self._branch("gamma_2", *mixed)
        skip = self._widen(*normed) if self.config.dim_attn != self.config.dim_out else (x, cls)
        return _add(skip, branch)

    def _widen(self, x: Tensor, cls: Tensor | None) -> Tokens:
        assert self.proj is not None
        return apply_linear(self.proj, x, cls)

    def _branch(self, gamma: str, x: Tensor, cls: Tensor | None) -> Tokens:
        if self.config.layer_scale:
            x, cls = each(lambda t: t * getattr(self, gamma), x, cls)
        return self.drop_path(x, cls)


def _add(skip: Tokens, branch: Tokens) -> Tokens:
    cls = None if skip[1] is None or branch[1] is None else skip[1] + branch[1]
    return skip[0] + branch[0], cls
