"""Pooling of queries, keys and values on their grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openmvit.config import PoolMode, Size
from openmvit.nn.fast import depthwise
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
        if mode in ("conv", "conv_unshared"):
            self.weight = nn.Parameter(torch.empty(dim, 1, *kernel))
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def extra_repr(self) -> str:
        return f"{self.mode}, kernel={self.kernel}, stride={self.stride}"

    def forward(self, x: Tensor, stride: Size | None = None) -> Tensor:
        """`[B, *grid, C]` with C a multiple of `dim` -> `[B, *pooled, C]`, with another stride if given."""
        stride = stride or self.stride
        if self.mode == "max":
            return max_pool(x, self.kernel, stride)
        if self.mode == "avg":
            return avg_pool(x, self.kernel, stride)
        channels, padding = x.shape[-1], tuple(k // 2 for k in self.kernel)
        weight = torch.cat((self.weight,) * (channels // self.weight.shape[0]))
        return depthwise(x, weight, stride, padding)
