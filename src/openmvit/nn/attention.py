"""Pooling attention: project, pool, attend with a position term, add the pooled query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.config import BlockConfig, Size
from openmvit.nn.grid import each
from openmvit.nn.pooling import TokenPool
from openmvit.nn.position import decomposed_bias

Tokens = tuple[Tensor, Tensor | None]


class MultiscaleAttention(nn.Module):
    """Multi-head attention over pooled queries, keys and values on a grid with any number of axes.

    The class token, where there is one, joins keys and values only: grid queries attend in one call with zero bias in
    its column, the class query in a second, one-row call without bias and without residual pooling.

    Source: MViTv2 (Li et al., 2022), section 4; arithmetic as in facebookresearch/mvit and SlowFast.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config, self.num_heads = config, config.num_heads
        dim, dim_attn = config.dim, config.dim_attn
        if config.separate_qkv:
            self.q = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
            self.k = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
            self.v = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim_attn, bias=config.qkv_bias)
        pooled_dim = dim if config.pool_first else dim_attn
        self.folds = 1 if config.pool_mode == "conv_unshared" else config.num_heads
        for name, kernel, stride in (
            ("q", config.kernel_q, config.stride_q),
            ("k", config.kernel_kv, config.stride_kv),
            ("v", config.kernel_kv, config.stride_kv),
        ):
            self._add_pool(name, pooled_dim // self.folds, kernel, stride)
        for axis, length in zip("thw"[-len(config.grid) :], config.table_lengths, strict=False):
            table = nn.init.trunc_normal_(torch.empty(length, config.head_dim), std=0.02)
            setattr(self, f"rel_pos_{axis}", nn.Parameter(table))
        self.proj = nn.Linear(dim_attn, dim_attn)

    def _add_pool(self, name: str, dim: int, kernel: Size, stride: Size) -> None:
        pool, norm = None, None
        if kernel:
            pool = TokenPool(self.config.pool_mode, dim, kernel, stride)
            if self.config.pool_mode in ("conv", "conv_unshared"):
                norm = nn.LayerNorm(dim, eps=self.config.pool_norm_eps)
        setattr(self, f"pool_{name}", pool)
        setattr(self, f"norm_{name}", norm)

    @property
    def tables(self) -> list[Tensor]:
        """Relative tables `[L, c]`, one per axis; empty without relative position."""
        axes = "thw"[-len(self.config.grid) :]
        return [getattr(self, f"rel_pos_{a}") for a in axes] if self.config.table_lengths else []

    def _project(self, name: str, x: Tensor) -> Tensor:
        """`[..., dim] -> [..., dim_attn]`; a fused matrix is used by its rows, so that each result is contiguous."""
        if self.config.separate_qkv:
            return getattr(self, name)(x)
        rows = slice("qkv".index(name) * self.config.dim_attn, ("qkv".index(name) + 1) * self.config.dim_attn)
        return F.linear(x, self.qkv.weight[rows], None if self.qkv.bias is None else self.qkv.bias[rows])

    def _pool(self, name: str, x: Tensor, cls: Tensor | None) -> Tokens:
        """Pool the grid, then norm grid and class row per fold; `[B, *grid, C] -> [B, *pooled, C]`."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        if pool is not None:
            x = pool(x)
        if norm is None:
            return x, cls
        return each(lambda t: norm(t.unflatten(-1, (self.folds, -1))).flatten(-2), x, cls)

    def _heads(self, name: str, x: Tensor, cls: Tensor | None) -> Tokens:
        """One of q, k, v: grid `[B, *pooled, h, c]` and class row `[B, 1, h, c]`."""
        if self.config.pool_first:
            x, cls = each(lambda t: self._project(name, t), *self._pool(name, x, cls))
        else:
            x, cls = self._pool(name, *each(lambda t: self._project(name, t), x, cls))
        return each(lambda t: t.unflatten(-1, (self.num_heads, -1)), x, cls)

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[B, *grid, dim]` -> `[B, *q_grid, dim_attn]`, and the class token beside it."""
        (q, q_cls), (k, k_cls), (v, v_cls) = (self._heads(name, x, cls) for name in "qkv")
        q_grid, k_grid = q.shape[1:-2], tuple(k.shape[1:-2])
        bias = decomposed_bias(q, self.tables, k_grid) if self.config.table_lengths else None
        k, v = k.flatten(1, -3), v.flatten(1, -3)
        if k_cls is not None and v_cls is not None:
            k, v = torch.cat([k_cls, k], dim=1), torch.cat([v_cls, v], dim=1)
            bias = None if bias is None else F.pad(bias, (1, 0))
        out = attend(q.flatten(1, -3), k, v, bias).unflatten(1, q_grid)
        if self.config.residual_pooling:
            out = out + q
        out_cls = None if q_cls is None else attend(q_cls, k, v, None)
        return each(lambda t: self.proj(t.flatten(-2)), out, out_cls)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention with an additive term.

    Args:
        q: `[B, Lq, h, c]`. k, v: `[B, Lk, h, c]`.
        bias: `[B, h, Lq, Lk]`, added to the logits that are already scaled by c ** -0.5.
    Returns:
        `[B, Lq, h, c]`.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
