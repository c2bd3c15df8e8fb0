"""Box and mask heads: the cascade against plain loops in float64, and the paths with no rows."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import clip_boxes_to_image

from detection.cascade_loops import (
    CASCADE,
    SIZES,
    answers,
    features,
    first_boxes,
    heads_of,
    loop_losses,
    loop_mask_loss,
    moved,
    nearest,
    scene,
    softmax,
)


@pytest.mark.parametrize("changes", [CASCADE, {}, {"class_agnostic": True}], ids=["cascade", "per class", "one stage"])
def test_losses_equal_plain_loops(changes):
    heads, (maps, boxes, targets) = heads_of(**changes), scene()
    losses = heads(maps, boxes, SIZES, targets)
    exact = copy.deepcopy(heads).double()
    start = first_boxes(boxes, targets)
    wanted, every = loop_losses(exact, maps, start, targets)
    wanted["loss_mask"] = loop_mask_loss(exact, maps, start, targets)
    assert list(losses) == list(wanted)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(wanted, rel=2e-5)
    if len(every) == 3:  # the scene must be one where the rules of a cascade make a difference
        found = [
            [nearest(b, t, limit)[1] for s, t in zip(every[1], targets, strict=True) for b in s] for limit in (0.5, 0.6)
        ]
        assert found[0] != found[1]
        assert sum(map(len, every[1])) < sum(map(len, start))


@pytest.mark.parametrize("name", ["box features", "mask features", "predictor"])
def test_gradients_equal_differences_of_the_plain_loops(name):
    """A third of the boxes' gradient reaches the maps, all of the masks' does, and all of it the heads themselves."""
    heads, (maps, boxes, targets) = heads_of(**CASCADE), scene(proposals=4)
    maps = [m.requires_grad_() for m in maps]
    losses = heads(maps, boxes, SIZES, targets)
    mask, start = losses.pop("loss_mask"), first_boxes(boxes, targets)
    exact, fixed = copy.deepcopy(heads).double(), None
    (mask if name == "mask features" else sum(losses.values())).backward()
    place = exact.box_predictors[1].cls_score.weight.data if name == "predictor" else maps[0].detach().double()
    grad = heads.box_predictors[1].cls_score.weight.grad if name == "predictor" else maps[0].grad
    maps = [m.detach().double() for m in maps]
    maps[0] = maps[0] if name == "predictor" else place
    _, fixed = loop_losses(exact, maps, start, targets)
    for at in grad.abs().flatten().topk(4).indices.tolist():
        values = []
        for step in (1e-6, -1e-6):
            place.view(-1)[at] += step
            if name == "mask features":
                values.append(loop_mask_loss(exact, maps, start, targets))
            else:
                values.append(sum(loop_losses(exact, maps, start, targets, fixed)[0].values()))
            place.view(-1)[at] -= step
        slope = (values[0] - values[1]) / 2e-6
        assert abs(slope) > 1e-4
        assert grad.view(-1)[at].item() == pytest.approx(slope / 3 if name == "box features" else slope, rel=1e-3)


def test_scores_are_the_mean_of_three_softmaxes_and_boxes_the_last():
    heads, (maps, boxes, _) = heads_of(**CASCADE, score_threshold=0.0, nms=1.0, max_detections=1000), scene()
    exact, weights = copy.deepcopy(heads).double(), heads.config.coder_weights
    outside = 0
    for image, found in enumerate(heads.eval().detect(maps, boxes, SIZES)):
        wanted = []
        for box in boxes[image].double().tolist():
            shares = []
            for stage in range(3):
                logits, delta = answers(exact, stage, maps, image, box)
                shares.append(softmax(logits))
                box = moved(box, delta, weights[stage], SIZES[image])
                outside += stage < 2 and not (box[2] > box[0] and box[3] > box[1])
            wanted += [(sum(s[k] for s in shares) / 3, k, box) for k in range(3)]
        wanted.sort(key=lambda one: -one[0])
        assert found.size == SIZES[image]
        assert found.labels.tolist() == [label for _, label, _ in wanted]
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in wanted], rel=1e-5)
        torch.testing.assert_close(found.boxes, torch.tensor([box for _, _, box in wanted]), rtol=1e-5, atol=1e-4)
        probs = exact.mask_predictor(exact.mask_head(features(maps, image, found.boxes[0].double().tolist(), 14)))
        torch.testing.assert_close(found.mask_probs[0].double(), probs[0, found.labels[0]].sigmoid(), rtol=0, atol=1e-5)
    assert outside  # a box that has left the picture keeps its row


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_both_kinds_of_masks_teach_nearly_the_same(kind):
    heads, (maps, boxes, targets) = heads_of(), scene(masks=kind)
    other = scene(masks={"polygon": "bitmask", "bitmask": "polygon"}[kind])[2]
    one, two = (heads(maps, boxes, SIZES, t)["loss_mask"].item() for t in (targets, other))
    assert one != two and one == pytest.approx(two, rel=0.02)


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_objects_without_a_mask_teach_their_box_only(kind):
    heads, (maps, boxes, targets) = heads_of(), scene(masks=kind)
    whole = heads(maps, boxes, SIZES, targets)
    targets[0]["masks"][1] = [] if kind == "polygon" else False
    targets[1]["masks"] = [[]] if kind == "polygon" else targets[1]["masks"] & False
    losses = heads(maps, boxes, SIZES, targets)
    assert losses["loss_mask"] != whole["loss_mask"]
    assert losses["loss_box_reg"].item() == pytest.approx(whole["loss_box_reg"].item(), rel=1e-5)
    only = [{k: v[:1] for k, v in targets[0].items()}, {k: v[:0] for k, v in targets[1].items()}]
    near = [b[[i for i, one in enumerate(b.tolist()) if nearest(one, only[0], 0.5)[1] is not None]] for b in boxes]
    fewer = heads(maps, [near[0], near[1][:0]], SIZES, only)["loss_mask"].item()
    assert losses["loss_mask"].item() == pytest.approx(fewer, rel=1e-5)


def rows_of(heads, stage=0):
    """How many rows each call of a stage's predictor sees."""
    seen = []
    heads.box_predictors[stage].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    return seen


def test_512_rows_of_which_a_quarter_may_be_objects():
    heads, (maps, _, targets) = heads_of(roi_positive=0.25), scene()
    near = targets[0]["boxes"][:1].expand(300, 4) + torch.rand(300, 4)
    far = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(900, 4)
    seen, labels = rows_of(heads), []
    heads.mask_head.register_forward_hook(lambda _, inputs, __: labels.append(len(inputs[0])))
    targets = [targets[0], {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": []}]
    heads(maps, [torch.cat([near, far]), far], SIZES, targets)
    assert seen == [1024] and labels == [128]


def test_objects_are_proposals_of_the_first_stage_only():
    heads, (maps, boxes, targets) = heads_of(liveliness=0.0, **CASCADE), scene()
    seen = [rows_of(heads, stage) for stage in range(3)]
    heads(maps, [b[:0] for b in boxes], SIZES, targets)
    assert seen == [[3], [3], [3]]
    heads(maps, [b[:2] for b in boxes], SIZES, targets)
    assert [rows[1] for rows in seen] == [7, 7, 7]


EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["none", "bn", "ln"])
@pytest.mark.parametrize("rows", ["no rows", "background only"])
def test_empty_pictures_leave_every_parameter_with_a_gradient_of_its_own(training, norm, rows):
    heads, (maps, boxes, _) = heads_of(**CASCADE, head_norm=norm).train(training), scene()
    maps = [m.requires_grad_() for m in maps]
    boxes = [b[:0] for b in boxes] if rows == "no rows" else boxes
    targets = [EMPTY | {"masks": []}, EMPTY | {"masks": torch.zeros(0, *SIZES[1], dtype=torch.bool)}]
    losses = heads(maps, boxes, SIZES, targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert all(m.grad is not None for m in maps[:4])
    zero = [name for name, value in losses.items() if value == 0]
    assert zero == [n for n in losses if rows == "no rows" or not n.startswith("loss_cls")]
    if rows == "no rows":
        assert not any(p.grad.any() for p in heads.parameters())


@pytest.mark.parametrize("norm", ["none", "bn", "ln"])
def test_nothing_proposed_nothing_found(norm):
    heads, (maps, boxes, _) = heads_of(**CASCADE, head_norm=norm).eval(), scene()
    one, two = heads.detect(maps, [boxes[0][:0], boxes[1]], SIZES)
    assert len(one) == 0 and one.mask_probs.shape == (0, 28, 28) and len(two) > 0
    assert [len(d) for d in heads.detect(maps, [b[:0] for b in boxes], SIZES, with_masks=False)] == [0, 0]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_losses_and_boxes_are_float32_under_autocast(scores):
    heads, (maps, boxes, targets) = heads_of(**CASCADE, score_threshold=0.0, scores=scores), scene()
    for predictor in heads.box_predictors:
        nn.init.zeros_(predictor.bbox_pred.weight)
    wanted = heads(maps, boxes, SIZES, targets)
    with torch.autocast("cpu", torch.bfloat16):
        losses = heads([m.bfloat16() for m in maps], boxes, SIZES, targets)
        found = heads.eval().detect([m.bfloat16() for m in maps], boxes, SIZES)
    sum(losses.values()).backward()
    assert {v.dtype for v in losses.values()} == {torch.float32}
    for name, value in wanted.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=0.02), name
    for one, proposals, size in zip(found, boxes, SIZES, strict=True):
        near = clip_boxes_to_image(proposals, size)
        assert one.boxes.dtype == one.scores.dtype == one.mask_probs.dtype == torch.float32
        assert (one.scores.bfloat16().float() != one.scores).any()
        # Heads that move nothing give the proposals back, to the last bits.
        assert all((near - box).abs().amax(dim=1).min() < 1e-4 for box in one.boxes)
