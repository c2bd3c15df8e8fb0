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

LARGEST = 1 << 14
"""Pixels of a side up to which it is open, and up to which there are inputs."""
_MOST_SCORES = 2**30
"""Scores of attention that an input to compare may have in one block: a runtime holds them all, twice, in 8 GiB."""


def plan_classifier(model: MViT, card: dict[str, Any], imgsz: int | None, fixed: bool, form: str = "onnx") -> Plan:
    """How a classifier is exported: batch open, and height and width where its grids divide each other.

    Args:
        imgsz: side in pixels in place of the card's.
        form: `onnx` or `torch`; a program of torch does not take the smallest sides.
    Raises:
        UserError: if imgsz cannot be the side of an input.
    """
    side = _side(model.config, card, imgsz)
    step = common_stride(model.config)
    least = 1 if form == "onnx" else 2
    reason = "as asked" if fixed else _why_fixed(model.config, side, step, form)
    frames = _frames(model.config, card)
    sizes = _fixed_sizes(model.config, frames, side) if reason else _open_sizes(side, step, least)
    generator = torch.Generator().manual_seed(0)

    def random(batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, model.config.in_chans, *frames, height, width, generator=generator)

    dynamic, named = _open_axes(2 + len(frames), step, not reason)
    example = random(2, side, side) if reason else random(2, 3 * step, 4 * step)
    free = f"{side} x {side} ({reason})" if reason else f"height and width multiples of {step} from {least * step}"
    batch = "batch open" if max(sizes)[0] > 1 else "batch open (compared at 1, more would fill the memory)"
    clip = f"{frames[0]} frames of " if frames else ""
    return Plan(
        module=model.eval().requires_grad_(False).cpu(),
        inputs=(example,),
        dynamic=(dynamic,),
        names=(["clips" if frames else "images"], ["logits" if model.config.num_classes else "features"]),
        axes=([named], [{0: "batch"}]),
        probes=[(random(*size),) for size in sizes],
        card=_card(card, side, 0 if reason else step, imgsz is not None),
        note=f"{batch}, {clip}{free}",
    )


def _open_axes(axis: int, step: int, sides: bool) -> tuple[dict[int, Any], dict[int, str]]:
    """What stays open, and the names of those axes: the batch, and the sides from `axis` on."""
    dynamic, named = {0: Dim("batch", min=1)}, {0: "batch"}
    if sides:
        # A side of one stride would be a case of its own in a program of torch; an ONNX file keeps no such bound.
        dynamic |= {axis + i: step * Dim(name, min=2, max=LARGEST // step) for i, name in enumerate("hw")}
        named |= {axis: "height", axis + 1: "width"}
    return dynamic, named


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
    if not max(config.patch_stride[-2:]) <= side <= LARGEST:
        raise UserError(f"imgsz is {side}", f"Accepted: {max(config.patch_stride[-2:])} to {LARGEST}")
    return side


def _frames(config: MViTConfig, card: dict[str, Any]) -> Size:
    """Frames of a clip; nothing for images."""
    if config.ndim == 2:
        return ()
    return (int(card["preprocessing"].get("num_frames", config.input_size[0])),)


def _why_fixed(config: MViTConfig, side: int, step: int, form: str) -> str:
    """Why height and width cannot stay open; empty if they can."""
    if side % step:
        return f"{side} is no multiple of {step}"
    if config.window_pattern == "shifted":
        return "its windows are shifted"
    if form == "torch" and any(config.windows):
        return "windows stay open in an ONNX file alone"  # torch asks whether the last ones are padded
    if form == "torch" and side < 2 * step:
        return f"less than {2 * step}"
    for count in (2, 3):
        for block in config.replace(input_size=(*config.input_size[:-2], count * step, count * step)).blocks():
            pairs = zip(block.q_grid[-2:], block.kv_grid[-2:], strict=True)
            if prod(block.q_grid[-2:]) % count**2 or any(q % k and k % q for q, k in pairs):
                return "its grids do not divide each other"
    return ""


def _open_sizes(side: int, step: int, least: int) -> list[tuple[int, int, int]]:
    """Batch, height and width of the inputs to compare: the card's, the smallest, and two that are no squares."""
    small = least * step
    half = max(2 * step, side // 2 // step * step)
    return [(1, side, side), (2, small, small), (3, half + step, half), (1, half, max(side, half) + step)]


def _fixed_sizes(config: MViTConfig, frames: Size, side: int) -> list[tuple[int, int, int]]:
    """The same for one size: smaller batches where the scores of attention would fill the memory."""
    blocks = config.replace(input_size=(*frames, side, side)).blocks()
    scores = max(block.num_heads * prod(block.q_grid) * prod(block.kv_window or block.kv_grid) for block in blocks)
    fitting = [b for b in ((1, 2, 3, 4), (1, 2, 1)) if max(b) * scores <= _MOST_SCORES]
    return [(batch, side, side) for batch in (fitting or [(1, 1, 1)])[0]]


def _card(card: dict[str, Any], side: int, step: int, changed: bool) -> dict[str, Any]:
    """The card of the file, with the size that its inputs have."""
    preprocessing = card["preprocessing"] | {"imgsz": side}
    if changed and "short_side" in preprocessing:
        preprocessing["short_side"] = 0  # as `val --imgsz` has it
    return card | {"preprocessing": preprocessing, "export": {"precision": "fp32", "multiple": step}}
