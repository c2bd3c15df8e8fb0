"""The one call that builds a network, and the one that loads whatever the user named."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from openmvit.architectures import ARCHITECTURES, DETECTORS, model_config
from openmvit.checkpoint import find, load_weights, read, read_model, save
from openmvit.convert.inflation import Inflation, inflate
from openmvit.errors import UserError, did_you_mean
from openmvit.model import FeatureMaps, MViT
from openmvit.weights import Weights, cards, fetch, find_card, read_weights

if TYPE_CHECKING:
    from openmvit.detection.detector import Detector


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
        pretrained: False for random weights, True for the default card, a tag, a path of any known family, or
            `architecture.tag` of another network: image weights start a clip network.
        features_only: give the stages as maps instead of logits.
        out_indices: with `features_only`, the stages to give.
        inflation: how image filters become clip filters: `centre` (the paper) or `copy` (the public code).
        strict: weights that do not fit, beyond the classifier, are an error; False reports them and goes on.
        changes: `num_classes`, `img_size`, `num_frames`, `in_chans`, `drop_path_rate`, `drop_rate` or any field of
            MViTConfig; for a detector any field of DetectorConfig too. Loaded weights are adapted to them; the report
            on stderr and at `model.load_report` says how.
    Raises:
        UserError: if a name or field is unknown, the weights cannot be had, or they do not fit.
    """
    name, _, tag = name.partition(".")
    if name in DETECTORS:
        from openmvit.zoo.detectors import create_detector

        if features_only:
            raise UserError(f"features_only is given and {name} is a detector", "Its maps are model.backbone(images)")
        return create_detector(name, tag or pretrained, strict=strict, **changes)
    config = model_config(name, **changes)
    model = MViT(config)
    if tag or pretrained is not False:
        load_pretrained(model, name, tag or pretrained, strict=strict, inflation=inflation)
    return FeatureMaps(model, out_indices) if features_only else model


# What an image network has no value for, by the end of the key.
_NEW_IN_CLIPS = ("cls_token", "rel_pos_t", "pos_embed_temporal", "pos_embed_class")


def load_pretrained(
    model: MViT, name: str, weights: bool | str | Path, *, strict: bool = True, inflation: Inflation = "centre"
) -> None:
    """Put released or own weights into a network; what was loaded from where is printed on stderr.

    Args:
        name: architecture of `model`, for its weight cards.
        weights: True for the default card, a tag, a path, or `architecture.tag` of another network.
    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    text = str(weights)
    other, _, tag = text.partition(".")
    if other in ARCHITECTURES and not Path(text).exists():
        card = find_card(other, tag or None)
        found, label = read_weights(fetch(card), other), card.name
    elif not isinstance(weights, bool) and (Path(text).exists() or Path(text).suffix or "/" in text):
        found, label = read_weights(weights, name, model.config), text
    else:
        card = find_card(name, None if isinstance(weights, bool) else text)
        found, label = read_weights(fetch(card), name, model.config), card.name
    state, made_for, fresh = found.state, found.config, ()
    if made_for.ndim < model.config.ndim:
        state, fresh = inflate(state, made_for, model.config, inflation), _NEW_IN_CLIPS
        label = f"{label}, inflated ({inflation})"
    report = load_weights(model, state, made_for, strict=strict, may_start_fresh=fresh)
    print(f"Weights {label}: {report}", file=sys.stderr)


def load_model(target: str | Path) -> tuple[MViT | Detector, dict[str, Any]]:
    """The network that a run folder, a file or a model name with released weights means, in eval mode, and its card.

    A file of another project is read too, when its tensors are those of a network here.

    Raises:
        UserError: if there is no such run, file or model.
    """
    text = str(target)
    base, _, tag = text.partition(".")
    released = base in (*ARCHITECTURES, *DETECTORS) and not Path(target).exists()
    if not released and not Path(target).exists() and "/" not in text and "." not in text:
        raise UserError(f"{text} is no model, run folder or file", did_you_mean(text, [*ARCHITECTURES, *DETECTORS]))
    path = fetch(find_card(base, tag or None)) if released else find(target)
    state, card = read(path)
    if _holds_detector(state, card):
        from openmvit.zoo.detectors import read_detector

        return read_detector(path)
    if card is not None:
        return read_model(path)
    return _from_foreign(read_weights(path, base if released else None), path)


def _holds_detector(state: Mapping[str, Any], card: Mapping[str, Any] | None) -> bool:
    return card.get("task") == "detection" if card is not None else any(key.startswith("roi_heads.") for key in state)


def _from_foreign(found: Weights, path: Path) -> tuple[MViT, dict[str, Any]]:
    """The network of another project's file, and what is known about it; class names are not."""
    model = MViT(found.config)
    load_weights(model, found.state, found.config)
    own = [card for card in cards() if card.model == found.model]
    card = next((card for card in own if card.url.endswith(f"/{path.name}")), None)
    same = (c for c in cards() if c.model in ARCHITECTURES and model_config(c.model).ndim == found.config.ndim)
    like = [card, *own, *same]
    size = {"imgsz": found.config.input_size[-1]}
    if found.config.ndim == 3:
        size["num_frames"] = found.config.input_size[0]
    return model.eval(), {
        "model": found.model,
        "task": "image" if found.config.ndim == 2 else "video",
        "classes": [],
        "architecture": found.config.to_dict(),
        "preprocessing": next(c for c in like if c is not None).preprocessing | size,
        "licence": card.licence if card else "",
    }


def convert_file(file: str | Path, to: str | Path | None = None, model: str | None = None) -> str:
    """Write another project's weights as one of our files; returns a sentence about it.

    Args:
        to: file to write; default: the same name with .safetensors.
        model: architecture; default: found by the tensors.
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
    network, card = load_model(path) if model is None else _from_foreign(read_weights(path, model), path)
    save(target, network.state_dict(), card)
    parameters = sum(p.numel() for p in network.parameters())
    classes = network.config.num_classes
    return f"{target}: {card.get('model', 'a network')}, {parameters} parameters, {classes} classes"
