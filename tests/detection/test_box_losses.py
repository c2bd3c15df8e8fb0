"""Losses of the box heads: the scaled gradient, and scores of each class on its own."""

import math

import pytest
import torch
from torch import nn

from detection.cascade_loops import CASCADE, SIZES, heads_of, scene
from openmvit.detection.box_losses import federated_classes, scale_gradient, sigmoid_loss
from openmvit.errors import UserError

SIGMOID = CASCADE | {"scores": "sigmoid", "score_threshold": 0.0, "nms": 1.0, "max_detections": 1000}


def test_the_gradient_is_scaled_and_the_value_is_not():
    x = torch.randn(3, requires_grad=True)
    y = scale_gradient(x, 1 / 3)
    assert torch.equal(x, y)
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 1 / 3))


def test_sigmoid_scores_and_their_loss():
    heads, (maps, boxes, targets) = heads_of(**SIGMOID), scene()
    outputs = [[], [], []]
    for stage in range(3):
        heads.box_predictors[stage].register_forward_hook(lambda *call, s=stage: outputs[s].append(call[2][0].tolist()))
    losses = heads(maps, boxes, SIZES, targets)
    found = heads.eval().detect(maps, boxes, SIZES)
    shares = [[[1 / (1 + math.exp(-v)) for v in row[:3]] for row in outputs[s][1]] for s in range(3)]
    means = sorted(sum(shares[s][r][k] for s in range(3)) / 3 for r in range(len(shares[0])) for k in range(3))
    assert sorted(torch.cat([one.scores for one in found]).tolist()) == pytest.approx(means, rel=1e-5)
    assert losses["loss_cls_stage0"].isfinite()
    logits, classes = torch.tensor(outputs[0][0]), torch.tensor([0, 3, 2, 1] * 10)[: len(outputs[0][0])]
    total = 0.0
    for row, label in zip(outputs[0][0], classes.tolist(), strict=True):
        total += sum(math.log1p(math.exp(-v if k == label else v)) for k, v in enumerate(row[:3]))
    assert sigmoid_loss(logits, classes).item() == pytest.approx(total / len(logits), rel=1e-5)
    counted = torch.tensor([True, False, True])
    columns = logits[:, [0, 2, 3]], torch.tensor([[0, 2, 1, 2][c] for c in classes.tolist()])
    assert sigmoid_loss(logits, classes, counted).item() == pytest.approx(sigmoid_loss(*columns).item(), rel=1e-5)
    assert sigmoid_loss(logits[:0], classes[:0]) == 0


def test_federated_classes_are_the_present_and_drawn_others():
    torch.manual_seed(0)
    frequency = torch.tensor([100.0, 0.0, 400.0, 900.0, 25.0, 1.0])
    drawn = torch.zeros(6)
    for _ in range(2000):
        counted = federated_classes(torch.tensor([4, 6, 4, 6]), 3, frequency)
        assert counted[4] and counted.sum() == 2  # two places for what is present, background among them
        drawn += counted
    assert drawn[4] == 2000 and drawn[1] == 0
    expected = 2000 * frequency.sqrt() / 61  # 10 + 20 + 30 + 1
    for label in (0, 2, 3, 5):
        assert abs(drawn[label] - expected[label]) < 5 * math.sqrt(expected[label])
    everything = federated_classes(torch.tensor([1, 2]), 50, frequency)
    assert everything.all()
    assert federated_classes(torch.tensor([1, 2, 3, 0]), 2, frequency).tolist() == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_class_frequencies_are_asked_for_and_stay_out_of_files():
    heads, (maps, boxes, targets) = heads_of(**SIGMOID, federated_classes=1), scene()
    with pytest.raises(UserError, match="frequency of classes is not known"):
        heads(maps, boxes, SIZES, targets)
    with pytest.raises(UserError, match="3, one per class"):
        heads.set_class_frequency(torch.ones(4))
    names = set(heads.state_dict())
    heads.set_class_frequency(torch.tensor([5, 3, 2]))
    assert set(heads.state_dict()) == names and not any("frequency" in name for name in names)
    assert heads.double().class_frequency.dtype == torch.float64  # it travels with the module
    heads.float()


def test_federated_loss_counts_the_present_class_only():
    heads, (maps, boxes, targets) = heads_of(**SIGMOID, federated_classes=1), scene()
    heads.set_class_frequency(torch.tensor([5, 3, 2]))
    targets = [{k: v[:1] for k, v in targets[0].items()}, {k: v[:0] for k, v in targets[1].items()}]
    logits = []
    heads.box_predictors[0].register_forward_hook(lambda *call: logits.append(call[2][0]))
    # The object and its copy are all rows, and class 2 all classes.
    losses = heads(maps, [targets[0]["boxes"], boxes[1][:0]], SIZES, targets)
    wanted = nn.functional.softplus(-logits[0][:, 2]).mean()
    assert losses["loss_cls_stage0"].item() == pytest.approx(wanted.item(), rel=1e-6)
