"""Which network a file of another project holds, found from its keys and shapes, and what decided."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt, prod

from torch import Tensor

from openmvit.config import MViTConfig, Size
from openmvit.convert.keymap import expected_shapes, map_keys
from openmvit.convert.sources import SOURCES, dropped_keys, is_pretraining, recognise_source, to_native, unwrap
from openmvit.errors import UserError

_TABLES = re.compile(r"pos_embed.*|.*\.rel_pos_\w+")


@dataclass(frozen=True)
class Recognised:
    """A network found in a file.

    Args:
        source: project that named the keys.
        name: architecture, None where only the file's own settings describe it.
        config: with the classes, channels, widths and nominal size that the tensors show.
        state: native weights.
        dropped: keys of the file that the network has no use for.
        reason: what decided, in a few words.
    """

    source: str
    name: str | None
    config: MViTConfig
    state: dict[str, Tensor]
    dropped: list[str]
    reason: str


@dataclass(frozen=True)
class _Fit:
    """A candidate whose keys and shapes are those of the file; `tables` counts position tables of another size."""

    name: str
    config: MViTConfig
    state: dict[str, Tensor]
    tables: int
    strange: int


def recognise(
    state_dict: Mapping[str, Tensor],
    candidates: Mapping[str, MViTConfig],
    what: object,
    *,
    settings: MViTConfig | None = None,
    asked: tuple[str, MViTConfig] | None = None,
) -> Recognised:
    """Find the network that a state dict belongs to.

    Args:
        candidates: architectures by name; a file may be of another width.
        what: how messages call the file.
        settings: the network that settings inside the file describe.
        asked: the architecture that the file is meant for, taken as it is unless it has other axes.
    Raises:
        UserError: if it is none of them, or not the one asked for.
    """
    state = unwrap(state_dict)
    source, why = recognise_source(state)
    view = _view(source, state)
    if not _readable(view):
        raise _unknown({}, what)
    own = None if settings is None else _fit("", settings, source, state, view)
    if asked is not None and _axes(view) == asked[1].ndim:
        name, reason = asked[0], f"{asked[0]} was asked for"
        config = own.config if own else _adapted(asked[1], view)
        native = own.state if own else to_native(source, config, state)
    else:
        fits = _fits(source, state, view, candidates)
        if own is None and not fits:
            raise _unknown(view, what)
        best = own or fits[0]
        name, config, native = fits[0].name if fits else None, best.config, best.state
        reason = "the settings in the file" if own else _reason(fits, view)
    config, note = _as_used(config, source)
    dropped = dropped_keys(source, config, state)
    return Recognised(source, name, _settled(native, config), native, dropped, f"{source} ({why}); {reason}{note}")


def _view(source: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names as far as they can be named without knowing the network."""
    stages = {(int(m[1]), int(m[2])) for key in state if (m := re.search(r"stages\.(\d+)\.blocks\.(\d+)\.", key))}
    depths = [sum(s == stage for s, _ in stages) for stage in sorted({s for s, _ in stages})]
    return map_keys(state, SOURCES[source].rules(None), depths, to_native=True, strict=False)


def _readable(view: Mapping[str, Tensor]) -> bool:
    """Whether the tensors that tell a network have the numbers of axes that they have in every network."""
    stem = view.get("patch_embed.proj.weight")
    projections = [value.dim() for key, value in view.items() if key.endswith(".attn.proj.weight")]
    pools = [value.dim() for key, value in view.items() if key.endswith((".pool_k.weight", ".rel_pos_h"))]
    return stem is not None and stem.dim() > 2 and set(projections) == {2} and min(pools, default=2) > 1


def _axes(view: Mapping[str, Tensor]) -> int:
    return view["patch_embed.proj.weight"].dim() - 2


def _depths(view: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks per stage: the width of attention jumps where a stage starts."""
    widths: list[int] = []
    while (weight := view.get(f"blocks.{len(widths)}.attn.proj.weight")) is not None:
        widths.append(int(weight.shape[0]))
    starts = [i + 1 for i, (a, b) in enumerate(pairwise(widths)) if b > a]
    return tuple(b - a for a, b in pairwise([0, *starts, len(widths)]))


def _fits(
    source: str, state: Mapping[str, Tensor], view: Mapping[str, Tensor], candidates: Mapping[str, MViTConfig]
) -> list[_Fit]:
    """Candidates that the tensors fit, the best first."""
    outline = (_axes(view), _depths(view), any(key.startswith("rev_backbone.") for key in state))
    found: list[_Fit] = []
    for name, config in candidates.items():
        if (config.ndim, config.depths, config.reversible != "none") == outline:
            fit = _fit(name, _resized(config, view), source, state, view)
            found += [] if fit is None else [fit]
    published = {fit.name: candidates[fit.name].embed_dim != fit.config.embed_dim for fit in found}
    return sorted(found, key=lambda fit: (fit.tables, fit.strange, published[fit.name]))


def _fit(
    name: str, config: MViTConfig, source: str, state: Mapping[str, Tensor], view: Mapping[str, Tensor]
) -> _Fit | None:
    config = _adapted(config, view)
    try:
        native = to_native(source, config, state)
    except UserError:
        return None
    shapes = expected_shapes(config)
    wrong = [key for key, value in native.items() if shapes[key] != tuple(value.shape) and not key.startswith("head.")]
    if any(not _TABLES.fullmatch(key) for key in wrong):
        return None
    # All networks of these projects hold a token; image networks do not use it, clip networks do.
    strange = source in ("mmaction2", "mmpretrain") and config.cls_token != (config.ndim == 3)
    return _Fit(name, config, native, len(wrong), int(strange))


def _adapted(config: MViTConfig, view: Mapping[str, Tensor]) -> MViTConfig:
    """`config` with what is free in every network: classes, input channels, and the gaps of the first v1 clip file."""
    changes: dict[str, object] = {
        "num_classes": int(any(key.startswith("head.") for key in view)),
        "in_chans": int(view["patch_embed.proj.weight"].shape[1]),
    }
    last = f"blocks.{config.depth - 1}.attn.pool_k.weight"
    if last not in view and "blocks.0.attn.pool_k.weight" in view and last in expected_shapes(config):
        changes["pool_kv_at_stride_one"] = False
    return config.replace(**changes)


def _resized(config: MViTConfig, view: Mapping[str, Tensor]) -> MViTConfig:
    """`config` with the width and heads of the file."""
    width = int(view["patch_embed.proj.weight"].shape[0])
    pool = view.get("blocks.0.attn.pool_k.weight", view.get("blocks.0.attn.rel_pos_h"))
    head = 0 if pool is None else int(pool.shape[0] if pool.dim() > 2 else pool.shape[1])
    heads = width // head if head and width % head == 0 else config.num_heads
    return config.replace(embed_dim=width, num_heads=heads) if width % heads == 0 else config


def _as_used(config: MViTConfig, source: str) -> tuple[MViTConfig, str]:
    """`config` with what a project does differently although no tensor shows it."""
    if source == "mmaction2" and config.norm_after_pool:
        return config.replace(norm_after_pool=False), ", whose head reads the class token in mmaction2"
    return config, ""


def _reason(fits: list[_Fit], view: Mapping[str, Tensor]) -> str:
    best, config = fits[0], fits[0].config
    kind = "clips" if config.ndim == 3 else "images"
    growth = "reversible" if config.reversible != "none" else "widths grow in "
    growth += "" if config.reversible != "none" else "attention" if config.dim_mul_in_attention else "the MLP"
    token = "class token" if config.cls_token else "no class token"
    facts = [kind, f"{'-'.join(map(str, config.depths))} blocks of width {config.embed_dim}", token, growth]
    if not config.pool_kv_at_stride_one:
        facts.append("no K/V pools in the last stage")
    if _is_pretrained(view):
        facts.append("pre-trained, without norm and head")
    text = f"{best.name}: {', '.join(facts)}"
    if len(fits) == 1:
        return text
    others, second = ", ".join(fit.name for fit in fits[1:]), fits[1]
    decided = "its position tables decided" if second.tables > best.tables else "the first was taken"
    if (second.tables, best.strange) == (best.tables, 0) and second.strange:
        decided = "the project's use of a class token decided"
    return f"{text}; {others} fits too, {decided}"


def _is_pretrained(view: Iterable[str]) -> bool:
    return is_pretraining(view) or "norm.weight" not in view


def _unknown(view: Mapping[str, Tensor], what: object) -> UserError:
    stem, depths = view.get("patch_embed.proj.weight"), _depths(view)
    width = 0 if stem is None else int(stem.shape[0])
    return UserError(
        f"The tensors of {what} ({sum(depths)} blocks, width {width}) are those of no network here",
        "Give a file of one of the models that openmvit models lists",
    )


def _settled(state: Mapping[str, Tensor], config: MViTConfig) -> MViTConfig:
    """`config` with the classes and the nominal size that the tensors show."""
    head, bias = state.get("head.projection.weight"), state.get("head.projection.bias")
    if head is not None and bias is not None and head.shape[0] != bias.shape[0]:
        raise UserError(
            f"The classifier has weights of {head.shape[0]} classes and biases of {bias.shape[0]}",
            "The file is damaged",
        )
    return config.replace(num_classes=0 if head is None else head.shape[0], input_size=_nominal_size(state, config))


def _nominal_size(state: Mapping[str, Tensor], config: MViTConfig) -> Size:
    """Nominal input size, from the position tables where they are not those of `config`."""
    expected, grid = expected_shapes(config), list(config.patch_grid)
    for axis, name in enumerate("thw"[-config.ndim :]):
        key = f"blocks.0.attn.rel_pos_{name}"
        if key in state and key in expected and state[key].shape[0] != expected[key][0]:
            grid[axis] = (state[key].shape[0] + 1) // 2
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
