"""Exponential moving average of the weights and of batch statistics, on whole or sharded parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Running average of a network's parameters and of what its norms count: decay * average + (1 - decay) * value.

    Args:
        model: the network after sharding, so that each process averages its own shards.
        decay: share of the old average kept at each update, 0..1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in averaged(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser update."""
        new = {name: value.detach() for name, value in averaged(model).items()}
        trained = {name for name, _ in model.named_parameters()}
        # Shards and whole tensors do not go into one call.
        for names in ([n for n in new if n in trained], [n for n in new if n not in trained]):
            if names:
                old = [self.weights[n] for n in names]
                torch._foreach_lerp_(old, [new[n] for n in names], 1.0 - self.decay)  # pyright: ignore[reportPrivateImportUsage]

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
        for name, parameter in averaged(model).items():
            own = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(own)


def averaged(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the means and variances of batch norms, which `best` would else lack the average of."""
    statistics = {
        name: value for name, value in model.named_buffers() if name.endswith(("running_mean", "running_var"))
    }
    return dict(model.named_parameters()) | statistics
