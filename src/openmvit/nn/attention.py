"""Pooling attention: project, pool, attend with a position term, add the pooled query."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.config import BlockConfig, Size
from openmvit.nn import fast
from openmvit.nn.fast import on_plain_cpu, products_pay
from openmvit.nn.grid import Tokens, each, merge, partition, same_region
from openmvit.nn.pooling import TokenPool
from openmvit.nn.precision import narrowed
from openmvit.nn.products import attend_by_products, attend_in_channels
from openmvit.nn.relative import key_indicators, key_terms, query_terms, value_term, write_out
from openmvit.nn.symbolic import is_symbolic

MOST_SCORES = 2**22
"""Query-key pairs of a sample's heads up to which the position term may be written out; more go through
`attend_in_channels`."""


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
        self.folds = 1 if config.pool_mode == "conv_unshared" else config.num_heads
        pooled_dim = (dim if config.pool_first else dim_attn) // self.folds
        of_q, of_kv = (config.kernel_q, config.stride_q), (config.kernel_kv, config.stride_kv)
        for name, (kernel, stride) in zip("qkv", (of_q, of_kv, of_kv), strict=True):
            pool = TokenPool(config.pool_mode, pooled_dim, kernel, stride) if kernel else None
            normed = bool(kernel) and config.pool_mode in ("conv", "conv_unshared")
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(pooled_dim, eps=config.pool_norm_eps) if normed else None)
        for name, shape in config.relative_tables.items():
            setattr(self, name, nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)))
        self.proj = nn.Linear(dim_attn, dim_attn)

    def tables(self, term: str = "q") -> list[Tensor]:
        """Relative tables `[*lengths, c]` that meet queries, keys or values, one per group of axes."""
        if term not in self.config.relative_terms:
            return []
        names = [name for name in self.config.relative_tables if name.startswith(("rel_pos_k_", "rel_pos_v_"))]
        own = [name for name in self.config.relative_tables if name not in names]
        chosen = own if term == "q" else [name for name in names if name.startswith(f"rel_pos_{term}_")]
        return [getattr(self, name) for name in chosen]

    def _projections(self) -> list[Callable[[Tensor, Tensor | None], Tokens]]:
        """What makes q, k and v of tokens, `[..., dim] -> [..., dim_attn]`; each result is contiguous."""
        if self.config.separate_qkv:
            return [partial(fast.apply_linear, getattr(self, name)) for name in "qkv"]
        if not fast.is_untouched(self.qkv, nn.Linear):
            whole = cache(self.qkv)  # called once for all three
            thirds = [lambda t, i=i: whole(t).unflatten(-1, (3, -1))[..., i, :].contiguous() for i in range(3)]
            return [partial(each, third) for third in thirds]
        # Narrowed and cut once, so that in the backward pass one copy puts the three gradients together.
        weights = narrowed(self.qkv.weight).unflatten(0, (3, -1)).unbind()
        biases = [None] * 3 if self.qkv.bias is None else narrowed(self.qkv.bias).unflatten(0, (3, -1)).unbind()
        return [partial(fast.linear, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)]

    def _pool(self, name: str, x: Tensor, cls: Tensor | None, stride: Size | None = None) -> Tokens:
        """Pool the grid, then norm grid and class row per fold; `[B, *grid, C] -> [B, *pooled, C]`."""
        pool, norm = getattr(self, f"pool_{name}"), getattr(self, f"norm_{name}")
        if pool is not None:
            x = pool(x, stride) if stride else pool(x)
        if norm is None:
            return x, cls
        return each(lambda t: fast.layer_norm(norm, t.unflatten(-1, (self.folds, -1))).flatten(-2), x, cls)

    def _heads(self, x: Tensor, cls: Tensor | None) -> Iterator[Tokens]:
        """Of q, k and v the grid `[B, *pooled, h, c]` and the class row `[B, 1, h, c]`; k and v cut into windows."""
        layers = [self.q, self.k, self.v] if self.config.separate_qkv else [self.qkv]
        c, kv_stride = self.config, None
        plain = not c.pool_first and fast.are_untouched(nn.Linear, *layers)
        x, cls = each(narrowed, x, cls) if plain else (x, cls)
        for name, project in zip("qkv", self._projections(), strict=True):
            if name == "k" and plain:  # tokens that no window of their filters reads need no keys and values
                x, kv_stride = fast.tokens_read(x, TokenPool, self.pool_k, self.pool_v)
            part = project(*self._pool(name, x, cls)) if c.pool_first else self._pool(name, *project(x, cls), kv_stride)
            part = each(lambda t: t.unflatten(-1, (self.num_heads, -1)), *part)
            if c.window and name != "q":  # here, so that nobody holds them whole besides
                part = partition(part[0], c.kv_window, c.shifted), part[1]
            yield part

    def forward(self, x: Tensor, cls: Tensor | None = None) -> Tokens:
        """`[B, *grid, dim]` -> `[B, *q_grid, dim_attn]`, and the class token beside it."""
        (q, q_cls), (k, k_cls), (v, v_cls) = self._heads(x, cls)
        out = self._attend_windows(q, k, v) if self.config.window else self._attend_grid(q, k, v, k_cls, v_cls)
        if self.config.residual_pooling:
            # In this order the sum has the memory order of the queries, as the projection wants it.
            out = q + out
        out_cls = None
        if q_cls is not None and k_cls is not None and v_cls is not None:
            way = attend_by_products if products_pay(q) else attend
            out_cls = way(q_cls, _rows(k_cls, k), _rows(v_cls, v))
        return fast.apply_linear(self.proj, *each(lambda t: t.flatten(-2), out, out_cls))

    def _attend_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each window on its own: `[B, *q_grid, h, c]` on `[B * windows, *k_window, h, c]` -> `[B, *q_grid, h, c]`.

        Rows that pad the last windows are keys like all others, as in the released code.
        """
        sides, shifted = self.config.q_window, self.config.shifted
        grid = tuple(q.shape[1:-2])
        mask = same_region(grid, sides, self.config.kv_window, q.device) if shifted else None
        cut = partition(q, sides, shifted)
        out = self._attend_grid(cut, k, v, windows=cut.shape[0] // q.shape[0], mask=mask)
        return merge(out, sides, grid, shifted)

    def _attend_grid(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cls: Tensor | None = None,
        v_cls: Tensor | None = None,
        windows: int = 1,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`[B, *q_grid, h, c]` on `[B, *k_grid, h, c]` and the class row -> `[B, *q_grid, h, c]`.

        Args:
            windows: how many rows of the batch are one sample.
            mask: bool `[windows, Lq, Lk]`, true where a query of the window may see a key.
        """
        c, q_grid, k_grid = self.config, tuple(q.shape[1:-2]), tuple(k.shape[1:-2])
        rows = q.flatten(1, -3), _rows(k_cls, k), _rows(v_cls, v)
        pairs = windows * c.num_heads * rows[0].shape[1] * rows[1].shape[1]
        fits = mask is None and (c.fits_channels or not c.relative_groups)
        large = bool(c.relative_groups) and not is_symbolic(pairs) and pairs > fast.most_scores(q, MOST_SCORES)
        written_out = bool(c.relative_groups) and not large
        if fits and (products_pay(q, written_out) or (large and on_plain_cpu(q))):
            return attend_by_products(q, *rows[1:], self.tables(), c.relative_groups, k_grid, c.relative_scaled)
        of_queries, of_keys = self._terms(q, k)
        if fits and large:
            position = key_indicators(k_grid, c.relative_groups, k)
            return attend_in_channels(*rows, of_queries, position).unflatten(1, q_grid)
        bias = write_out(of_queries, of_keys, c.relative_groups, q_grid, k_grid) if of_queries or of_keys else None
        if bias is not None and k_cls is not None:
            bias = F.pad(bias, (1, 0))
        if mask is not None:
            hidden = ~mask.repeat(q.shape[0] // mask.shape[0], 1, 1)[:, None]
            bias = q.new_zeros(hidden.shape) if bias is None else bias
            bias = bias.masked_fill(hidden, float("-inf"))
        if self.tables("v"):
            out, weights = attend_by_hand(*rows, bias)
            weights = weights[..., weights.shape[-1] - prod(k_grid) :].unflatten(-1, k_grid).unflatten(2, q_grid)
            return out.unflatten(1, q_grid) + value_term(weights, self.tables("v"), c.relative_groups)
        return attend(*rows, bias).unflatten(1, q_grid)

    def _terms(self, q: Tensor, k: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Relative terms of queries and of keys; see `query_terms` and `key_terms`."""
        groups, of_queries, of_keys = self.config.relative_groups, self.tables("q"), self.tables("k")
        queries = query_terms(q, of_queries, groups, tuple(k.shape[1:-2])) if of_queries else []
        keys = key_terms(k, of_keys, groups, tuple(q.shape[1:-2])) if of_keys else []
        if self.config.relative_scaled:
            queries, keys = ([t * self.config.head_dim**-0.5 for t in terms] for terms in (queries, keys))
        return queries, keys


def _rows(cls: Tensor | None, x: Tensor) -> Tensor:
    """A grid `[B, *grid, h, c]` as rows `[B, L, h, c]`, the class row first."""
    x = x.flatten(1, -3)
    return x if cls is None else torch.cat([cls, x], dim=1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention with an additive term.

    Args:
        q: `[B, Lq, h, c]`. k, v: `[B, Lk, h, c]`.
        bias: `[B, h, Lq, Lk]`, added to the logits that are already scaled by c ** -0.5.
    Returns:
        `[B, Lq, h, c]`.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attend` step by step, and the weights after the softmax, `[B, h, Lq, Lk]`, for those who need them."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return (weights @ v).transpose(1, 2), weights
