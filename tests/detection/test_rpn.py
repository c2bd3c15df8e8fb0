"""Anchors, proposals and their losses against the recorded operations, the recorded models and plain loops."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn
from torchvision.models.detection.rpn import RPNHead

from detection.golden_ops import operations
from openmvit.config import MViTConfig
from openmvit.detection.boxes import match, pairwise_iou
from openmvit.detection.config import DetectorConfig
from openmvit.detection.rpn import AnchorGrid, RegionProposals, best_per_map, select_proposals

GOLDEN = Path(__file__).parents[1] / "golden" / "detection"
BASE = DetectorConfig(MViTConfig(depths=(1, 1, 2, 2), embed_dim=8), channels=16)
GRIDS = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
OBJECTS = (
    torch.tensor([[10.0, 12.0, 60.0, 50.0], [70.0, 20.0, 150.0, 120.0], [5.0, 90.0, 9.0, 97.0]]),
    torch.tensor([[30.0, 30.0, 95.0, 88.0]]),
)
SIZES = [(128, 160), (120, 141)]


def _maps(batch: int = 2, **kind) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 16, *grid, generator=draw).to(**kind) for grid in GRIDS]


def _targets(*boxes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    return [{"boxes": b, "labels": torch.zeros(len(b), dtype=torch.int64)} for b in boxes]


def _rpn(**changes) -> RegionProposals:
    torch.manual_seed(0)
    rpn = RegionProposals(BASE.replace(**changes))
    for layer in (rpn.head.cls_logits, rpn.head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return rpn


def test_anchors_are_the_recorded_ones_where_maps_are_rounded_up():
    grid = AnchorGrid(BASE.anchor_sizes, BASE.aspect_ratios, BASE.strides)
    shapes = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    anchors = grid([torch.zeros(2, 1, *shape, dtype=torch.bfloat16) for shape in shapes])
    recorded = operations("anchors")
    for level, boxes in zip(("p2", "p3", "p4", "p5", "p6"), anchors, strict=True):
        torch.testing.assert_close(boxes, recorded[level], rtol=0, atol=1e-5)
    assert not grid.state_dict()


def test_a_single_map_carries_all_sizes():
    (anchors,) = AnchorGrid((32.0, 64.0), (0.5, 1.0, 2.0), (32,))([torch.zeros(1, 1, 2, 3)])
    assert anchors.shape == (2 * 3 * 6, 4)
    side = (anchors[:, 2:] - anchors[:, :2]).view(6, 6, 2)
    torch.testing.assert_close(side.prod(2), torch.tensor([1024.0] * 3 + [4096.0] * 3).expand(6, 6))
    torch.testing.assert_close(side[..., 1] / side[..., 0], torch.tensor([0.5, 1, 2] * 2).expand(6, 6))
    middle = ((anchors[:, 2:] + anchors[:, :2]) / 2)[::6]
    assert middle.tolist() == [[0, 0], [32, 0], [64, 0], [0, 32], [32, 32], [64, 32]]
    rpn = RegionProposals(BASE.replace(neck="last"))
    proposals, _, _ = rpn.eval()([torch.randn(1, 16, 4, 5)], [(128, 160)])
    assert len(proposals[0]) > 0


def test_selection_gives_the_recorded_proposals():
    ops = operations("rpn_select")
    logits = [ops[f"logits{i}"] for i in range(3)]
    values, rows, levels = best_per_map(logits, 100)
    boxes = [ops[f"boxes{i}"].gather(1, row[..., None].expand(-1, -1, 4)) for i, row in enumerate(rows)]
    given = torch.cat(boxes, 1), values, levels, [(140, 200), (120, 180)]
    found, scores = select_proposals(*given, limit=60, nms=0.7, strict=False)
    for i in range(2):
        assert torch.equal(found[i], ops[f"out{i}.boxes"])
        assert torch.equal(scores[i], ops[f"out{i}.logits"])
    with pytest.raises(FloatingPointError, match="diverged"):
        select_proposals(*given, limit=60, nms=0.7, strict=True)


@pytest.mark.parametrize("name", ["mask_rcnn_plain", "mask_rcnn_ln_square"])
def test_proposals_of_the_recorded_models(name):
    settings = json.loads((GOLDEN / name / "config.json").read_text())["rpn"]
    recorded = load_file(GOLDEN / name / "eval.safetensors")
    pairs = {
        ours: (settings[theirs]["train"], settings[theirs]["test"])
        for ours, theirs in (("rpn_candidates", "pre_nms_topk"), ("rpn_proposals", "post_nms_topk"))
    }
    rpn = RegionProposals(BASE.replace(rpn_convs=settings["convs"], **pairs)).eval()
    head = load_file(GOLDEN / name / "model.safetensors").items()
    ours = {"objectness_logits": "cls_logits", "anchor_deltas": "bbox_pred"}
    ours |= {"conv": "conv.0.0"} if settings["convs"] == 1 else {f"conv.conv{i}": f"conv.{i}.0" for i in range(2)}
    names = {f"proposal_generator.rpn_head.{a}.{part}": f"{b}.{part}" for a, b in ours.items() for part in _PARTS}
    rpn.head.load_state_dict({names[key]: value for key, value in head if "rpn_head" in key})
    maps = [recorded["fpn.p2.image0"]] + [recorded[f"fpn.p{i}"][:1] for i in range(3, 7)]
    image = load_file(GOLDEN / name / "inputs.safetensors")["image.0"]
    with torch.no_grad():
        proposals, logits, losses = rpn(maps, [(image.shape[1], image.shape[2])])
    assert losses == {}
    torch.testing.assert_close(proposals[0], recorded["proposals.0.boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(logits[0], recorded["proposals.0.logits"], rtol=0, atol=1e-5)


_PARTS = ("weight", "bias")


def test_logits_and_boxes_stay_beside_their_anchors():
    """One anchor scores: it must come out first, moved as said."""
    rpn = _rpn().eval()
    rpn.head = _Fixed()
    proposals, logits, _ = rpn(_maps(1), [(128, 160)])
    ratio, y, x = 2, 8, 7
    expected = rpn.anchors(_maps(1))[1][(y * 20 + x) * 3 + ratio]
    width, height = (expected[2:] - expected[:2]).tolist()
    assert height == pytest.approx(2 * width)
    torch.testing.assert_close(proposals[0][0], expected + torch.tensor([width, 0, width, 0]))
    assert logits[0][0] == 9


class _Fixed(torch.nn.Module):
    """Says 9 for the third anchor at row 8, column 7 of the second map, and moves it right by its width."""

    def forward(self, maps):
        logits = [m.new_zeros(1, 3, *m.shape[2:]) for m in maps]
        deltas = [m.new_zeros(1, 12, *m.shape[2:]) for m in maps]
        logits[1][0, 2, 8, 7] = 9
        deltas[1][0, 8, 8, 7] = 1
        return logits, deltas


def test_train_and_test_limits_and_no_gradient():
    rpn = _rpn(rpn_candidates=(300, 50), rpn_proposals=(70, 20))
    proposals, logits, losses = rpn(_maps(), SIZES)
    assert [len(p) for p in proposals] == [70, 70]
    assert losses == {}
    assert [len(p) for p in rpn.eval()(_maps(), SIZES)[0]] == [20, 20]
    assert not any(t.requires_grad for t in proposals + logits)
    for boxes, scores, (h, w) in zip(proposals, logits, SIZES, strict=True):
        assert torch.equal(scores, scores.sort(descending=True).values)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= w
        assert boxes[:, 3].max() <= h


def test_losses_equal_a_plain_loop_when_every_anchor_counts():
    count = 40000
    rpn = _rpn(rpn_samples=count, rpn_positive=1.0).eval()
    _, _, losses = rpn(_maps(), SIZES, _targets(*OBJECTS))
    logits, deltas = rpn.head(_maps())
    anchors = torch.cat(rpn.anchors(_maps())).double()
    flat = torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in logits], 1).double()
    moves = torch.cat([m.permute(0, 2, 3, 1).reshape(2, -1, 4) for m in deltas], 1).double()
    entropy = distance = 0.0
    for i, boxes in enumerate(OBJECTS):
        index, label = match(pairwise_iou(boxes, anchors), 0.3, 0.7, keep_best=True)
        assert (label == -1).any()
        entropy += sum(
            math.log1p(math.exp(-z if y == 1 else z))
            for z, y in zip(flat[i].tolist(), label.tolist(), strict=True)
            if y >= 0
        )
        for row in (label == 1).nonzero()[:, 0].tolist():
            distance += sum(map(abs, _difference(moves[i, row].tolist(), anchors[row], boxes[index[row]].double())))
    assert losses["loss_rpn_cls"].item() == pytest.approx(entropy / (count * 2), rel=1e-5)
    assert losses["loss_rpn_loc"].item() == pytest.approx(distance / (count * 2), rel=1e-5)
    assert distance > 1


def _difference(move: list[float], anchor: torch.Tensor, box: torch.Tensor) -> list[float]:
    ax, ay, bx, by = anchor.tolist()
    gx, gy, hx, hy = box.tolist()
    w, h = bx - ax, by - ay
    goal = [((gx + hx) - (ax + bx)) / 2 / w, ((gy + hy) - (ay + by)) / 2 / h]
    goal += [math.log((hx - gx) / w), math.log((hy - gy) / h)]
    return [a - b for a, b in zip(move, goal, strict=True)]


def test_labels_are_those_of_torchvision():
    theirs = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None).rpn
    anchors = torch.cat(_rpn().anchors(_maps()))
    labels, boxes = theirs.assign_targets_to_anchors([anchors, anchors], [{"boxes": b} for b in OBJECTS])
    for label, matched, objects in zip(labels, boxes, OBJECTS, strict=True):
        index, ours = match(pairwise_iou(objects, anchors), 0.3, 0.7, keep_best=True)
        assert torch.equal(ours.float(), label)
        assert torch.equal(objects[index][ours == 1], matched[ours == 1])


def test_the_draw_is_that_of_torchvision_and_the_divisor_the_wanted_number():
    """256 anchors of each picture from torchvision's sampler, given the same seed."""
    rpn = _rpn().eval()
    sampler = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None).rpn.fg_bg_sampler
    anchors = torch.cat(rpn.anchors(_maps()))
    labels = [match(pairwise_iou(b, anchors), 0.3, 0.7, keep_best=True)[1] for b in OBJECTS]
    torch.manual_seed(5)
    _, _, losses = rpn(_maps(), SIZES, _targets(*OBJECTS))
    torch.manual_seed(5)
    positive, negative = sampler(labels)
    logits = torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in rpn.head(_maps())[0]], 1)
    chosen = torch.stack(positive).bool(), torch.stack(negative).bool()
    assert int(chosen[0].sum() + chosen[1].sum()) == 512
    softplus = torch.nn.functional.softplus
    expected = (softplus(-logits[chosen[0]]).sum() + softplus(logits[chosen[1]]).sum()) / 512
    torch.testing.assert_close(losses["loss_rpn_cls"], expected, rtol=1e-5, atol=0)
    few = _rpn(rpn_samples=10**6).eval()(_maps(), SIZES, _targets(*OBJECTS))[2]["loss_rpn_cls"]
    assert few < losses["loss_rpn_cls"] / 50, "fewer anchors than wanted must not raise the mean"


def test_pictures_without_objects_give_a_zero_box_loss_on_the_graph():
    rpn = _rpn().train()
    _, _, losses = rpn(_maps(), SIZES, _targets(torch.zeros(0, 4), torch.zeros(0, 4)))
    assert losses["loss_rpn_loc"].item() == 0
    assert losses["loss_rpn_cls"].item() > 0
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in rpn.named_parameters()}
    assert all(g is not None for g in gradients.values())
    assert gradients["head.bbox_pred.weight"].abs().max() == 0
    assert gradients["head.cls_logits.weight"].abs().max() > 0


def test_losses_give_gradients_to_the_maps_but_proposals_give_none():
    maps = [m.requires_grad_() for m in _maps()]
    _, _, losses = _rpn(rpn_samples=4000, rpn_positive=1.0)(maps, SIZES, _targets(*OBJECTS))
    sum(losses.values()).backward()
    assert all(m.grad is not None and m.grad.abs().max() > 0 for m in maps)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite(value):
    rpn = _rpn()
    clean = rpn.eval()(_maps(), SIZES)
    maps = _maps()
    maps[3][1, :, 1, 1] = value
    with pytest.raises(FloatingPointError, match="no longer finite"):
        rpn.train()(maps, SIZES)
    proposals, logits, _ = rpn.eval()(maps, SIZES)
    assert all(t.isfinite().all() for t in proposals + logits)
    assert torch.equal(proposals[0], clean[0][0]), "the other picture of the batch is left alone"
    nothing = rpn([torch.full_like(m, math.nan) for m in maps], SIZES)
    assert [tuple(p.shape) for p in nothing[0]] == [(0, 4), (0, 4)]
    assert [tuple(s.shape) for s in nothing[1]] == [(0,), (0,)]


def test_boxes_are_float32_under_autocast():
    """The head runs in bfloat16; what it says is then decoded exactly."""
    rpn = _rpn().eval()
    maps = _maps()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        raw = rpn.head(maps)
        proposals, logits, losses = rpn(maps, SIZES, _targets(*OBJECTS))
    assert raw[1][0].dtype == torch.bfloat16
    assert {t.dtype for t in (*proposals, *logits, *losses.values())} == {torch.float32}
    rpn.head = _Said([[m.float() for m in part] for part in raw])
    with torch.no_grad():
        exact = rpn(maps, SIZES)
    for i in range(2):
        assert torch.equal(proposals[i], exact[0][i])
        assert torch.equal(logits[i], exact[1][i])


class _Said(torch.nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, maps):
        return self.answer


def test_names_and_initial_values():
    rpn = RegionProposals(BASE.replace(rpn_convs=2, channels=64))
    assert isinstance(rpn.head, RPNHead)
    names = {"conv.0.0", "conv.1.0", "cls_logits", "bbox_pred"}
    assert set(rpn.state_dict()) == {f"head.{name}.{part}" for name in names for part in _PARTS}
    for name, parameter in rpn.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        else:
            assert 0.008 < parameter.std() < 0.012
