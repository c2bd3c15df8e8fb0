"""Scores against scikit-learn and torchmetrics, and their sums over parts."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, confusion_matrix, top_k_accuracy_score
from torchmetrics.functional.classification import multilabel_average_precision

from openmvit.errors import UserError
from openmvit.evaluation.classification import (
    CONFUSION_LIMIT,
    ClassificationScores,
    MultiLabelScores,
    average_precision,
)


def predictions(n=300, k=12):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(k - 1, (n,), generator=generator)  # the last class has no sample
    logits = torch.randn(n, k, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return logits, labels


def test_top_k_and_confusion_equal_scikit_learn():
    logits, labels = predictions()
    scores = ClassificationScores(12, (1, 3, 5))
    for part in range(0, 300, 70):
        scores.update(logits[part : part + 70], labels[part : part + 70])
    result = scores.compute()
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(12))
        assert result[f"top{k}"] == pytest.approx(expected, abs=1e-12)
    expected = confusion_matrix(labels, logits.argmax(1), labels=range(12))
    assert torch.equal(scores.confusion, torch.from_numpy(expected))


def test_merging_parts_of_any_size_is_the_whole():
    logits, labels = predictions()
    whole, parts = ClassificationScores(12), [ClassificationScores(12) for _ in range(3)]
    whole.update(logits, labels)
    for part, (start, end) in zip(parts, ((0, 7), (7, 7), (7, 300)), strict=True):
        part.update(logits[start:end], labels[start:end])
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert parts[0].compute() == whole.compute()
    assert all(torch.equal(parts[0].sums[name], whole.sums[name]) for name in whole.sums)
    assert all(value.dtype == torch.int64 for value in whole.sums.values())


def test_per_class_table():
    logits = torch.eye(3)[[0, 0, 1, 1, 1, 2, 1]] * 5
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0])
    scores = ClassificationScores(3)
    scores.update(logits, labels)
    rows = scores.table(("a", "b", "c"))
    assert [(row.name, row.count, row.confused_with, row.confused_count) for row in rows] == [
        ("a", 5, "b", 2),
        ("b", 2, "", 0),
        ("c", 0, "", 0),
    ]
    assert [row.accuracy for row in rows[:2]] == [0.4, 1.0]
    assert math.isnan(rows[2].accuracy)
    assert scores.confusion.tolist() == [[2, 2, 1], [0, 2, 0], [0, 0, 0]]


def test_more_outputs_than_classes_are_scored_by_the_first_columns():
    logits, labels = predictions()
    wide = torch.cat([logits, torch.full((300, 20), 1e4)], dim=1)
    scores, expected = ClassificationScores(12), ClassificationScores(12)
    scores.update(wide, labels)
    expected.update(logits, labels)
    assert scores.compute() == expected.compute()
    with pytest.raises(UserError, match="12 outputs and the data 13 classes"):
        ClassificationScores(13).update(logits, labels)


def test_left_out_samples_few_classes_nan_and_nothing():
    logits, labels = predictions(20, 3)
    scores = ClassificationScores(3)
    keep = torch.arange(20) % 2 == 0
    scores.update(logits, labels, keep)
    assert int(scores.sums["count"].sum()) == 10
    assert scores.compute()["top5"] == 1.0
    assert scores.compute()["top1"] == (logits.argmax(1) == labels)[keep].double().mean().item()
    broken = ClassificationScores(3)
    broken.update(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.int64))
    assert broken.compute() == {"top1": 0.0, "top5": 0.0}
    assert broken.table("abc")[0].count == 4
    assert math.isnan(ClassificationScores(3).compute()["top1"])


def test_half_precision_logits():
    logits, labels = predictions()
    scores, expected = ClassificationScores(12), ClassificationScores(12)
    scores.update(logits.bfloat16(), labels)
    expected.update(logits.bfloat16().float(), labels)
    assert scores.compute() == expected.compute()


def test_many_classes_keep_no_confusion_matrix():
    scores = ClassificationScores(CONFUSION_LIMIT + 1)
    logits = torch.zeros(2, CONFUSION_LIMIT + 1)
    logits[0, 5] = logits[1, 9] = 1.0
    scores.update(logits, torch.tensor([5, 8]))
    assert scores.confusion is None
    rows = scores.table([str(i) for i in range(CONFUSION_LIMIT + 1)])
    assert (rows[5].accuracy, rows[8].accuracy, rows[8].confused_with) == (1.0, 0.0, "")
    assert scores.compute()["top1"] == 0.5


def multilabel(ties):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(200, 6, generator=generator)
    targets = torch.rand(200, 6, generator=generator) < torch.tensor([0.5, 0.1, 0.02, 0.9, 1.0, 0.3])
    return (scores * 2).round() if ties else scores, targets


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_equals_scikit_learn(ties):
    scores, targets = multilabel(ties)
    ours = average_precision(scores, targets)
    for k in range(6):
        expected = average_precision_score(targets[:, k].numpy(), scores[:, k].numpy())
        assert ours[k].item() == pytest.approx(expected, abs=1e-12)
    theirs = multilabel_average_precision(scores, targets.long(), 6, average="none")
    if not ties:
        torch.testing.assert_close(ours.float(), theirs)


def test_mean_over_classes_with_positives_and_merging():
    scores, targets = multilabel(True)
    targets[:, 2] = False
    whole, first, second = (MultiLabelScores(6) for _ in range(3))
    wide = torch.cat([scores, torch.ones(200, 2)], 1)
    whole.update(wide, targets.float())
    first.update(scores[:50], targets[:50])
    second.update(scores[50:], targets[50:], torch.ones(150, dtype=torch.bool))
    first.merge(second)
    assert first.compute() == whole.compute()
    each = whole.average_precisions()
    assert each[2].isnan()
    assert whole.compute()["mAP"] == pytest.approx(each[[0, 1, 3, 4, 5]].mean().item(), abs=1e-12)
    assert math.isnan(MultiLabelScores(6).compute()["mAP"])
    gathered = MultiLabelScores(6)
    gathered.update(*first.tensors())
    assert gathered.compute() == whole.compute()
