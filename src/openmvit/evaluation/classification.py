"""Scores of classifiers from logits and labels: top-k, per-class table, confusion, mAP. All sums can be merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openmvit.errors import UserError

CONFUSION_LIMIT = 2000
"""Largest number of classes that a confusion matrix is kept for; 19,168 would take 2.9 GB."""


@dataclass(frozen=True)
class ClassScore:
    """One row of the per-class table.

    Args:
        name: the class.
        count: samples of the class.
        accuracy: share of them whose first guess is right, 0..1; NaN without samples.
        confused_with: the wrong class guessed most often, empty if none or without a confusion matrix.
        confused_count: how often.
    """

    name: str
    count: int
    accuracy: float
    confused_with: str
    confused_count: int


class ClassificationScores:
    """Top-k accuracy over samples (micro average), per-class accuracy and the confusion of first guesses.

    `sums` holds plain int64 sums on one device: adding those of several processes (`merge`, or all_reduce on each
    tensor) gives the scores of all their samples. A sample with a NaN logit counts and is wrong.

    Args:
        num_classes: classes to score; a model with more outputs is scored by its first `num_classes` columns.
        ks: the k of top-k; a k beyond the number of classes counts every sample as right.
        device: where the sums live.
    """

    def __init__(self, num_classes: int, ks: tuple[int, ...] = (1, 5), device: torch.device | str = "cpu") -> None:
        self.num_classes, self.ks = num_classes, ks
        sizes: dict[str, tuple[int, ...]] = {"hits": (len(ks),), "count": (num_classes,), "right": (num_classes,)}
        if num_classes <= CONFUSION_LIMIT:
            sizes["confusion"] = (num_classes, num_classes)
        self.sums = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}

    def update(self, logits: Tensor, labels: Tensor, keep: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: `[B, K]` with K >= num_classes; any increasing function of probabilities will do.
            labels: int64 `[B]`, 0..num_classes - 1.
            keep: bool `[B]`, samples to count (leave out those with unreadable files); default all.
        Raises:
            UserError: if there are fewer columns than classes.
        """
        logits = first_columns(logits, self.num_classes)
        if keep is not None:
            logits, labels = logits[keep], labels[keep]
        device = self.sums["hits"].device
        guesses = logits.float().topk(min(max(self.ks), self.num_classes), dim=1).indices.to(device)
        labels, valid = labels.to(device), ~logits.isnan().any(dim=1).to(device)
        right = (guesses == labels[:, None]) & valid[:, None]
        self.sums["hits"] += torch.stack([right[:, :k].sum() for k in self.ks])
        self.sums["count"].index_add_(0, labels, torch.ones_like(labels))
        self.sums["right"].index_add_(0, labels, right[:, 0].long())
        if "confusion" in self.sums:
            cells = labels[valid] * self.num_classes + guesses[valid, 0]
            self.sums["confusion"].view(-1).index_add_(0, cells, torch.ones_like(cells))

    def merge(self, other: ClassificationScores) -> None:
        """Add the sums of another part of the data."""
        for name, value in self.sums.items():
            value += other.sums[name].to(value.device)

    def compute(self) -> dict[str, float]:
        """`top1`, `top5`, ... as shares 0..1; NaN without samples."""
        samples = int(self.sums["count"].sum())
        hits = self.sums["hits"].tolist()
        return {f"top{k}": hit / samples if samples else float("nan") for k, hit in zip(self.ks, hits, strict=True)}

    @property
    def confusion(self) -> Tensor | None:
        """Row true class, column first guess, int64 `[num_classes, num_classes]`; None above CONFUSION_LIMIT."""
        return self.sums["confusion"].cpu().clone() if "confusion" in self.sums else None

    def table(self, classes: tuple[str, ...] | list[str]) -> list[ClassScore]:
        """Per-class scores in the order of the classes."""
        counts, right = self.sums["count"].tolist(), self.sums["right"].tolist()
        confusion = self.confusion
        wrong = None if confusion is None else confusion.fill_diagonal_(0).max(dim=1)
        rows: list[ClassScore] = []
        for i, name in enumerate(classes):
            times = 0 if wrong is None else int(wrong.values[i])
            other = classes[int(wrong.indices[i])] if wrong is not None and times else ""
            accuracy = right[i] / counts[i] if counts[i] else float("nan")
            rows.append(ClassScore(name, counts[i], accuracy, other, times))
        return rows


class MultiLabelScores:
    """Scores of a multi-label classifier: keeps all scores, since average precision is no sum over samples.

    Merging joins the samples; across processes gather `tensors()` and `update` one object with each.

    Args:
        num_classes: classes to score; further columns are left out.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, scores: Tensor, targets: Tensor, keep: Tensor | None = None) -> None:
        """Add logits or probabilities `[B, K]` and targets `[B, num_classes]` of zeros and ones."""
        scores = first_columns(scores, self.num_classes)
        if keep is not None:
            scores, targets = scores[keep], targets[keep]
        self._scores.append(scores.detach().float().cpu())
        self._targets.append(targets.detach().bool().cpu())

    def merge(self, other: MultiLabelScores) -> None:
        """Add the samples of another part of the data."""
        self._scores += other._scores
        self._targets += other._targets

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Scores float32 and targets bool, both `[N, num_classes]`."""
        empty = torch.zeros(0, self.num_classes)
        return torch.cat([empty, *self._scores]), torch.cat([empty.bool(), *self._targets])

    def compute(self) -> dict[str, float]:
        """`mAP`, 0..1: mean over the classes that have a positive sample; NaN without any."""
        precision = self.average_precisions()
        return {"mAP": float(precision[~precision.isnan()].mean())}

    def average_precisions(self) -> Tensor:
        """AP of every class, float64 `[num_classes]`; NaN for a class without positive samples."""
        return average_precision(*self.tensors())


def average_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Area under the precision-recall steps, sum of (R_n - R_{n-1}) P_n over falling thresholds, without interpolation.

    Samples with equal scores enter together, so their order does not matter. The same number as scikit-learn's
    `average_precision_score`.

    Args:
        scores: `[N, K]`.
        targets: bool `[N, K]`.
    Returns:
        float64 `[K]`, NaN where a class has no positive sample.
    """
    return torch.stack([_one_precision(scores[:, k], targets[:, k]) for k in range(scores.shape[1])])


def _one_precision(scores: Tensor, targets: Tensor) -> Tensor:
    """Average precision of one class, float64 `[]`."""
    positives = targets.sum()
    if not positives:
        return torch.tensor(float("nan"), dtype=torch.float64)
    order = scores.argsort(descending=True)
    scores, found = scores[order], targets[order].to(torch.float64).cumsum(0)
    last = torch.ones_like(targets)
    last[:-1] = scores[1:] != scores[:-1]
    found, taken = found[last], last.nonzero()[:, 0] + 1.0
    return (found.diff(prepend=found.new_zeros(1)) * found / taken).sum() / positives


def first_columns(logits: Tensor, num_classes: int) -> Tensor:
    """The first `num_classes` outputs `[B, num_classes]`.

    Raises:
        UserError: if there are fewer.
    """
    if logits.shape[1] < num_classes:
        raise UserError(
            f"the model has {logits.shape[1]} outputs and the data {num_classes} classes",
            "Use the weights of a model trained on these classes",
        )
    return logits[:, :num_classes]
