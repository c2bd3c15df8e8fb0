"""Operations of the network in closed form: arithmetic on block records and the sizes of their grids."""

from __future__ import annotations

from math import prod

import torch

from openmvit.config import BlockConfig, MViTConfig, Size, stem_grid
from openmvit.counting.cost import Cost, Count, merge
from openmvit.counting.layers import parameters
from openmvit.model import MViT

_NORM = 5


def count_classifier(config: MViTConfig, size: Size | None = None) -> Count:
    """Every part of a classifier for one input.

    Args:
        size: pixels (h, w) or frames and pixels (t, h, w); default the nominal input. Parameters are those of the
            nominal one, whatever the size.
    Raises:
        UserError: if the size has another number of axes or is smaller than a patch.
    """
    size = config.input_size if size is None else size
    with torch.device("meta"):
        model = MViT(config)
    parts = count_trunk(model, size)
    grid = stage_grids(config, size)[-1]
    rows = prod(grid) if config.head_reads == "avg" and not config.norm_after_pool else 1
    parts["norm"] = Cost(parameters(model.norm), {"norm": _NORM * rows * config.num_features})
    parts["head"] = Cost(parameters(model.head), {"linear": config.num_features * config.num_classes})
    return Count(size, parts)


def count_trunk(model: MViT, size: Size) -> dict[str, Cost]:
    """Stem, positions and blocks, which all tasks share; blocks are called by their number."""
    config = model.config.replace(input_size=size)
    cls, grid = int(config.cls_token), stem_grid(config, size)
    stem = {"conv": prod(grid) * config.embed_dim * config.in_chans * prod(config.patch_kernel)}
    if model.norm_stem is not None:
        stem["norm"] = _NORM * (prod(grid) + cls) * config.embed_dim
    own = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("cls_token", "pos_embed")))
    stem_parameters = parameters(model.patch_embed) + (parameters(model.norm_stem) if model.norm_stem else 0)
    blocks = zip(model.blocks, config.blocks(), strict=True)
    return {
        "stem": Cost(stem_parameters, stem),
        "positions": Cost(own),
        **{str(b.index): Cost(parameters(module), block_operations(b, cls)) for module, b in blocks},
    }


def stage_grids(config: MViTConfig, size: Size) -> list[Size]:
    """Tokens along each axis after every stage."""
    blocks = config.replace(input_size=size).blocks()
    return [blocks[sum(config.depths[: s + 1]) - 1].q_grid for s in range(len(config.depths))]


def block_operations(block: BlockConfig, cls: int = 0) -> dict[str, int]:
    """Operations of a block by kind, on the grid that its record names.

    Args:
        cls: class tokens beside the grid, 0 or 1.
    """
    tokens, queries = prod(block.grid) + cls, prod(block.q_grid) + cls
    width, out, hidden = block.dim_attn, block.dim_out, int(block.dim_attn * block.mlp_ratio)
    linear = _projections(block, cls) + queries * (width * width + width * hidden + hidden * out)
    if block.dim != width:
        linear += tokens * block.dim * out
    elif block.dim != out:
        linear += queries * width * out
    pooled = {"q": (block.kernel_q, block.q_grid, 1), "kv": (block.kernel_kv, block.kv_grid, 2)}
    channels = block.dim if block.pool_first else width
    conv, norm = 0, _NORM * (tokens * block.dim + queries * width)
    if block.pool_mode in ("conv", "conv_unshared"):
        for kernel, grid, times in pooled.values():
            conv += times * prod(kernel) * channels * prod(grid) if kernel else 0
            norm += times * _NORM * channels * (prod(grid) + cls) if kernel else 0
    found = {"linear": linear, "conv": conv, **_attention(block, cls), "norm": norm}
    return found if block.fusion == "none" else merge((found, _transition(block)))


def _transition(block: BlockConfig) -> dict[str, int]:
    """What joins the two streams of a reversible network: perhaps an MLP, and the queries' pool on the skip path."""
    fused, queries = prod(block.grid), prod(block.q_grid)
    return {
        "linear": fused * 4 * block.dim**2 if block.fusion == "mlp" else 0,
        "conv": prod(block.kernel_q) * block.dim_attn * queries,
        "norm": _NORM * block.dim_attn * queries,
    }


def _projections(block: BlockConfig, cls: int) -> int:
    """To queries, keys and values: of all tokens, or of the pooled ones where pools come first."""
    sides = (block.q_grid, block.kv_grid, block.kv_grid) if block.pool_first else (block.grid,) * 3
    return sum((prod(grid) + cls) * block.dim * block.dim_attn for grid in sides)


def _attention(block: BlockConfig, cls: int) -> dict[str, int]:
    """Both products, and the relative terms, which the class token has no part in; per window where there are any."""
    q_grid, k_grid, windows = block.q_grid, block.kv_grid, 1
    if block.window:
        windows = prod(-(-n // w) for n, w in zip(q_grid, block.q_window, strict=True))
        q_grid, k_grid = block.q_window, block.kv_window
    queries, keys = prod(q_grid), prod(k_grid)
    rows = 0
    for term in block.relative_terms:
        for group in block.relative_groups:
            # A term on keys multiplies every key with the queries' positions, the others every query with the keys'.
            rows += keys * prod(q_grid[a] for a in group) if term == "k" else queries * prod(k_grid[a] for a in group)
    return {
        "attention": windows * 2 * (queries + cls) * (keys + cls) * block.dim_attn,
        "position": windows * rows * block.dim_attn,
    }
