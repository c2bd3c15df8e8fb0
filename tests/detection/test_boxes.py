"""Boxes against the recorded operations of the original detector, torchvision's parts and plain loops."""

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

from detection.golden_ops import operations
from openmvit.detection.boxes import BoxCoder, clip, match, nonempty, pairwise_iou, sample

WEIGHTS = {"w1": (1, 1, 1, 1), "w10": (10, 10, 5, 5), "w20": (20, 20, 10, 10), "w30": (30, 30, 15, 15)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_coder_gives_the_recorded_numbers(name):
    ops, coder = operations("coder"), BoxCoder(WEIGHTS[name])
    encoded, expected = coder.encode(ops["src"], ops["tgt"]), ops[f"{name}.encoded"]
    assert torch.equal(encoded[:, :2], expected[:, :2])
    # The last bit of logarithms and exponentials depends on the processor.
    torch.testing.assert_close(encoded[:, 2:], expected[:, 2:], rtol=2**-22, atol=0)
    decoded, expected = coder.decode(ops["deltas"], ops["src"]), ops[f"{name}.decoded"]
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2**-23 * float(expected.abs().max()))


def test_decode_keeps_the_classes_apart():
    ops, coder = operations("coder"), BoxCoder(WEIGHTS["w10"])
    deltas = torch.cat([ops["deltas"], ops["deltas"].flip(0), -ops["deltas"]], dim=1)
    each = [coder.decode(deltas[:, i : i + 4].contiguous(), ops["src"]) for i in (0, 4, 8)]
    assert torch.equal(coder.decode(deltas, ops["src"]), torch.cat(each, dim=1))


def test_coder_is_its_own_inverse_and_takes_no_rows():
    ops, coder = operations("coder"), BoxCoder(WEIGHTS["w20"])
    there = coder.decode(coder.encode(ops["src"], ops["tgt"]), ops["src"])
    torch.testing.assert_close(there, ops["tgt"], rtol=1e-5, atol=1e-3)
    assert coder.encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert coder.decode(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_stay_float32_in_half_precision(dtype):
    reference = torch.tensor([[950.3, 40.7, 1450.9, 95.2]])
    deltas = torch.tensor([[0.25, -0.5, 0.125, 0.0625]])
    with torch.autocast("cpu", torch.bfloat16):
        boxes = BoxCoder((1, 1, 1, 1)).decode(deltas.to(dtype), reference)
        iou = pairwise_iou(boxes, reference)
    assert boxes.dtype == iou.dtype == torch.float32
    assert torch.equal(boxes, BoxCoder((1, 1, 1, 1)).decode(deltas, reference))


def test_iou_gives_the_recorded_numbers_with_empty_boxes():
    ops = operations("iou")
    assert torch.equal(pairwise_iou(ops["gt"], ops["boxes"]), ops["value"])
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert pairwise_iou(point, point).item() == 0
    assert pairwise_iou(point, torch.zeros(0, 4)).shape == (1, 0)
    assert pairwise_iou(torch.zeros(0, 4), point).shape == (0, 1)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("rpn", 0.3, 0.7), ("roi50", 0.5, 0.5), ("roi60", 0.6, 0.6), ("roi70", 0.7, 0.7)]
)
def test_match_gives_the_recorded_labels(name, low, high):
    ops = operations(f"match.{name}")
    index, label = match(operations("iou")["value"][:5], low, high, keep_best=name == "rpn")
    assert torch.equal(index, ops["index"])
    assert torch.equal(label.long(), ops["label"])


def test_match_keeps_ties_and_lets_each_box_have_its_own_object():
    iou = torch.tensor([[0.2, 0.2, 0.1, 0.0, 0.5], [0.0, 0.6, 0.0, 0.0, 0.4], [0.0, 0.0, 0.0, 0.0, 0.9]])
    index, label = match(iou, 0.3, 0.7, keep_best=True)
    assert index.tolist() == [0, 1, 0, 0, 2]
    assert label.tolist() == [0, 1, 0, 0, 1], "best of objects 0 (0.5), 1 (0.6) and 2 (0.9); box 4 belongs to object 2"
    ties = torch.tensor([[0.2, 0.2, 0.1]])
    assert match(ties, 0.3, 0.7, keep_best=True)[1].tolist() == [1, 1, 0]
    assert match(ties, 0.3, 0.7, keep_best=False)[1].tolist() == [0, 0, 0]
    assert match(torch.tensor([[0.3, 0.5, 0.7]]), 0.3, 0.7, keep_best=False)[1].tolist() == [-1, -1, 1]


def test_an_object_that_no_box_touches_claims_none():
    assert match(torch.zeros(1, 6), 0.3, 0.7, keep_best=True)[1].tolist() == [0] * 6


@pytest.mark.parametrize("keep_best", [True, False])
def test_match_without_objects_or_boxes(keep_best):
    index, label = match(torch.zeros(0, 7), 0.3, 0.7, keep_best=keep_best)
    assert index.tolist() == label.tolist() == [0] * 7
    assert index.dtype == torch.int64
    assert label.dtype == torch.int8
    assert match(torch.zeros(3, 0), 0.3, 0.7, keep_best=keep_best)[0].shape == (0,)


def test_sampling_draws_what_torchvision_draws():
    label = torch.randint(-1, 2, (3, 900), generator=torch.Generator().manual_seed(4), dtype=torch.int8)
    sampler = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None).rpn.fg_bg_sampler
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (256, 0.5)
    torch.manual_seed(11)
    theirs = sampler(list(label))
    torch.manual_seed(11)
    for row, positive, negative in zip(label, *theirs, strict=True):
        ours = sample(row, 256, 0.5)
        assert ours[0].sort().values.tolist() == positive.nonzero()[:, 0].tolist()
        assert ours[1].sort().values.tolist() == negative.nonzero()[:, 0].tolist()


def test_background_fills_what_objects_leave():
    label = torch.tensor([1, 0, -1, 0, 0, 1, 0, -1], dtype=torch.int8)
    positive, negative = sample(label, 6, 0.5)
    assert (sorted(positive.tolist()), sorted(negative.tolist())) == ([0, 5], [1, 3, 4, 6])
    positive, negative = sample(label, 2, 0.5, torch.Generator().manual_seed(0))
    assert (len(positive), len(negative)) == (1, 1)
    again = sample(label, 2, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(positive, again[0])
    assert torch.equal(negative, again[1])
    assert [len(rows) for rows in sample(torch.zeros(0, dtype=torch.int8), 4, 0.5)] == [0, 0]


def test_clip_and_nonempty():
    boxes = torch.tensor([[-5.0, 2.0, 30.0, 9.0], [25.0, 1.0, 40.0, 3.0], [3.0, 4.0, 3.0, 6.0]])
    clipped = clip(boxes, (8, 20))
    assert clipped.tolist() == [[0, 2, 20, 8], [20, 1, 20, 3], [3, 4, 3, 6]]
    assert nonempty(clipped).tolist() == [True, False, False]
    assert nonempty(clipped, 6.0).tolist() == [False, False, False]
    assert torch.equal(clip(boxes.repeat(1, 3), (8, 20)), clipped.repeat(1, 3))
