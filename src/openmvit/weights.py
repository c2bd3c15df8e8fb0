"""Weight cards: what was released, where it lies, what it expects; fetch, convert, load."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from math import isqrt, prod
from pathlib import Path
from typing import Any

from torch import Tensor

from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.checkpoint import read, read_pickle
from openmvit.config import MViTConfig, Size
from openmvit.convert import config_from, detect_source, expected_shapes, to_native, unwrap
from openmvit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class WeightCard:
    """One released file.

    `preprocessing` has the keys of a checkpoint's card: imgsz, mean, std; of images crop_ratio and interpolation, of
    clips num_frames, stride, sampling, clips, crops, short_side, stored_side.
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
        # A name such as mvit_v2_s-ae3be167.pth carries the beginning of the file's SHA-256.
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", card.url)
        torch.hub.download_url_to_file(card.url, str(path), prefix and prefix[1], progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {card.name} cannot be had from {card.url} ({error})",
            "Give --weights FILE, or --weights none to start from random weights",
        ) from error
    return path


@dataclass(frozen=True)
class Weights:
    """Native weights of any readable file.

    `config` is the network they were made for, `model` its name where it has one, `card` what our own files know.
    """

    state: dict[str, Tensor]
    config: MViTConfig
    model: str | None
    card: dict[str, Any] | None


def read_weights(path: str | Path, name: str | None = None, config: MViTConfig | None = None) -> Weights:
    """Read a file of ours or of any known project.

    Args:
        name: architecture that the file is meant for; found by its tensors when it is absent or has other axes.
        config: configuration of `name` with changes that the file may share, such as another width.
    Raises:
        UserError: if the file cannot be read or belongs to another architecture.
    """
    state, card = read(path)
    if card is not None:
        return Weights(state, MViTConfig.from_dict(card["architecture"]), card.get("model"), card)
    state, source = unwrap(state), detect_source(state)
    if name is None or _axes(state) != model_config(name).ndim:
        name = find_architecture(state, path)
        config = None
    made_for = _settings_in_file(path) or config or model_config(name)
    made_for = made_for.replace(num_classes=int(any("head." in key for key in state)))
    last = f"blocks.{made_for.depth - 1}.attn.pool_k.weight"
    if last not in state and "blocks.0.attn.pool_k.weight" in state and last in expected_shapes(made_for):
        made_for = made_for.replace(pool_kv_at_stride_one=False)
    native = to_native(source, made_for, state)
    return Weights(native, _seen(native, made_for), name, None)


def _settings_in_file(path: str | Path) -> MViTConfig | None:
    """The authors' files carry their settings as YAML text under `cfg`."""
    if str(path).endswith(".safetensors"):
        return None
    content = read_pickle(Path(path))
    text = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(text, str):
        return None
    import yaml

    try:
        settings = yaml.safe_load(text)
        return config_from("slowfast", settings) if isinstance(settings, dict) and "MVIT" in settings else None
    except (UserError, yaml.YAMLError):
        # Files outlive the code that wrote their settings; the tensors are checked against the architecture anyway.
        return None


def _seen(state: dict[str, Tensor], config: MViTConfig) -> MViTConfig:
    """`config` with the classes, input channels and nominal size that the tensors show."""
    head = state.get("head.projection.weight")
    return config.replace(
        num_classes=0 if head is None else head.shape[0],
        in_chans=state["patch_embed.proj.weight"].shape[1],
        input_size=_seen_size(state, config),
    )


def _seen_size(state: dict[str, Tensor], config: MViTConfig) -> Size:
    """Nominal input size, from the position tables where they are not those of `config`."""
    expected, grid = expected_shapes(config), list(config.patch_grid)
    for axis, name in enumerate("thw"[-config.ndim :]):
        table = state.get(f"blocks.0.attn.rel_pos_{name}")
        if table is not None and table.shape[0] != expected[f"blocks.0.attn.rel_pos_{name}"][0]:
            grid[axis] = (table.shape[0] + 1) // 2
    if "pos_embed_temporal" in state:
        grid[0] = state["pos_embed_temporal"].shape[1]
    tokens = None
    if "pos_embed_spatial" in state:
        tokens = state["pos_embed_spatial"].shape[1]
    elif "pos_embed" in state and config.ndim == 2:
        tokens = state["pos_embed"].shape[1] - config.cls_token
    if tokens is not None and tokens != prod(config.patch_grid[-2:]):
        grid[-2:] = [isqrt(tokens)] * 2
        if prod(grid[-2:]) != tokens:
            raise UserError(f"A position table of {tokens} places is no square", "Give weights of a square input")
    sides = zip(grid, config.patch_grid, config.input_size, config.patch_stride, strict=True)
    return tuple(size if seen == nominal else seen * stride for seen, nominal, size, stride in sides)


def find_architecture(state: Mapping[str, Tensor], path: str | Path) -> str:
    """Name of the architecture that the tensors of another project's file belong to.

    Raises:
        UserError: if there is none.
    """
    outline, frames, found = _outline(state), _frames(state), None
    for name in ARCHITECTURES:
        config = model_config(name)
        pools = config.depth if config.full_q_pooling else len(config.depths) - 1
        own = (config.ndim, config.depth, config.embed_dim, config.cls_token, pools, config.dim_mul_in_attention)
        if outline == own and (found is None or config.patch_grid[0] == frames):
            found = name
    if found is not None:
        return found
    raise UserError(
        f"The tensors of {path} ({outline[1]} blocks, width {outline[2]}) are those of no network here",
        "Give a file of one of the models that openmvit models lists",
    )


def _axes(state: Mapping[str, Tensor]) -> int:
    return next((value.dim() - 2 for key, value in state.items() if _is_stem(key)), 2)


def _frames(state: Mapping[str, Tensor]) -> int | None:
    """Temporal tokens that the position tables of a clip network are made for."""
    for key, value in state.items():
        if key.endswith(("pos_embed_temporal", "temporal_pos")):
            return value.shape[-2]
        if key.endswith("blocks.0.attn.rel_pos_t"):
            return (value.shape[0] + 1) // 2
    return None


def _is_stem(key: str) -> bool:
    return key.endswith("weight") and ("patch_embed." in key or key.startswith("conv_proj."))


def _outline(state: Mapping[str, Tensor]) -> tuple[int, int, int, bool, int, bool]:
    """Axes, blocks, width, class token, query pools and where widths grow, as the keys of any known project tell."""
    blocks = {match[1] for key in state if (match := re.search(r"((?:stages\.\d+\.)?blocks\.\d+)\.", key))}
    width = next((int(value.shape[0]) for key, value in state.items() if _is_stem(key)), 0)
    pools = sum(bool(re.search(r"\.attn\.pool_q\.(pool\.)?weight$", key)) for key in state)
    fused = [value for key, value in state.items() if key.endswith(("attn.qkv.weight", "attn.q.weight"))]
    in_attention = any(value.shape[0] not in (value.shape[1], 3 * value.shape[1]) for value in fused)
    token = any(k.endswith(("cls_token", "class_token")) for k in state)
    return _axes(state), len(blocks), width, token, pools, in_attention
