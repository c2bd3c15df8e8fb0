"""The layers of the box and mask heads, and their start values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from openmvit.detection.config import DetectorConfig, HeadNorm

BOX_CELLS, MASK_CELLS = 7, 14
"""Per side of what is pooled for a box; the mask is twice as fine as what is pooled for it."""

_NORMS: dict[HeadNorm, Callable[..., nn.Module] | None] = {
    "none": None,
    "bn": nn.BatchNorm2d,
    "ln": partial(LayerNorm2d, eps=1e-6),
}


class BoxPredictor(nn.Module):
    """Scores and box offsets of a box's features.

    Args:
        width: of the features.
        num_classes: K; the scores have one more column, the last, for background.
        class_agnostic: one box per row instead of K.
    """

    def __init__(self, width: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 if class_agnostic else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[R, K + 1]` and deltas `[R, 4]` or `[R, 4K]` of `[R, width]`."""
        return self.cls_score(x), self.bbox_pred(x)


def make_box_head(config: DetectorConfig) -> tuple[nn.Module, int]:
    """A network from `[R, channels, 7, 7]` to `[R, width]`, and its width.

    Two linear layers without convolutions are the head of the plain Mask R-CNN, with its parameter names.
    """
    convs, widths = list(config.box_convs), list(config.box_fcs)
    if not convs and len(widths) == 2:
        head = TwoMLPHead(config.channels * BOX_CELLS**2, widths[0])
        if widths[1] != widths[0]:
            head.fc7 = nn.Linear(widths[0], widths[1])
    else:
        shape = (config.channels, BOX_CELLS, BOX_CELLS)
        head = FastRCNNConvFCHead(shape, convs, widths, _NORMS[config.head_norm])
    _initialise(head)
    return head, widths[-1] if widths else [config.channels, *convs][-1] * BOX_CELLS**2


def make_mask_head(config: DetectorConfig) -> tuple[MaskRCNNHeads, MaskRCNNPredictor]:
    """Convolutions on `[R, channels, 14, 14]`, and from there to logits `[R, K, 28, 28]`."""
    head = MaskRCNNHeads(config.channels, list(config.mask_convs), 1, _NORMS[config.head_norm])
    width = [config.channels, *config.mask_convs][-1]
    predictor = MaskRCNNPredictor(width, width, config.num_classes)
    _initialise(head)
    _initialise(predictor)
    nn.init.normal_(predictor.get_parameter("mask_fcn_logits.weight"), std=0.001)
    return head, predictor


def _initialise(module: nn.Module) -> None:
    """Source: facebookresearch/detectron2, whose heads start so."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
