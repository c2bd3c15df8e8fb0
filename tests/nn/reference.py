"""Multiscale attention written the slow way, on flat tokens with the class token as row 0, from the published formulas.

No code is shared with the package: pooling by loops over heads, positions by loops over query and key.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def pool_tokens(x: Tensor, grid, kernel, stride, mode, weight, norm, has_cls: bool):
    """Pool `[B, heads, N, c]` head by head: class row passes by the pool, but goes through the norm."""
    cls, tokens = (x[:, :, :1], x[:, :, 1:]) if has_cls else (None, x)
    if kernel:
        heads = []
        for head in range(x.shape[1]):
            maps = tokens[:, head].transpose(1, 2).reshape(x.shape[0], x.shape[3], *grid)
            padding = [k // 2 for k in kernel]
            if mode in ("conv", "conv_unshared"):
                conv = F.conv2d if len(grid) == 2 else F.conv3d
                maps = conv(maps, weight, None, stride, padding, groups=x.shape[3])
            elif mode == "max":
                maps = (F.max_pool2d if len(grid) == 2 else F.max_pool3d)(maps, kernel, stride, padding)
            else:
                maps = (F.avg_pool2d if len(grid) == 2 else F.avg_pool3d)(maps, kernel, stride, padding)
            heads.append(maps.flatten(2).transpose(1, 2))
        grid, tokens = tuple(maps.shape[2:]), torch.stack(heads, 1)
    x = tokens if cls is None else torch.cat([cls, tokens], 2)
    return (norm(x) if norm is not None else x), grid


def resized(table: Tensor, q_size: int, k_size: int) -> Tensor:
    length = 2 * max(q_size, k_size) - 1
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T


def bias_entry(q_row: Tensor, tables, q_position, k_position, q_grid, k_grid) -> Tensor:
    """Position term of one query and one key, from exact rational distances."""
    total = q_row.new_zeros(())
    for axis, table in enumerate(tables):
        q_size, k_size = q_grid[axis], k_grid[axis]
        q_ratio, k_ratio = max(k_size / q_size, 1), max(q_size / k_size, 1)
        distance = q_position[axis] * q_ratio - k_position[axis] * k_ratio + (k_size - 1) * k_ratio
        total = total + q_row @ table[int(distance)]
    return total


def attention(module, x: Tensor, grid, has_cls: bool):
    """`[B, N, dim]` -> `[B, N', dim_attn]` and its grid, with the weights of a MultiscaleAttention."""
    config, batch = module.config, x.shape[0]
    heads = config.num_heads

    def split(t, folds):
        return t.reshape(batch, t.shape[1], folds, -1).transpose(1, 2)

    def project(name, t):
        if config.separate_qkv:
            return getattr(module, name)(t)
        return module.qkv(t).chunk(3, dim=-1)["qkv".index(name)]

    parts, grids = {}, {}
    for name in "qkv":
        kernel, stride = (config.kernel_q, config.stride_q) if name == "q" else (config.kernel_kv, config.stride_kv)
        weight = getattr(getattr(module, f"pool_{name}"), "weight", None)
        norm = getattr(module, f"norm_{name}")
        folds = heads if config.pool_mode != "conv_unshared" else 1
        if config.pool_first:
            t, g = pool_tokens(split(x, folds), grid, kernel, stride, config.pool_mode, weight, norm, has_cls)
            t = split(project(name, t.transpose(1, 2).flatten(2)), heads)
        else:
            t = split(project(name, x), heads)
            t, g = pool_tokens(t, grid, kernel, stride, config.pool_mode, weight, norm, has_cls)
        parts[name], grids[name] = t, g
    q, k, v = parts["q"], parts["k"], parts["v"]
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if config.relative_groups:
        bias = torch.zeros_like(logits)
        own = [getattr(module, name) for name, term, _ in module.tables if term == "q"]
        tables = [resized(t, a, b) for t, a, b in zip(own, grids["q"], grids["k"], strict=True)]
        q_positions = list(itertools.product(*map(range, grids["q"])))
        k_positions = list(itertools.product(*map(range, grids["k"])))
        first = int(has_cls)
        for b, h in itertools.product(range(batch), range(heads)):
            for i, qp in enumerate(q_positions):
                row = q[b, h, i + first]
                entries = [bias_entry(row, tables, qp, kp, grids["q"], grids["k"]) for kp in k_positions]
                bias[b, h, i + first, first:] = torch.stack(entries)
        logits = logits + bias
    out = logits.softmax(-1) @ v
    if config.residual_pooling:
        residual = q.clone()
        residual[:, :, : int(has_cls)] = 0
        out = out + residual
    return module.proj(out.transpose(1, 2).flatten(2)), grids["q"]
