"""Linear layers and MLPs by oneDNN on a CPU, and GELUs of which the backward pass keeps the input alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.errors import UserError
from openmvit.nn.fast.gradients import differentiable
from openmvit.nn.fast.precision import autocast_dtype, cast, has_autocast
from openmvit.nn.fast.tracing import is_traced
from openmvit.nn.grid import Tokens, each

DTYPES = (torch.float32, torch.bfloat16)


def computed_in(weight: Tensor, x: Tensor, cls: Tensor | None) -> torch.dtype | None:
    """The dtype that a layer computes in, or None where the public operator has to be called.

    A graph without values shows the public operators to those who count, compile or export it.
    """
    if is_traced() or not has_autocast(x.device.type) or type(weight) not in (Tensor, nn.Parameter):
        return None
    autocast = None if weight.dtype == torch.float64 else autocast_dtype(x)
    one_dtype = x.dtype == weight.dtype and (cls is None or cls.dtype == weight.dtype)
    return autocast or (weight.dtype if one_dtype else None)


@cache
def uses_one_dnn(dtype: torch.dtype) -> bool:
    """Return True if linear layers go to oneDNN by name; `OPENMVIT_ONEDNN` = 1 or 0 decides, else the processor.

    The framework sends float32 products to MKL. With AVX-512 oneDNN is ahead of it on AMD, and as fast on Intel with
    less around the products; with AVX2 it is behind (benchmarks/NOTES.md). The operator is the framework's, but not
    public: `tests/nn/test_fast_paths.py` names the releases it was tried on. Where it is missing, or the processor has
    no instructions for the dtype, the public one is used.

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


def linear(layer: nn.Linear, x: Tensor, cls: Tensor | None) -> Tokens:
    """`ops.linear`; grid and class token share one cast of the weights."""
    return apply(x, cls, layer.weight, layer.bias)


def project(layers: Sequence[nn.Linear], x: Tensor, cls: Tensor | None) -> Iterable[Tokens]:
    """`ops.project`: tokens are cast once, and a fused weight is cut once, so that one copy joins its gradients."""
    x, cls = each(cast, x, cls)
    if len(layers) == 3:
        return (apply(x, cls, layer.weight, layer.bias) for layer in layers)
    weight, bias = layers[0].weight, layers[0].bias
    weights = cast(weight).unflatten(0, (3, -1)).unbind()
    biases = (None,) * 3 if bias is None else cast(bias).unflatten(0, (3, -1)).unbind()
    return map(apply, (x,) * 3, (cls,) * 3, weights, biases)


def mlp(fc1: nn.Linear, fc2: nn.Linear, x: Tensor, cls: Tensor | None) -> Tokens:
    """`ops.mlp` with the exact GELU: behind the first layer, or with a gradient before the second."""
    hidden = apply(x, cls, fc1.weight, fc1.bias, gelu_after=not torch.is_grad_enabled())
    return apply(*hidden, fc2.weight, fc2.bias, gelu_before=torch.is_grad_enabled())


def apply(
    x: Tensor,
    cls: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    gelu_before: bool = False,
    gelu_after: bool = False,
) -> Tokens:
    """`[..., C] -> [..., C_out]` for a grid and for the class token beside it."""
    dtype, grad = computed_in(weight, x, cls), torch.is_grad_enabled()
    one_dnn = dtype in DTYPES and x.device.type == "cpu" and uses_one_dnn(dtype)
    if dtype is None or not (one_dnn or (grad and gelu_before)):
        x, cls = each(lambda t: F.linear(F.gelu(t) if gelu_before else t, weight, bias), x, cls)
        return each(F.gelu, x, cls) if gelu_after else (x, cls)
    x, cls = each(lambda t: t.to(dtype), x, cls)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if not grad:
        return each(lambda t: product(F.gelu(t) if gelu_before else t, weight, bias, gelu_after), x, cls)
    # A call each: the grid of a last block that nobody reads is to have no part in the class token's graph.
    x, cls = each(lambda t: _Linear.apply(t, weight, bias, gelu_before), x, cls)
    return each(F.gelu, x, cls) if gelu_after else (x, cls)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    if x.device.type == "cpu" and x.dtype in DTYPES and uses_one_dnn(x.dtype):
        return one_dnn_linear(x, weight, bias, gelu=gelu)
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


class _Linear(torch.autograd.Function):
    # Not in two parts: the library would look the signature up at every call. No transform comes here (`is_traced`).
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        with torch.autocast(x.device.type, enabled=False):
            return product(F.gelu(x) if gelu else x, weight, bias)

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
        of_x = product(grad, weight.T, None)
        if gelu:  # into the same memory: it is the widest tensor of a block
            torch.ops.aten.gelu_backward.grad_input(of_x, x, grad_input=of_x)
    if needed[1]:
        of_weight = grad.flatten(0, -2).T @ (F.gelu(x) if gelu else x).flatten(0, -2)
    return of_x, of_weight
