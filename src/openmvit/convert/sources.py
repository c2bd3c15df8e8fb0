"""Weights of other projects under our names and back, and the settings that come with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.convert import naming
from openmvit.convert.keymap import Rule, expected_shapes, map_keys
from openmvit.convert.settings import config_from_mvit
from openmvit.convert.settings_ports import (
    config_from_mmaction2,
    config_from_mmpretrain,
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
        rules: the key table for a network, or for any network.
        config: reads the project's settings; None where no file carries them.
        repeats: regular expression and replacement of keys that repeat another key's tensor.
        strays: regular expressions of keys that its files hold although a network has no use for them.
    """

    rules: Callable[[MViTConfig | None], list[Rule]]
    config: Callable[[Mapping[str, Any]], MViTConfig] | None = None
    repeats: tuple[tuple[str, str], ...] = ()
    strays: Callable[[MViTConfig], tuple[str, ...]] = lambda _: ()


_REPEATED_POOLS = (
    (r"(.*\.attn\.)pool_([qkv])\.weight", r"\1_attention_pool_\2.pool.weight"),
    (r"(.*\.attn\.)norm_([qkv])\.(weight|bias)", r"\1_attention_pool_\2.norm.\3"),
)

SOURCES: dict[str, Source] = {
    "mvit": Source(naming.mvit, config_from_mvit),
    "slowfast": Source(naming.slowfast, config_from_mvit, strays=naming.slowfast_strays),
    "timm": Source(naming.timm, config_from_timm),
    "torchvision": Source(naming.torchvision, config_from_torchvision),
    "pytorchvideo": Source(naming.pytorchvideo, config_from_pytorchvideo, repeats=_REPEATED_POOLS),
    "mmaction2": Source(naming.mmaction2, config_from_mmaction2, strays=naming.openmmlab_strays),
    "mmpretrain": Source(naming.mmpretrain, config_from_mmpretrain, strays=naming.openmmlab_strays),
    "huggingface": Source(naming.huggingface),
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"Unknown source {name!r}", did_you_mean(name, SOURCES))
    return SOURCES[name]


# A beginning of keys that only this project writes.
_MARKS = {
    "rev_backbone.": "slowfast",
    "mvitv2.": "huggingface",
    "encoder.stages.": "huggingface",
    "stages.": "timm",
    "conv_proj.": "torchvision",
    "patch_embed.patch_model.": "pytorchvideo",
    "cls_head.": "mmaction2",
    "head.fc.": "mmpretrain",
}


def recognise_source(state_dict: Mapping[str, Tensor]) -> tuple[str, str]:
    """The project whose key names a state dict has, and what says so."""
    for mark, name in _MARKS.items():
        if any(key.startswith(mark) for key in state_dict):
            return name, f"keys {mark}*"
    stem = state_dict.get("backbone.patch_embed.projection.weight")
    if stem is not None:
        kind = ("mmaction2", "clips") if stem.dim() == 5 else ("mmpretrain", "images")
        return kind[0], f"keys backbone.* without a head, a stem for {kind[1]}"
    dims = {key: t.dim() for key, t in state_dict.items() if key.endswith(("patch_embed.proj.weight", "pool_k.weight"))}
    if max(dims.values(), default=0) == 5:
        return "slowfast", "the authors' keys with 3D filters"
    return "mvit", "the authors' keys with 2D filters" if dims else "no key of another project"


def detect_source(state_dict: Mapping[str, Tensor]) -> str:
    """The project whose key names a state dict has."""
    return recognise_source(state_dict)[0]


def config_from(source: str, settings: Mapping[str, Any]) -> MViTConfig:
    """The network that a project's own settings describe.

    Args:
        source: a name of `SOURCES`.
        settings: the project's settings as plain data, such as the `cfg` of a checkpoint.
    Raises:
        UserError: for an unknown source or field, or a value that this network does not have.
    """
    read = _source(source).config
    if read is None:
        raise UserError(f"Settings of {source} are read by openmvit.hub", "Use openmvit.hub.MViTV2Config")
    return read(settings)


def to_native(source: str, config: MViTConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A project's weights under our names, nothing left unmatched but the keys that `dropped_keys` lists.

    Projections of queries, keys and values come as `config` has them, fused or separate. A file of masked pre-training
    gives a trunk without the final norm.

    Raises:
        UserError: if a key has no place in the network, or a place got no tensor.
    """
    state = unwrap(state_dict)
    dropped = set(dropped_keys(source, config, state))
    kept = {key: tensor for key, tensor in state.items() if key not in dropped}
    native = map_keys(kept, _source(source).rules(config), config.depths, to_native=True)
    try:
        native = split_qkv(native) if config.separate_qkv else fuse_qkv(native)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Projections do not go together ({error})", "Give a file of weights of this network"
        ) from error
    extra, missing = misfits(native, config, pretraining=is_pretraining(state))
    if extra or missing:
        raise UserError(
            f"The weights do not fit this architecture: {_named(extra)} too many, {_named(missing)} missing",
            "Choose the model that the file was made for",
        )
    shapes = expected_shapes(config)
    odd = {key for key, value in native.items() if value.dim() != len(shapes[key]) or not value.numel()}
    if odd:
        raise UserError(
            f"{_named(odd)} are empty or have another number of axes", "Choose the model that the file was made for"
        )
    return native


def misfits(native: Iterable[str], config: MViTConfig, *, pretraining: bool = False) -> tuple[set[str], set[str]]:
    """Keys that the network has no place for, and places that have no key."""
    keys, expected = set(native), expected_shapes(config).keys()
    absent = {"norm.weight", "norm.bias"} if pretraining else set()
    return keys - expected, expected - keys - absent


def from_native(
    source: str, config: MViTConfig, state_dict: Mapping[str, Tensor], *, separate_qkv: bool | None = None
) -> dict[str, Tensor]:
    """Our weights under a project's names; the inverse of `to_native`.

    Args:
        separate_qkv: three projections or one, for a loader that wants the other form than `config` has.
    """
    if separate_qkv is not None:
        state_dict = split_qkv(state_dict) if separate_qkv else fuse_qkv(state_dict)
    state = map_keys(state_dict, _source(source).rules(config), config.depths, to_native=False)
    return state | {copy: state[key] for copy, key in _repeated(source, state, present=False).items()}


def dropped_keys(source: str, config: MViTConfig, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Keys of a file that `to_native` leaves out: copies, and what the network has no use for."""
    state = unwrap(state_dict)
    patterns = (*naming.PRETRAINING, *_source(source).strays(config))
    found = [key for key in state if any(re.fullmatch(pattern, key) for pattern in patterns)]
    return sorted({*found, *_repeated(source, state)})


def is_pretraining(state: Iterable[str]) -> bool:
    """Whether the keys are those of masked pre-training, whose network has no norm and no classifier."""
    return any(re.fullmatch(pattern, key) for key in state for pattern in naming.PRETRAINING)


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
    """The same tensors under keys without the names that training wrappers put into them or before all of them."""
    state: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        for wrapper in _WRAPPERS:
            key = key.replace(wrapper, "")
        state[key] = tensor
    if state and all(key.startswith("model.") for key in state):
        return {key.removeprefix("model."): tensor for key, tensor in state.items()}
    return state


def _named(keys: set[str]) -> str:
    return f"{len(keys)} keys ({', '.join(sorted(keys)[:3])})" if keys else "none"
