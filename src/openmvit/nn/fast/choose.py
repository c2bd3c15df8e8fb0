"""Which form of an operation runs here: the one place where that is decided, asked by `nn/ops.py` at every call.

An answer depends on device, dtype, shape, number of threads and settings, never on a clock: a run repeats to the last
bit. None stands for the plain arithmetic. Figures: benchmarks/NOTES.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from math import prod
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from openmvit.block_config import Size
from openmvit.errors import UserError
from openmvit.nn.fast import attention, open_sizes, recompute
from openmvit.nn.fast import depthwise as filters
from openmvit.nn.fast import linear as products
from openmvit.nn.fast.norm import norm_in_bf16
from openmvit.nn.fast.precision import Float32, autocast_dtype, is_slow_in_bf16
from openmvit.nn.fast.tracing import is_exporting, is_symbolic, is_traced, is_transformed, runs_on_cpu
from openmvit.nn.position import interpolate_grid
from openmvit.nn.relative import Position

Form = Callable[..., Any]
P = ParamSpec("P")

MOST_SCORES = 2**22
"""Query-key pairs of a sample's heads up to which the position term may be written out; more are never held at once."""
MOST_SCORES_HALF = 2**18
"""The same on CUDA in 16 bits, where the fused kernel is several times as fast without a term as with one."""
LARGE_MAP = 2**16
"""Tokens of a map from which its activations are dropped: those of a detector's first blocks at 1024 x 1024, and of
clips of 312 pixels, but not of pictures and clips of 224."""
LARGE_FRAME = 28 * 28
"""Tokens of a frame from which CUDA filters faster frame by frame than channels first."""

_plain_depth = 0


@contextmanager
def plain() -> Iterator[None]:
    """Run the plain arithmetic of `nn/ops.py` inside the block, in all threads; `OPENMVIT_PLAIN=1` does so for good."""
    global _plain_depth
    _plain_depth += 1
    try:
        yield
    finally:
        _plain_depth -= 1


def is_plain() -> bool:
    """Return True if no form but the plain one may run.

    Raises:
        UserError: if `OPENMVIT_PLAIN` is neither 0 nor 1.
    """
    setting = os.environ.get("OPENMVIT_PLAIN", "")
    if setting not in ("", "0", "1"):
        raise UserError(f"OPENMVIT_PLAIN is {setting!r}", "Set it to 1 or 0, or not at all")
    return _plain_depth > 0 or setting == "1"


def unless_plain(choice: Callable[P, Form | None]) -> Callable[P, Form | None]:
    """Answer None to everything while `is_plain`."""

    @wraps(choice)
    def answer(*args: P.args, **kwargs: P.kwargs) -> Form | None:
        return None if is_plain() else choice(*args, **kwargs)

    return answer


@unless_plain
def attend(q: Tensor, k: Tensor, position: Position | None, mask: Tensor | None) -> Form | None:
    """Products by pieces on a CPU, R as extra channels where all scores are too many, or the framework's kernel.

    Products win on a CPU but for images in float32 without gradient, where the kernel is ahead by a little: in bf16 it
    computes at the speed of float32, with a gradient it gives way to one that keeps all scores, and on three axes
    writing the term out costs more than the products. Compiled, in bf16 alone. An exported graph has no pieces and
    would hold all scores, which is no loss only where a term of three axes would be written out.
    """
    if position is not None and (position.of_values or position.of_keys or max(map(len, position.groups)) > 1):
        return None if position.of_values else attention.by_kernel  # no channels of queries and keys
    half = q.device.type == "cuda" and (autocast_dtype(q) or q.dtype).itemsize == 2
    pairs = 0 if position is None else position.windows * prod(q.shape[1:-1]) * prod(k.shape[1:-2])
    many = not is_symbolic(pairs) and pairs > (MOST_SCORES_HALF if half else MOST_SCORES)
    if runs_on_cpu(q):
        wins = many or torch.is_grad_enabled() or q.dim() > 5 or q.dtype != torch.float32
    elif is_exporting():
        wins = q.device.type == "cpu" and q.dim() > 5 and position is not None and not many
    else:
        wins = torch.compiler.is_compiling() and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if wins and mask is None:
        return attention.by_products
    return attention.in_channels if many and mask is None else attention.by_kernel


@unless_plain
def project(layers: Sequence[nn.Module], x: Tensor) -> Form | None:
    """Tokens and weights cast once for all three, each made when it is asked for."""
    return products.project if are_untouched(nn.Linear, *layers) else None


@unless_plain
def linear(layer: nn.Module) -> Form | None:
    """oneDNN's layer on a CPU, and one cast of the weights."""
    return products.linear if are_untouched(nn.Linear, layer) else None


@unless_plain
def mlp(fc1: nn.Module, act: nn.Module, fc2: nn.Module) -> Form | None:
    """Two layers round an exact GELU; the backward pass keeps its input alone, since its output is a block's widest."""
    untouched = are_untouched(nn.Linear, fc1, fc2) and are_untouched(nn.GELU, act)
    return products.mlp if untouched and act.approximate == "none" else None


@unless_plain
def layer_norm(norm: nn.Module, x: Tensor) -> Form | None:
    """On CUDA under bf16 autocast, in bf16 where x is in it already; a compiler joins the casts by itself."""
    bf16 = x.device.type == "cuda" and x.dtype == torch.bfloat16 == autocast_dtype(x) and not is_traced()
    return norm_in_bf16 if bf16 and are_untouched(nn.LayerNorm, norm) else None


@unless_plain
def depthwise(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Form | None:
    """Filters on three axes: by frames in the training of a CPU, by frames or channels first on CUDA.

    The library's own way takes up to 20 times as long backward on a CPU, and up to 23 times on CUDA.
    """
    fits = len(stride) == 3 and stride[0] == 1 and weight.shape[2] == 2 * padding[0] + 1  # as many frames as before
    if len(stride) == 3 and x.device.type == "cuda" and not is_exporting():
        large = x.shape[2] * x.shape[3] >= LARGE_FRAME and prod(stride[1:]) <= 4
        return filters.by_frames if large and fits else filters.channels_first
    return filters.by_frames_in_one_node if fits and torch.is_grad_enabled() and runs_on_cpu(x) else None


def relative_rows() -> Form | None:
    """Without a decision on sizes, for whoever records the operators."""
    return open_sizes.relative_rows if is_traced() else None


def resize_grid(grid: Size) -> Form | None:
    """Without the question whether grids differ, where an export leaves their sizes open."""
    return interpolate_grid if is_symbolic(*grid) else None


@unless_plain
def half_block(block: Any, x: Tensor) -> Form | None:
    """Recomputed, where it reads a large map; a transform of `torch.func` and an exporter take no recomputation."""
    large = block.training and block.recompute_large and torch.is_grad_enabled() and prod(x.shape[1:-1]) >= LARGE_MAP
    takes_it = large and not is_exporting() and (torch.compiler.is_compiling() or not is_transformed())
    return recompute.recomputed if takes_it else None


def trunk(network: Any) -> Form | None:
    """Blocks on two streams, or blocks that are recomputed in the backward pass."""
    if network.config.reversible != "none":
        return _two_streams
    return recompute.checkpointed_blocks if network.grad_checkpointing and network.training and not is_plain() else None


def _two_streams(network: Any, x: Tensor, cls: None) -> list[tuple[Tensor, None]]:
    return network.blocks.stages(x, recompute=network.recompute_streams and not is_plain())


def float32(weight: Tensor) -> type[Float32] | None:
    """No autocast, where a CPU is slower in bf16 than in float32."""
    return Float32 if not is_plain() and is_slow_in_bf16(weight) else None


def are_untouched(kind: type[nn.Module], *layers: nn.Module) -> bool:
    """Return True if nobody has replaced layers or their forwards, or hooked them or all modules: arithmetic is all."""
    for layer in layers:
        hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
        if type(layer) is not kind or "forward" in vars(layer) or any(hooks):
            return False
    return not has_global_hooks()


# Not public, and there is no public name: `test_hooks_on_all_modules_are_called` tries it.
has_global_hooks: Callable[[], bool] = getattr(torch.nn.modules.module, "_has_any_global_hook", lambda: False)
