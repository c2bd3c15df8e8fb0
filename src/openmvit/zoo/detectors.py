"""Detectors by name, from files of ours, and from the files of detectron2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from openmvit import screen
from openmvit.architectures import DETECTORS
from openmvit.checkpoint import architecture_of, find, load_weights, read, read_into
from openmvit.config import MViTConfig
from openmvit.convert.cards import HEADER, check_classes
from openmvit.detection import released
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.errors import UserError, did_you_mean
from openmvit.weights import card_of_file, cards
from openmvit.weights.reading import read_weights
from openmvit.zoo.classes import class_names
from openmvit.zoo.files import find_file

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
    return DetectorConfig.from_dict(DETECTORS[name]).change(**changes)


def create_detector(
    name: str, pretrained: bool | str | Path = False, *, strict: bool = True, **changes: Any
) -> Detector:
    """A detector by name.

    Args:
        pretrained: False for random weights, True for the default card, a tag, a path, address or hub id of a detector
            or classifier, or `architecture.tag` of an image network, which starts the backbone.
        strict, changes: see `openmvit.create_model`. Without `num_classes` the detector has the classes and scores of
            its weights: 1,203 and sigmoid for `.fb_in21k_lvis`.
    Raises:
        UserError: if a name or field is unknown, or the weights cannot be had or do not fit.
    """
    if pretrained is False:
        return Detector(detector_config(name, **changes))
    config = detector_config(name, **changes)
    path, card = find_file(name, pretrained)
    start = _read(path)
    if start.config is not None and "num_classes" not in changes:
        config = config.replace(
            **{key: getattr(start.config, key) for key in _DECIDED if key not in changes},
        )
    detector = Detector(config)
    _put(detector, start, card.name if card else str(pretrained), strict=strict)
    return detector


# What a detector's weights decide where the caller does not.
_DECIDED = ("num_classes", "scores", "score_threshold", "max_detections", "federated_classes")


def load_detector_weights(detector: Detector, name: str, weights: bool | str | Path, *, strict: bool = True) -> None:
    """Put a detector's weights, or those of an image classifier for the backbone, into a detector.

    Predictors for other classes keep their fresh values. What was loaded from where is printed on stderr.

    Args:
        name: of `detector`, for its weight cards.
        weights: see `create_detector`.
    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    path, card = find_file(name, weights)
    _put(detector, _read(path), card.name if card else str(weights), strict=strict)


@dataclass(frozen=True)
class _Start:
    """Weights in our names; `config` is that of a whole detector, `trunk` that of the backbone they were made for."""

    state: dict[str, Tensor]
    trunk: MViTConfig
    config: DetectorConfig | None = None


def _read(path: Path) -> _Start:
    """Weights of a detector, or of an image network for the backbone."""
    state, card = read(path)
    if card is not None and card.get("task") == "detection":
        config = DetectorConfig.from_dict(architecture_of(card, path))
        check_classes(path, card, config.num_classes, HEADER)
        return _Start(state, config.backbone, config)
    if released.is_released(state):
        config = released.find_detector(state, path)[1]
        return _Start(released.to_native(state, config), config.backbone, config)
    found = read_weights(path)
    if found.config.ndim != 2:
        raise UserError(f"{path} holds a network for clips", "Give weights of an image network for the backbone")
    return _Start(found.state, found.config)


def _put(detector: Detector, start: _Start, label: str, *, strict: bool) -> None:
    state, own, fresh, words = start.state, detector.state_dict(), (), ""
    if start.config is None:
        kept = (k for k in state if not k.startswith(_NOT_TRUNK) or (k.startswith("pos_embed") and _TRUNK + k in own))
        state = {f"{_TRUNK}{key}": state[key] for key in kept}
        fresh = tuple(key for key in own if not key.startswith(_TRUNK))
        words = " (the backbone alone; pyramid, proposals and heads start anew)"
    classes = ("roi_heads.box_predictors.", "roi_heads.mask_predictor.mask_fcn_logits.")
    report = load_weights(detector, state, start.trunk, strict=strict, may_start_fresh=fresh, heads=classes)
    report.source = label
    screen.note(f"Weights {label}{words}: {report}")


def read_detector(target: str | Path, classes: str | Path | None = None) -> tuple[Detector, dict[str, Any]]:
    """The detector of a run, of one of our files or of a released file, in eval mode, with its card.

    Args:
        classes: text file with the names of the classes, for released files.
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
    report = load_weights(detector, released.to_native(state, config), config.backbone)
    own = [found for found in cards() if found.model == name]
    like = card_of_file(path.name, name) or next((c for c in own if c.num_classes == config.num_classes), own[0])
    report.source = like.name
    names, numbers = class_names(config.num_classes, path, like, classes)
    return detector.eval(), {
        "model": name,
        "task": "detection",
        "classes": names,
        "category_ids": numbers,
        "architecture": config.to_dict(),
        "preprocessing": like.preprocessing,
        "released": like.name,
        "licence": like.licence,
    }
