"""The dtype of products: what autocast asks for, and what the processor is fast in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from openmvit.nn.fast.tracing import is_exported


def _is_fast_in_bf16() -> bool:
    """Return True if products of bf16 are faster than products of float32 here.

    Without AVX-512 the framework has plain loops for them on x86. With it AMD multiplies bf16 faster than float32, and
    Intel at half to three quarters of the rate (benchmarks/NOTES.md), but for processors with AMX, taken to be faster.
    """
    try:  # not public: `tests/nn/test_precision.py` names the releases it was tried on
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        supported = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return supported and (has_amx() or "GenuineIntel" not in _processor())


def has_amx() -> bool:
    """Return True if the processor has units for products of whole tiles."""
    try:  # not public either
        return torch.cpu._is_amx_tile_supported()
    except (AttributeError, RuntimeError):
        return "amx_bf16" in _processor()


def _processor() -> str:
    """A text that names the maker of the processor."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return file.read(4096)  # of the first core: the system takes long to write down hundreds
    except OSError:
        return platform.processor()


BF16_IS_FAST = _is_fast_in_bf16()


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast gives to products on the device of a tensor; None where it is off, or x is float64."""
    on = has_autocast(x.device.type) and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    return torch.get_autocast_dtype(x.device.type) if on else None


def has_autocast(device: str) -> bool:
    """Return True if a type of device has autocast."""
    # The compiler of torch 2.11 cannot ask the library.
    return device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)


def cast(x: Tensor) -> Tensor:
    """Cast to autocast's dtype once, where several layers that read x would each make a copy of their own."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def is_slow_in_bf16(weight: Tensor) -> bool:
    """Return True if bf16 autocast makes a network with such weights slower: on CPUs that are faster in float32.

    Weights held in bf16 are multiplied as they are. A graph that is exported or traced does not depend on the machine
    that wrote it.
    """
    if BF16_IS_FAST or weight.device.type != "cpu" or weight.dtype != torch.float32 or is_exported():
        return False
    return autocast_dtype(weight) == torch.bfloat16


class Float32:
    """Autocast switched off, and inputs of 16 bits cast to float32."""

    @staticmethod
    def cast(x: Tensor) -> Tensor:
        return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

    @staticmethod
    def autocast() -> AbstractContextManager[object]:
        return torch.autocast("cpu", enabled=False)
