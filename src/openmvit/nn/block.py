"""A transformer block whose attention pools: norm, attention, skip, norm, MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openmvit.block_config import BlockConfig
from openmvit.nn import ops
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.grid import Tokens, each, max_pool


class Mlp(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, dim: int, hidden: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim_out)

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[..., dim] -> [..., dim_out]`, and the class token beside it."""
        return ops.mlp(self.fc1, self.act, self.fc2, x, cls)


class DropPath(nn.Module):
    """Stochastic depth: drop a whole sample's branch, and divide the kept ones by the keep probability.

    Grid and class token of a sample share one draw.
    """

    def __init__(self, drop_path_rate: float) -> None:
        super().__init__()
        self.rate = drop_path_rate

    def extra_repr(self) -> str:
        return f"{self.rate:g}"

    def forward(self, x: Tensor, cls: Tensor | None) -> Tokens:
        if not self.training or self.rate == 0:
            return x, cls
        keep = x.new_empty(x.shape[0]).bernoulli_(1 - self.rate) / (1 - self.rate)
        return x * keep.view(-1, *(1,) * (x.dim() - 1)), None if cls is None else cls * keep.view(-1, 1, 1)


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
        self.skip_kernel, self.skip_stride = config.skip_kernel, config.stride_q
        self.recompute_large = True
        self.gamma_1, self.gamma_2 = None, None
        if config.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((config.dim_attn,), config.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((config.dim_out,), config.layer_scale))

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[B, *grid, dim]` -> `[B, *q_grid, dim_out]`, and the class token beside it."""
        x, cls = ops.half_block(self, self.attend, x, cls)
        return ops.half_block(self, self.transform, x, cls)

    def attend(self, x: Tensor, cls: Tensor | None) -> Tokens:
        """skip(x) + attention(norm(x)): `[B, *grid, dim]` -> `[B, *q_grid, dim_attn]`."""
        normed = ops.layer_norm(self.norm1, x, cls)
        branch, cls_branch = self.drop_path(*scaled(self.gamma_1, *self.attn(*normed)))
        if self.proj is not None and self.config.dim != self.config.dim_attn:
            x, cls = ops.linear(self.proj, *normed)
        if self.skip_kernel:
            x = max_pool(x, self.skip_kernel, self.skip_stride)  # [B, *q_grid, dim_attn]
        return x + branch, None if cls is None or cls_branch is None else cls + cls_branch

    def transform(self, x: Tensor, cls: Tensor | None) -> Tokens:
        """x + mlp(norm(x)): `[B, *grid, dim_attn]` -> `[B, *grid, dim_out]`."""
        normed = ops.layer_norm(self.norm2, x, cls)
        branch, cls_branch = self.drop_path(*scaled(self.gamma_2, *self.mlp(*normed)))
        if self.proj is not None and self.config.dim_attn != self.config.dim_out:
            x, cls = ops.linear(self.proj, *normed)
        return x + branch, None if cls is None or cls_branch is None else cls + cls_branch


def scaled(gamma: Tensor | None, x: Tensor, cls: Tensor | None) -> Tokens:
    """Layer scale, where there is one: `[..., C] * [C]`."""
    return (x, cls) if gamma is None else each(lambda t: t * gamma, x, cls)
