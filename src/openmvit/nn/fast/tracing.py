"""Who runs the operators: the machine itself, or a compiler, an exporter, a tracer or a transform that records them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Not public, and there is no public name: `tests/nn/test_fast_paths.py` names the releases it was tried on.
is_transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


def is_exporting() -> bool:
    """Return True inside an exporter, False inside a compiler."""
    # The compiler of torch 2.11 answers the public question with yes; what stands behind it is not public.
    return getattr(torch.compiler, "_is_exporting_flag", False) or (NO_FLAG and torch.compiler.is_exporting())


NO_FLAG = not hasattr(torch.compiler, "_is_exporting_flag")


def is_traced() -> bool:
    """Return True if operators are recorded: by a compiler, an exporter, a tracer or a transform of `torch.func`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()  # pyright: ignore[reportPrivateImportUsage]


def is_exported() -> bool:
    """Return True if operators are written down to run on another machine: by an exporter or a tracer."""
    compiling = torch.compiler.is_compiling()  # the compiler cannot ask the tracer
    return is_exporting() if compiling else torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def runs_on_cpu(x: Tensor) -> bool:
    """Return True if a CPU runs the next operator itself."""
    return x.device.type == "cpu" and not is_traced()


def is_symbolic(*sizes: int) -> bool:
    """Return True if one of the sizes is left open; only an export has such, `torch.compile` shows plain integers."""
    return torch.SymInt in map(type, sizes)
