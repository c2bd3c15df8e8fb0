"""Detectors by name, from files of ours, and from the files of detectron2."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from openmvit.architectures import ARCHITECTURES, DETECTORS
from openmvit.checkpoint import find, load_weights, read, read_into
from openmvit.config import MViTConfig
from openmvit.detection import released
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.errors import UserError, did_you_mean
from openmvit.weights import cards, fetch, find_card, read_weights

_TRUNK = "backbone.model."
# What an image network has beside its trunk.
_NOT_TRUNK = ("norm.", "head.", "cls_token", "pos_embed")


def detector_config(name: str, **changes: Any) -> DetectorConfig:
    """Configuration of a named detector, with changes.

    Args:
        changes: fields of DetectorConfig, or of its backbone's MViTConfig.
    Raises:
        UserError: if the name or a field is unknown, naming the nearest.
    """
    if name not in DETECTORS:
        raise UserError(f"Unknown detector {name!r}", did_you_mean(name, DETECTORS))
    config = DetectorConfig.from_dict(DETECTORS[name])
    own = {field.name for field in dataclasses.fields(DetectorConfig)}
    inner = {field.name for field in dataclasses.fields(MViTConfig)} - own
    backbone = {key: value for key, value in changes.items() if key in inner}
    fields = {key: value for key, value in changes.items() if key not in inner}
    if backbone:
        fields["backbone"] = config.backbone.replace(**backbone)
    return config.replace(**fields)


def create_detector(
    name: str, pretrained: bool | str | Path = False, *, strict: bool = True, **changes: Any
) -> Detector:
    """A detector by name.

    Args:
        pretrained: False for random weights, True for the default card, a tag, a path of a detector or classifier, or
            `architecture.tag` of an image network, which starts the backbone.
        strict, changes: see `openmvit.create_model`.
    Raises:
        UserError: if a name or field is unknown, or the weights cannot be had or do not fit.
    """
    detector = Detector(detector_config(name, **changes))
    if pretrained is not False:
        load_detector_weights(detector, name, pretrained, strict=strict)
    return detector


def load_detector_weights(detector: Detector, name: str, weights: bool | str | Path, *, strict: bool = True) -> None:
    """Put a detector's weights, or those of an image classifier for the backbone, into a detector.

    Predictors for other classes keep their fresh values. What was loaded from where is printed on stderr.

    Args:
        name: of `detector`, for its weight cards.
        weights: True for the default card, a tag, a path, or `architecture.tag` of any network.
    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    text = str(weights)
    other, _, tag = text.partition(".")
    if Path(text).exists() or (not isinstance(weights, bool) and "/" in text):
        path, label = find(text), text
    else:
        named = other in ARCHITECTURES or other in DETECTORS
        base, wanted = (other, tag or None) if named else (name, None if isinstance(weights, bool) else text)
        card = find_card(base, wanted)
        path, label = fetch(card), card.name
    state, source, trunk_only = _native(path, detector)
    fresh = [key for key in detector.state_dict() if not key.startswith(_TRUNK)] if trunk_only else []
    classes = ("roi_heads.box_predictors.", "roi_heads.mask_predictor.mask_fcn_logits.")
    report = load_weights(detector, state, source, strict=strict, may_start_fresh=tuple(fresh), heads=classes)
    start = " (the backbone alone; pyramid, proposals and heads start anew)" if trunk_only else ""
    print(f"Weights {label}{start}: {report}", file=sys.stderr)


def _native(path: Path, detector: Detector) -> tuple[dict[str, Tensor], MViTConfig, bool]:
    """Weights of a file in our names, the backbone they were made for, and whether they are a backbone's alone."""
    state, card = read(path)
    if card is not None and card.get("task") == "detection":
        return state, DetectorConfig.from_dict(card["architecture"]).backbone, False
    if released.is_released(state):
        config = released.find_detector(state, path)[1]
        return released.to_native(state, config), config.backbone, False
    found = read_weights(path, config=None)
    if found.config.ndim != 2:
        raise UserError(f"{path} holds a network for clips", "Give weights of an image network for the backbone")
    trunk = {f"{_TRUNK}{key}": value for key, value in found.state.items() if not key.startswith(_NOT_TRUNK)}
    own = detector.state_dict()
    kept = {k: v for k, v in found.state.items() if k.startswith("pos_embed") and f"{_TRUNK}{k}" in own}
    return trunk | {f"{_TRUNK}{key}": value for key, value in kept.items()}, found.config, True


def read_detector(target: str | Path) -> tuple[Detector, dict[str, Any]]:
    """The detector of a run, of one of our files or of a released file, in eval mode, with its card.

    Raises:
        UserError: if the file holds no detector, or its architecture does not fit its tensors.
    """
    path = find(target)
    state, card = read(path)
    if card is not None:
        return read_into(path, lambda own: Detector(DetectorConfig.from_dict(own["architecture"])))
    if not released.is_released(state):
        raise UserError(f"{path} holds no detector that is known here", "Give a released .pkl file or one of our files")
    name, config = released.find_detector(state, path)
    detector = Detector(config)
    load_weights(detector, released.to_native(state, config), config.backbone)
    own = [found for found in cards() if found.model == name]
    like = next((found for found in own if found.url.endswith(f"/{path.name}")), own[0])
    return detector.eval(), {
        "model": name,
        "task": "detection",
        "classes": [],
        "category_ids": [],
        "architecture": config.to_dict(),
        "preprocessing": like.preprocessing,
        "licence": like.licence,
    }
