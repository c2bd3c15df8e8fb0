"""Learning rate, parameter groups and optimiser. Plain functions of numbers and names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from openmvit.training.layers import Network, decayed
from openmvit.training.recipe import Recipe


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


def step_learning_rate(
    update: int, *, peak: float, start: float, warmup_updates: int, decay_at: tuple[int, ...]
) -> float:
    """Linear warm-up from `start` to `peak`, then a tenth from each update of `decay_at` on.

    Args:
        update: updates done, from 0.
    Source: schedule of the released detectors.
    """
    if update < warmup_updates:
        return start + (peak - start) * update / warmup_updates
    return peak * 0.1 ** sum(update >= at for at in decay_at)


def scheduled_rate(recipe: Recipe, epoch: float, update: int, scale: float) -> float:
    """Learning rate after `epoch` epochs, which are `update` updates, at `scale` times the recipe's samples."""
    peak, start, end = recipe.lr * scale, recipe.warmup_lr * scale, recipe.min_lr * scale
    if recipe.decay_at is not None:
        return step_learning_rate(
            update, peak=peak, start=start, warmup_updates=recipe.warmup_updates, decay_at=recipe.decay_at
        )
    return learning_rate(
        update if recipe.updates else epoch,
        peak=peak,
        start=start,
        end=end,
        warmup_epochs=recipe.warmup_updates if recipe.updates else recipe.warmup_epochs,
        total_epochs=recipe.updates or recipe.epochs,
    )


def lr_scale(recipe: Recipe, samples_per_update: int) -> float:
    """Factor on `lr`, `warmup_lr` and `min_lr` for the actual number of samples per update."""
    return samples_per_update / recipe.lr_batch if recipe.lr_batch else 1.0


def parameter_groups(
    model: Network, weight_decay: float, layer_decay: float, rule: str = "matrices"
) -> list[dict[str, Any]]:
    """Trainable parameters by weight decay and by depth.

    Each group carries `lr_scale` = layer_decay ** (depth + 1 - layer) and `names`.

    Args:
        rule: which parameters are decayed; see `layers.decayed`.
    """
    decays = decayed(model, rule)
    top = max(model.layer_id(name) for name, _ in model.named_parameters())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = model.layer_id(name) if layer_decay != 1.0 else top
        group = groups.setdefault(
            (layer, name in decays),
            {
                "params": [],
                "names": [],
                "weight_decay": weight_decay if name in decays else 0.0,
                "lr_scale": layer_decay ** (top - layer),
            },
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(model: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW (decoupled decay), or SGD with Nesterov momentum (decay as part of the gradient)."""
    groups = parameter_groups(model, recipe.weight_decay, recipe.layer_decay, recipe.decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=1e-8)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group `value` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]


def largest_gradient(model: nn.Module) -> float:
    """Largest absolute gradient of this process's parameters or shards; 0 if there is none."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    shards: list[Tensor] = [getattr(g, "to_local", lambda g=g: g)() for g in gradients]
    largest = [g.abs().max().float() for g in shards if g.numel()]
    return float(torch.stack(largest).max()) if largest else 0.0


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of -sum(target * log_softmax(logits)); both `[B, num_classes]`."""
    return -(targets * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
