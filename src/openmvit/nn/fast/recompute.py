"""Activations that are not kept for the backward pass but computed again: of halves of blocks, or of whole blocks."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openmvit.nn.fast.tracing import runs_on_cpu
from openmvit.nn.grid import Tokens


def recomputed(function: Callable[[Tensor, Tensor | None], Tokens], x: Tensor, cls: Tensor | None) -> Tokens:
    """The result of a function that keeps nothing but its inputs for the backward pass."""
    if not runs_on_cpu(x):  # a compiler takes no contexts
        return checkpoint(function, x, cls, use_reentrant=False)
    return checkpoint(function, x, cls, use_reentrant=False, context_fn=_contexts)


def checkpointed_blocks(network: Any, x: Tensor, cls: Tensor | None) -> list[Tokens]:
    """`ops.trunk` that keeps nothing but the inputs of blocks."""
    outputs: list[Tokens] = []
    for block, last in zip(network.blocks, network.ends_stage, strict=False):
        x, cls = checkpoint(block, x, cls, use_reentrant=False)
        if last:
            outputs.append((x, cls))
    return outputs


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
