"""The network that a run starts with: built by name, from a file of settings or from weights of one's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from openmvit import checkpoint, processes, screen, weights, zoo
from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.training.early import check_released
from openmvit.training.recipe import Recipe

if TYPE_CHECKING:
    from openmvit.detection.config import DetectorConfig
    from openmvit.detection.detector import Detector


N = TypeVar("N", MViT, "Detector")


@dataclass(frozen=True)
class Start(Generic[N]):
    """A network and where it comes from.

    Args:
        model: the network.
        name: how the card calls it.
        licence: of the weights it starts from, empty for random ones.
        preprocessing: of those weights as their card tells it; empty where it is not known.
    """

    model: N
    name: str
    licence: str
    preprocessing: dict[str, Any]


def build(recipe: Recipe, smallest: str, classes: Sequence[str]) -> Start[MViT]:
    """The network that a recipe names, with its starting weights.

    Args:
        smallest: architecture if the recipe names none.
        classes: names of the data's classes. A classifier of one's own weights is kept if it was trained on these.
    Raises:
        UserError: if the name is unknown, or the weights cannot be had or do not fit.
    """
    changes: dict[str, Any] = {"num_classes": len(classes)}
    for key, value in (("drop_path_rate", recipe.drop_path), ("drop_rate", recipe.dropout)):
        if value is not None:
            changes[key] = value
    start = {"default": True, "none": False}.get(recipe.weights, recipe.weights)
    own = _own_card(recipe)
    known = {"licence": (own or {}).get("licence", ""), "preprocessing": (own or {}).get("preprocessing", {})}
    name = recipe.model or (own or {}).get("model") or smallest
    check_released(recipe.weights, name)
    if _is_settings(name) or (own is not None and recipe.model is None):
        fields = own["architecture"] if own is not None and recipe.model is None else read_architecture(Path(name))
        model = MViT(MViTConfig.from_dict({**fields, **changes, **_resized(recipe, fields)}))
        if start is not False:
            zoo.load_pretrained(model, Path(name).stem, start, inflation=recipe.inflation)
            _fit_classifier(model, recipe.weights, (own or {}).get("classes") or [], classes)
        return Start(model, Path(name).stem, **known)
    sizes = {"img_size": recipe.imgsz, "num_frames": recipe.frames}
    changes |= {key: value for key, value in sizes.items() if value is not None}
    model = zoo.create_model(name, start, inflation=recipe.inflation, **changes)
    _fit_classifier(model, recipe.weights, (own or {}).get("classes") or [], classes)
    base, _, tag = name.partition(".")
    card = _released(base, tag or start) if own is None and not Path(recipe.weights).exists() else None
    if card is not None:
        known = {"licence": card.licence, "preprocessing": card.preprocessing}
    return Start(model, base, **known)


def build_detector(recipe: Recipe, smallest: str, classes: Sequence[str]) -> Start[Detector]:
    """The detector that a recipe names, with its starting weights: a detector's, or an image network's in its backbone.

    Args:
        smallest: architecture if the recipe names none.
        classes: names of the data's classes. Predictors of one's own weights are kept if they were trained on these.
    Raises:
        UserError: if the name is unknown, or the weights cannot be had or do not fit.
    """
    from openmvit.detection.detector import Detector
    from openmvit.zoo.detectors import load_detector_weights

    card = _own_card(recipe) or {}
    own = card if card.get("task") == "detection" else {}
    config, name, tag = _detector_config(recipe, own, smallest)
    check_released(recipe.weights, f"{name}.{tag}" if tag else recipe.model or name)
    changes: dict[str, Any] = {"num_classes": len(classes)}
    if recipe.drop_path is not None:
        changes["backbone"] = config.backbone.replace(drop_path_rate=recipe.drop_path)
    for key in ("mean", "std"):
        if (values := getattr(recipe, key)) is not None:
            changes[key] = tuple(255.0 * value for value in values)
    model = Detector(config.replace(**changes))
    start = tag or {"default": True, "none": False}.get(recipe.weights, recipe.weights)
    known = {"licence": card.get("licence", ""), "preprocessing": own.get("preprocessing", {})}
    if start is not False:
        load_detector_weights(model, name, start)
        _fit_predictors(model, recipe.weights, own.get("classes") or [], classes)
        released = None if card else _released(name, start)
        if released is not None:
            known["licence"] = released.licence
            known["preprocessing"] = released.preprocessing if "rcnn" in released.model else {}
    return Start(model, name, **known)


def _detector_config(recipe: Recipe, own: dict[str, Any], smallest: str) -> tuple[DetectorConfig, str, str]:
    """Configuration, name and tag of the detector that a recipe names, or else of its own starting weights."""
    from openmvit.detection.config import DetectorConfig
    from openmvit.zoo.detectors import detector_config

    name = recipe.model or own.get("model") or smallest
    if own and recipe.model is None:
        return DetectorConfig.from_dict(own["architecture"]), name, ""
    if _is_settings(name):
        return DetectorConfig.from_dict(read_architecture(Path(name))), Path(name).stem, ""
    name, _, tag = name.partition(".")
    return detector_config(name), name, tag


def _fit_predictors(model: Detector, source: str, trained: Sequence[str], classes: Sequence[str]) -> None:
    """Fresh predictors where the weights have some for as many, but other classes, and a line that says so."""
    fresh = [key for key in model.load_report.reinitialised if key.startswith("roi_heads.")]  # type: ignore[union-attr]
    whole = not any(key.startswith("rpn.") for key in model.load_report.reinitialised)  # type: ignore[union-attr]
    other = bool(trained) and list(trained) != list(classes)
    if other and not fresh:
        model.reset_classifier(len(classes))
    if whole and (fresh or other) and processes.rank() == 0:
        what = f"{len(trained)} classes" if trained else "other classes"
        screen.note(
            f"Weights {source}: trained on {what}, the data have {len(classes)}, such as {classes[0]!r}: "
            "the predictors of classes, boxes and masks start anew; backbone, pyramid, proposals and heads go on"
        )


def model_axes(recipe: Recipe) -> int | None:
    """Axes of the network that the recipe names: 2 for images, 3 for clips; None if it names none."""
    own = _own_card(recipe) if recipe.model is None else None
    if own is not None:
        return 2 if own.get("task") == "detection" else MViTConfig.from_dict(own["architecture"]).ndim
    if recipe.model is None:
        return None
    if _is_settings(recipe.model):
        fields = read_architecture(Path(recipe.model))
        return MViTConfig.from_dict(fields.get("backbone", fields)).ndim
    name = recipe.model.partition(".")[0]
    return model_config(name).ndim if name in ARCHITECTURES else None


def _fit_classifier(model: MViT, source: str, trained: Sequence[str], classes: Sequence[str]) -> None:
    """A fresh classifier where the weights have one for as many, but other classes, and a line that says so."""
    if len(trained) != len(classes) or list(trained) == list(classes):
        return
    model.reset_classifier(len(classes))
    other = next((name for name in classes if name not in set(trained)), None)
    why = "the classes are in another order" if other is None else f"other classes, such as {other!r}"
    if processes.rank() == 0:
        screen.note(f"Weights {source}: {why}, so the classifier starts anew")


def _is_settings(name: str) -> bool:
    return Path(name).suffix == ".json"


def _own_card(recipe: Recipe) -> dict[str, Any] | None:
    """The card of the starting weights, if they are a run or file of ours."""
    return checkpoint.read(recipe.weights)[1] if Path(recipe.weights).exists() else None


def _released(name: str, start: bool | str) -> weights.WeightCard | None:
    """The card of the released weights that a run starts from."""
    if start is False or ":" in str(start):  # an address or hub id, of which no card is known
        return None
    other, _, tag = str(start).partition(".")
    if other in ARCHITECTURES:
        return weights.find_card(other, tag or None)
    return weights.find_card(name, None if start is True else str(start))


def _resized(recipe: Recipe, fields: dict[str, Any]) -> dict[str, Any]:
    """The recipe's frames and imgsz as a change of `fields`."""
    size = MViTConfig.from_dict(fields).input_size
    if recipe.imgsz:
        size = (*size[:-2], recipe.imgsz, recipe.imgsz)
    if recipe.frames and len(size) == 3:
        size = (recipe.frames, *size[1:])
    return {"input_size": size}


def read_architecture(path: Path) -> dict[str, Any]:
    """Fields of MViTConfig from a JSON file: bare, or under `architecture` as in a run's model.json.

    Raises:
        UserError: if there is no such file or it holds no architecture.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read the architecture {path} ({error})", "Give a model name or a model.json"
        ) from error
    fields = content.get("architecture", content) if isinstance(content, dict) else None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no architecture", "Give a JSON object of the fields of MViTConfig")
    return fields
