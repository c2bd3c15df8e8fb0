"""Pooling of queries, keys and values on their grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openmvit.block_config import PoolMode, Size
from openmvit.nn import ops
from openmvit.nn.grid import avg_pool, max_pool


class TokenPool(nn.Module):
    """Pool a channels-last grid; in the conv modes by one depthwise filter that all heads share.

    The heads are folded into the channels, so the filter is repeated over them and no permute stands between the
    projection and the pool.

    Args:
        mode: `conv`, `conv_unshared`, `max` or `avg`.
        dim: channels of the filter: those of one head, or all of them in `conv_unshared`.
    Source: facebookresearch/mvit, attention pooling.
    """

    def __init__(self, mode: PoolMode, dim: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.mode, self.kernel, self.stride = mode, kernel, stride
        self.padding = tuple(k // 2 for k in kernel)
        if mode in ("conv", "conv_unshared"):
            self.weight = nn.Parameter(torch.empty(dim, 1, *kernel))
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def extra_repr(self) -> str:
        return f"{self.mode}, kernel={self.kernel}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *grid, C]` with C a multiple of `dim` -> `[B, *pooled, C]`."""
        if self.mode in ("max", "avg"):
            return (max_pool if self.mode == "max" else avg_pool)(x, self.kernel, self.stride)
        weight = torch.cat((self.weight,) * (x.shape[-1] // self.weight.shape[0]))  # [C, 1, *kernel]
        return ops.depthwise(x, weight, self.stride, self.padding)
