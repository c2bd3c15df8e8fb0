"""In which type products are computed: what autocast asks for, and what the processor has instructions for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _has_bf16_kernels() -> bool:
    """Whether the framework has products of bf16 for this processor that are no plain loops: from AVX-512 on."""
    try:  # not public: `tests/nn/test_precision.py` names the releases it was tried on
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


HAS_BF16_KERNELS = _has_bf16_kernels()


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast gives to products on the device of a tensor; None where it is off, or x is float64."""
    device = x.device.type
    autocast = has_autocast(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else None


def has_autocast(device: str) -> bool:
    """Whether a type of device has autocast."""
    # The compiler of torch 2.11 cannot ask the library.
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)


def narrowed(x: Tensor) -> Tensor:
    """In the type that autocast gives to products: of several layers that read x each would make a copy of its own."""
    dtype = autocast_type(x)
    return x if dtype is None else x.to(dtype)


def narrowed_weight(weight: Tensor) -> Tensor:
    """`narrowed`, but for products that would only widen it again."""
    return weight if needs_float32(weight) else narrowed(weight)


def is_written() -> bool:
    """Whether an exporter or a tracer writes the operators down, to be run elsewhere."""
    compiling = torch.compiler.is_compiling()  # the compiler cannot ask the tracer
    return torch.compiler.is_exporting() if compiling else torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def needs_float32(x: Tensor) -> bool:
    """Whether products of x are to be in bf16 on a CPU for which the framework has none but plain loops.

    Those are some ten times slower than float32 (benchmarks/NOTES.md). A graph that is exported or traced does not
    depend on the machine that wrote it.
    """
    if HAS_BF16_KERNELS or x.device.type != "cpu" or is_written():
        return False
    return (autocast_type(x) or x.dtype) == torch.bfloat16


def in_float32(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`; where the first input `needs_float32`, of all tensors in float32, and the result in bf16.

    Products of bf16 are summed in float32 everywhere, so that this is the same arithmetic with fewer roundings.
    """
    if not needs_float32(inputs[0]):
        return function(*inputs)
    with torch.autocast("cpu", enabled=False):
        return function(*(t.float() if isinstance(t, Tensor) else t for t in inputs)).to(torch.bfloat16)
