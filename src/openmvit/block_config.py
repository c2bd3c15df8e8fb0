"""What one block is: pure arithmetic on a record, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Size = tuple[int, ...]
PoolMode = Literal["conv", "conv_unshared", "max", "avg"]
Fusion = Literal["none", "mean", "mlp"]
AbsolutePosition = Literal["none", "joint", "separable", "sincos"]
RelativePosition = Literal["none", "decomposed", "joint", "time", "space", "joint_space"]
RelativeTerms = Literal["q", "k", "v", "qk", "qv", "kv", "qkv"]
WindowPattern = Literal["all", "shifted", "hybrid"]


@dataclass(frozen=True)
class BlockConfig:
    """What one block is. Sizes are tokens along each axis, (h, w) or (t, h, w), coarsest axis first.

    `grid` is what the input size of the model gives by convolution arithmetic; the block itself runs on any grid.
    `table_grid` is the grid its relative tables are made for: its window, or the grid by the authors' halving, which
    rounds down where convolutions round up.
    `fusion` says how the two streams of a reversible network join before the block.
    An empty kernel means that there is no pool, an empty `window` (tokens of the input grid) that attention is global.
    """

    index: int
    stage: int
    dim: int
    dim_attn: int
    dim_out: int
    fusion: Fusion
    num_heads: int
    grid: Size
    table_grid: Size
    kernel_q: Size
    stride_q: Size
    kernel_kv: Size
    stride_kv: Size
    window: Size
    shifted: bool
    pool_mode: PoolMode
    pool_first: bool
    separate_qkv: bool
    qkv_bias: bool
    residual_pooling: bool
    relative_position: RelativePosition
    relative_terms: RelativeTerms
    relative_scaled: bool
    mlp_ratio: float
    drop_path: float
    layer_scale: float
    norm_eps: float
    pool_norm_eps: float

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim_attn // self.num_heads

    @property
    def q_grid(self) -> Size:
        """Tokens along each axis after the block."""
        return pooled_grid(self.grid, self.kernel_q, self.stride_q)

    @property
    def kv_grid(self) -> Size:
        """Tokens along each axis of the pooled keys and values."""
        return pooled_grid(self.grid, self.kernel_kv, self.stride_kv)

    @property
    def q_window(self) -> Size:
        """Queries of a window along each axis."""
        return tuple(w // s for w, s in zip(self.window, self.stride_q, strict=False))

    @property
    def kv_window(self) -> Size:
        """Keys of a window along each axis."""
        return tuple(w // s for w, s in zip(self.window, self.stride_kv, strict=False))

    @property
    def skip_kernel(self) -> Size:
        """Kernel of the max pool on the skip path; empty where the block keeps its grid."""
        return kernel_of(self.stride_q) if prod(self.stride_q) > 1 else ()

    @property
    def relative_groups(self) -> tuple[tuple[int, ...], ...]:
        """Axes that share a relative table, a group per table; empty without relative positions."""
        axes = range(len(self.grid))
        match self.relative_position:
            case "none":
                return ()
            case "joint":
                return (tuple(axes),)
            case "time":
                return ((0,),)
            case "space":
                return tuple((a,) for a in axes[-2:])
            case "joint_space":
                return (*((a,) for a in axes[:-2]), tuple(axes[-2:]))
        return tuple((a,) for a in axes)

    @property
    def fits_channels(self) -> bool:
        """Whether the relative terms can be written as channels of queries and keys."""
        return self.relative_terms == "q" and all(len(group) == 1 for group in self.relative_groups)

    @property
    def table_lengths(self) -> Size:
        """Distances along each axis for which its relative table has a row."""
        sides = zip(self.table_grid, self.stride_q, self.stride_kv, strict=True)
        return tuple(2 * max(n // q, n // kv, 1) - 1 for n, q, kv in sides)

    @property
    def relative_tables(self) -> dict[str, Size]:
        """Name and shape `(*lengths, head_dim)` of every relative table; `k_` and `v_` mark those of keys, values."""
        names, lengths = "thw"[-len(self.grid) :], self.table_lengths
        return {
            f"rel_pos_{'' if term == 'q' else f'{term}_'}{''.join(names[a] for a in group)}": (
                *(lengths[a] for a in group),
                self.head_dim,
            )
            for term in self.relative_terms
            for group in self.relative_groups
        }


def pooled_grid(grid: Size, kernel: Size, stride: Size) -> Size:
    """Grid after a pool with padding kernel // 2, rounding as convolutions do; an empty kernel changes nothing."""
    if not kernel:
        return grid
    return tuple((n + 2 * (k // 2) - k) // s + 1 for n, k, s in zip(grid, kernel, stride, strict=True))


def kernel_of(stride: Size) -> Size:
    """Pooling kernel that a stride asks for where none is given: s + 1, or 1 where s = 1."""
    return tuple(s + 1 if s > 1 else 1 for s in stride)
