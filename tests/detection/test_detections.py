"""What a detector found, on its way to the size of the original picture."""

import pytest
import torch

from openmvit.detection.detections import Detections
from openmvit.errors import UserError


def found(with_masks=True):
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0], [90.0, 50.0, 120.0, 70.0], [100.0, 10.0, 104.0, 20.0]])
    probs = torch.ones(3, 28, 28) if with_masks else None
    return Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([2, 0, 1]), (60, 100), probs)


def test_rescaled_boxes_end_at_the_edge_and_empty_ones_are_gone():
    other = found().rescaled((90, 50))
    assert other.size == (90, 50)
    # The third lies beyond the right edge, the second partly.
    assert torch.equal(other.boxes, torch.tensor([[5.0, 30.0, 15.0, 60.0], [45.0, 75.0, 50.0, 90.0]]))
    assert other.scores.tolist() == pytest.approx([0.9, 0.8]) and other.labels.tolist() == [2, 0]
    assert other.mask_probs.shape == (2, 28, 28)


def test_rescaling_leaves_the_original_alone():
    one = found()
    before = one.boxes.clone()
    one.rescaled((30, 20))
    assert torch.equal(one.boxes, before)


def test_masks_fill_their_boxes():
    masks = found().masks()
    assert masks.shape == (3, 60, 100)
    assert masks[0, 20:40, 10:30].all() and masks[0].sum() == 400
    assert masks[1].sum() == 100 and not masks[2].any()


def test_masks_that_nobody_asked_for():
    with pytest.raises(UserError, match="boxes only"):
        found(with_masks=False).masks()
    assert found(with_masks=False).rescaled((60, 100)).mask_probs is None


def test_nothing_found():
    nothing = found()[torch.zeros(3, dtype=torch.bool)]
    assert len(nothing) == 0 and len(nothing.rescaled((30, 50)).to("cpu")) == 0
    assert nothing.masks().shape == (0, 60, 100)


def test_rows_are_chosen_together():
    last = found()[torch.tensor([2, 0])]
    assert last.labels.tolist() == [1, 2] and last.boxes[:, 0].tolist() == [100, 10] and len(last.mask_probs) == 2
