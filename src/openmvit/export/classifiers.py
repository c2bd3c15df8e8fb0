"""Classifiers of images and clips: which sizes can stay open, and what is tested."""

from __future__ import annotations

from math import lcm, prod
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from openmvit.config import MViTConfig, Size
from openmvit.errors import UserError
from openmvit.export.plan import Plan
from openmvit.model import MViT

_LARGEST = 64
"""Multiples of the stride up to which sides are open: 2048 pixels where that is 32."""


def plan_classifier(model: MViT, card: dict[str, Any], imgsz: int | None, fixed: bool) -> Plan:
    """How a classifier is exported: batch open, and height and width where its grids divide each other.

    Args:
        imgsz: side in pixels in place of the card's.
    Raises:
        UserError: if imgsz cannot be the side of an input.
    """
    side = _side(model.config, card, imgsz)
    step = common_stride(model.config)
    reason = "as asked" if fixed else _why_fixed(model.config, side, step)
    frames = _frames(model.config, card)
    sizes = _open_sizes(side, step) if not reason else [(b, side, side) for b in (1, 2, 3, 4)]
    generator = torch.Generator().manual_seed(0)

    def random(batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, model.config.in_chans, *frames, height, width, generator=generator)

    dynamic: dict[int, Any] = {0: Dim("batch", min=1)}
    named, axis = {0: "batch"}, 2 + len(frames)
    if not reason:
        dynamic |= {axis: step * Dim("h", min=2, max=_LARGEST), axis + 1: step * Dim("w", min=2, max=_LARGEST)}
        named |= {axis: "height", axis + 1: "width"}
    example = random(2, side, side) if reason else random(2, 3 * step, 4 * step)
    clip = f"{frames[0]} frames of " if frames else ""
    free = f"batch open, {clip}{side} x {side} ({reason})"
    if not reason:
        free = f"batch open, {clip}height and width multiples of {step} from {2 * step}"
    return Plan(
        module=model.eval().requires_grad_(False).cpu(),
        inputs=(example,),
        dynamic=(dynamic,),
        names=(["clips" if frames else "images"], ["logits" if model.config.num_classes else "features"]),
        axes=([named], [{0: "batch"}]),
        probes=[(random(*size),) for size in sizes],
        card=_card(card, side, 0 if reason else step, imgsz is not None),
        note=free,
    )


def common_stride(config: MViTConfig) -> int:
    """Pixels of a side whose multiples every grid of the network divides: 32 in all published ones."""
    sides = [1]
    for axis in (-2, -1):
        stride = config.patch_stride[axis]
        for block in config.blocks():
            sides += [stride * block.stride_kv[axis], stride * block.stride_q[axis]]
            stride *= block.stride_q[axis]
    return lcm(*sides)


def _side(config: MViTConfig, card: dict[str, Any], imgsz: int | None) -> int:
    side = int(card["preprocessing"].get("imgsz", config.input_size[-1])) if imgsz is None else imgsz
    if not max(config.patch_stride[-2:]) <= side <= 1 << 14:
        raise UserError(f"imgsz is {side}", f"Accepted: {max(config.patch_stride[-2:])} to {1 << 14}")
    return side


def _frames(config: MViTConfig, card: dict[str, Any]) -> Size:
    """Frames of a clip; nothing for images."""
    if config.ndim == 2:
        return ()
    return (int(card["preprocessing"].get("num_frames", config.input_size[0])),)


def _why_fixed(config: MViTConfig, side: int, step: int) -> str:
    """Why height and width cannot stay open; empty if they can."""
    if side % step:
        return f"{side} is no multiple of {step}"
    if config.window_pattern == "shifted":
        return "its windows are shifted"
    for count in (2, 3):
        for block in config.replace(input_size=(*config.input_size[:-2], count * step, count * step)).blocks():
            pairs = zip(block.q_grid[-2:], block.kv_grid[-2:], strict=True)
            if prod(block.q_grid[-2:]) % count**2 or any(q % k and k % q for q, k in pairs):
                return "its grids do not divide each other"
    return ""


def _open_sizes(side: int, step: int) -> list[tuple[int, int, int]]:
    """Batch, height and width of the inputs to compare."""
    half = max(2 * step, side // 2 // step * step)
    return [(1, side, side), (2, half, half + step), (3, half + step, half), (1, half, max(side, half) + step)]


def _card(card: dict[str, Any], side: int, step: int, changed: bool) -> dict[str, Any]:
    """The card of the file, with the size that its inputs have."""
    preprocessing = card["preprocessing"] | {"imgsz": side}
    if changed and "short_side" in preprocessing:
        preprocessing["short_side"] = 0  # as `val --imgsz` has it
    return card | {"preprocessing": preprocessing, "export": {"precision": "fp32", "multiple": step}}
