"""A row of the paper's table becomes block records: pure arithmetic, standard library only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from openmvit.block_config import (
    AbsolutePosition,
    BlockConfig,
    Fusion,
    PoolMode,
    RelativePosition,
    RelativeTerms,
    Size,
    WindowPattern,
    kernel_of,
)
from openmvit.errors import UserError
from openmvit.records import from_fields, settle

__all__ = ["BlockConfig", "MViTConfig", "PoolMode", "Size", "stem_grid"]


@dataclass(frozen=True)
class MViTConfig:
    """One row of the paper's table.

    Tuples have one value per axis of `input_size`; widths and heads double from stage to stage.
    """

    input_size: Size = (224, 224)
    """Nominal input, pixels (h, w) or frames and pixels (t, h, w). Sizes the tables; any other size runs too."""
    in_chans: int = 3
    num_classes: int = 1000
    depths: tuple[int, ...] = (1, 2, 11, 2)
    """Blocks per stage."""
    embed_dim: int = 96
    """Channels of stage 1."""
    num_heads: int = 1
    """Heads of stage 1."""
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    separate_qkv: bool = False
    """Three projections q, k, v instead of one fused qkv."""
    patch_kernel: Size = (7, 7)
    patch_stride: Size = (4, 4)
    patch_padding: Size = (3, 3)
    kernel_qkv: Size | None = (3, 3)
    """Pooling kernel of every pool; None derives each from its stride s: s + 1, or 1 where s = 1."""
    stride_q: Size = (2, 2)
    """Query stride of the first block of stages 2, 3, ..."""
    full_q_pooling: bool = True
    """Pool the query in every block (stride 1 inside a stage), not only where the stage changes."""
    adaptive_kv_stride: Size | None = (4, 4)
    """K/V stride of stage 1; divided by `stride_q` at each stage start, at least 1."""
    stride_kv: tuple[Size, ...] | None = None
    """K/V stride of each stage, instead of `adaptive_kv_stride`."""
    window: Size | tuple[Size, ...] | None = None
    """Attention inside windows of so many tokens of the queries' grid: of stage 1, from where it shrinks with the grid,
    or one window per stage. A stage's first block, whose queries are pooled, sees keys of a larger part of its grid.
    None attends to all."""
    window_pattern: WindowPattern = "all"
    """Blocks that use windows: `all`; `shifted`: all, in every second block moved by half a window (Swin); `hybrid`:
    all but the last one of stages 2, 3, ... (Hwin)."""
    global_blocks: tuple[int, ...] | None = None
    """The blocks without windows in `hybrid`, instead of those."""
    global_kv_stride_factor: int = 1
    """Factor on the K/V stride of the global blocks of `hybrid`, except the network's last block."""
    pool_kv_at_stride_one: bool = True
    """Pool K and V also where their stride is 1; the first v1 16x4 file has no such pools in its last stage."""
    pool_mode: PoolMode = "conv"
    pool_first: bool = False
    """Pool before the projection; needs `separate_qkv`."""
    residual_pooling: bool = True
    """Add the pooled query to the attention output (never on the class row)."""
    dim_mul_in_attention: bool = True
    """Widths grow in the attention of a stage's first block (v2), or in the MLP of the block before it (v1)."""
    cls_token: bool = False
    absolute_position: AbsolutePosition = "none"
    relative_position: RelativePosition = "decomposed"
    """Learned term of attention: `decomposed` has a table per axis, `joint` one for all; of clips `time` and `space`
    have tables for these axes alone, and `joint_space` one for time and one for space."""
    relative_terms: RelativeTerms = "q"
    """What the relative tables meet: queries, keys, values (paper, Table A.4), each with tables of its own."""
    relative_scaled: bool = False
    """Divide the relative terms by sqrt(c) like q k, as printed in the paper; the released code does not."""
    rel_pos_zero_init: bool = False
    reversible: Fusion = "none"
    """Two streams, recomputed in the backward pass instead of kept; joined where a stage starts by their mean or an MLP
    on both (Rev-MViT)."""
    norm_stem: bool = False
    global_pool: Literal["auto", "token", "avg"] = "auto"
    """What the head reads: the class token or the mean of the grid; `auto` is the token where there is one."""
    norm_after_pool: bool = False
    """Mean of the grid first, then the final norm."""
    layer_scale: float = 0.0
    """Initial layer scale of both branches; 0 has none."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block; linear from 0 at the first."""
    drop_rate: float = 0.0
    """Dropout before the classifier."""
    norm_eps: float = 1e-6
    pool_norm_eps: float = 1e-6
    """Epsilon of the norms after pooling; 1e-5 in the code that trained the first v1 weights."""
    init: Literal["mvit", "slowfast"] = "mvit"
    """Published initialisation: `slowfast` starts biases at 0.02 and draws convolutions from the normal too."""
    head_init_scale: float = 1.0

    def __post_init__(self) -> None:
        settle(self)
        _check(self)

    @property
    def ndim(self) -> int:
        """Number of axes: 2 for images, 3 for clips."""
        return len(self.input_size)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def patch_grid(self) -> Size:
        """Nominal tokens after the stem, as the authors size position tables: input // stride."""
        return tuple(n // s for n, s in zip(self.input_size, self.patch_stride, strict=True))

    @property
    def windows(self) -> tuple[Size, ...]:
        """Window on the queries' grid, for every stage; empty without windows."""
        given = self.window or ()
        sides = tuple(n for n in given if isinstance(n, int))
        if not sides:
            return tuple(own for own in given if isinstance(own, tuple))
        stages = range(len(self.depths))
        return tuple(tuple(n // s**i for n, s in zip(sides, self.stride_q, strict=False)) for i in stages)

    @property
    def head_reads(self) -> Literal["token", "avg"]:
        """What the head reads once `auto` is resolved."""
        if self.global_pool != "auto":
            return self.global_pool
        return "token" if self.cls_token and not self.norm_after_pool else "avg"

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels at the end of each stage, as `forward_features` gives them."""
        ends = [sum(self.depths[: s + 1]) - 1 for s in range(len(self.depths))]
        blocks = self.blocks()
        return tuple(blocks[i].dim_out * self.streams for i in ends)

    @property
    def num_features(self) -> int:
        """Channels that the head reads."""
        return self.embed_dim * 2 ** (len(self.depths) - 1) * self.streams

    @property
    def streams(self) -> int:
        """Streams that run beside each other: 2 in reversible networks."""
        return 1 if self.reversible == "none" else 2

    def replace(self, **changes: Any) -> MViTConfig:
        """A copy with some fields changed; an unknown field is a UserError naming the nearest."""
        return MViTConfig.from_dict(self.to_dict() | changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` and JSON give the same record back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> MViTConfig:
        """Inverse of `to_dict`; lists are read as tuples.

        Raises:
            UserError: if a key is no field, naming the nearest one.
        """
        return from_fields(MViTConfig, fields, "The configuration")

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    def blocks(self) -> tuple[BlockConfig, ...]:
        """The block records: the only place where the schedule of widths, heads, strides and kernels is computed."""
        return tuple(_expand(self))


def stem_grid(config: MViTConfig, size: Size) -> Size:
    """Grid that the stem makes of an input of `size`."""
    axes = zip(size, config.patch_kernel, config.patch_stride, config.patch_padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)


_SAME_IN_EVERY_BLOCK = (
    *("pool_mode", "pool_first", "separate_qkv", "qkv_bias", "residual_pooling"),
    *("relative_position", "relative_terms", "relative_scaled", "mlp_ratio", "layer_scale"),
    *("norm_eps", "pool_norm_eps"),
)


def _expand(c: MViTConfig) -> Iterator[BlockConfig]:
    ones = (1,) * c.ndim
    grid, table_grid, dim, index = stem_grid(c, c.input_size), c.patch_grid, c.embed_dim, 0
    for stage, depth in enumerate(c.depths):
        width = c.embed_dim * 2**stage
        for i in range(depth):
            first, last_of_stage = i == 0 and stage > 0, i == depth - 1 and stage < len(c.depths) - 1
            stride_q = c.stride_q if first else ones
            whole = c.window is None or _is_global(c, index, stage, last=i == depth - 1)
            stride_kv = _stride_kv(c, stage, whole)
            # Of the input grid: in a stage's first block larger by the stride of its queries.
            window = () if whole else tuple(n * s for n, s in zip(c.windows[stage], stride_q, strict=True))
            block = BlockConfig(
                index=index,
                stage=stage,
                dim=width if first and c.reversible == "mlp" else dim,
                dim_attn=width if c.dim_mul_in_attention else dim,
                dim_out=width * 2 if last_of_stage and not c.dim_mul_in_attention else width,
                fusion=c.reversible if first else "none",
                num_heads=c.num_heads * 2**stage,
                grid=grid,
                table_grid=window or table_grid,
                kernel_q=_kernel(c, stride_q) if first or c.full_q_pooling else (),
                stride_q=stride_q,
                kernel_kv=_kernel(c, stride_kv) if c.pool_kv_at_stride_one or prod(stride_kv) > 1 else (),
                stride_kv=stride_kv,
                window=window,
                shifted=c.window_pattern == "shifted" and index % 2 == 1,
                drop_path=c.drop_path_rate * index / max(c.depth - 1, 1),
                **{name: getattr(c, name) for name in _SAME_IN_EVERY_BLOCK},
            )
            yield block
            grid, dim, index = block.q_grid, block.dim_out, index + 1
            table_grid = tuple(n // s for n, s in zip(table_grid, stride_q, strict=True))


def _stride_kv(c: MViTConfig, stage: int, whole: bool) -> Size:
    """K/V stride of a stage; `whole` for a global block among windows."""
    factor = c.global_kv_stride_factor if whole and c.window and stage < len(c.depths) - 1 else 1
    if c.stride_kv is not None:
        return tuple(s * factor for s in c.stride_kv[stage])
    stride = c.adaptive_kv_stride or (1,) * c.ndim
    for _ in range(stage):
        stride = tuple(max(s // q, 1) for s, q in zip(stride, c.stride_q, strict=True))
    return tuple(s * factor for s in stride)


def _is_global(c: MViTConfig, index: int, stage: int, *, last: bool) -> bool:
    if c.window_pattern != "hybrid":
        return False
    return stage > 0 and last if c.global_blocks is None else index in c.global_blocks


def _kernel(c: MViTConfig, stride: Size) -> Size:
    kernel = c.kernel_qkv or kernel_of(stride)
    return () if prod(kernel) == 1 and prod(stride) == 1 else kernel


_OPTIONAL = ("kernel_qkv", "adaptive_kv_stride")


def _check(c: MViTConfig) -> None:
    """Every rule between fields; each message names the fields and what they accept."""
    for name in ("patch_kernel", "patch_stride", "patch_padding", "stride_q", *_OPTIONAL):
        value = getattr(c, name)
        if value is not None and len(value) != c.ndim:
            raise UserError(f"{name} {value} and input_size {c.input_size} differ in length", f"Give {c.ndim} values")
    for name in ("depths", "input_size", "patch_stride", "patch_kernel", "stride_q", *_OPTIONAL):
        value = getattr(c, name)
        if value is not None and (not value or min(value) < 1):
            raise UserError(f"{name} is {value}", "Every value must be at least 1")
    for name in ("embed_dim", "num_heads", "in_chans", "num_classes"):
        if getattr(c, name) < (0 if name == "num_classes" else 1):
            raise UserError(f"{name} is {getattr(c, name)}", "It must be positive")
    for name in ("drop_path_rate", "drop_rate"):
        if not 0 <= getattr(c, name) < 1:
            raise UserError(f"{name} is {getattr(c, name)}", "Accepted: 0 <= rate < 1")
    if min(c.patch_grid) < 1:
        raise UserError(f"input_size {c.input_size} is smaller than patch_stride {c.patch_stride}", "Enlarge the input")
    if c.embed_dim % c.num_heads:
        raise UserError(f"embed_dim {c.embed_dim} is no multiple of num_heads {c.num_heads}", "Change one of them")
    _check_pools(c)
    _check_tokens(c)
    _check_streams(c)
    _check_relative(c)
    _check_windows(c)


def _check_pools(c: MViTConfig) -> None:
    if c.kernel_qkv is not None and any(k % 2 == 0 for k in c.kernel_qkv):
        raise UserError(f"kernel_qkv is {c.kernel_qkv}", "Accepted: odd values, which keep the grid at stride 1")
    if any(s % 2 and s > 1 for s in c.stride_q):
        # The skip path pools with kernel s + 1: only then do both paths end on the same grid.
        raise UserError(f"stride_q is {c.stride_q}", "Accepted: 1 and even values")
    if c.stride_kv is not None:
        if any(min(s, default=0) < 1 for s in c.stride_kv):
            raise UserError(f"stride_kv is {c.stride_kv}", "Every value must be at least 1")
        if c.adaptive_kv_stride is not None:
            raise UserError("stride_kv and adaptive_kv_stride are both given", "Set one of them to null")
        if len(c.stride_kv) != len(c.depths) or any(len(s) != c.ndim for s in c.stride_kv):
            raise UserError(
                f"stride_kv {c.stride_kv} does not fit depths {c.depths}",
                f"Give {len(c.depths)} strides of {c.ndim} values",
            )
    if c.pool_first and not c.separate_qkv:
        raise UserError("pool_first is true and separate_qkv is false", "Pooling first needs separate_qkv: true")
    if c.pool_mode == "conv_unshared" and not c.pool_first:
        raise UserError("pool_mode is 'conv_unshared' and pool_first is false", "Accepted with pool_first: true only")
    if c.pool_first and c.embed_dim % (2 * c.num_heads):
        raise UserError(
            f"pool_first folds embed_dim {c.embed_dim} by twice num_heads {c.num_heads}", "Change one of them"
        )


def _check_tokens(c: MViTConfig) -> None:
    if c.global_pool == "token" and not c.cls_token:
        raise UserError("global_pool is 'token' and cls_token is false", "Accepted without a class token: auto, avg")
    if c.norm_after_pool and c.global_pool == "token":
        raise UserError("norm_after_pool is true and global_pool is 'token'", "Accepted with it: auto, avg")
    if c.absolute_position == "separable" and c.ndim < 3:
        raise UserError(
            f"absolute_position is 'separable' and input_size {c.input_size} has {c.ndim} axes",
            "Accepted for two axes: none, joint, sincos",
        )
    parts = 2 * c.ndim if c.ndim < 3 else 16
    if c.absolute_position == "sincos" and c.embed_dim % parts:
        raise UserError(
            f"absolute_position is 'sincos' and embed_dim {c.embed_dim} is no multiple of {parts}", "Change one of them"
        )


def _check_streams(c: MViTConfig) -> None:
    if c.reversible == "none":
        return
    for name, accepted in (("cls_token", False), ("layer_scale", 0), ("window", None), ("pool_first", False)):
        if getattr(c, name) != accepted:
            raise UserError(f"reversible is {c.reversible!r} and {name} is {getattr(c, name)}", f"Accepted: {accepted}")
    if not c.dim_mul_in_attention or min(c.depths[1:], default=2) < 2:
        raise UserError(
            f"reversible is {c.reversible!r}, dim_mul_in_attention {c.dim_mul_in_attention} and depths {c.depths}",
            "Widths grow in attention there, and every stage after the first needs two blocks",
        )


def _check_windows(c: MViTConfig) -> None:
    if c.window is None:
        if c.window_pattern != "all" or c.global_kv_stride_factor != 1 or c.global_blocks is not None:
            raise UserError("A field of windows is given and window is not", "Give a window")
        return
    if len(c.windows) != len(c.depths) or any(len(w) != c.ndim or min(w) < 1 for w in c.windows):
        raise UserError(
            f"window {c.window} fits neither input_size {c.input_size} nor depths {c.depths}",
            f"Give {c.ndim} values that last for {len(c.depths)} stages, or {len(c.depths)} times {c.ndim}",
        )
    if c.cls_token:
        raise UserError(f"window is {c.window} and cls_token is true", "A class token belongs to no window: drop one")
    if c.global_blocks is not None and (c.window_pattern != "hybrid" or not set(c.global_blocks) < {*range(c.depth)}):
        raise UserError(f"global_blocks is {c.global_blocks}", "Accepted with window_pattern: hybrid, blocks from 0")
    for block in _expand(c):
        if any(w % s for w, s in zip(block.window, block.stride_kv, strict=False)):
            raise UserError(
                f"window {c.window} becomes {block.window} in block {block.index}, whose K/V stride is "
                f"{block.stride_kv}",
                "Choose a window that the strides divide",
            )
        if any(k % 2 == 0 for k in block.kernel_kv):
            raise UserError("window needs odd pooling kernels", "Give kernel_qkv")


def _check_relative(c: MViTConfig) -> None:
    if c.relative_position in ("time", "space", "joint_space") and c.ndim < 3:
        raise UserError(
            f"relative_position is {c.relative_position!r} and input_size {c.input_size} has {c.ndim} axes",
            "Accepted for images: none, decomposed, joint",
        )
