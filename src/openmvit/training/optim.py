"""Learning rate, parameter groups and optimiser. Plain functions of numbers and names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openmvit.training.recipe import Recipe


class Layered(Protocol):
    """A network that knows the depth of each of its parameters."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...

    def layer_id(self, name: str) -> int: ...


def learning_rate(
    epoch: float, *, peak: float, start: float, end: float, warmup_epochs: float, total_epochs: float
) -> float:
    """Linear warm-up from `start` to `peak`, then half a cosine from `peak` to `end`.

    Args:
        epoch: progress in epochs, with its fraction, 0..total_epochs.
    Source: schedule of the released image and video weights; the cosine begins after the warm-up.
    """
    if epoch < warmup_epochs:
        return start + (peak - start) * epoch / warmup_epochs
    share = min((epoch - warmup_epochs) / max(total_epochs - warmup_epochs, 1e-12), 1.0)
    return end + 0.5 * (peak - end) * (1.0 + math.cos(math.pi * share))


def lr_scale(recipe: Recipe, samples_per_update: int) -> float:
    """Factor on `lr`, `warmup_lr` and `min_lr` for the actual number of samples per update."""
    return samples_per_update / recipe.lr_batch if recipe.lr_batch else 1.0


def parameter_groups(model: Layered, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay and by depth.

    Parameters with one axis (biases, norm weights) are not decayed; matrices, kernels, relative tables and the class
    token are. Each group carries `lr_scale` = layer_decay ** (depth + 1 - layer) and `names`.
    """
    top = max(model.layer_id(name) for name, _ in model.named_parameters())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = model.layer_id(name) if layer_decay != 1.0 else top
        decayed = parameter.dim() > 1
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (top - layer),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(model: Layered, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (decoupled decay), or SGD with Nesterov momentum (decay as part of the gradient)."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=1e-8)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group `value` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of -sum(target * log_softmax(logits)); both `[B, num_classes]`."""
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
