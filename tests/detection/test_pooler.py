"""The pooler against the recorded operations of the original detector."""

import math

import pytest
import torch
from torchvision.ops import roi_align

from detection.golden_ops import operations
from openmvit.detection.pooler import RoiPooler, level_of
from openmvit.errors import UserError

STRIDES = (4, 8, 16, 32)


def recorded():
    ops = operations("pool")
    return ops, [ops[f"feature{i}"] for i in range(4)], [ops["boxes0"], ops["boxes1"]]


def test_recorded_levels():
    ops = operations("levels")
    assert torch.equal(level_of(ops["boxes"], 2, 5), ops["index"])


def test_recorded_features():
    ops, maps, boxes = recorded()
    assert torch.equal(RoiPooler(7, STRIDES)(maps, boxes), ops["out7"])
    assert torch.equal(RoiPooler(14, STRIDES)(maps, boxes)[:, :1], ops["out14"])


def test_rows_follow_the_pictures():
    _, maps, boxes = recorded()
    pooler = RoiPooler(7, STRIDES)
    each = [pooler([m[i : i + 1] for m in maps], [boxes[i]]) for i in range(2)]
    assert torch.equal(pooler(maps, boxes), torch.cat(each))


def test_a_single_map_serves_boxes_of_every_size():
    torch.manual_seed(0)
    only, boxes = torch.randn(1, 3, 20, 20), torch.tensor([[3.0, 5.0, 40.0, 61.0], [0.0, 0.0, 320.0, 320.0]])
    wanted = [roi_align(only, [box[None]], 7, 1 / 16, sampling_ratio=-1, aligned=True) for box in boxes]
    assert torch.equal(RoiPooler(7, (16,))([only], [boxes]), torch.cat(wanted))


def test_no_boxes_give_no_rows_and_a_gradient_of_zero_everywhere():
    maps = [torch.randn(2, 3, 64 // s, 64 // s, requires_grad=True) for s in STRIDES]
    pooled = RoiPooler(7, STRIDES)(maps, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(m.grad is not None and not m.grad.any() for m in maps)


def test_boxes_without_area_or_number_pool_to_zero():
    maps = [torch.randn(1, 3, 64 // s, 64 // s) for s in STRIDES]
    boxes = torch.tensor([[5.0, 5.0, 5.0, 60.0], [math.nan] * 4, [math.nan, 3.0, math.nan, math.inf]])
    assert not RoiPooler(7, STRIDES)(maps, [boxes]).any()


def test_coordinates_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 336 // s * 4, 336 // s * 4, dtype=torch.bfloat16) for s in STRIDES]
    boxes = [torch.tensor([[1001.3, 803.7, 1040.9, 833.1], [901.3, 803.7, 1240.9, 1133.1]])]
    pooler = RoiPooler(7, STRIDES)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooler(maps, boxes)
    exact = pooler([m.double() for m in maps], boxes)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.double(), exact, rtol=2**-8, atol=1e-5)  # one rounding, that of the result


def test_strides_and_maps_that_do_not_fit_are_named():
    with pytest.raises(UserError, match=r"strides \(4, 8, 32\)"):
        RoiPooler(7, (4, 8, 32))
    with pytest.raises(UserError, match="5 maps are given to boxes pooled from 4"):
        RoiPooler(7, STRIDES)([torch.zeros(1, 1, 1, 1)] * 5, [torch.zeros(0, 4)])
