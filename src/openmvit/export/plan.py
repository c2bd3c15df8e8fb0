"""What is exported: a module of tensors, an example of its inputs, what stays open, and where it is tested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Outputs = Sequence[Tensor]


def worst_difference(expected: Outputs, found: Outputs) -> float:
    """Largest difference of an element, relative to its output's largest; infinite where one is no number."""
    worst = 0.0
    for own, other in zip(expected, found, strict=True):
        if own.shape != other.shape:
            return float("inf")
        if own.numel():
            share = float((own.double() - other.double()).abs().max() / own.abs().max().clamp(min=1e-12))
            worst = max(worst, share if isfinite(share) else float("inf"))
    return worst


@dataclass(frozen=True, eq=False)
class Plan:
    """One network, ready to be traced.

    Args:
        module: takes the inputs one by one, gives a tensor or a tuple of tensors; in eval mode, on the CPU.
        inputs: an example; sizes that stay open must not be 1 in it.
        dynamic: per input, its open axes as torch.export wants them: `{0: Dim("batch"), 2: 32 * Dim("h")}`.
        names: of the inputs, then of the outputs.
        axes: per input and output, the names of open axes by their place, `{0: "batch", 2: "height"}`.
        probes: inputs on which the exported graph has to agree with the module.
        card: what `predict` and `val` need to know, as in a checkpoint.
        note: what stays open, in words.
        difference: how far found outputs are from expected ones, relative to their scale.
        any_size: trace without asking whether an open size is 1.
        translations: gives ONNX forms of operators that the exporter does not know.
    """

    module: nn.Module
    inputs: Inputs
    dynamic: tuple[dict[int, Any], ...]
    names: tuple[Sequence[str], Sequence[str]]
    axes: tuple[Sequence[dict[int, str]], Sequence[dict[int, str]]]
    probes: Sequence[Inputs]
    card: dict[str, Any]
    note: str
    difference: Callable[[Outputs, Outputs], float] = worst_difference
    any_size: bool = False
    translations: Callable[[], dict[Any, Callable[..., Any]]] | None = None

    @torch.no_grad()
    def expected(self, probe: Inputs) -> Outputs:
        """What the module itself gives."""
        return as_outputs(self.module(*probe))


def as_outputs(found: Any) -> Outputs:
    """The outputs of a module as a sequence."""
    return (found,) if isinstance(found, Tensor) else tuple(found)
