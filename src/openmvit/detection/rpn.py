"""Region proposals: anchors, the head that scores and moves them, their selection and losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead

from openmvit.detection.boxes import BoxCoder, clip, match, nonempty, pairwise_iou, sample
from openmvit.detection.config import DetectorConfig
from openmvit.detection.suppression import suppress

_BACKGROUND_BELOW, _OBJECT_FROM = 0.3, 0.7
"""Overlap of an anchor with an object."""


class AnchorGrid(nn.Module):
    """Anchors centred on every cell's first corner, all ratios of a size side by side; has no state.

    Args:
        sizes: side of the square anchor, pixels: one per map, or any number on a single map.
        ratios: height over width; the area stays that of the square.
        strides: pixels per cell, one per map. Given, because map sizes are rounded up and do not tell them.
    """

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        each = [sizes] if len(strides) == 1 else [[size] for size in sizes]
        self.strides = tuple(strides)
        self.cells = [_anchors_of_a_cell(of_map, ratios) for of_map in each]

    @property
    def per_cell(self) -> int:
        """Anchors on one cell of a map."""
        return len(self.cells[0])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Boxes `[h * w * per_cell, 4]` float32 per map `[B, C, h, w]`: rows, columns, then sizes and ratios."""
        grids = zip(maps, self.strides, self.cells, strict=True)
        return [_spread(cell, stride, (m.shape[2], m.shape[3]), m.device) for m, stride, cell in grids]


def _anchors_of_a_cell(sizes: Sequence[float], ratios: Sequence[float]) -> list[tuple[float, ...]]:
    widths = [(math.sqrt(size**2 / ratio), ratio) for size in sizes for ratio in ratios]
    return [(-width / 2, -ratio * width / 2, width / 2, ratio * width / 2) for width, ratio in widths]


def _spread(
    cell: list[tuple[float, ...]], stride: int, grid: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    y, x = (torch.arange(count, dtype=torch.float32, device=device) * stride for count in grid)
    y, x = y[:, None].expand(grid), x.expand(grid)
    corners = torch.stack((x, y, x, y), dim=2).view(-1, 1, 4)
    return (corners + torch.tensor(cell, dtype=torch.float32, device=device)).view(-1, 4)


class RegionProposals(nn.Module):
    """Boxes that may hold an object of any class, from the maps of the neck.

    In training mode the first of the config's `(train, test)` pairs counts, else the second.

    Source: Ren et al., Faster R-CNN (2015); ranking, losses and limits as in facebookresearch/detectron2.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.anchors = AnchorGrid(config.anchor_sizes, config.aspect_ratios, config.strides)
        self.head = RPNHead(config.channels, self.anchors.per_cell, config.rpn_convs)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(
        self,
        maps: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Proposes boxes in every picture of the batch.

        Args:
            maps: `[B, C, h, w]` each, finest first.
            sizes: (height, width) of each picture without its padding.
            targets: per picture a mapping with `boxes` float32 `[N, 4]`; N may be 0.

        Returns:
            Per picture the boxes float32 `[P, 4]`, best first and without gradient; their logits `[P]`; the losses
            `loss_rpn_cls` and `loss_rpn_loc`, empty without targets.

        Raises:
            FloatingPointError: in training mode, if a chosen box or logit is not finite. Else such rows are left out.
        """
        logits, deltas = self._predict(maps)
        anchors = self.anchors(maps)
        proposals, scores = self._propose(logits, deltas, anchors, sizes)
        if targets is None:
            return proposals, scores, {}
        boxes = [target["boxes"] for target in targets]
        return proposals, scores, self._losses(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors), boxes)

    def _predict(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits `[B, A]` and deltas `[B, A, 4]` per map, float32, in the order of the anchors."""
        logits, deltas = self.head(list(maps))
        per_cell = self.anchors.per_cell
        return (
            [logit.float().permute(0, 2, 3, 1).flatten(1) for logit in logits],
            [delta.float().unflatten(1, (per_cell, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for delta in deltas],
        )

    @torch.no_grad()
    def _propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        config, phase = self.config, 0 if self.training else 1
        values, rows, levels = best_per_map(logits, config.rpn_candidates[phase])
        boxes = []
        for delta, anchor, row in zip(deltas, anchors, rows, strict=True):
            chosen = delta.gather(1, row[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(chosen.flatten(0, 1), anchor[row].flatten(0, 1)).view_as(chosen))
        found = torch.cat(boxes, dim=1), values, levels
        limit = config.rpn_proposals[phase]
        return select_proposals(*found, sizes, limit=limit, nms=config.rpn_nms, strict=self.training)

    def _losses(self, logits: Tensor, deltas: Tensor, anchors: Tensor, objects: Sequence[Tensor]) -> dict[str, Tensor]:
        """Sums over the drawn anchors, divided by the number that should be drawn, even where fewer were.

        Binary cross entropy of the logits `[B, A]`; L1 of the deltas `[B, A, 4]` of the anchors `[A, 4]` that are
        objects. Both hang on the graph where there is nothing to draw.
        """
        scores, truths, moves, goals = [], [], [], []
        for logit, delta, boxes in zip(logits, deltas, objects, strict=True):
            index, label = match(pairwise_iou(boxes, anchors), _BACKGROUND_BELOW, _OBJECT_FROM, keep_best=True)
            positive, negative = sample(label, self.config.rpn_samples, self.config.rpn_positive)
            scores += [logit[positive], logit[negative]]
            truths += [torch.ones_like(scores[-2]), torch.zeros_like(scores[-1])]
            moves.append(delta[positive])
            goals.append(self.coder.encode(anchors[positive], boxes[index[positive]]))
        count = self.config.rpn_samples * len(objects)
        entropy = F.binary_cross_entropy_with_logits(torch.cat(scores), torch.cat(truths), reduction="sum")
        distance = F.l1_loss(torch.cat(moves), torch.cat(goals), reduction="sum")
        return {"loss_rpn_cls": entropy / count, "loss_rpn_loc": distance / count}


def best_per_map(logits: Sequence[Tensor], count: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """The best `count` anchors of each map, by logit: as scores in 0..1 the best would all round to 1.

    Args:
        logits: `[B, A]` per map. A logit that is not a number counts as best.
        count: of each map; a smaller map gives all it has.

    Returns:
        The logits `[B, P]` of all maps side by side, best first within each map; their row numbers `[B, P_map]` per
        map; the number of the map int64 `[P]`.
    """
    best = [logit.topk(torch.sym_min(count, logit.shape[1]), dim=1) for logit in logits]
    maps = [torch.full((b.values.shape[1],), i, device=b.values.device) for i, b in enumerate(best)]
    return torch.cat([b.values for b in best], dim=1), [b.indices for b in best], torch.cat(maps)


def select_proposals(
    boxes: Tensor,
    logits: Tensor,
    levels: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    limit: int,
    nms: float,
    strict: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Clips boxes to their picture, drops empty ones, suppresses within each map, keeps the best over all maps.

    Args:
        boxes: `[B, P, 4]`.
        logits: `[B, P]`.
        levels: `[P]` number of the map.
        sizes: (height, width) per picture.
        limit: boxes kept per picture.
        nms: overlap above which the worse of two boxes of one map goes.
        strict: rows that are not finite are an error; else they are dropped.

    Returns:
        Per picture boxes `[D, 4]` and logits `[D]`, best first; D may be 0.

    Raises:
        FloatingPointError: see `strict`.
    """
    finite = boxes.isfinite().all(dim=2) & logits.isfinite()
    if strict and not finite.all():
        raise FloatingPointError("Region proposals are no longer finite: the training has diverged.")
    chosen_boxes, chosen_logits = [], []
    for box, logit, good, size in zip(boxes, logits, finite, sizes, strict=True):
        box = clip(box, size)
        good = good & nonempty(box)
        box, logit = box[good], logit[good]
        keep = suppress(box, logit, levels[good], nms, limit)
        chosen_boxes.append(box[keep])
        chosen_logits.append(logit[keep])
    return chosen_boxes, chosen_logits
