"""Published architectures as data, and the one call that builds a network."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from openmvit.checkpoint import find, load_weights, read, read_model, save
from openmvit.config import MViTConfig
from openmvit.errors import UserError, did_you_mean
from openmvit.model import FeatureMaps, MViT
from openmvit.weights import cards, fetch, find_card, read_weights

# depths, embed_dim, num_heads (paper, Table 1; H: Table 2)
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"depths": (1, 2, 5, 2)},
    "small": {"depths": (1, 2, 11, 2)},
    "base": {"depths": (2, 3, 16, 3)},
    "large": {"depths": (2, 6, 36, 4), "embed_dim": 144, "num_heads": 2},
    "huge": {"depths": (4, 8, 60, 8), "embed_dim": 192, "num_heads": 3},
}
# Stochastic depth of the ImageNet recipes.
_DROP_PATH = {"tiny": 0.1, "small": 0.1, "base": 0.3, "large": 0.5, "huge": 0.8}
_V1: dict[str, Any] = {
    "cls_token": True,
    "absolute_position": "joint",
    "relative_position": "none",
    "residual_pooling": False,
    "full_q_pooling": False,
    "dim_mul_in_attention": False,
    "init": "slowfast",
}
# Kinetics-400 networks of the video code base: 16 or more frames, class token, K/V stride 8.
_CLIP: dict[str, Any] = {
    "input_size": (16, 224, 224),
    "num_classes": 400,
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3),
    "stride_q": (1, 2, 2),
    "adaptive_kv_stride": (1, 8, 8),
    "cls_token": True,
    "drop_rate": 0.5,
    "init": "slowfast",
}
_V1_CLIP: dict[str, Any] = _CLIP | _V1 | {"absolute_position": "separable"}
# MaskFeat's fine-tune form: widths grow in the MLP, mean of the grid before the norm.
_MASKFEAT: dict[str, Any] = _CLIP | {
    "dim_mul_in_attention": False,
    "norm_after_pool": True,
    "drop_rate": 0.0,
    "head_init_scale": 0.001,
}
_FRAMES_32: dict[str, Any] = {"input_size": (32, 224, 224)}
_IN21K: dict[str, Any] = {"cls_token": True, "num_classes": 19168}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"mvitv2_{size}": _SIZES[size] | {"drop_path_rate": _DROP_PATH[size]} for size in ("tiny", "small", "base")},
    # The released ImageNet-1K L grows in the MLP; the paper's text and all the others grow in attention.
    "mvitv2_large": _SIZES["large"] | {"drop_path_rate": _DROP_PATH["large"], "dim_mul_in_attention": False},
    **{
        f"mvitv2_{size}_cls": _SIZES[size] | {"drop_path_rate": _DROP_PATH[size]} | _IN21K
        for size in ("base", "large", "huge")
    },
    "mvitv1_base_16": _SIZES["small"] | _V1 | {"drop_path_rate": 0.1},
    "mvitv1_base_24": _SIZES["base"] | _V1 | {"drop_path_rate": 0.1},
    "mvitv2_small_16x4": _SIZES["small"] | _CLIP | {"drop_path_rate": 0.2},
    "mvitv2_base_32x3": _SIZES["base"] | _CLIP | _FRAMES_32 | {"drop_path_rate": 0.3},
    "mvitv2_large_16x4": _SIZES["large"] | _CLIP | {"drop_path_rate": 0.75},
    "mvitv2_large_40x3": _SIZES["large"] | _CLIP | {"input_size": (40, 312, 312), "drop_path_rate": 0.75},
    "mvitv1_base_16x4": _SIZES["small"] | _V1_CLIP | {"drop_path_rate": 0.2},
    # Two networks were published as v1 32x3: pytorchvideo's has 16 blocks, SlowFast's 24 with kernels from strides.
    "mvitv1_base_32x3": _SIZES["small"] | _V1_CLIP | _FRAMES_32 | {"drop_path_rate": 0.2},
    "mvitv1_base24_32x3": _SIZES["base"] | _V1_CLIP | _FRAMES_32 | {"kernel_qkv": None, "drop_path_rate": 0.3},
    "maskfeat_mvitv2_small_16x4": _SIZES["small"] | _MASKFEAT | {"drop_path_rate": 0.1},
    "maskfeat_mvitv2_large_16x4": _SIZES["large"] | _MASKFEAT | {"drop_path_rate": 0.2},
    # Ours, for the demo: trains on a CPU in minutes. Nobody published it.
    "mvitv2_micro": {"input_size": (32, 32), "depths": (1, 2, 2), "embed_dim": 48, "drop_path_rate": 0.0},
}
"""Name -> fields of MViTConfig that differ from its defaults."""


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern such as `mvitv2_*`."""
    return [name for name in ARCHITECTURES if fnmatch.fnmatch(name, pattern)]


def model_config(
    name: str, *, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None, **changes: Any
) -> MViTConfig:
    """Configuration of a named architecture, with changes.

    Args:
        img_size: nominal side, or (height, width), in pixels.
        num_frames: nominal frames of a clip.
        changes: fields of MViTConfig.
    Raises:
        UserError: if the name or a field is unknown, naming the nearest.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"Unknown model {name!r}", did_you_mean(name, ARCHITECTURES))
    config = MViTConfig(**ARCHITECTURES[name])
    size = config.input_size
    if num_frames is not None and config.ndim < 3:
        raise UserError(f"num_frames is {num_frames} and {name} takes images", "Leave num_frames out")
    if img_size is not None:
        size = (*size[:-2], *((img_size, img_size) if isinstance(img_size, int) else img_size))
    if num_frames is not None:
        size = (num_frames, *size[1:])
    return config.replace(input_size=size, **changes)


@overload
def create_model(
    name: str, pretrained: bool | str | Path = ..., *, features_only: Literal[False] = ..., **changes: Any
) -> MViT: ...
@overload
def create_model(
    name: str,
    pretrained: bool | str | Path = ...,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    **changes: Any,
) -> FeatureMaps: ...
def create_model(
    name: str,
    pretrained: bool | str | Path = False,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **changes: Any,
) -> MViT | FeatureMaps:
    """Build a network by name.

    Args:
        name: architecture, or `architecture.tag`, which implies `pretrained=tag`.
        pretrained: False for random weights, True for the default card, a tag, or a path of any known family.
        features_only: give the stages as maps instead of logits.
        out_indices: with `features_only`, the stages to give.
        changes: `num_classes`, `img_size`, `num_frames`, `in_chans`, `drop_path_rate`, `drop_rate` or any field of
            MViTConfig. Loaded weights are adapted to them; the report on stderr and at `model.load_report` says how.
    Raises:
        UserError: if a name or field is unknown, the weights cannot be had, or they do not fit.
    """
    name, _, tag = name.partition(".")
    config = model_config(name, **changes)
    model = MViT(config)
    if tag or pretrained is not False:
        load_pretrained(model, name, tag or pretrained)
    return FeatureMaps(model, out_indices) if features_only else model


def load_pretrained(model: MViT, name: str, weights: bool | str | Path, *, strict: bool = True) -> None:
    """Put released or own weights into a network; what was loaded from where is printed on stderr.

    Args:
        name: architecture, for its weight cards.
        weights: True for the default card, a tag, or a path.
    """
    if isinstance(weights, str | Path) and (Path(weights).exists() or Path(weights).suffix or "/" in str(weights)):
        path, label = Path(weights), str(weights)
    else:
        card = find_card(name, None if weights is True else str(weights))
        path, label = fetch(card), card.name
    state, made_for, _ = read_weights(path, model.config)
    report = load_weights(model, state, made_for, strict=strict)
    print(f"Weights {label}: {report}", file=sys.stderr)


def load_model(target: str | Path) -> tuple[MViT, dict[str, Any]]:
    """The network that a run folder, a file or a model name with released weights means, in eval mode, and its card.

    A file of another project is read too, when its tensors are those of a network here.

    Raises:
        UserError: if there is no such run, file or model.
    """
    text = str(target)
    base, _, tag = text.partition(".")
    if base in ARCHITECTURES and not Path(target).exists():
        weights = find_card(base, tag or None)
        model = create_model(base, pretrained=weights.tag, num_classes=weights.num_classes)
        return model.eval(), {
            "model": base,
            "task": "image",
            "classes": [],
            "architecture": model.config.to_dict(),
            "preprocessing": weights.preprocessing,
            "licence": weights.licence,
        }
    if not Path(target).exists() and "/" not in text and "." not in text:
        raise UserError(f"{text} is no model, run folder or file", did_you_mean(text, ARCHITECTURES))
    path = find(target)
    state, card = read(path)
    if card is not None:
        return read_model(path)
    return _read_foreign(path, find_architecture(state, path))


def find_architecture(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Name of the architecture that the tensors of another project's file belong to.

    Raises:
        UserError: if there is none.
    """
    shape = _outline(state)
    for name in ARCHITECTURES:
        config = model_config(name)
        own = (config.depth, config.embed_dim, config.cls_token, config.relative_position != "none")
        if shape == own:
            return name
    depth, width, *_ = shape
    raise UserError(
        f"The tensors of {path} ({depth} blocks, width {width}) are those of no network here",
        "Give a file of one of the models that openmvit models lists",
    )


def _outline(state: Mapping[str, Tensor]) -> tuple[int, int, bool, bool]:
    """Number of blocks, width, class token, relative position, as the keys of any known project tell."""
    blocks = {match[1] for key in state if (match := re.search(r"((?:stages\.\d+\.)?blocks\.\d+)\.", key))}
    width = next((int(value.shape[0]) for key, value in state.items() if key.endswith("patch_embed.proj.weight")), 0)
    return len(blocks), width, any(k.endswith("cls_token") for k in state), any("rel_pos_" in k for k in state)


def _read_foreign(path: Path, name: str) -> tuple[MViT, dict[str, Any]]:
    """The network in another project's file, and what is known about it; class names are not."""
    state, config, _ = read_weights(path, model_config(name))
    model = MViT(config)
    load_weights(model, state, config)
    own = [card for card in cards() if card.model == name]
    card = next((card for card in own if card.url.endswith(f"/{path.name}")), None)
    size = {"imgsz": config.input_size[-1]}
    return model.eval(), {
        "model": name,
        "task": "image",
        "classes": [],
        "architecture": config.to_dict(),
        "preprocessing": (card or cards()[0]).preprocessing | size,
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
    if target.exists():
        raise UserError(f"{target} exists", "Give another file with --to")
    network, card = _read_foreign(path, model) if model is not None else load_model(path)
    save(target, network.state_dict(), card)
    parameters = sum(p.numel() for p in network.parameters())
    classes = network.config.num_classes
    return f"{target}: {card.get('model', 'a network')}, {parameters} parameters, {classes} classes"
