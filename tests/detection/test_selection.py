"""Final selection and Soft-NMS against the recorded operations and plain loops."""

import math
import time

import pytest
import torch

from detection.golden_ops import operations
from openmvit.detection.boxes import clip, pairwise_iou
from openmvit.detection.selection import select_detections, soft_nms
from openmvit.errors import UserError

RECORDED = {"threshold": 0.05, "nms": 0.5, "limit": 25}


@pytest.mark.parametrize("kind", ["agnostic", "specific"])
def test_selection_gives_the_recorded_detections(kind):
    ops = operations("det_select")
    boxes, scores, labels, rows = select_detections(ops[f"boxes_{kind}"], ops["scores"][:, :-1], (140, 200), **RECORDED)
    assert torch.equal(boxes, ops[f"{kind}.boxes"])
    assert torch.equal(scores, ops[f"{kind}.scores"])
    assert torch.equal(labels, ops[f"{kind}.classes"])
    assert torch.equal(rows, ops[f"{kind}.source_row"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_left_out_and_rows_keep_their_numbers(bad):
    ops = operations("det_select")
    boxes, scores = ops["boxes_specific"], ops["scores"][:, :-1]
    whole = select_detections(boxes, scores, (140, 200), **RECORDED)
    head = torch.full((2, 12), 5.0), torch.full((2, 3), 0.9)
    head[0][0, 7], head[1][1, 2] = bad, bad
    found = select_detections(torch.cat([head[0], boxes]), torch.cat([head[1], scores]), (140, 200), **RECORDED)
    assert all(torch.equal(a, b) for a, b in zip(whole[:3], found[:3], strict=True))
    assert torch.equal(found[3], whole[3] + 2)


@pytest.mark.parametrize("soft", ["none", "linear", "gaussian"])
@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_to_report(soft, rows):
    found = select_detections(torch.ones(rows, 4), torch.zeros(rows, 3), (10, 10), **RECORDED, soft=soft)
    assert [tuple(part.shape) for part in found] == [(0, 4), (0,), (0,), (0,)]
    assert [part.dtype for part in found] == [torch.float32, torch.float32, torch.int64, torch.int64]


def test_half_precision_input_is_compared_in_float32():
    ops = operations("det_select")
    half = ops["boxes_agnostic"].bfloat16(), ops["scores"][:, :-1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = select_detections(*half, (140, 200), **RECORDED)
    exact = select_detections(*(part.float() for part in half), (140, 200), **RECORDED)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("gaussian_s05", "gaussian", {}),
        ("gaussian_s05_prune05", "gaussian", {"prune": 0.05}),
        ("linear_t03", "linear", {}),
        ("linear_t05", "linear", {"overlap": 0.5}),
    ],
)
def test_soft_nms_gives_the_recorded_order_and_scores(name, method, settings):
    ops = operations("softnms")
    index, scores = soft_nms(ops["boxes"], ops["scores"], ops["classes"], method, **settings)
    assert torch.equal(index, ops[f"{name}.index"])
    torch.testing.assert_close(scores, ops[f"{name}.scores"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_a_limit_gives_the_first_of_all(method):
    ops = operations("softnms")
    given = ops["boxes"], ops["scores"], ops["classes"], method
    index, scores = soft_nms(*given)
    first = soft_nms(*given, limit=7)
    assert torch.equal(first[0], index[:7])
    assert torch.equal(first[1], scores[:7])


def test_equal_boxes_are_taken_once_each():
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0]]).repeat(4, 1)
    index, scores = soft_nms(boxes, torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 1, 0]), "linear", prune=0)
    assert sorted(index.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.8, 0.0, 0.0]))
    index, scores = soft_nms(boxes, torch.tensor([0.5, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 1, 0]), "linear")
    assert index.tolist() == [1, 2]


def test_an_unknown_method_is_refused():
    with pytest.raises(UserError, match="linear, gaussian"):
        soft_nms(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64), "cosine")  # pyright: ignore


def _crowded(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Proposals in clusters, as a detector gives them: a row scores in a few classes."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.rand(rows // 10, 2, generator=draw).repeat(10, 1) * 900 + 50
    centre = centre + torch.randn(rows, 2, generator=draw) * 6
    side = 20 + 60 * torch.rand(rows, 2, generator=draw)
    logits = torch.randn(rows, classes + 1, generator=draw) * 2.5
    return torch.cat([centre - side / 2, centre + side / 2], dim=1), logits.softmax(dim=1)[:, :-1]


def test_soft_nms_inside_the_selection_is_the_plain_algorithm():
    boxes, scores = _crowded(60, 4)
    settings = {"threshold": 0.01, "nms": 0.5, "limit": 30}
    _, found, labels, rows = select_detections(boxes, scores, (1000, 1000), **settings, soft="gaussian")
    iou = pairwise_iou(clip(boxes, (1000, 1000)), clip(boxes, (1000, 1000)))
    expected = []
    for label in range(4):
        left = {row: s for row, s in enumerate(scores[:, label].tolist()) if s > 0.01}
        while left:
            best = max(left, key=left.__getitem__)
            expected.append((left.pop(best), label, best))
            left = {row: s * math.exp(-(iou[best, row].item() ** 2) / 0.5) for row, s in left.items()}
            left = {row: s for row, s in left.items() if s >= 0.001}
    expected = sorted(expected, reverse=True)[:30]
    assert list(zip(labels.tolist(), rows.tolist(), strict=True)) == [(label, row) for _, label, row in expected]
    assert found.tolist() == pytest.approx([score for score, _, _ in expected], abs=1e-6)


@pytest.mark.parametrize(("soft", "threshold"), [("none", 0.05), ("linear", 0.001), ("gaussian", 0.001)])
def test_a_full_picture_needs_no_matrix_of_all_pairs(soft, threshold):
    boxes, scores = _crowded(1000, 80)
    settings = {"threshold": threshold, "nms": 0.5, "limit": 100, "soft": soft}
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        found = select_detections(boxes, scores, (1000, 1000), **settings)
        seconds.append(time.perf_counter() - start)
    assert len(found[0]) == 100
    assert min(seconds) < 2, "about 0.02 s where the processor is free"
