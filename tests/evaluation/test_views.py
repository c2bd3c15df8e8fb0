"""Views of a sample are averaged as probabilities, in any order and any batches."""

import pytest
import torch

from openmvit.evaluation.views import ViewAverage


def batches(order: list[tuple[int, int]], logits: torch.Tensor, size: int, bad: tuple[int, int] | None = None):
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield (
            torch.stack([logits[i, v] for i, v in part]),
            {
                "index": torch.tensor([i for i, _ in part]),
                "view": torch.tensor([v for _, v in part]),
                "label": torch.tensor([i % 3 for i, _ in part]),
                "bad": torch.tensor([int((i, v) == bad) for i, v in part]),
            },
        )


@pytest.mark.parametrize("size", [1, 4, 20])
def test_probabilities_are_averaged(size):
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0)) * 4
    order = [(i, v) for i in range(5) for v in range(4)]
    mixed = [order[k] for k in torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()]
    average = ViewAverage(4, middle=2)
    found = [f for part in batches(mixed, logits, size) if (f := average.add(*part)) is not None]
    index = [i for f in found for i in f.index]
    assert sorted(index) == list(range(5))
    expected = logits.double().softmax(-1)
    torch.testing.assert_close(torch.cat([f.mean for f in found]), expected.mean(1)[index])
    torch.testing.assert_close(torch.cat([f.single for f in found]), expected[:, 2][index])
    assert torch.cat([f.labels for f in found]).tolist() == [i % 3 for i in index]
    # The mean of logits is another order: two views that are sure outvote nothing here.
    assert not torch.allclose(expected.mean(1), logits.double().mean(1).softmax(-1))


def test_one_bad_view_marks_the_sample():
    logits = torch.zeros(3, 2, 3)
    average = ViewAverage(2, middle=1)
    (part,) = batches([(i, v) for i in range(3) for v in range(2)], logits, 6, bad=(1, 0))
    found = average.add(*part)
    assert found is not None and found.bad.tolist() == [False, True, False]


def test_several_labels_use_each_sigmoid():
    logits = torch.randn(1, 2, 3)
    average = ViewAverage(2, middle=0, multilabel=True)
    (part,) = batches([(0, 0), (0, 1)], logits, 2)
    found = average.add(*part)
    assert found is not None
    torch.testing.assert_close(found.mean[0], logits[0].double().sigmoid().mean(0))
