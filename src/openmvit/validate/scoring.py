"""Scores of a network over batches, of one view per sample or several, in one process or many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openmvit import processes
from openmvit.evaluation.classification import ClassificationScores, MultiLabelScores
from openmvit.evaluation.views import Finished, ViewAverage

Scores = ClassificationScores | MultiLabelScores


@dataclass(frozen=True)
class Evaluation:
    """Scores of one pass.

    Args:
        scores: the sums, for tables and confusion.
        samples: samples that were scored.
        bad: indices of the samples that were left out because their files are unreadable.
        single: of several views per sample, the scores of the middle one alone.
    """

    scores: Scores
    samples: int
    bad: list[int]
    single: Scores | None = None


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    num_classes: int,
    device: torch.device,
    multilabel: bool = False,
    views: ViewAverage | None = None,
) -> Evaluation:
    """Score a network on the batches of this process; the network is left in the mode it was in.

    Args:
        num_classes: classes to score; further outputs of the network are left out.
        views: averages the views of each sample; None where samples are single images.
    """
    scores, single = _fresh(num_classes, multilabel), _fresh(num_classes, multilabel)
    was_training, samples = model.training, 0
    bad: list[int] = []
    model.eval()
    for batch in loader:
        logits = model(batch["image"].to(device, non_blocking=True))
        found = views.add(logits, batch) if views is not None else _as_they_are(logits.cpu(), batch)
        if found is None:
            continue
        keep = ~found.bad
        samples += int(keep.sum())
        bad += [index for index, lost in zip(found.index, found.bad.tolist(), strict=True) if lost]
        scores.update(found.mean, found.labels, keep)
        single.update(found.single, found.labels, keep)
    model.train(was_training)
    return Evaluation(scores, samples, bad, single if views is not None else None)


def over_processes(found: Evaluation) -> Evaluation:
    """The scores of all processes together, on every process."""
    parts = processes.gather(found)
    first = parts[0]
    for other in parts[1:]:
        _merge(first.scores, other.scores)
        if first.single is not None and other.single is not None:
            _merge(first.single, other.single)
    bad = sorted(index for part in parts for index in part.bad)
    return Evaluation(first.scores, sum(part.samples for part in parts), bad, first.single)


def _fresh(num_classes: int, multilabel: bool) -> Scores:
    return MultiLabelScores(num_classes) if multilabel else ClassificationScores(num_classes)


def _merge(scores: Scores, other: Scores) -> None:
    if isinstance(scores, MultiLabelScores):
        assert isinstance(other, MultiLabelScores)
        scores.merge(other)
    else:
        assert isinstance(other, ClassificationScores)
        scores.merge(other)


def _as_they_are(logits: Tensor, batch: dict[str, Tensor]) -> Finished:
    return Finished(batch["index"].tolist(), logits, logits, batch["label"], batch["bad"] > 0)
