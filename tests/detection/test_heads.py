"""Layers of the heads against the recorded detectors, and their start values."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detection.cascade_loops import SIZES, config, heads_of, scene
from openmvit.detection.roi_heads import RoiHeads

GOLDEN = Path(__file__).parents[1] / "golden" / "detection"


@pytest.mark.parametrize("name", ["mask_rcnn_plain", "mask_rcnn_ln_square"])
def test_recorded_detectors(name):
    heads, weights = recorded_heads(name)
    heads.load_state_dict(weights)
    saved = load_file(GOLDEN / name / "eval.safetensors")
    maps = [saved["fpn.p2.image0"], *(saved[f"fpn.p{level}"][:1] for level in (3, 4, 5, 6))]
    size = tuple(load_file(GOLDEN / name / "inputs.safetensors")["image.0"].shape[1:])
    proposals, outputs = saved["proposals.0.boxes"], []
    heads.box_predictors[0].register_forward_hook(lambda *call: outputs.append(call[2]))
    (found,) = heads.eval().detect(maps, [proposals], [size])
    rows = len(proposals)
    torch.testing.assert_close(outputs[0][0], saved["stage0.cls_logits"][:rows], rtol=0, atol=1e-4)
    torch.testing.assert_close(outputs[0][1], saved["stage0.deltas"][:rows], rtol=0, atol=1e-4)
    assert torch.equal(found.labels, saved["raw.0.classes"])
    torch.testing.assert_close(found.boxes, saved["raw.0.boxes"], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, saved["raw.0.scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mask_probs, saved["raw.0.mask_probs"], rtol=0, atol=1e-5)


def recorded_heads(name):
    roi = json.loads((GOLDEN / name / "config.json").read_text())["roi"]
    heads = RoiHeads(
        config(
            num_classes=roi["num_classes"],
            channels=16,
            head_norm="ln" if roi["head_norm"] else "none",
            box_convs=tuple(roi["box_head_convs"]),
            box_fcs=tuple(roi["box_head_fcs"]),
            mask_convs=tuple(roi["mask_head_channels"][:-1]),
            score_threshold=roi["score_threshold"],
            max_detections=roi["max_detections"],
        )
    )
    last = len(roi["box_head_convs"]) + 1
    names = {"box_predictor.": "box_predictors.0.", "mask_head.deconv": "mask_predictor.conv5_mask"}
    names |= {"mask_head.predictor": "mask_predictor.mask_fcn_logits"}
    names |= {
        "box_head.fc1": f"box_heads.0.{last}" if last > 1 else "box_heads.0.fc6",
        "box_head.fc2": "box_heads.0.fc7",
    }
    for theirs, ours in (("box_head.conv", "box_heads.0."), ("mask_head.mask_fcn", "mask_head.")):
        names |= {f"{theirs}{n}.norm": f"{ours}{n - 1}.1" for n in range(1, 5)}
        names |= {f"{theirs}{n}.": f"{ours}{n - 1}.0." for n in range(1, 5)}
    weights = {}
    for key, value in load_file(GOLDEN / name / "model.safetensors").items():
        if key.startswith("roi_heads."):
            key = key.removeprefix("roi_heads.")
            old = next(old for old in names if key.startswith(old))
            weights[names[old] + key.removeprefix(old)] = value
    return heads, weights


def test_heads_start_as_published():
    heads = RoiHeads(
        config(num_classes=80, channels=64, box_convs=(64,), box_fcs=(256,), mask_convs=(64,), head_norm="bn")
    )
    spread = {
        "box_heads.0.0.0.weight": math.sqrt(2 / (64 * 9)),
        "box_heads.0.2.weight": 1 / math.sqrt(64 * 49),  # uniform within sqrt(3 / fan in)
        "box_predictors.0.cls_score.weight": 0.01,
        "box_predictors.0.bbox_pred.weight": 0.001,
        "mask_head.0.0.weight": math.sqrt(2 / (64 * 9)),
        "mask_predictor.conv5_mask.weight": math.sqrt(2 / (64 * 4)),
        "mask_predictor.mask_fcn_logits.weight": 0.001,
    }
    values = dict(heads.named_parameters())
    assert {name: values[name].std().item() for name in spread} == pytest.approx(spread, rel=0.05)
    assert not any(value.any() for name, value in values.items() if name.endswith("bias"))
    largest = values["box_heads.0.2.weight"].abs().max().item()
    assert 0.99 < largest / math.sqrt(3 / (64 * 49)) <= 1


@pytest.mark.parametrize(("convs", "fcs"), [((), (24, 16)), ((), (24,)), ((8, 12), ()), ((), ())])
def test_box_heads_of_other_shapes(convs, fcs):
    heads, (maps, boxes, targets) = heads_of(box_convs=convs, box_fcs=fcs, mask_convs=()), scene()
    assert all(value.isfinite() for value in heads(maps, boxes, SIZES, targets).values())
