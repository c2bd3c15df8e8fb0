"""Exponential moving average of the weights, on whole or sharded parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Running average of a network's parameters: average = decay * average + (1 - decay) * weights.

    Args:
        model: the network after sharding, so that each process averages its own shards.
        decay: share of the old average kept at each update, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser update."""
        new = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), new, 1.0 - self.decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the network holds the average; afterwards its own weights, bit for bit."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: nn.Module) -> None:
        # One parameter at a time: the only extra memory is that of the largest parameter.
        for name, parameter in model.named_parameters():
            own = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(own)
