"""The one call that builds a network, and the one that loads whatever the user named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from openmvit import screen
from openmvit.architectures import ARCHITECTURES, DETECTORS, model_config
from openmvit.checkpoint import check_no_graph, find, load_weights, read, read_model, save
from openmvit.config import MViTConfig
from openmvit.convert.inflation import Inflation, inflate
from openmvit.errors import UserError
from openmvit.exported import SUFFIX, ExportedClassifier, open_exported
from openmvit.model import FeatureMaps, MViT
from openmvit.weights import WeightCard, card_of_file, card_of_target, cards, fetch, locate
from openmvit.weights.reading import Weights, read_weights
from openmvit.zoo.classes import class_names
from openmvit.zoo.files import find_file

if TYPE_CHECKING:
    from openmvit.detection.detector import Detector
    from openmvit.exported.detectors import ExportedDetector


@overload
def create_model(
    name: str,
    pretrained: bool | str | Path = ...,
    *,
    features_only: Literal[False] = ...,
    inflation: Inflation = ...,
    strict: bool = ...,
    **changes: Any,
) -> MViT: ...
@overload
def create_model(
    name: str,
    pretrained: bool | str | Path = ...,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    inflation: Inflation = ...,
    strict: bool = ...,
    **changes: Any,
) -> FeatureMaps: ...
def create_model(
    name: str,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    inflation: Inflation = "centre",
    strict: bool = True,
    **changes: Any,
) -> MViT | FeatureMaps | Detector:
    """Build a network by name: an `MViT`, its `FeatureMaps`, or a `Detector` for a detector's name.

    Args:
        name: architecture, or `architecture.tag`, which implies `pretrained=tag`.
        pretrained: False for random weights, True for the default card, a tag, a file of any known family, an address,
            a hub id such as `hf:owner/name`, or `architecture.tag` of another network: image weights start a clip
            network.
        features_only: give the stages as maps instead of logits.
        out_indices: with `features_only`, the stages to give.
        inflation: how image filters become clip filters: `centre` (the paper) or `copy` (the public code).
        strict: weights that do not fit, beyond the classifier, are an error; False reports them and goes on, as long
            as 95 % of the trunk's tensors fit.
        changes: `num_classes`, `img_size`, `num_frames`, `in_chans`, `drop_path_rate`, `drop_rate` or any field of
            MViTConfig; for a detector any field of DetectorConfig too. Loaded weights are adapted to them; the report
            on stderr and at `model.load_report` says how. What is not given is as the weights were made for: without
            `num_classes` the network has their classes (174 for `mvitv2_small_16x4.fb_ssv2`, not the 400 of the name).
    Raises:
        UserError: if a name or field is unknown, the weights cannot be had, or they do not fit.
    """
    name, _, tag = name.partition(".")
    start = tag or pretrained
    if name in DETECTORS:
        from openmvit.zoo.detectors import create_detector

        if features_only:
            raise UserError(f"features_only is given and {name} is a detector", "Its maps are model.backbone(images)")
        return create_detector(name, start, strict=strict, **changes)
    model = _build(name, start, changes, strict, inflation)
    return FeatureMaps(model, out_indices) if features_only else model


def _build(name: str, start: bool | str | Path, changes: dict[str, Any], strict: bool, inflation: Inflation) -> MViT:
    config = model_config(name, **changes)
    if start is False:
        return MViT(config)
    found, label = _find_weights(name, start, config)
    model = MViT(_as_made(config, found.config, changes) if found.model == name else config)
    _put(model, found, label, strict=strict, inflation=inflation)
    return model


# What weights decide where the caller does not: the classes, and what no tensor's shape would contradict.
_DECIDED = ("pool_kv_at_stride_one", "norm_after_pool")


def _as_made(config: MViTConfig, made_for: MViTConfig, changes: Mapping[str, Any]) -> MViTConfig:
    fields = {key: getattr(made_for, key) for key in _DECIDED if key not in changes}
    if made_for.num_classes and "num_classes" not in changes:
        fields["num_classes"] = made_for.num_classes
    return config.replace(**fields)


# What an image network has no value for, by the end of the key.
_NEW_IN_CLIPS = ("cls_token", "rel_pos_t", "pos_embed_temporal", "pos_embed_class")


def load_pretrained(
    model: MViT, name: str, weights: bool | str | Path, *, strict: bool = True, inflation: Inflation = "centre"
) -> None:
    """Put released or own weights into a network; what was loaded from where is printed on stderr.

    Args:
        name: architecture of `model`, for its weight cards.
        weights: see `create_model`.
    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    found, label = _find_weights(name, weights, model.config)
    _put(model, found, label, strict=strict, inflation=inflation)


def _put(model: MViT, found: Weights, label: str, *, strict: bool, inflation: Inflation) -> None:
    state, made_for, fresh = found.state, found.config, _fresh_norm(found.state)
    if made_for.ndim < model.config.ndim:
        state, fresh = inflate(state, made_for, model.config, inflation), (*fresh, *_NEW_IN_CLIPS)
        label = f"{label}, inflated ({inflation})"
    report = load_weights(model, state, made_for, strict=strict, may_start_fresh=fresh)
    report.with_file(found.dropped, found.reason).source = label
    screen.note(f"Weights {label}: {report}")


def _find_weights(name: str, weights: bool | str | Path, config: MViTConfig) -> tuple[Weights, str]:
    """Weights that a user named, and how messages call them."""
    path, card = find_file(name, weights)
    if card is None:
        return read_weights(path, name, config), str(weights)
    if card.model == name:
        return read_weights(path, name, config), card.name
    return read_weights(path, card.model, model_config(card.model, **card.changes)), card.name


def load_model(target: str | Path, classes: str | Path | None = None) -> tuple[MViT | Detector, dict[str, Any]]:
    """The network that a run folder, a file, an address, a hub id or a model name with released weights means.

    A file of another project is read too, when its tensors are those of a network here. Gives the network in eval mode
    and its card.

    Args:
        classes: text file with the names of the classes, for weights that do not bring them.
    Raises:
        UserError: if there is no such run, file or model.
    """
    text = str(target)
    check_no_graph(text)
    released = card_of_target(text)
    path = fetch(released) if released else locate(text) or find(target)
    screen.doing(f"reading {path}")
    state, card = read(path)
    if _holds_detector(state, card):
        from openmvit.zoo.detectors import read_detector

        model, card = read_detector(path, classes)
    elif card is not None:
        model, card = read_model(path)
    else:
        made_for = model_config(released.model, **released.changes) if released else None
        found = read_weights(path, released.model if released else None, made_for)
        model, card = _from_foreign(found, path, released, classes)
    if classes is not None:
        card["classes"] = class_names(model.config.num_classes, path, file=classes)[0]
    return model, card


def load_network(
    target: str | Path, classes: str | Path | None = None
) -> tuple[MViT | Detector | ExportedClassifier | ExportedDetector, dict[str, Any]]:
    """What `load_model` takes, or an ONNX file of `openmvit export`: all that `val` and `predict` run.

    Raises:
        UserError: see `load_model`; or if the file is damaged, or has no card.
    """
    if Path(target).suffix != SUFFIX:
        return load_model(target, classes)
    path = locate(str(target)) or find(target)
    session, card = open_exported(path)
    if card.get("task") == "detection":
        from openmvit.exported.detectors import ExportedDetector

        network = ExportedDetector(path, session, card)
    else:
        network = ExportedClassifier(path, session, card)
    if classes is not None:
        card["classes"] = class_names(network.config.num_classes, path, file=classes)[0]
    return network, card


def _holds_detector(state: Mapping[str, Any], card: Mapping[str, Any] | None) -> bool:
    return card.get("task") == "detection" if card is not None else any(key.startswith("roi_heads.") for key in state)


def _fresh_norm(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Ends of keys that a pre-trained trunk has no value for."""
    return () if "norm.weight" in state else ("norm.weight", "norm.bias")


def _from_foreign(
    found: Weights, path: Path, card: WeightCard | None = None, classes: str | Path | None = None
) -> tuple[MViT, dict[str, Any]]:
    """The network of another project's file, and what is known about it."""
    model = MViT(found.config)
    # Built from the file itself, so the classifier has to fit as well.
    report = load_weights(model, found.state, found.config, may_start_fresh=_fresh_norm(found.state), heads=())
    card = card or card_of_file(path.name, found.model)
    report.with_file(found.dropped, found.reason).source = card.name if card else str(path)
    own = [card for card in cards() if card.model == found.model]
    same = (c for c in cards() if c.model in ARCHITECTURES and model_config(c.model).ndim == found.config.ndim)
    size = {"imgsz": found.config.input_size[-1]}
    if found.config.ndim == 3:
        size["num_frames"] = found.config.input_size[0]
    names = class_names(found.config.num_classes, path, card, classes)[0] if found.config.num_classes else []
    return model.eval(), {
        "model": found.model,
        "task": "image" if found.config.ndim == 2 else "video",
        "classes": names,
        "architecture": found.config.to_dict(),
        "preprocessing": next(c for c in [card, *own, *same] if c is not None).preprocessing | size,
        "released": card.name if card else "",
        "licence": card.licence if card else "",
    }


def convert_file(
    file: str | Path, to: str | Path | None = None, model: str | None = None, classes: str | Path | None = None
) -> str:
    """Write another project's weights as one of our files; returns a sentence about it.

    Args:
        to: file to write; default: the same name with .safetensors.
        model: architecture; default: found by the tensors.
        classes: text file with the names of the classes.
    Raises:
        UserError: if the file cannot be read, is no known network, or the new file exists.
    """
    path = find(file)
    target = Path(to) if to is not None else path.with_suffix(".safetensors")
    if target == path:
        raise UserError(
            f"{path} is one of our files or another safetensors file already", "Name the new file with --to"
        )
    if target.exists():
        raise UserError(f"{target} exists", "Give another file with --to")
    if target.suffix != ".safetensors":
        raise UserError(f"{target} would be a safetensors file under another name", "End the name with .safetensors")
    if model is None:
        network, card = load_model(path, classes)
    else:
        screen.doing(f"reading {path}")
        network, card = _from_foreign(read_weights(path, model), path, classes=classes)
    screen.doing(f"writing {target}")
    save(target, network.state_dict(), card)
    parameters = sum(p.numel() for p in network.parameters())
    count = network.config.num_classes
    sentence = f"{target}: {card.get('model') or 'a network'}, {parameters} parameters, {count} classes"
    report = getattr(network, "load_report", None)
    return f"{sentence}; {report}" if report else sentence
