"""Losses of the box and mask heads: float32 scalars, zero and still tied to the network where no row counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from openmvit.detection.boxes import BoxCoder


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself; the gradient that flows back through it is multiplied by `factor`."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)


def softmax_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of logits `[R, K + 1]` and classes `[R]`, where class K is background."""
    if len(classes) == 0:
        return logits.float().sum() * 0
    return F.cross_entropy(logits.float(), classes)


def sigmoid_loss(logits: Tensor, classes: Tensor, counted: Tensor | None = None) -> Tensor:
    """Binary cross entropy of every class on its own, summed over classes and averaged over rows.

    Args:
        logits: `[R, K + 1]`; the column of background is not used.
        classes: int64 `[R]`, K for background, which is no for all classes.
        counted: bool `[K]`, classes whose loss counts; None counts all.
    """
    wanted = F.one_hot(classes, logits.shape[1])[:, :-1].float()
    each = F.binary_cross_entropy_with_logits(logits[:, :-1].float(), wanted, reduction="none")
    if counted is not None:
        each = each * counted
    return each.sum() / max(len(classes), 1)


def federated_classes(classes: Tensor, count: int, frequency: Tensor) -> Tensor:
    """Which classes a batch of a data set with thousands of them is asked about: the present ones and drawn others.

    A picture of such a set is annotated with some classes only, so absence of a label says little; rare classes would
    hear "no" almost always if every class counted.

    Args:
        classes: int64 `[R]` of the batch's boxes, K for background, which takes a place of `count` where present.
        count: classes wanted; more if more are present, fewer if no others have a frequency above 0.
        frequency: `[K]` pictures with each class; others are drawn in proportion to its square root.

    Returns:
        bool `[K]`.

    Source: Zhou et al., Probabilistic two-stage detection (2021); facebookresearch/detectron2, LVIS configurations.
    """
    chosen = torch.zeros(len(frequency) + 1, dtype=torch.bool, device=frequency.device)
    present = classes.unique()
    chosen[present] = True
    weight = frequency.float().sqrt().masked_fill(chosen[:-1], 0)
    missing = min(count - len(present), int((weight > 0).sum()))
    if missing > 0:
        chosen[torch.multinomial(weight, missing)] = True
    return chosen[:-1]


def box_loss(
    deltas: Tensor, labels: Tensor, foreground: Tensor, boxes: Tensor, objects: Tensor, coder: BoxCoder
) -> Tensor:
    """Sum of absolute differences over the coordinates of foreground rows, divided by the number of all rows.

    Args:
        deltas: `[R, 4]`, or `[R, 4K]` of which the row's own class counts.
        labels: int64 `[F]`, 0..K-1, of the foreground rows.
        foreground: int64 `[F]`, their numbers.
        boxes: `[F, 4]` that they were pooled from.
        objects: `[F, 4]`, the boxes they should become.
        coder: of this stage.
    """
    rows = deltas.float().unflatten(1, (-1, 4))
    own = rows[foreground, labels if rows.shape[1] > 1 else torch.zeros_like(labels)]
    return F.l1_loss(own, coder.encode(boxes, objects), reduction="sum") / max(len(deltas), 1)


def mask_loss(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over all cells of the true class.

    Args:
        logits: `[F, K, s, s]`.
        labels: int64 `[F]`, 0..K-1.
        targets: bool `[F, s, s]`.
    """
    if len(labels) == 0:
        return logits.float().sum() * 0
    own = logits[torch.arange(len(labels), device=labels.device), labels]
    return F.binary_cross_entropy_with_logits(own.float(), targets.float())
