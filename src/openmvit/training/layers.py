"""What training asks of any network: its blocks, which of its parameters are decayed, which get no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from openmvit.model import MViT

if TYPE_CHECKING:
    from openmvit.detection.detector import Detector

Network: TypeAlias = "MViT | Detector"

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_TABLES = ("rel_pos_", "pos_embed")


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The blocks of the MViT that a network is or holds."""
    return next(module for module in model.modules() if isinstance(module, MViT)).blocks


def unused_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that get no gradient, which data-parallel training has to know."""
    return model.unused_parameters() if isinstance(model, MViT) else set()


def decayed(model: nn.Module, rule: str) -> set[str]:
    """Names of the parameters that weight decay acts on.

    Args:
        rule: `matrices`: all but those with one axis. `not_norms`: all but norms and position tables, so biases too,
            as the MViTv2 detectors were trained. `vitdet`: all but norms of the backbone, as the ViTDet family was
            trained: its optimiser does not know the type of the norms in neck and heads, and names no relative table.
    """
    if rule == "matrices":
        return {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    names: set[str] = set()
    for place, module in model.named_modules():
        if isinstance(module, _NORMS) and (rule == "not_norms" or place.startswith("backbone.")):
            continue
        for leaf, _ in module.named_parameters(recurse=False):
            if rule == "vitdet" or not leaf.startswith(_TABLES):
                names.add(f"{place}.{leaf}" if place else leaf)
    return names
