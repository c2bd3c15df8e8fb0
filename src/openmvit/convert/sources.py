"""One table per project: how it names keys, what its tensors look like, how its settings read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.convert.keymap import Rule, expected_shapes, map_keys, same
from openmvit.convert.settings import config_from_mvit
from openmvit.convert.settings_ports import (
    config_from_mmaction2,
    config_from_pytorchvideo,
    config_from_timm,
    config_from_torchvision,
)
from openmvit.errors import UserError, did_you_mean

# Names that training wrappers put into keys.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "module.")


@dataclass(frozen=True)
class Source:
    """What one project calls things.

    Args:
        rules: the key table for a network; a function, because two projects name keys by the architecture.
        config: reads the project's settings.
        repeats: regular expression and replacement of keys that repeat another key's tensor.
    """

    rules: Callable[[MViTConfig], list[Rule]]
    config: Callable[[Mapping[str, Any]], MViTConfig]
    repeats: tuple[tuple[str, str], ...] = ()


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


def _torchvision(_: MViTConfig) -> list[Rule]:
    def row(t: Tensor) -> Tensor:  # tokens are kept without leading axes there
        return t.reshape(1, *(1,) * (2 - t.dim()), *t.shape)

    return [
        Rule("patch_embed.proj.{rest}", "conv_proj.{rest}"),
        Rule("cls_token", "pos_encoding.class_token", row, lambda t: t[0, 0]),
        Rule("pos_embed_class", "pos_encoding.class_pos", row, lambda t: t[0, 0]),
        Rule("pos_embed_spatial", "pos_encoding.spatial_pos", row, lambda t: t[0]),
        Rule("pos_embed_temporal", "pos_encoding.temporal_pos", row, lambda t: t[0]),
        Rule("blocks.{n}.attn.proj.{rest}", "blocks.{n}.attn.project.0.{rest}"),
        *(Rule(f"blocks.{{n}}.attn.pool_{x}.weight", f"blocks.{{n}}.attn.pool_{x}.pool.weight") for x in "qkv"),
        *(
            Rule(f"blocks.{{n}}.attn.norm_{x}.{{rest}}", f"blocks.{{n}}.attn.pool_{x}.norm_act.0.{{rest}}")
            for x in "qkv"
        ),
        Rule("blocks.{n}.mlp.fc1.{rest}", "blocks.{n}.mlp.0.{rest}"),
        Rule("blocks.{n}.mlp.fc2.{rest}", "blocks.{n}.mlp.3.{rest}"),
        Rule("blocks.{n}.proj.{rest}", "blocks.{n}.project.{rest}"),
        Rule("head.projection.{rest}", "head.1.{rest}"),
        *same("blocks.{n}.{rest}", "norm.{rest}"),
    ]


def _pytorchvideo(config: MViTConfig) -> list[Rule]:
    return [
        Rule("patch_embed.proj.{rest}", "patch_embed.patch_model.{rest}"),
        Rule("norm_stem.{rest}", "norm_patch_embed.{rest}"),
        *(Rule(k, f"cls_positional_encoding.{k}") for k in ("cls_token", "pos_embed")),
        Rule("pos_embed_{rest}", "cls_positional_encoding.pos_embed_{rest}"),
        Rule("norm.{rest}", "norm_embed.{rest}"),
        Rule("head.projection.{rest}", "head.proj.{rest}"),
        *(rule for rule in _slowfast(config) if rule.native.startswith("blocks.{n}.attn.pool_")),
        *same("blocks.{n}.{rest}"),
    ]


def _mmaction2(_: MViTConfig) -> list[Rule]:
    return [
        Rule("patch_embed.proj.{rest}", "backbone.patch_embed.projection.{rest}"),
        # Its norm is numbered by the last output stage.
        Rule("norm.{rest}", "backbone.norm3.{rest}"),
        Rule("head.projection.{rest}", "cls_head.fc_cls.{rest}"),
        *(Rule(key, f"backbone.{key}") for key in ("cls_token", "pos_embed", "blocks.{n}.{rest}")),
    ]


SOURCES: dict[str, Source] = {
    "mvit": Source(_mvit, config_from_mvit),
    "slowfast": Source(_slowfast, config_from_mvit),
    "timm": Source(_timm, config_from_timm),
    "torchvision": Source(_torchvision, config_from_torchvision),
    "pytorchvideo": Source(
        _pytorchvideo,
        config_from_pytorchvideo,
        repeats=(
            (r"(.*\.attn\.)pool_([qkv])\.weight", r"\1_attention_pool_\2.pool.weight"),
            (r"(.*\.attn\.)norm_([qkv])\.(weight|bias)", r"\1_attention_pool_\2.norm.\3"),
        ),
    ),
    "mmaction2": Source(_mmaction2, config_from_mmaction2),
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"Unknown source {name!r}", did_you_mean(name, SOURCES))
    return SOURCES[name]


# A piece of a key that only this project writes; the authors' own names are the rest.
_MARKS = {
    "stages.": "timm",
    "conv_proj.": "torchvision",
    "patch_embed.patch_model.": "pytorchvideo",
    "backbone.patch_embed.projection.": "mmaction2",
}


def detect_source(state_dict: Mapping[str, Tensor]) -> str:
    """The project whose key names a state dict has; `slowfast` reads facebookresearch/mvit's files too."""
    return next((name for mark, name in _MARKS.items() if any(k.startswith(mark) for k in state_dict)), "slowfast")


def config_from(source: str, settings: Mapping[str, Any]) -> MViTConfig:
    """The network that a project's own settings describe.

    Args:
        source: `mvit`, `slowfast`, `timm`, `torchvision`, `pytorchvideo` or `mmaction2`.
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
    state = unwrap(state_dict)
    twice = _repeated(source, state)
    state = {key: tensor for key, tensor in state.items() if key not in twice}
    native = map_keys(state, _source(source).rules(config), config.depths, to_native=True)
    if not config.separate_qkv:
        native = fuse_qkv(native)
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
    state = map_keys(state_dict, _source(source).rules(config), config.depths, to_native=False)
    return state | {copy: state[key] for copy, key in _repeated(source, state, present=False).items()}


def _repeated(source: str, state: Mapping[str, Tensor], *, present: bool = True) -> dict[str, str]:
    """Keys of a source that repeat another key of `state`; only those that are in it, or all that should be."""
    found = {
        re.sub(pattern, copy, key): key
        for pattern, copy in _source(source).repeats
        for key in state
        if re.fullmatch(pattern, key)
    }
    return {copy: key for copy, key in found.items() if not present or copy in state}


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Three projections q, k, v become one fused qkv, exactly; a state without them is returned as it is."""
    fused = dict(state)
    for key in state:
        if key.endswith((".attn.q.weight", ".attn.q.bias")):
            stem, leaf = key.rsplit(".q.", 1)
            if not all(f"{stem}.{x}.{leaf}" in state for x in "kv"):
                continue
            fused[f"{stem}.qkv.{leaf}"] = torch.cat([fused.pop(f"{stem}.{x}.{leaf}") for x in "qkv"])
    return fused


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One fused qkv becomes three projections q, k, v; the inverse of `fuse_qkv`."""
    split = dict(state)
    for key in state:
        if key.endswith((".attn.qkv.weight", ".attn.qkv.bias")):
            stem, leaf = key.rsplit(".qkv.", 1)
            parts = split.pop(key).chunk(3)
            split |= {f"{stem}.{x}.{leaf}": part.clone() for x, part in zip("qkv", parts, strict=True)}
    return split


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
