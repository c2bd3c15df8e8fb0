"""Released detectors: how their files name tensors, and which detector a file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from openmvit.architectures import DETECTORS
from openmvit.convert.keymap import Rule, map_keys
from openmvit.detection.config import DetectorConfig
from openmvit.errors import UserError

_STEM = "backbone.bottom_up.patch_embed.proj.weight"
# Constants that some files carry; ours are in the configuration.
_CONSTANTS = re.compile(r"pixel_(mean|std)|proposal_generator\.anchor_generator\..*")


def is_released(state: Mapping[str, Any]) -> bool:
    """Whether these are the keys of a detectron2 detector on an MViT."""
    return _STEM in state and any(key.startswith("roi_heads.") for key in state)


def to_native(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Our keys for those of a detectron2 file.

    Raises:
        UserError: if a key has no place in the detector.
    """
    kept = {key: value for key, value in state.items() if not _CONSTANTS.fullmatch(key)}
    return map_keys(kept, list(_rules(config)), config.backbone.depths, to_native=True)


def from_native(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Keys of detectron2 for ours; inverse of `to_native`."""
    return map_keys(state, list(_rules(config)), config.backbone.depths, to_native=False)


def _rules(config: DetectorConfig) -> Iterator[Rule]:
    for i, level in enumerate(range(2, 6)):
        yield Rule(f"backbone.norms.{i}.{{rest}}", f"backbone.bottom_up.scale{level}_norm.{{rest}}")
        for ours, theirs in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output")):
            yield Rule(f"neck.fpn.{ours}.{i}.1.{{rest}}", f"backbone.{theirs}{level}.norm.{{rest}}")
            yield Rule(f"neck.fpn.{ours}.{i}.0.{{rest}}", f"backbone.{theirs}{level}.{{rest}}")
    yield Rule("backbone.model.{rest}", "backbone.bottom_up.{rest}")
    rpn = "proposal_generator.rpn_head"
    for i in range(config.rpn_convs):
        conv = f"conv.conv{i}" if config.rpn_convs > 1 else "conv"
        yield Rule(f"rpn.head.conv.{i}.0.{{rest}}", f"{rpn}.{conv}.{{rest}}")
    yield Rule("rpn.head.cls_logits.{rest}", f"{rpn}.objectness_logits.{{rest}}")
    yield Rule("rpn.head.bbox_pred.{rest}", f"{rpn}.anchor_deltas.{{rest}}")
    for stage in range(len(config.stage_iou)):
        yield from _box_rules(config, stage)
    for i in range(len(config.mask_convs)):
        theirs = f"roi_heads.mask_head.mask_fcn{i + 1}"
        yield Rule(f"roi_heads.mask_head.{i}.1.{{rest}}", f"{theirs}.norm.{{rest}}")
        yield Rule(f"roi_heads.mask_head.{i}.0.{{rest}}", f"{theirs}.{{rest}}")
    for ours, theirs in (("conv5_mask", "deconv"), ("mask_fcn_logits", "predictor")):
        yield Rule(f"roi_heads.mask_predictor.{ours}.{{rest}}", f"roi_heads.mask_head.{theirs}.{{rest}}")


def _box_rules(config: DetectorConfig, stage: int) -> Iterator[Rule]:
    number = f".{stage}" if len(config.stage_iou) > 1 else ""
    ours, theirs = f"roi_heads.box_heads.{stage}", f"roi_heads.box_head{number}"
    for i in range(len(config.box_convs)):
        yield Rule(f"{ours}.{i}.1.{{rest}}", f"{theirs}.conv{i + 1}.norm.{{rest}}")
        yield Rule(f"{ours}.{i}.0.{{rest}}", f"{theirs}.conv{i + 1}.{{rest}}")
    for i in range(len(config.box_fcs)):
        # Convolutions, a flatten, then linear layers and their activations in turn.
        name = f"{len(config.box_convs) + 1 + 2 * i}" if config.box_convs else f"fc{6 + i}"
        yield Rule(f"{ours}.{name}.{{rest}}", f"{theirs}.fc{i + 1}.{{rest}}")
    yield Rule(f"roi_heads.box_predictors.{stage}.{{rest}}", f"roi_heads.box_predictor{number}.{{rest}}")


def find_detector(state: Mapping[str, Tensor], path: object) -> tuple[str, DetectorConfig]:
    """Name and configuration of the released detector that a detectron2 file holds, by its tensors.

    Padding and test size are not in the file: they go by the family, which the norms of the heads tell.

    Raises:
        UserError: if it is none of them.
    """
    depth = 1 + max(int(m[1]) for key in state if (m := re.match(r"backbone\.bottom_up\.blocks\.(\d+)\.", key)))
    width, cascade = int(state[_STEM].shape[0]), "roi_heads.box_predictor.0.cls_score.weight" in state
    layer_norm = "backbone.fpn_lateral2.norm.weight" in state
    classes = int(state[f"roi_heads.box_predictor.{'0.' if cascade else ''}cls_score.weight"].shape[0]) - 1
    for name, fields in DETECTORS.items():
        config = DetectorConfig.from_dict(fields)
        seen = (config.backbone.depth, config.backbone.embed_dim, len(config.stage_iou) > 1, config.neck_norm == "ln")
        if seen == (depth, width, cascade, layer_norm):
            lvis = {"scores": "sigmoid", "score_threshold": 0.02, "max_detections": 300, "federated_classes": 50}
            return name, config.replace(num_classes=classes, **(lvis if classes == _LVIS_CLASSES else {}))
    raise UserError(
        f"The tensors of {path} ({depth} blocks, width {width}) are those of no released detector",
        "Give a file of one of the models that openmvit models '*rcnn*' lists",
    )


_LVIS_CLASSES = 1203
