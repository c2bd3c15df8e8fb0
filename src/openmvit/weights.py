"""Weight cards: what was released, where it lies, what it expects; fetch, convert, load."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from openmvit.checkpoint import read, read_pickle
from openmvit.config import MViTConfig
from openmvit.convert import config_from, expected_shapes, to_native, unwrap
from openmvit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class WeightCard:
    """One released file.

    `preprocessing` has the keys of a checkpoint's card: imgsz, mean, std, crop_ratio, interpolation.
    """

    model: str
    tag: str
    source: str
    url: str
    licence: str
    num_classes: int
    preprocessing: dict[str, Any]
    published: dict[str, float] = field(default_factory=dict)
    """Score as published, by its name; empty where none was given."""
    note: str = ""

    @property
    def name(self) -> str:
        """`model.tag`."""
        return f"{self.model}.{self.tag}"


@cache
def cards() -> tuple[WeightCard, ...]:
    """Every weight card, in the order of weights.yaml; a model's first card is its default."""
    import yaml

    text = (resources.files("openmvit") / "weights.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    profiles = content["profiles"]
    return tuple(WeightCard(**(row | {"preprocessing": profiles[row["preprocessing"]]})) for row in content["cards"])


def find_card(model: str, tag: str | None = None) -> WeightCard:
    """The card of a model, by its tag, the end of its tag (`in1k`), or by default its first.

    Raises:
        UserError: if the model has no released weights, or none under this tag.
    """
    own = [card for card in cards() if card.model == model]
    if not own:
        raise UserError(f"No weights of {model} were released", "Give a file, or start with weights none")
    if tag is None:
        return own[0]
    found = [card for card in own if card.tag == tag] or [card for card in own if card.tag.endswith(f"_{tag}")]
    if not found:
        raise UserError(f"{model} has no weights {tag!r}", did_you_mean(tag, [card.tag for card in own]))
    return found[0]


def fetch(card: WeightCard) -> Path:
    """The card's file on this machine: from the cache of torch.hub, else downloaded there.

    Raises:
        UserError: if it cannot be had.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / card.url.rpartition("/")[2]
    if path.is_file():
        return path
    if sys.stderr.isatty():
        print(f"Downloading {card.url} to {path}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name and renamed when complete.
        torch.hub.download_url_to_file(card.url, str(path), progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {card.name} cannot be had from {card.url} ({error})",
            "Give --weights FILE, or --weights none to start from random weights",
        ) from error
    return path


def read_weights(path: str | Path, config: MViTConfig) -> tuple[dict[str, Tensor], MViTConfig, dict[str, Any] | None]:
    """Native weights of any readable file, the configuration they were made for, and our card if it has one.

    Args:
        config: network that the weights are meant for; decides the source's names where the file does not say.
    Raises:
        UserError: if the file cannot be read or belongs to another architecture.
    """
    state, card = read(path)
    if card is not None:
        return state, MViTConfig.from_dict(card["architecture"]), card
    state = unwrap(state)
    source = "timm" if any(key.startswith("stages.") for key in state) else "slowfast"
    made_for = _settings_in_file(path) or _config_from_shapes(state, config, source)
    return to_native(source, made_for, state), made_for, None


def _settings_in_file(path: str | Path) -> MViTConfig | None:
    """The authors' files carry their settings as YAML text under `cfg`."""
    if str(path).endswith(".safetensors"):
        return None
    content = read_pickle(Path(path))
    text = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(text, str):
        return None
    import yaml

    settings = yaml.safe_load(text)
    return config_from("slowfast", settings) if isinstance(settings, dict) and "MVIT" in settings else None


def _config_from_shapes(state: dict[str, Tensor], config: MViTConfig, source: str) -> MViTConfig:
    """`config` with the classes, input channels and nominal size that the tensors show."""
    head = "head.fc.weight" if source == "timm" else "head.projection.weight"
    changes: dict[str, Any] = {"num_classes": state[head].shape[0] if head in state else 0}
    if "patch_embed.proj.weight" in state:
        changes["in_chans"] = state["patch_embed.proj.weight"].shape[1]
    first = next((state[k] for k in state if k.endswith("0.attn.rel_pos_h")), None)
    made_for = config.replace(**changes)
    if first is not None and config.ndim == 2:
        side = (first.shape[0] + 1) // 2 * config.patch_stride[0]
        if first.shape[0] != expected_shapes(made_for)["blocks.0.attn.rel_pos_h"][0]:
            made_for = made_for.replace(input_size=(side, side))
    return made_for
