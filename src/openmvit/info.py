"""What a network is and costs, one line per block, and the list of architectures with their released weights."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from openmvit import screen
from openmvit.architectures import (
    ARCHITECTURES,
    DETECTORS,
    PLAIN,
    classifier_config,
    is_detector,
    model_config,
)
from openmvit.config import BlockConfig, MViTConfig, Size
from openmvit.counting import Count, count_classifier, count_detector
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.weights import WeightCard, cards, find_card
from openmvit.zoo import list_models, load_model


def describe(target: str | Path) -> dict[str, Any]:
    """A network as plain data: name, parameters, stem, blocks, head, config, and the card of a run or file.

    A name is described without its weights, `name.tag` with the card of its file; nothing is downloaded for either.
    The plain networks of the paper's tables, such as `vit_base`, are described too, although they are no models here.

    Raises:
        UserError: if there is no such run, file or model.
    """
    name, _, tag = str(target).partition(".")
    if target in PLAIN and not Path(target).exists():
        about = describe_detector(PLAIN[name]) if is_detector(name) else describe_config(classifier_config(name))
        return {"name": name, **about}
    released = {card.model for card in cards()}
    if (name in ARCHITECTURES or name in DETECTORS or name in released) and not Path(target).exists():
        return _describe_named(name, find_card(name, tag) if tag or name not in list_models() else None)
    model, card = load_model(target)
    kept = {key: value for key, value in card.items() if key not in ("architecture", "recipe")}
    detector = not isinstance(model, MViT)
    about = describe_detector(card["architecture"]) if detector else describe_config(model.config)
    return {"name": card.get("model", str(target)), **about, "card": kept}


def _describe_named(name: str, card: WeightCard | None) -> dict[str, Any]:
    """An architecture, as the file of a card has it."""
    changes = {} if card is None else card.settings
    kept = {} if card is None else {"card": asdict(card) | {"how": card.how}}
    called = name if card is None else card.name
    if name in ARCHITECTURES:
        return {"name": called, **describe_config(model_config(name, **changes)), **kept}
    if name in DETECTORS:
        return {"name": called, **describe_detector(DETECTORS[name] | changes), **kept}
    return {"name": called, "parameters": None, "blocks": [], **kept}


def describe_detector(fields: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a detector's parts, and the blocks of its backbone, as plain data; no weight is allocated.

    Args:
        fields: of DetectorConfig.
    """
    from openmvit.detection.config import DetectorConfig
    from openmvit.detection.detector import Detector

    config = DetectorConfig.from_dict(fields)
    with torch.device("meta"):
        detector = Detector(config)
    parts = {name: _count(part) for name, part in detector.named_children()}
    return {
        **describe_config(config.backbone.replace(num_classes=0)),
        "parameters": _count(detector),
        "parts": parts,
        "head": {"classes": config.num_classes, "parameters": parts["rpn"] + parts["roi_heads"]},
        "config": config.to_dict(),
    }


def describe_config(config: MViTConfig) -> dict[str, Any]:
    """Parameters, stem, blocks and head of a configuration as plain data; no weight is allocated."""
    with torch.device("meta"):
        model = MViT(config)
    blocks = [
        _block_row(block) | {"parameters": _count(module)}
        for block, module in zip(config.blocks(), model.blocks, strict=True)
    ]
    return {
        "parameters": _count(model),
        "stem": {"grid": list(config.blocks()[0].grid), "parameters": _count(model.patch_embed)},
        "blocks": blocks,
        "head": {"classes": config.num_classes, "parameters": _count(model.head)},
        "config": config.to_dict(),
    }


def _block_row(block: BlockConfig) -> dict[str, Any]:
    return {
        "index": block.index,
        "stage": block.stage + 1,
        "grid": list(block.grid),
        "grid_out": list(block.q_grid),
        "grid_kv": list(block.kv_grid),
        "dim": block.dim,
        "dim_attn": block.dim_attn,
        "dim_out": block.dim_out,
        "heads": block.num_heads,
        "stride_q": list(block.stride_q),
        "stride_kv": list(block.stride_kv),
        "kernel_q": list(block.kernel_q),
        "kernel_kv": list(block.kernel_kv),
        "window": list(block.window),
        "tables": [prod(shape[:-1]) for shape in block.relative_tables.values()],
    }


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def info_text(found: dict[str, Any]) -> str:
    """`describe` as text: a table of blocks, then totals."""
    if not found["blocks"]:
        return "\n".join([*_card_lines(found["card"]), f"{found['name']}: not supported here"])
    config = found["config"].get("backbone", found["config"])
    heads = ("block", "stage", "grid", "width", "heads", "stride q", "stride kv", "kernel q", "kernel kv", "tables")
    windows = any(block["window"] for block in found["blocks"])
    rows: list[tuple[str, ...]] = [(*heads, *["window"] * windows, "parameters")]
    size, stem = _by(config["input_size"]), found["stem"]
    rows.append(
        (
            "stem",
            "",
            f"{size} > {_by(stem['grid'])}",
            str(config["embed_dim"]),
            *[""] * (6 + windows),
            f"{stem['parameters']:,}",
        )
    )
    for b in found["blocks"]:
        grid = _by(b["grid"]) if b["grid"] == b["grid_out"] else f"{_by(b['grid'])} > {_by(b['grid_out'])}"
        widths = list(dict.fromkeys((b["dim"], b["dim_attn"], b["dim_out"])))
        pools = [_by(b[key]) or "-" for key in ("stride_q", "stride_kv", "kernel_q", "kernel_kv")]
        cells = (str(b["index"]), str(b["stage"]), grid, " > ".join(map(str, widths)), str(b["heads"]))
        window = [_by(b["window"]) or "global"] * windows
        rows.append((*cells, *pools, " ".join(map(str, b["tables"])) or "-", *window, f"{b['parameters']:,}"))
    head, parts, empty = found["head"], found.get("parts", {}), [""] * (6 + windows)
    if parts:
        norms = parts["backbone"] - stem["parameters"] - sum(b["parameters"] for b in found["blocks"])
        rows += [(name, *[""] * 3, *empty, f"{n:,}") for name, n in (("norms", norms), ("neck", parts["neck"]))]
    rows.append(("head", "", "", f"{head['classes']} classes", *empty, f"{head['parameters']:,}"))
    total = f"{found['name']}: {found['parameters']:,} parameters in {len(found['blocks'])} blocks, input {size}"
    return "\n".join([*table(rows), *_card_lines(found.get("card", {})), total])


def trace(model: MViT, x: torch.Tensor) -> list[dict[str, Any]]:
    """What goes through a network: per block the shapes of its input, pooled queries and keys, and output.

    Args:
        x: `[B, C, *size]`; tensors on the meta device cost nothing.
    """
    rows: list[dict[str, Any]] = []

    def note_input(module: torch.nn.Module, inputs: Any) -> None:
        rows.append({"block": len(rows), "in": list(inputs[0].shape)})

    def note_output(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        rows[-1]["out"] = list(output[0].shape if isinstance(output, tuple) else output.shape)

    def note_pool(name: str, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        rows[-1][name] = list(output.shape)

    hooks = []
    for block in model.blocks:
        hooks += [block.register_forward_pre_hook(note_input), block.register_forward_hook(note_output)]
        for name in ("q", "k"):
            if (pool := getattr(block.attn, f"pool_{name}")) is not None:
                hooks.append(pool.register_forward_hook(partial(note_pool, name)))
    try:
        with torch.no_grad():
            model.stages(x)
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def shapes(found: dict[str, Any], imgsz: int | None = None, frames: int | None = None) -> list[dict[str, Any]]:
    """`trace` of a described network for one input; no weight is allocated.

    Args:
        found: what `describe` gave.
        imgsz, frames: as for `operations`.
    Raises:
        UserError: if the network takes no such input.
    """
    size = _counted(found["config"], imgsz, frames).size
    config = MViTConfig.from_dict(found["config"].get("backbone", found["config"]))
    with torch.device("meta"):
        return trace(MViT(config).eval(), torch.empty(1, config.in_chans, *size))


def shapes_text(traced: list[dict[str, Any]]) -> str:
    """`trace` as text: one line per block."""
    rows: list[tuple[str, ...]] = [("block", "in", "pooled q", "pooled k", "out")]
    for row in traced:
        rows.append(
            (str(row["block"]), *("x".join(map(str, row.get(key, []))) or "-" for key in ("in", "q", "k", "out")))
        )
    return "\n".join([*table(rows), "Shapes are [B, *grid, C]; the class token goes beside the grid."])


def operations(found: dict[str, Any], imgsz: int | None = None, frames: int | None = None) -> dict[str, Any]:
    """Operations of a network for one input, as plain data: of each part and in total, by kind.

    Args:
        found: what `describe` gave.
        imgsz: side of the square input, pixels; default the nominal input, for detectors 800 x 1280 or their square.
        frames: of a clip; default the nominal number.
    Raises:
        UserError: if the network takes no such input.
    """
    count = _counted(found["config"], imgsz, frames)
    parts = {name: {"total": cost.operations, **cost.by_kind} for name, cost in count.parts.items() if cost.by_kind}
    total = {"total": count.total.operations, **count.total.by_kind}
    return {"input": list(count.size), "total": total, "without_norms": count.total.without_norms, "parts": parts}


def _counted(config: dict[str, Any], imgsz: int | None, frames: int | None) -> Count:
    for name, value in (("imgsz", imgsz), ("frames", frames)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", "Give a number of at least 1")
    backbone = MViTConfig.from_dict(config.get("backbone", config))
    if frames is not None and backbone.ndim < 3:
        raise UserError(f"frames is {frames} and this network takes images", "Leave frames out")
    if "backbone" in config:
        from openmvit.detection.config import DetectorConfig

        return count_detector(DetectorConfig.from_dict(config), None if imgsz is None else (imgsz, imgsz))
    space = backbone.input_size[-2:] if imgsz is None else (imgsz,) * 2
    clip = backbone.input_size[:-2] if frames is None else (frames,)
    return count_classifier(backbone, (*clip, *space))


def operations_text(found: dict[str, Any], counted: dict[str, Any]) -> str:
    """`operations` as text: millions of every part by kind, then the total."""
    total = counted["total"]
    kinds = [kind for kind, count in total.items() if count and kind != "total"]
    rows: list[tuple[str, ...]] = [("millions", *kinds, "total", "share")]
    for name, part in (counted["parts"] | {"all": total}).items():
        cells = (f"{part[kind] / 1e6:,.1f}" if part.get(kind) else "-" for kind in (*kinds, "total"))
        label = f"block {name}" if name.isdigit() else name
        rows.append((label, *cells, f"{part['total'] / total['total']:.1%}"))
    line = (
        f"{found['name']}: {found['parameters']:,} parameters, {total['total'] / 1e9:.3f} G operations, "
        f"{counted['without_norms'] / 1e9:.3f} G without norms, input {_by(counted['input'])}; a multiply-add is 1"
    )
    return "\n".join([*table(rows), line])


# Of the card of a run or file, and of a weight card, in this order.
_SHOWN = (
    "source", "url", "how", "key", "sha256", "size_mb", "profile", "preprocessing", "data", "score", "published",
    "protocol", "ours", "note", "question", "licence",
)  # fmt: skip


def _card_lines(card: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    classes = card.get("classes") or []
    if classes:
        shown = ", ".join(str(name) for name in classes[:5])
        lines.append(f"classes: {len(classes)} ({shown}{', ...' if len(classes) > 5 else ''})")
    return lines + [f"{key}: {_plain(card[key])}" for key in _SHOWN if card.get(key)]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _by(size: Size | list[int]) -> str:
    return "x".join(map(str, size))


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of words as aligned lines; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def models_table(pattern: str = "*") -> list[dict[str, Any]]:
    """Architectures whose name matches, with parameters, nominal input and released weights.

    Released networks that are not here, and are listed only, come last, with `parameters` None.

    Raises:
        UserError: if none matches.
    """
    foreign = dict.fromkeys(card.model for card in cards() if not card.loadable)
    names = [*list_models(pattern), *(name for name in foreign if fnmatch.fnmatch(name, pattern))]
    if not names:
        raise UserError(f"No model matches {pattern!r}", "See openmvit models; patterns are written like 'mvitv2_*'")
    rows: list[dict[str, Any]] = []
    for name in screen.counted(names, len(names), "counting models"):
        weights = [asdict(card) | {"how": card.how} for card in cards() if card.model == name]
        rows.append({"name": name, **_outline(name), "weights": weights})
    return rows


def _outline(name: str) -> dict[str, Any]:
    """Parameters, nominal input and classes; a detector takes any size."""
    if name not in ARCHITECTURES and name not in DETECTORS:
        return {"parameters": None, "input_size": [], "num_classes": None}
    if name in DETECTORS:
        about = describe_detector(DETECTORS[name])
        side = about["config"]["square_pad"]
        size = [side, side] if side else []
        return {"parameters": about["parameters"], "input_size": size, "num_classes": about["config"]["num_classes"]}
    config = model_config(name)
    with torch.device("meta"):
        parameters = _count(MViT(config))
    return {"parameters": parameters, "input_size": list(config.input_size), "num_classes": config.num_classes}


def models_text(rows: list[dict[str, Any]]) -> str:
    """`models_table` as text: one line per released file; an architecture without any has a line of its own."""
    lines: list[tuple[str, ...]] = [("model", "parameters", "input", "weights", "classes", "published", "licence")]
    for row in rows:
        size = "not here" if row["parameters"] is None else f"{row['parameters'] / 1e6:.1f} M"
        start = (row["name"], size, _by(row["input_size"]) or ("" if row["parameters"] is None else "any"))
        for card in row["weights"] or [None]:
            if card is None:
                lines.append((*start, "none released", str(row["num_classes"]), "", ""))
                continue
            score = " ".join(f"{key} {value}" for key, value in card["published"].items())
            tag = f"{card['tag']} (by hand)" if card["by_hand"] else card["tag"]
            classes = str(card["num_classes"]) if card["num_classes"] else "no head"
            lines.append((*start, tag, classes, score or "no score", card["licence"]))
    files = [card for row in rows for card in row["weights"]]
    counts = f"{len(files)} released files, {sum(card['loadable'] for card in files)} loadable; scores as published"
    hand = "; by hand: download by hand, then openmvit convert FILE" if any(c["by_hand"] for c in files) else ""
    return "\n".join([*table(lines), counts + hand])
