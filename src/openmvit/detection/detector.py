"""Backbone, neck, region proposals, box and mask heads: Mask R-CNN and Cascade Mask R-CNN in one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor, nn

from openmvit.detection.batching import ImageSize, make_batch
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detections import Detections, Target
from openmvit.detection.pyramid import make_neck
from openmvit.detection.roi_heads import RoiHeads
from openmvit.detection.rpn import RegionProposals
from openmvit.errors import UserError
from openmvit.model import FeatureMaps, MViT
from openmvit.nn.ops import autocast


class Detector(nn.Module):
    """Boxes, classes and masks of the objects in pictures.

    Padding takes part in attention, so what is found in a picture depends a little on the others of its batch, unless
    `config.square_pad` is set: published scores are those of one picture at a time.

    Raises:
        UserError: from `forward`, if pictures or targets have another form.
    Source: He et al., 2017; Cai and Vasconcelos, 2018; MViTv2 (Li et al., 2022), section 5.2.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = FeatureMaps(
            MViT(config.backbone.replace(num_classes=0)), None if config.neck == "pyramid" else [-1], stage_norms=True
        )
        self.neck = make_neck(self.backbone.channels, config)
        self.rpn = RegionProposals(config)
        self.roi_heads = RoiHeads(config)

    def features(self, images: Sequence[Tensor]) -> tuple[list[Tensor], list[ImageSize]]:
        """Maps of the neck, `[B, C, h, w]` finest first, and the size of every picture without padding."""
        device = next(self.parameters()).device
        mean, std = (torch.tensor(values, device=device) for values in (self.config.mean, self.config.std))
        batch, sizes = make_batch(images, mean, std, self.config.divisor, self.config.square_pad)
        return self.neck(self.backbone(batch)), sizes

    @overload
    def forward(
        self, images: Sequence[Tensor], targets: None = ..., *, output_sizes: Sequence[ImageSize] | None = ...
    ) -> list[Detections]: ...
    @overload
    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        *,
        output_sizes: Sequence[ImageSize] | None = ...,
        detect: bool = ...,
    ) -> tuple[list[Detections], dict[str, Tensor]]: ...
    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        *,
        output_sizes: Sequence[ImageSize] | None = None,
        detect: bool = True,
    ) -> list[Detections] | tuple[list[Detections], dict[str, Tensor]]:
        """Find objects, and with targets also the losses; the same in training and in evaluation.

        Args:
            images: RGB, uint8 or float 0..255, `[3, h, w]` each, at the size that the network is to see.
            targets: per picture `boxes` float32 `[N, 4]` (x0 y0 x1 y1, pixels of the picture), `labels` int64 `[N]`
                (0-based) and `masks`, bool `[N, h, w]` or polygons: a list per object of arrays x0 y0 x1 y1 ...
            output_sizes: (height, width) that found boxes and masks are scaled to; default the pictures' own.
            detect: with targets, False leaves out the search: the list is empty.
        Returns:
            detections of every picture; with targets also the losses, each a scalar, whose sum is trained.
        """
        if targets is not None and len(targets) != len(images):
            raise UserError(f"{len(images)} pictures came with {len(targets)} targets", "Give one target per picture")
        with autocast(next(self.parameters())):
            maps, sizes = self.features(images)
            if targets is None:
                return self._detect(maps, sizes, output_sizes)
            device = maps[0].device
            targets = [{k: v.to(device) if isinstance(v, Tensor) else v for k, v in t.items()} for t in targets]
            proposals, _, losses = self.rpn(maps, sizes, targets)
            losses = losses | self.roi_heads(maps, proposals, sizes, targets)
            return (self._detect(maps, sizes, output_sizes) if detect else []), losses

    @torch.no_grad()
    def _detect(
        self, maps: list[Tensor], sizes: list[ImageSize], output_sizes: Sequence[ImageSize] | None
    ) -> list[Detections]:
        with evaluating(self.rpn, self.roi_heads):
            proposals, _, _ = self.rpn(maps, sizes)
            found = self.roi_heads.detect(maps, proposals, sizes)
        if output_sizes is None:
            return found
        return [one.rescaled(size) for one, size in zip(found, output_sizes, strict=True)]

    def set_grad_checkpointing(self, enable: bool | None = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping their activations; see `MViT`."""
        self.backbone.model.set_grad_checkpointing(enable)

    def layer_id(self, name: str) -> int:
        """Depth of a parameter: that in the backbone, and one more than its last block for neck and heads."""
        prefix = "backbone.model."
        model = self.backbone.model
        return model.layer_id(name.removeprefix(prefix)) if name.startswith(prefix) else model.config.depth + 1

    def classifier_parameters(self) -> list[nn.Parameter]:
        """Parameters whose shape depends on the number of classes, which a fine-tune on other classes starts anew."""
        parts: list[nn.Module] = [*self.roi_heads.box_predictors, self.roi_heads.mask_predictor]
        return [parameter for part in parts for parameter in part.parameters()]

    def reset_classifier(self, num_classes: int) -> None:
        """Put fresh predictors for another number of classes in place."""
        old = next(self.parameters())
        self.config = self.config.replace(num_classes=num_classes)
        heads = RoiHeads(self.config).to(old.device, old.dtype).train(self.training)
        kept = {
            key: value
            for key, value in self.roi_heads.state_dict().items()
            if not key.startswith(("box_predictors.", "mask_predictor."))
        }
        heads.load_state_dict(kept, strict=False)
        self.roi_heads = heads


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block: batch statistics of a search leave no trace in training."""
    training = [m for module in modules for m in module.modules() if m.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
