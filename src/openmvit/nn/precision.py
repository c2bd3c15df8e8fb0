"""In which type products are computed: what autocast asks for, and what the processor is fast in."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from openmvit.nn.symbolic import is_exporting


def _bf16_pays() -> bool:
    """Whether products of bf16 are faster than products of float32 here.

    Without AVX-512 the framework has plain loops for them on x86. With it AMD multiplies bf16 faster than float32, and
    Intel at half to three quarters of the rate (benchmarks/NOTES.md), but for processors with AMX, taken to be faster.
    """
    try:  # not public: `tests/nn/test_precision.py` names the releases it was tried on
        supported = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        supported = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return supported and (has_amx() or "GenuineIntel" not in _processor())


def has_amx() -> bool:
    """Whether the processor has units for products of whole tiles."""
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


BF16_PAYS = _bf16_pays()


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


def is_written() -> bool:
    """Whether an exporter or a tracer writes the operators down, to be run elsewhere."""
    compiling = torch.compiler.is_compiling()  # the compiler cannot ask the tracer
    return is_exporting() if compiling else torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def bf16_costs_time(weight: Tensor) -> bool:
    """Whether autocast to bf16 makes a network that holds such weights slower: on CPUs that are faster in float32.

    Weights held in bf16 are multiplied as they are. A graph that is exported or traced does not depend on the machine
    that wrote it.
    """
    if BF16_PAYS or weight.device.type != "cpu" or weight.dtype != torch.float32 or is_written():
        return False
    return autocast_type(weight) == torch.bfloat16


def autocast_that_pays(weight: Tensor) -> AbstractContextManager[object]:
    """Autocast as it is, or none at all where `bf16_costs_time`."""
    return torch.autocast("cpu", enabled=False) if bf16_costs_time(weight) else nullcontext()


def paying(x: Tensor, weight: Tensor) -> Tensor:
    """An input as a network in `autocast_that_pays` reads it: of 16 bits widened where autocast will be off."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) and bf16_costs_time(weight) else x
