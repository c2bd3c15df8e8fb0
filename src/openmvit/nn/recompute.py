"""What a block makes of a large map is not kept for the backward pass but computed again, half a block at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openmvit.nn.fast import is_transformed, on_plain_cpu
from openmvit.nn.grid import Tokens
from openmvit.nn.symbolic import is_exporting

LARGE_MAP = 2**16
"""Tokens of a map from which its activations are dropped: those of a detector's first blocks at 1024 x 1024, and of
clips of 312 pixels, but not of pictures and clips of 224."""


def drops_activations(x: Tensor) -> bool:
    """Whether what is made of `[B, *grid, C]` should be computed again in the backward pass."""
    # A transform of `torch.func` and an exporter take no recomputation.
    if not torch.is_grad_enabled() or prod(x.shape[1:-1]) < LARGE_MAP or is_exporting():
        return False
    return torch.compiler.is_compiling() or not is_transformed()


def recomputed(function: Callable[[Tensor, Tensor | None], Tokens], x: Tensor, cls: Tensor | None) -> Tokens:
    """The result of a function that keeps nothing but its inputs for the backward pass."""
    if not on_plain_cpu(x):  # a compiler takes no contexts
        return checkpoint(function, x, cls, use_reentrant=False)
    return checkpoint(function, x, cls, use_reentrant=False, context_fn=_contexts)


def trim_memory() -> None:
    """Hand what this process has freed back to the system, where its C library can.

    It keeps freed tensors of less than 32 MB, in holes that the next ones often do not fit in.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Round the first computation, and round the one in the backward pass."""
    return nullcontext(), _Trimmed()


class _Trimmed(AbstractContextManager[None]):
    """Entered anew in every backward pass through the same graph."""

    def __enter__(self) -> None:
        trim_memory()

    def __exit__(self, *_: object) -> None:
        return None
