"""Image weights for a clip network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.convert.keymap import expected_shapes
from openmvit.errors import UserError

Inflation = Literal["centre", "copy"]


def inflate(
    state: Mapping[str, Tensor], source: MViTConfig, target: MViTConfig, rule: Inflation = "centre"
) -> dict[str, Tensor]:
    """Weights of an image network in the shapes of a clip network; what has no counterpart is left out.

    `centre` is the paper's rule: a convolution gets the image filter in its middle frame and zeros elsewhere, temporal
    tables are zero, and a still clip gives the image's output. `copy` is what the public video code does: the filter
    in every frame, undivided, while temporal tables keep their initial values. With a class token the still clip's
    output differs a little: it faces one key per frame where the image had one.

    Args:
        state: native weights of `source`.
    Raises:
        UserError: if the source is no image network or the target no clip network.
    Source: MViTv2 (Li et al., 2022), section 4.3; facebookresearch/SlowFast, image initialisation.
    """
    if (source.ndim, target.ndim) != (2, 3):
        raise UserError(
            f"Weights of {source.ndim} axes cannot start a network of {target.ndim}", "Inflate image to clip"
        )
    if rule not in ("centre", "copy"):
        raise UserError(f"inflation is {rule!r}", "Accepted: centre, copy")
    shapes = expected_shapes(target)
    inflated: dict[str, Tensor] = {}
    for key, value in state.items():
        shape = shapes.get(key)
        inflated[key] = _over_time(value, shape[2], rule) if shape and len(shape) == 5 and value.dim() == 4 else value
    if rule == "centre":
        inflated |= {key: torch.zeros(shape) for key, shape in shapes.items() if key.endswith("rel_pos_t")}
    if source.absolute_position == "joint" and target.absolute_position == "separable":
        inflated |= _separate(inflated.pop("pos_embed"), source, target)
    return inflated


def _over_time(weight: Tensor, frames: int, rule: Inflation) -> Tensor:
    """Filter `[C_out, C_in, kh, kw]` -> `[C_out, C_in, frames, kh, kw]`."""
    repeated = weight.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    if rule == "centre":
        repeated[:, :, : frames // 2] = 0
        repeated[:, :, frames // 2 + 1 :] = 0
    return repeated


def _separate(table: Tensor, source: MViTConfig, target: MViTConfig) -> dict[str, Tensor]:
    rows = int(source.cls_token)
    parts = {
        "pos_embed_spatial": table[:, rows:],
        "pos_embed_temporal": torch.zeros(1, target.patch_grid[0], table.shape[-1]),
    }
    return parts | ({"pos_embed_class": table[:, :rows]} if rows and target.cls_token else {})
