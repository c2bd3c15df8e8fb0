"""Pooling attention: project, pool, attend with a position term, add the pooled query."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from openmvit.block_config import BlockConfig
from openmvit.nn import ops
from openmvit.nn.grid import Tokens, each, merge, partition, same_region
from openmvit.nn.pooling import TokenPool
from openmvit.nn.relative import Position


class MultiscaleAttention(nn.Module):
    """Multi-head attention over pooled queries, keys and values on a grid with any number of axes.

    The class token, where there is one, joins keys and values only: grid queries attend in one call with zero bias in
    its column, the class query in a second, one-row call without bias and without residual pooling.

    Source: MViTv2 (Li et al., 2022), section 4; arithmetic as in facebookresearch/mvit and SlowFast.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config, self.num_heads = config, config.num_heads
        self.pool_first, self.separate_qkv = config.pool_first, config.separate_qkv
        self.residual_pooling = config.residual_pooling
        self.window, self.q_window, self.kv_window = config.window, config.q_window, config.kv_window
        self.shifted, self.groups = config.shifted, config.relative_groups
        self.relative_scale = config.head_dim**-0.5 if config.relative_scaled else 1.0
        dim, dim_attn = config.dim, config.dim_attn
        if config.separate_qkv:
            self.q = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
            self.k = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
            self.v = nn.Linear(dim, dim_attn, bias=config.qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim_attn, bias=config.qkv_bias)
        # One filter and one norm serve all folds of the channels: the heads, but where a filter has all channels.
        self.folds = 1 if config.pool_mode == "conv_unshared" else config.num_heads
        pooled_dim = (dim if config.pool_first else dim_attn) // self.folds
        of_q, of_kv = (config.kernel_q, config.stride_q), (config.kernel_kv, config.stride_kv)
        for name, (kernel, stride) in zip("qkv", (of_q, of_kv, of_kv), strict=True):
            pool = TokenPool(config.pool_mode, pooled_dim, kernel, stride) if kernel else None
            normed = bool(kernel) and config.pool_mode in ("conv", "conv_unshared")
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(pooled_dim, eps=config.pool_norm_eps) if normed else None)
        uses = product(config.relative_terms, config.relative_groups)
        self.tables = [(name, *use) for name, use in zip(config.relative_tables, uses, strict=True)]
        for name, shape in config.relative_tables.items():
            setattr(self, name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))
        self.proj = nn.Linear(dim_attn, dim_attn)

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[B, *grid, dim]` -> `[B, *q_grid, dim_attn]`, and the class token beside it."""
        # Equation (1): Q = P(X W_Q), K = P(X W_K), V = P(X W_V). Grids [B, *pooled, h, c], class rows [B, 1, h, c]
        if self.pool_first:
            parts = map(self.pool_and_project, "qkv", [(x, cls)] * 3)
        else:
            layers = [self.q, self.k, self.v] if self.separate_qkv else [self.qkv]
            parts = map(self.pool, "qkv", ops.project(layers, x, cls))
        (q, q_cls), (k, k_cls), (v, v_cls) = parts
        mask, windows, grid = None, 1, q.shape[1:-2]
        if self.window:
            # Cut into windows: [B, *grid, h, c] -> [B * windows, *window, h, c]
            mask = same_region(grid, self.q_window, self.kv_window, q.device) if self.shifted else None
            k, v = (partition(t, self.kv_window, self.shifted) for t in (k, v))
            q, whole = partition(q, self.q_window, self.shifted), q
            windows = q.shape[0] // whole.shape[0]
        # Equations (3) and (4): Softmax(Q K^T / sqrt(c) + E) V, E_ij = Q_i . R_ij, R of each axis. [B, *q_grid, h, c]
        of_cls = None if k_cls is None or v_cls is None else (k_cls, v_cls)
        out = ops.attend(q, k, v, self.position(q, k, windows), of_cls, mask)
        # Residual pooling, equation (5): Z = Attn(Q, K, V) + Q
        if self.residual_pooling:
            out = q + out
        if self.window:
            out = merge(out, self.q_window, grid, self.shifted)  # [B, *q_grid, h, c]
        # The class query attends to all keys, without E and without residual. [B, 1, h, c]
        out_cls = None if q_cls is None else ops.attend(q_cls, k, v, cls=of_cls)
        return ops.linear(self.proj, *each(lambda t: t.flatten(-2), out, out_cls))  # [B, *q_grid, h * c]

    def pool(self, name: str, tokens: Tokens) -> Tokens:
        """Pool the grid and norm the folds of its channels: `[B, *grid, C] -> [B, *pooled, folds, C / folds]`."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        x, cls = tokens
        folded = each(lambda t: t.unflatten(-1, (self.folds, -1)), x if pool is None else pool(x), cls)
        return folded if norm is None else ops.layer_norm(norm, *folded)

    def pool_and_project(self, name: str, tokens: Tokens) -> Tokens:
        """The other order: `[B, *grid, dim] -> [B, *pooled, h, c]`."""
        pooled = each(lambda t: t.flatten(-2), *self.pool(name, tokens))  # [B, *pooled, dim]
        return each(lambda t: t.unflatten(-1, (self.num_heads, -1)), *ops.linear(getattr(self, name), *pooled))

    def position(self, q: Tensor, k: Tensor, windows: int = 1) -> Position | None:
        """R of every table for the grids of q and k; None without tables."""
        rows: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for name, term, axes in self.tables:
            rows["qkv".index(term)].append(ops.relative_rows(getattr(self, name), q.shape[1:-2], k.shape[1:-2], axes))
        return Position(self.groups, self.relative_scale, *rows, windows) if self.tables else None
