"""The network that a run starts with: built by name, from a file of settings or from weights of one's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmvit import checkpoint, processes, weights, zoo
from openmvit.architectures import ARCHITECTURES
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.training.recipe import Recipe


@dataclass(frozen=True)
class Start:
    """A network and where it comes from.

    Args:
        model: the network.
        name: how the card calls it.
        licence: of the weights it starts from, empty for random ones.
        preprocessing: of those weights as their card tells it; empty where it is not known.
    """

    model: MViT
    name: str
    licence: str
    preprocessing: dict[str, Any]


def build(recipe: Recipe, smallest: str, classes: Sequence[str]) -> Start:
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
    if _is_settings(name) or (own is not None and recipe.model is None):
        fields = own["architecture"] if own is not None and recipe.model is None else read_architecture(Path(name))
        model = MViT(MViTConfig.from_dict({**fields, **changes, **_resized(recipe, fields)}))
        if own is None and recipe.weights == "default":
            raise UserError(f"No weights of {name} were released", "Give --weights FILE, or --weights none")
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


def model_axes(recipe: Recipe) -> int | None:
    """Axes of the network that the recipe names: 2 for images, 3 for clips; None if it names none."""
    own = _own_card(recipe) if recipe.model is None else None
    if own is not None:
        return MViTConfig.from_dict(own["architecture"]).ndim
    if recipe.model is None:
        return None
    if _is_settings(recipe.model):
        return MViTConfig.from_dict(read_architecture(Path(recipe.model))).ndim
    name = recipe.model.partition(".")[0]
    return zoo.model_config(name).ndim if name in ARCHITECTURES else None


def _fit_classifier(model: MViT, source: str, trained: Sequence[str], classes: Sequence[str]) -> None:
    """A fresh classifier where the weights have one for as many, but other classes, and a line that says so."""
    if len(trained) != len(classes) or list(trained) == list(classes):
        return
    model.reset_classifier(len(classes))
    other = next((name for name in classes if name not in set(trained)), None)
    why = "the classes are in another order" if other is None else f"other classes, such as {other!r}"
    if processes.rank() == 0:
        print(f"Weights {source}: {why}, so the classifier starts anew", file=sys.stderr)


def _is_settings(name: str) -> bool:
    return Path(name).suffix == ".json"


def _own_card(recipe: Recipe) -> dict[str, Any] | None:
    """The card of the starting weights, if they are a run or file of ours."""
    return checkpoint.read(recipe.weights)[1] if Path(recipe.weights).exists() else None


def _released(name: str, start: bool | str) -> weights.WeightCard | None:
    """The card of the released weights that a run starts from."""
    if start is False:
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
