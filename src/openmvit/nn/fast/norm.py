"""Norms on CUDA under bf16 autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm_in_bf16(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Norm bf16 in bf16: `[..., C] -> [..., C]`.

    The framework would widen x, norm it in float32, and narrow the result again: three passes over memory for one. The
    kernel takes its sums in float32 all the same.
    """
    weight, bias = (None if t is None else t.to(x.dtype) for t in (norm.weight, norm.bias))
    with torch.autocast("cuda", enabled=False):
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
