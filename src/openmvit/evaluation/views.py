"""Several views of a sample become one score: the mean of their probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Open:
    """A sample whose views have not all come."""

    total: Tensor
    left: int
    label: Tensor
    single: Tensor | None = None
    bad: bool = False


@dataclass(frozen=True)
class Finished:
    """Samples whose views are complete, n of them.

    Args:
        index: their numbers.
        mean: probabilities averaged over the views, float64 `[n, K]`.
        single: probabilities of the one middle view, `[n, K]`.
        labels: `[n]`, or `[n, K]` with several labels.
        bad: bool `[n]`, True where a view could not be read; such a sample is not to be counted.
    """

    index: list[int]
    mean: Tensor
    single: Tensor
    labels: Tensor
    bad: Tensor


class ViewAverage:
    """Collects the views of samples in any order and any batches, and gives back those that are complete.

    It holds the incomplete samples only, so views of a sample should come close together.

    Args:
        views: views per sample.
        middle: number of the view that is also scored alone.
        multilabel: sigmoid probabilities of each class in place of softmax.
    Source: PySlowFast sums softmax scores over views, which orders classes as their mean does.
    """

    def __init__(self, views: int, middle: int, multilabel: bool = False) -> None:
        self.views, self.middle, self.multilabel = views, middle, multilabel
        self._open: dict[int, _Open] = {}

    def add(self, logits: Tensor, batch: dict[str, Tensor]) -> Finished | None:
        """Add the logits `[B, K]` of a batch with `index`, `view`, `label` and `bad`; the samples it completes."""
        logits = logits.detach().double().cpu()
        rows = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        done: list[int] = []
        numbers = (batch[key].tolist() for key in ("index", "view", "bad"))
        for row, label, index, view, bad in zip(rows, batch["label"].cpu(), *numbers, strict=True):
            sample = self._open.setdefault(index, _Open(torch.zeros_like(row), self.views, label))
            sample.total += row
            sample.left -= 1
            sample.bad |= bool(bad)
            sample.single = row if view == self.middle else sample.single
            if not sample.left:
                done.append(index)
        return self._close(done) if done else None

    def _close(self, indices: list[int]) -> Finished:
        samples = [self._open.pop(index) for index in indices]
        singles = [sample.single for sample in samples if sample.single is not None]
        return Finished(
            indices,
            torch.stack([sample.total for sample in samples]) / self.views,
            torch.stack(singles),
            torch.stack([sample.label for sample in samples]),
            torch.tensor([sample.bad for sample in samples]),
        )
