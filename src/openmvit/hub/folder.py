"""Between our one-file checkpoints and the folders of transformers, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from openmvit.checkpoint import save
from openmvit.errors import UserError
from openmvit.hub.card import digest, of_weights
from openmvit.hub.config import MViTV2Config
from openmvit.hub.models import (
    MViTV2ForImageClassification,
    MViTV2ForVideoClassification,
    MViTV2Model,
    MViTV2PreTrainedModel,
)
from openmvit.hub.processors import MViTV2ImageProcessor, MViTV2VideoProcessor
from openmvit.model import MViT
from openmvit.weights import cards, find_card
from openmvit.zoo import load_model

# Of a checkpoint's card. Paths of the machine (data, recipe) stay there.
_KEPT = ("model", "task", "licence", "score", "versions", "ema", "multilabel")
_RELEASED = ("tag", "source", "url", "published", "note", "licence")
_PREFIX = f"{MViTV2PreTrainedModel.base_model_prefix}."


def from_checkpoint(target: str | Path, folder: str | Path) -> Path:
    """Write a run, a file of any known project or a released model as a folder for transformers.

    The folder gets config.json, model.safetensors, the processor and README.md.

    Args:
        target: whatever `openmvit.load` takes for a classifier: RUN, FILE or a model's name.
        folder: to write; made if it is missing.
    Raises:
        UserError: if there is no such classifier, or the folder holds a model already.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already", "Name another folder")
    network, card = load_model(target)
    if not isinstance(network, MViT):
        raise UserError(f"{target} is a detector", "Folders of transformers are written of classifiers")
    folder.mkdir(parents=True, exist_ok=True)
    processor_of(card).save_pretrained(folder)
    wrap(network, card | _released(target)).save_pretrained(folder)
    return folder


def to_checkpoint(folder: str | Path, file: str | Path) -> Path:
    """Write a folder of transformers as one of our files, which every verb takes.

    Args:
        folder: with config.json, model.safetensors and, for the preprocessing, the processor's file.
    Raises:
        UserError: if the folder holds no classifier of ours, or the file exists.
    """
    folder, file = Path(folder), Path(file)
    if file.exists():
        raise UserError(f"{file} exists", "Name another file")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json", "Give a folder that save_pretrained wrote")
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, MViTV2Config):
        raise UserError(f"{folder} holds a {config.model_type}", "Give a folder with an MViTv2 of ours")
    video = len(config.input_size) == 3
    name = "video_preprocessor_config.json" if video else "preprocessor_config.json"
    if not (folder / name).is_file():
        raise UserError(f"{folder} holds no {name}", "Save the processor there too: processor.save_pretrained(folder)")
    processor: Any = (MViTV2VideoProcessor if video else MViTV2ImageProcessor).from_pretrained(folder)
    model = _class_of(config).from_pretrained(folder)
    state = {key.removeprefix(_PREFIX): value for key, value in model.state_dict().items()}
    save(file, state, card_of(model, processor.preprocessing()))
    return file


def wrap(network: MViT, card: Mapping[str, Any]) -> MViTV2PreTrainedModel:
    """A network of ours as a model of transformers that shares its weights.

    Args:
        card: of the checkpoint; its classes become `id2label`, or are numbered if there are none.
    """
    classes, count = [str(name) for name in card.get("classes") or []], network.config.num_classes
    labels: dict[str, Any] = {"num_labels": count}
    if classes:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    about = {key: card[key] for key in (*_KEPT, *_RELEASED) if card.get(key) not in (None, "", {})}
    if card.get("data"):
        about["data"] = Path(str(card["data"])).name
    kind = "multi_label_classification" if card.get("multilabel") else None
    config = MViTV2Config.from_network(network.config.replace(num_classes=0), **labels, problem_type=kind, about=about)
    model = _class_of(config)(config)
    model.mvitv2 = network
    config.about["digest"] = digest(model.state_dict())
    return model.train(network.training)  # type: ignore[return-value]


def processor_of(card: Mapping[str, Any]) -> MViTV2ImageProcessor | MViTV2VideoProcessor:
    """The processor of a checkpoint's card."""
    preprocessing = card["preprocessing"]
    kind = MViTV2VideoProcessor if "num_frames" in preprocessing else MViTV2ImageProcessor
    return kind.from_preprocessing(preprocessing)


def card_of(model: MViTV2PreTrainedModel, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's card for a model of transformers."""
    config, network = model.config, model.mvitv2.config
    about = of_weights(config.about, model.state_dict())
    about = {key: value for key, value in about.items() if key in (*_KEPT, *_RELEASED)}
    labels: Any = config.id2label or {}
    named = [str(labels[i]) for i in range(network.num_classes)]
    unnamed = named == [f"LABEL_{i}" for i in range(network.num_classes)]
    return about | {
        "task": "image" if network.ndim == 2 else "video",
        "architecture": network.to_dict(),
        "classes": [] if unnamed else named,
        "multilabel": config.problem_type == "multi_label_classification",
        "preprocessing": dict(preprocessing),
    }


def _class_of(config: MViTV2Config) -> type[MViTV2PreTrainedModel]:
    if not config.num_labels:
        return MViTV2Model
    return MViTV2ForImageClassification if len(config.input_size) == 2 else MViTV2ForVideoClassification


def _released(target: str | Path) -> dict[str, Any]:
    """What the weight card of a released file says, by its name or by the name of the file; empty for other files."""
    base, _, tag = str(target).partition(".")
    names = {card.model for card in cards()}
    if Path(target).exists():
        found = next((card for card in cards() if card.url.endswith(f"/{Path(target).name}")), None)
    else:
        found = find_card(base, tag or None) if base in names else None
    return {} if found is None else {key: getattr(found, key) for key in _RELEASED}
