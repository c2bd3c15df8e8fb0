"""Which of several ways to the same result is the faster one here: the one place where that is decided.

Every choice depends on device, type, shape and number of threads, never on a clock: a run repeats to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import prod
from operator import gt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.config import Size
from openmvit.errors import UserError
from openmvit.nn import filters
from openmvit.nn.gradients import differentiable
from openmvit.nn.grid import Tokens, conv, each
from openmvit.nn.precision import autocast_type, has_autocast
from openmvit.nn.symbolic import is_exporting

TYPES = (torch.float32, torch.bfloat16)


def on_plain_cpu(x: Tensor) -> bool:
    """Whether a CPU will run this now, rather than a compiler or an exporter that looks at it."""
    return x.device.type == "cpu" and not _traced()


def _traced() -> bool:
    """Whether somebody looks at the operators: a compiler, an exporter, or a transform of `torch.func`."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return tracing or is_transformed()


# Not public, and there is no public name: `tests/nn/test_fast_paths.py` names the releases it was tried on.
is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm over the last axis, on CUDA under bf16 autocast in bf16 where x is in it already.

    The framework would widen x, norm it in float32, and narrow the result again: three passes over memory for one. The
    kernel takes its sums in float32 all the same. A compiler joins the passes by itself, and gradients of the weights
    could leave the range of float16.
    """
    bf16 = x.dtype == torch.bfloat16 == autocast_type(x)
    if x.device.type != "cuda" or not bf16 or _traced() or not is_untouched(norm, nn.LayerNorm):
        return norm(x)
    assert isinstance(norm, nn.LayerNorm)
    weight, bias = (None if t is None else t.to(x.dtype) for t in (norm.weight, norm.bias))
    with torch.autocast("cuda", enabled=False):
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def products_pay(q: Tensor, term_written_out: bool = False) -> bool:
    """Whether `attend_by_products` is faster on a CPU than the library's kernel, for queries `[B, *grid, h, c]`.

    Always but for images in float32 without gradient, where the kernel is ahead by a little: in bf16 it computes at the
    speed of float32, with a gradient it gives way to one that keeps all scores, and on three axes writing the term out
    costs more than the products. Compiled, in bf16 alone. Figures: benchmarks/NOTES.md.

    Args:
        term_written_out: whether a position term of all pairs would have to be written out otherwise. An exported graph
            has no pieces and would hold all scores, which is no loss in that case alone, on three axes.
    """
    if is_exporting():
        return q.device.type == "cpu" and q.dim() > 5 and term_written_out
    if on_plain_cpu(q):
        return q.dtype != torch.float32 or torch.is_grad_enabled() or q.dim() > 5
    return torch.compiler.is_compiling() and q.device.type == "cpu" and q.dtype == torch.bfloat16


MOST_SCORES_HALF = 2**18
"""Query-key pairs of a sample's heads up to which CUDA writes a position term of 16 bits out."""


def most_scores(q: Tensor, most: int) -> int:
    """Query-key pairs of a sample up to which the position term may be written out, of `most` in general.

    Far fewer on CUDA in types of 16 bits, where the fused kernel is several times as fast without a term as with one.
    """
    half = (autocast_type(q) or q.dtype).itemsize == 2
    return min(most, MOST_SCORES_HALF) if half and q.device.type == "cuda" else most


@cache
def one_dnn_pays(dtype: torch.dtype) -> bool:
    """Whether linear layers go to oneDNN by name; `OPENMVIT_ONEDNN` = 1 or 0 decides, and by default the processor.

    The framework sends float32 products to MKL. With AVX-512 oneDNN is ahead of it on AMD, and as fast on Intel with
    less around the products; with AVX2 it is behind (benchmarks/NOTES.md). The operator is the framework's, but not
    public: `tests/nn/test_fast_paths.py` names the releases it was tried on. Where it is missing, or the processor has
    no instructions for the type, the public one is used.

    Raises:
        UserError: if the setting is neither 0 nor 1.
    """
    setting = os.environ.get("OPENMVIT_ONEDNN", "")
    if setting not in ("", "0", "1"):
        raise UserError(f"OPENMVIT_ONEDNN is {setting!r}", "Set it to 1 or 0, or not at all")
    suits = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if setting == "0" or (not setting and not suits):
        return False
    try:
        one_dnn_linear(torch.ones(2, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype), torch.ones(3, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


def one_dnn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """oneDNN's linear layer, with the exact GELU behind it if asked; no gradient."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def is_untouched(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether nobody has replaced a layer, its forward, or hung a hook on it or on all modules, so that its arithmetic
    is all it does."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is kind and "forward" not in vars(layer) and not any(hooks) and not has_global_hooks()


# Not public, and there is no public name: `test_hooks_on_all_modules_are_called` tries it.
has_global_hooks: Callable[[], bool] = getattr(torch.nn.modules.module, "_has_any_global_hook", lambda: False)


def are_untouched(kind: type[nn.Module], *layers: object) -> bool:
    """Whether `is_untouched` holds for every layer; None is none."""
    return all(isinstance(layer, kind) and is_untouched(layer, kind) for layer in layers)


def apply_linear(
    layer: nn.Module, x: Tensor, cls: Tensor | None, *, gelu_before: bool = False, gelu_after: bool = False
) -> Tokens:
    """A linear layer with the exact GELU before or after it; one that is not untouched is called itself."""
    if is_untouched(layer, nn.Linear):
        assert isinstance(layer, nn.Linear)
        return linear(x, cls, layer.weight, layer.bias, gelu_before=gelu_before, gelu_after=gelu_after)
    x, cls = each(lambda t: layer(F.gelu(t) if gelu_before else t), x, cls)
    return each(F.gelu, x, cls) if gelu_after else (x, cls)


def linear(
    x: Tensor,
    cls: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gelu_before: bool = False,
    gelu_after: bool = False,
) -> Tokens:
    """`[..., C] -> [..., C_out]` for a grid and for the class token beside it, which share one cast of the weights.

    Of a GELU before it only the input is kept for the backward pass.
    """
    # A graph without values shows the layers themselves to those who count, compile or export it.
    device, values = x.device.type, not _traced() and has_autocast(x.device.type)
    autocast = autocast_type(x) if values and weight.dtype != torch.float64 else None
    dtype = autocast or weight.dtype
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, cls, weight, bias))
    one_type = x.dtype == dtype and (cls is None or cls.dtype == dtype)
    fits = values and (autocast is not None or one_type) and type(weight) in (Tensor, nn.Parameter)
    one_dnn = values and device == "cpu" and dtype in TYPES and one_dnn_pays(dtype)
    if not (fits and (one_dnn or (grad and gelu_before))):
        x, cls = each(lambda t: F.linear(F.gelu(t) if gelu_before else t, weight, bias), x, cls)
        return each(F.gelu, x, cls) if gelu_after else (x, cls)
    x, cls = each(lambda t: t.to(dtype), x, cls)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if not grad:
        return each(lambda t: _product(F.gelu(t) if gelu_before else t, weight, bias, gelu_after), x, cls)
    # A call each: the grid of a last block that nobody reads is to have no part in the class token's graph.
    x, cls = each(lambda t: _Linear.apply(t, weight, bias, gelu_before), x, cls)
    return each(F.gelu, x, cls) if gelu_after else (x, cls)


def tokens_read(x: Tensor, kind: type[nn.Module], *pools: Any) -> tuple[Tensor, Size | None]:
    """The tokens of `[B, *grid, C]` that pools read, and the stride which gives the same result on them.

    On a CPU, in the training of clips, whose first filters of keys and values read an eighth to a half of the tokens
    (benchmarks/NOTES.md). Elsewhere, and for pools that are touched or read different ones, x as it is and None.
    """
    if x.dim() != 5 or not (torch.is_grad_enabled() and on_plain_cpu(x) and are_untouched(kind, *pools)):
        return x, None
    (kernel, stride), *others = {(tuple(pool.kernel), tuple(pool.stride)) for pool in pools}
    return (x, None) if others or not any(map(gt, stride, kernel)) else filters.rows_read(x, kernel, stride)


def depthwise(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
    """Depthwise convolution `[B, *grid, C] -> [B, *grid_out, C]`, where the library's own way is slow by another one.

    On a CPU a strided bf16 filter takes 3 to 18 times as long backward as one in float32, and a filter on three axes
    up to 20 times as long as filters on the frames alone whose results are shifted and added. On CUDA a filter on three
    axes takes up to 23 times as long in channels-last memory as by frames or channels first (benchmarks/NOTES.md).
    """
    if len(stride) == 3 and x.device.type == "cuda" and not is_exporting():
        large = x.shape[2] * x.shape[3] >= LARGE_FRAME and prod(stride[1:]) <= 4
        way = filters.by_frames if large and filters.fits_frames(weight, stride, padding) else filters.channels_first
        return way(x, weight, stride, padding)
    if torch.is_grad_enabled() and on_plain_cpu(x):
        widened = x.dtype == torch.bfloat16 and prod(stride) > 1
        dtype = torch.float32 if widened else autocast_type(x)
        if filters.fits_frames(weight, stride, padding):
            out = filters.by_frames_in_one_node(x, weight, stride, padding, dtype)
            return out.to(x.dtype) if widened else out
        if widened:  # samples as frames of which a filter sees one
            how = (1, *stride), (0, *padding), dtype
            return filters.by_frames_in_one_node(x[None], weight[:, :, None], *how).to(x.dtype).squeeze(0)
    return conv(x, weight, None, stride, padding, groups=x.shape[-1])


LARGE_FRAME = 28 * 28
"""Tokens of a frame from which CUDA is faster by frames than channels first."""


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    if x.device.type == "cpu" and x.dtype in TYPES and one_dnn_pays(x.dtype):
        return one_dnn_linear(x, weight, bias, gelu=gelu)
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


class _Linear(torch.autograd.Function):
    # Not in two parts: the library would look the signature up at every call. No transform comes here (see `_traced`).
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        with torch.autocast(x.device.type, enabled=False):
            return _product(F.gelu(x) if gelu else x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Where a gradient of the gradient is to come, every step must have one.
        way = _gradients_of_public if torch.is_grad_enabled() else _gradients
        x, weight = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            of_x, of_weight = way(x, weight, ctx.gelu, grad, ctx.needs_input_grad)
            of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return of_x, of_weight, of_bias, None


def _gradients_of_public(
    x: Tensor, weight: Tensor, gelu: bool, grad: Tensor, needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    return differentiable(F.linear(F.gelu(x) if gelu else x, weight), (x, weight), needed, grad)


def _gradients(
    x: Tensor, weight: Tensor, gelu: bool, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    of_x, of_weight = None, None
    if needed[0]:
        of_x = _product(grad, weight.T, None)
        if gelu:  # into the same memory: it is the widest tensor of a block
            torch.ops.aten.gelu_backward.grad_input(of_x, x, grad_input=of_x)
    if needed[1]:
        of_weight = grad.flatten(0, -2).T @ (F.gelu(x) if gelu else x).flatten(0, -2)
    return of_x, of_weight
