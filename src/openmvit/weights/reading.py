"""Native weights of any readable file, and which network they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.checkpoint import architecture_of, read_content
from openmvit.config import MViTConfig
from openmvit.convert import config_from, recognise
from openmvit.convert.bounds import check_architecture, settings_of_text
from openmvit.convert.cards import HEADER, check_classes
from openmvit.errors import UserError


@dataclass(frozen=True)
class Weights:
    """Native weights of any readable file.

    `config` is the network they were made for, `model` its name where it has one, `card` what our own files know.
    """

    state: dict[str, Tensor]
    config: MViTConfig
    model: str | None
    card: dict[str, Any] | None
    dropped: list[str] = field(default_factory=list)
    """Keys of another project's file that the network has no use for."""
    reason: str = ""
    """What told which network another project's file holds."""


def read_weights(path: str | Path, name: str | None = None, config: MViTConfig | None = None) -> Weights:
    """Read a file of ours or of any known project.

    Args:
        name: architecture that the file is meant for; found by its tensors when it is absent or has other axes.
        config: configuration of `name` with changes that the file may share, such as another width.
    Raises:
        UserError: if the file cannot be read or belongs to another architecture.
    """
    content = read_content(path)
    if content.card is not None:
        made_for = MViTConfig.from_dict(architecture_of(content.card, path))
        check_classes(path, content.card, made_for.num_classes, HEADER)
        return Weights(content.state, made_for, content.card.get("model"), content.card)
    asked = None if name is None else (name, config or model_config(name))
    settings = _settings(content.settings, path)
    found = recognise(content.state, _candidates(), path, settings=settings, asked=asked)
    return Weights(found.state, found.config, found.name, None, found.dropped, found.reason)


def find_architecture(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Name of the architecture that the tensors of another project's file belong to.

    Raises:
        UserError: if there is none.
    """
    name = recognise(state, _candidates(), path).name
    if name is None:
        raise UserError(f"The tensors of {path} are those of no network here", "See openmvit models")
    return name


def _candidates() -> dict[str, MViTConfig]:
    return {name: model_config(name) for name in ARCHITECTURES}


def _settings(text: str | None, path: str | Path) -> MViTConfig | None:
    """The network that the authors' settings inside a file describe, where they still can be read."""
    if text is None:
        return None
    import yaml

    try:
        settings = settings_of_text(path, text)
    except yaml.YAMLError:
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("MVIT"), dict):
        return None
    parts = {name: settings[name] for name in ("MVIT", "DATA", "MODEL") if isinstance(settings.get(name), dict)}
    check_architecture(path, parts)
    try:
        return config_from("slowfast", parts)
    except (UserError, KeyError, TypeError, ValueError, IndexError, AttributeError):
        # Files outlive the code that wrote their settings; the tensors are checked against the architecture anyway.
        return None
