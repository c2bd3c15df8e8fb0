"""Box and mask heads on proposals: a cascade of box heads, of which Mask R-CNN is the case with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openmvit.detection.box_losses import (
    box_loss,
    federated_classes,
    mask_loss,
    scale_gradient,
    sigmoid_loss,
    softmax_loss,
)
from openmvit.detection.boxes import BoxCoder, clip, match, nonempty, pairwise_iou, sample
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detections import Detections, Target
from openmvit.detection.heads import BOX_CELLS, MASK_CELLS, BoxPredictor, make_box_head, make_mask_head
from openmvit.detection.masks import mask_targets
from openmvit.detection.pooler import RoiPooler
from openmvit.detection.selection import select_detections
from openmvit.errors import UserError


@dataclass(frozen=True)
class _Labelled:
    """Boxes `[R, 4]` of one picture, their classes `[R]`, K for background, and the objects `[R]` they overlap most."""

    boxes: Tensor
    classes: Tensor
    objects: Tensor


class RoiHeads(nn.Module):
    """Scores and moves proposals stage by stage, then draws masks; the last class, K, is background inside.

    Every stage reads the boxes that the stage before has moved, with its own overlap from which a box is an object.
    Scores are the mean over the stages, boxes those of the last. Boxes, scores and losses are float32 under autocast.

    Source: Cai and Vasconcelos, Cascade R-CNN (2018); He et al., Mask R-CNN (2017); facebookresearch/detectron2.
    """

    class_frequency: Tensor | None

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = len(config.stage_iou)
        self.coders = [BoxCoder(weights) for weights in config.coder_weights]
        # The coarsest map of several is for anchors only.
        strides = config.strides[:-1] if len(config.strides) > 1 else config.strides
        self.box_pooler, self.mask_pooler = RoiPooler(BOX_CELLS, strides), RoiPooler(MASK_CELLS, strides)
        heads = [make_box_head(config) for _ in config.stage_iou]
        self.box_heads = nn.ModuleList(head for head, _ in heads)
        self.box_predictors = nn.ModuleList(
            BoxPredictor(width, config.num_classes, config.class_agnostic) for _, width in heads
        )
        self.mask_head, self.mask_predictor = make_mask_head(config)
        # Of the training data, not of the network: no file holds it.
        self.register_buffer("class_frequency", None, persistent=False)

    def set_class_frequency(self, pictures: Tensor) -> None:
        """Say how many training pictures show each class, `[K]`: the federated loss draws classes by it."""
        if pictures.shape != (self.config.num_classes,):
            raise UserError(
                f"Class frequencies have shape {tuple(pictures.shape)}",
                f"Give {self.config.num_classes}, one per class",
            )
        self.class_frequency = pictures.to(next(self.parameters()).device, torch.float32)

    def forward(
        self, maps: list[Tensor], proposals: list[Tensor], sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Losses of a batch, in train and eval alike; their plain sum is what training minimises.

        Args:
            maps: of the neck, `[B, C, h, w]`, finest first.
            proposals: `[P, 4]` per picture; P may be 0.
            sizes: `(h, w)` of each picture without padding.
            targets: of each picture.

        Returns:
            `loss_cls`, `loss_box_reg` and `loss_mask`; in a cascade the first two as `loss_cls_stage0` and so on.
        """
        maps = maps[: len(self.box_pooler.strides)]
        drawn = [self._draw(boxes.detach().float(), target) for boxes, target in zip(proposals, targets, strict=True)]
        losses = self._losses_of_boxes(maps, drawn, sizes, targets)
        return losses | {"loss_mask": self._loss_of_masks(maps, drawn, targets)}

    @torch.no_grad()
    def detect(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        sizes: Sequence[tuple[int, int]],
        with_masks: bool = True,
        threshold: float | Tensor | None = None,
    ) -> list[Detections]:
        """What is found in each picture, in pixels of the network's input, best first; arguments as in `forward`.

        Args:
            threshold: only higher scores count; None for the configuration's.
        """
        threshold = self.config.score_threshold if threshold is None else threshold
        maps = maps[: len(self.box_pooler.strides)]
        counts, boxes = [b.shape[0] for b in proposals], [b.float() for b in proposals]
        moved = torch.cat(boxes)
        scores = moved.new_zeros(())
        for stage in range(self.stages):
            logits, deltas = self._stage(stage, maps, boxes)
            scores = scores + self._probabilities(logits)
            moved = self.coders[stage].decode(deltas, torch.cat(boxes))
            if stage + 1 < self.stages:
                boxes = [clip(b, size) for b, size in zip(moved.split(counts), sizes, strict=True)]
        scores = (scores * (1 / self.stages)).split(counts)
        found = [self._select(*one, threshold) for one in zip(moved.split(counts), scores, sizes, strict=True)]
        return self.predict_masks(maps, found) if with_masks else found

    @torch.no_grad()
    def predict_masks(self, maps: list[Tensor], detections: Sequence[Detections]) -> list[Detections]:
        """The same detections with masks, `mask_probs` `[D, 28, 28]`, of the boxes and labels that they have."""
        maps = maps[: len(self.mask_pooler.strides)]
        logits = self.mask_predictor(self.mask_head(self.mask_pooler(maps, [d.boxes for d in detections])))
        labels = torch.cat([d.labels for d in detections])
        probs = logits[torch.arange(labels.shape[0], device=labels.device), labels].float().sigmoid()
        parts = probs.split([d.boxes.shape[0] for d in detections])
        return [dataclasses.replace(d, mask_probs=p) for d, p in zip(detections, parts, strict=True)]

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int], threshold: float | Tensor) -> Detections:
        config = self.config
        found = select_detections(
            boxes,
            scores,
            size,
            threshold=threshold,
            nms=config.nms,
            limit=config.max_detections,
            soft=config.soft_nms,
        )
        return Detections(*found[:3], size=size)

    def _stage(self, stage: int, maps: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[R, K + 1]` and deltas of all boxes, float32.

        The stages' losses are added, so each sends back its share only: the network below is trained as by one stage.
        """
        pooled = scale_gradient(self.box_pooler(maps, boxes), 1 / self.stages)
        logits, deltas = self.box_predictors[stage](self.box_heads[stage](pooled))
        return logits.float(), deltas.float()

    def _probabilities(self, logits: Tensor) -> Tensor:
        return (logits.softmax(1) if self.config.scores == "softmax" else logits.sigmoid())[:, :-1]

    @torch.no_grad()
    def _draw(self, proposals: Tensor, target: Target) -> _Labelled:
        """The first stage's boxes: proposals and the objects themselves, of which some are drawn."""
        every = self._label(torch.cat([proposals, target["boxes"]]), target, self.config.stage_iou[0])
        is_object = (every.classes < self.config.num_classes).to(torch.int8)
        rows = torch.cat(sample(is_object, self.config.roi_samples, self.config.roi_positive))
        return _Labelled(every.boxes[rows], every.classes[rows], every.objects[rows])

    @torch.no_grad()
    def _label(self, boxes: Tensor, target: Target, overlap: float) -> _Labelled:
        objects, label = match(pairwise_iou(target["boxes"], boxes), overlap, overlap, keep_best=False)
        if len(target["boxes"]) == 0:
            return _Labelled(boxes, torch.full_like(objects, self.config.num_classes), objects)
        classes = torch.where(label == 1, target["labels"][objects], self.config.num_classes)
        return _Labelled(boxes, classes, objects)

    @torch.no_grad()
    def _relabel(
        self,
        stage: int,
        deltas: Tensor,
        previous: list[_Labelled],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target],
    ) -> list[_Labelled]:
        """The boxes of `stage`, moved by the stage before: nothing is drawn, and boxes outside the picture are gone."""
        moved = self.coders[stage - 1].decode(deltas, torch.cat([p.boxes for p in previous]))
        labelled = []
        for boxes, size, target in zip(moved.split([len(p.boxes) for p in previous]), sizes, targets, strict=True):
            inside = clip(boxes, size)
            labelled.append(self._label(inside[nonempty(inside)], target, self.config.stage_iou[stage]))
        return labelled

    def _losses_of_boxes(
        self, maps: list[Tensor], labelled: list[_Labelled], sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        losses = {}
        for stage in range(self.stages):
            logits, deltas = self._stage(stage, maps, [one.boxes for one in labelled])
            classes = torch.cat([one.classes for one in labelled])
            foreground = torch.nonzero(classes < self.config.num_classes).squeeze(1)
            boxes = torch.cat([one.boxes for one in labelled])[foreground]
            objects = torch.cat([_nearest(one, target) for one, target in zip(labelled, targets, strict=True)])
            name = "" if self.stages == 1 else f"_stage{stage}"
            with torch.autocast(logits.device.type, enabled=False):
                losses[f"loss_cls{name}"] = self._loss_of_classes(logits, classes)
                losses[f"loss_box_reg{name}"] = box_loss(
                    deltas, classes[foreground], foreground, boxes, objects[foreground], self.coders[stage]
                )
            if stage + 1 < self.stages:
                labelled = self._relabel(stage + 1, deltas.detach(), labelled, sizes, targets)
        return losses

    def _loss_of_classes(self, logits: Tensor, classes: Tensor) -> Tensor:
        if self.config.scores == "softmax":
            return softmax_loss(logits, classes)
        if not self.config.federated_classes:
            return sigmoid_loss(logits, classes)
        if self.class_frequency is None:
            raise UserError(
                f"federated_classes is {self.config.federated_classes} and the frequency of classes is not known",
                "Call set_class_frequency with the number of training pictures of each class",
            )
        counted = federated_classes(classes, self.config.federated_classes, self.class_frequency)
        return sigmoid_loss(logits, classes, counted)

    def _loss_of_masks(self, maps: list[Tensor], drawn: list[_Labelled], targets: Sequence[Target]) -> Tensor:
        """Of the first stage's foreground, in the boxes as proposed, whatever the cascade made of them."""
        learning = [self._with_masks(one, target) for one, target in zip(drawn, targets, strict=True)]
        wanted = [
            mask_targets(target["masks"], one.objects, one.boxes, 2 * MASK_CELLS)
            for one, target in zip(learning, targets, strict=True)
        ]
        logits = self.mask_predictor(self.mask_head(self.mask_pooler(maps, [one.boxes for one in learning])))
        with torch.autocast(logits.device.type, enabled=False):
            return mask_loss(logits, torch.cat([one.classes for one in learning]), torch.cat(wanted))

    @torch.no_grad()
    def _with_masks(self, drawn: _Labelled, target: Target) -> _Labelled:
        """The foreground; an object without polygon or pixel is known by its box only and teaches no mask."""
        masks, learns = target["masks"], drawn.classes < self.config.num_classes
        if len(masks):
            bitmaps = isinstance(masks, Tensor)
            drawable = masks.flatten(1).any(1) if bitmaps else torch.tensor([len(polygons) > 0 for polygons in masks])
            learns &= drawable.to(learns.device)[drawn.objects]
        return _Labelled(drawn.boxes[learns], drawn.classes[learns], drawn.objects[learns])


def _nearest(labelled: _Labelled, target: Target) -> Tensor:
    """Boxes `[R, 4]` of the objects that boxes overlap most; zeros where there is no object."""
    objects = target["boxes"]
    return objects[labelled.objects] if len(objects) else torch.zeros_like(labelled.boxes)
