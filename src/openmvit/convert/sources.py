"""One table per project: how it names keys, what its tensors look like, how its settings read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.convert.keymap import Rule, expected_shapes, map_keys, same
from openmvit.convert.settings import config_from_mvit, config_from_timm
from openmvit.errors import UserError, did_you_mean

# Names that training wrappers put into keys.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "module.")


@dataclass(frozen=True)
class Source:
    """What one project calls things.

    Args:
        rules: the key table for a network; a function, because two projects name keys by the architecture.
        config: reads the project's settings.
    """

    rules: Callable[[MViTConfig], list[Rule]]
    config: Callable[[Mapping[str, Any]], MViTConfig]


def _mvit(_: MViTConfig) -> list[Rule]:
    # Parameter names are the authors' names.
    return same("{rest}")


def _slowfast(config: MViTConfig) -> list[Rule]:
    if config.ndim == 3:
        return same("{rest}")
    # Its image networks pool with 3D convolutions over one frame.
    return [
        Rule(
            f"blocks.{{n}}.attn.pool_{name}.weight",
            f"blocks.{{n}}.attn.pool_{name}.weight",
            to_native=lambda t: t.squeeze(2) if t.dim() == 5 else t,
            from_native=lambda t: t.unsqueeze(2),
        )
        for name in "qkv"
    ] + same("{rest}")


def _timm(config: MViTConfig) -> list[Rule]:
    shortcut = "shortcut_proj_attn" if config.dim_mul_in_attention else "shortcut_proj_mlp"
    return [
        Rule("blocks.{n}.proj.{rest}", f"stages.{{s}}.blocks.{{b}}.{shortcut}.{{rest}}"),
        Rule("blocks.{n}.{rest}", "stages.{s}.blocks.{b}.{rest}"),
        Rule("head.projection.{rest}", "head.fc.{rest}"),
        *same("patch_embed.proj.{rest}", "norm.{rest}", "cls_token", "pos_embed"),
    ]


SOURCES: dict[str, Source] = {
    "mvit": Source(_mvit, config_from_mvit),
    "slowfast": Source(_slowfast, config_from_mvit),
    "timm": Source(_timm, config_from_timm),
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"Unknown source {name!r}", did_you_mean(name, SOURCES))
    return SOURCES[name]


def config_from(source: str, settings: Mapping[str, Any]) -> MViTConfig:
    """The network that a project's own settings describe.

    Args:
        source: `mvit`, `slowfast` or `timm`.
        settings: the project's settings as plain data, such as the `cfg` of a checkpoint.
    Raises:
        UserError: for an unknown source or field, or a value that this network does not have.
    """
    return _source(source).config(settings)


def to_native(source: str, config: MViTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A project's weights under our names, nothing left unmatched.

    Raises:
        UserError: if a key has no place in the network, or a place got no tensor.
    """
    native = map_keys(unwrap(state_dict), _source(source).rules(config), config.depths, to_native=True)
    expected = expected_shapes(config)
    extra, missing = native.keys() - expected.keys(), expected.keys() - native.keys()
    if extra or missing:
        raise UserError(
            f"The weights do not fit this architecture: {_named(extra)} too many, {_named(missing)} missing",
            "Choose the model that the file was made for",
        )
    return native


def from_native(source: str, config: MViTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under a project's names; the inverse of `to_native`."""
    return map_keys(state_dict, _source(source).rules(config), config.depths, to_native=False)


def unwrap(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under keys without the names that training wrappers put into them."""
    state: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        for wrapper in _WRAPPERS:
            key = key.replace(wrapper, "")
        state[key] = tensor
    return state


def _named(keys: set[str]) -> str:
    return f"{len(keys)} keys ({', '.join(sorted(keys)[:3])})" if keys else "none"
