"""Necks: from the backbone's maps to those that proposals and heads read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from openmvit.detection.config import DetectorConfig


class FeaturePyramid(nn.Module):
    """Feature pyramid: 1 x 1 and 3 x 3 convolutions, finer maps plus the coarser ones; one extra map from the coarsest.

    Source: Lin et al., 2017, as configured in facebookresearch/detectron2, projects MViTv2 and ViTDet.
    """

    def __init__(self, in_channels: Sequence[int], config: DetectorConfig) -> None:
        super().__init__()
        norm = partial(LayerNorm2d, eps=1e-6) if config.neck_norm == "ln" else None
        self.fpn = FeaturePyramidNetwork(list(in_channels), config.channels, LastLevelMaxPool(), norm_layer=norm)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps `[B, C_i, h, w]`, finest first -> `[B, channels, h, w]`, one more than given."""
        return list(self.fpn({str(i): x for i, x in enumerate(maps)}).values())


class LastMap(nn.Module):
    """No pyramid: proposals and heads read the last map alone (paper, Table 9)."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The last of the maps, `[[B, C, h, w]]`."""
        return [maps[-1]]


class SimplePyramid(nn.Module):
    """Four maps out of the last one, at 1/4, 1/2, 1 and 2 times its stride, then a feature pyramid on them.

    For backbones with a single scale, such as a plain ViT (paper, Table 9). Norm and activation between the two
    transposed convolutions as in Li et al., 2021, "Benchmarking Detection Transfer Learning with Vision Transformers".
    """

    def __init__(self, in_channels: Sequence[int], config: DetectorConfig) -> None:
        super().__init__()
        dim = in_channels[-1]
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim, 2, 2),
                    nn.GroupNorm(1, dim),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim, dim, 2, 2),
                ),
                nn.ConvTranspose2d(dim, dim, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.pyramid = FeaturePyramid([dim] * len(self.scales), config)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The last of the maps `[B, C, h, w]` -> five maps `[B, channels, h, w]`, finest first."""
        return self.pyramid([scale(maps[-1]) for scale in self.scales])


def make_neck(in_channels: Sequence[int], config: DetectorConfig) -> nn.Module:
    """The neck that `config.neck` names."""
    if config.neck == "last":
        return LastMap()
    return (SimplePyramid if config.neck == "simple" else FeaturePyramid)(in_channels, config)
