"""Which scored boxes are reported: one per object, best first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from openmvit.detection.boxes import clip, pairwise_iou
from openmvit.detection.config import SoftNms
from openmvit.detection.suppression import suppress
from openmvit.errors import UserError

_TAKEN = -1.0
"""In place of a score; scores are 0 or more."""


@torch.no_grad()
def select_detections(
    boxes: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    threshold: float | Tensor,
    nms: float,
    limit: int,
    soft: SoftNms = "none",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The detections of one picture; a row may give several, each of another class.

    Args:
        boxes: `[R, 4]`, one per row, or `[R, 4K]`, one per class.
        scores: `[R, K]` in 0..1, without a column for background. Rows with a value that is not finite are left out.
        size: (height, width) that boxes are cut to.
        threshold: only higher scores count. With `soft` give 0.001..0.01 instead of the usual 0.05: it is compared
            before scores are lowered, and little is gained where low scores are not let in.
        nms: overlap above which the worse of two boxes of one class goes. Not used with `soft`.
        limit: detections kept.
        soft: lowers scores of overlapping boxes instead of dropping them, see `soft_nms`; these are given.

    Returns:
        Boxes float32 `[D, 4]`, scores float32 `[D]`, labels int64 `[D]` and int64 row numbers `[D]`, best first.
    """
    boxes, scores = boxes.float(), scores.float()
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    rows, labels = ((scores > threshold) & finite[:, None]).nonzero(as_tuple=True)
    per_row = boxes.unflatten(1, (-1, 4)).expand(-1, scores.shape[1], -1)
    found, value = clip(per_row[rows, labels], size), scores[rows, labels]
    if soft == "none":
        keep = suppress(found, value, labels, nms, limit)
        value = value[keep]
    else:
        keep, value = soft_nms(found, value, labels, soft, limit=limit)
    return found[keep], value, labels[keep], rows[keep]


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    method: Literal["linear", "gaussian"],
    sigma: float = 0.5,
    overlap: float = 0.3,
    prune: float = 0.001,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Takes the best box, lowers the scores of the others of its class, and so on.

    Args:
        boxes: `[N, 4]`.
        scores: `[N]`, 0 or more.
        labels: int64 `[N]`; boxes of different labels leave each other alone.
        method: `gaussian` multiplies by exp(-overlap^2 / sigma), `linear` by 1 - overlap above the limit `overlap`.
        sigma: of the Gaussian.
        overlap: of `linear`, 0..1.
        prune: boxes whose score falls below it are left out.
        limit: boxes taken at most; all of them if None.

    Returns:
        int64 numbers of the boxes taken, best first, and their lowered scores.

    Raises:
        UserError: if `method` is none of the two.

    Source: Bodla et al., Soft-NMS (2017).
    """
    if method not in ("linear", "gaussian"):
        raise UserError(f"Soft-NMS has no method {method!r}", "Accepted: linear, gaussian")

    def factor(iou: Tensor) -> Tensor:
        return torch.exp(-(iou**2) / sigma) if method == "gaussian" else torch.where(iou > overlap, 1 - iou, 1.0)

    steps = len(scores) if limit is None else min(limit, len(scores))
    index, value = _take(boxes.float(), *_by_label(scores.float(), labels), steps, factor)
    alive = value >= prune
    return index[alive], value[alive]


def _take(
    boxes: Tensor, numbers: Tensor, left: Tensor, steps: int, factor: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The numbers and lowered scores `[steps]` of the best boxes, from the tables of `_by_label`.

    A taken score is never below a later one, so these are the best of all, however many there are. A step measures the
    taken box against those of its label: no matrix of all pairs is held, and nothing waits for the device.
    """
    places, width = boxes[numbers], left.shape[1]
    taken, values = [numbers.new_zeros(0)], [left.new_zeros(0)]
    for _ in range(steps):
        best = left.view(-1).argmax(dim=0, keepdim=True)
        row, column = best // width, best % width
        taken.append(numbers[row, column])
        values.append(left[row, column])
        others = left[row]
        lowered = others * factor(pairwise_iou(places[row, column], places[row].squeeze(0)))
        left[row] = torch.where(others >= 0, lowered, others)
        left[row, column] = _TAKEN
    return torch.cat(taken), torch.cat(values)


def _by_label(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One row per label: the numbers of its boxes and their scores, both `[K, most of one label]`.

    A step then touches one row. What is left of a row is filled with box 0 as taken.
    """
    counts = labels.bincount(minlength=1)
    order = labels.argsort(stable=True)
    row = labels[order]
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    shape = len(counts), int(counts.max())
    numbers = labels.new_zeros(shape)
    table = scores.new_full(shape, _TAKEN)
    numbers[row, column], table[row, column] = order, scores[order]
    return numbers, table
