"""Masks between a small square per box and the picture: targets for training, pasting for results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

if TYPE_CHECKING:
    import numpy as np

_MASKS_AT_ONCE = 16
"""Full-size masks that are float32 at the same time."""
_LEAST_SIDE = 0.1
"""Pixels; smaller boxes are widened to it where polygons are scaled."""


def paste_masks(probs: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """The pixels of a picture that belong to each object: bilinear samples of its map at pixel centres.

    Args:
        probs: `[N, s, s]`, 0..1, stretched over its box; zero beyond its edge.
        boxes: `[N, 4]`, x0 y0 x1 y1 in pixels of the picture; those without area give no pixel.
        size: `(h, w)` of the picture.
        threshold: pixels from this value on belong to the object, above 0.

    Returns:
        bool `[N, h, w]`.
    """
    pasted = torch.zeros((len(probs), *size), dtype=torch.bool, device=probs.device)
    probs, boxes = probs.detach().float(), boxes.detach().float()
    for i, box in enumerate(boxes.tolist()):
        if not (all(map(math.isfinite, box)) and box[2] > box[0] and box[3] > box[1]):
            continue
        left, right, across = _samples(box[0::2], boxes[i, 0::2], probs.shape[2], size[1], threshold)
        top, bottom, down = _samples(box[1::2], boxes[i, 1::2], probs.shape[1], size[0], threshold)
        if right <= left or bottom <= top:
            continue
        grid = torch.stack([across.expand(len(down), -1), down[:, None].expand(-1, len(across))], dim=2)
        values = F.grid_sample(probs[i, None, None], grid[None], align_corners=False)
        pasted[i, top:bottom, left:right] = values[0, 0] >= threshold
    return pasted


def _samples(ends: list[float], box: Tensor, cells: int, length: int, threshold: float) -> tuple[int, int, Tensor]:
    """First pixel, end, and where the centres of those between lie in the map (-1..1), along one axis.

    Beyond its edge the map falls linearly to zero within half a cell: with a threshold below 0.5 that margin counts.
    """
    margin = 1 + (ends[1] - ends[0]) / cells * max(0.0, 0.5 - threshold)
    first = max(0, min(length, math.floor(ends[0] - margin)))
    end = max(0, min(length, math.ceil(ends[1] + margin)))
    centres = torch.arange(first, end, device=box.device, dtype=torch.float32) + 0.5
    return first, end, (centres - box[0]) / (box[1] - box[0]) * 2 - 1


def mask_targets(masks: Tensor | Sequence[Sequence[np.ndarray]], rows: Tensor, boxes: Tensor, side: int) -> Tensor:
    """bool `[N, side, side]`: box i against mask `rows[i]` of either kind."""
    if isinstance(masks, Tensor):
        return bitmask_targets(masks, boxes, side, rows)
    return polygon_targets([masks[row] for row in rows.tolist()], boxes, side)


def bitmask_targets(masks: Tensor, boxes: Tensor, side: int, rows: Tensor | None = None) -> Tensor:
    """What the mask head should answer for each box, from full-size masks: aligned average, then one half decides.

    Args:
        masks: bool `[G, h, w]`.
        boxes: `[N, 4]` in pixels of the masks.
        side: cells per side of the answer.
        rows: int64 `[N]`, the mask of each box; without it box i has mask i.

    Returns:
        bool `[N, side, side]`.
    """
    boxes = boxes.detach().float()
    rows = torch.arange(len(boxes), device=boxes.device) if rows is None else rows
    targets = torch.zeros((len(boxes), side, side), dtype=torch.bool, device=boxes.device)
    for first in range(0, len(masks), _MASKS_AT_ONCE):
        some = masks[first : first + _MASKS_AT_ONCE, None].float()
        mine = torch.nonzero((rows >= first) & (rows < first + _MASKS_AT_ONCE)).squeeze(1)
        rois = torch.cat([(rows[mine] - first).float()[:, None], boxes[mine]], dim=1)
        with torch.autocast(some.device.type, enabled=False):
            share = ops.roi_align(some, rois, side, 1.0, sampling_ratio=0, aligned=True)
        targets[mine] = share[:, 0] >= 0.5
    return targets


def polygon_targets(polygons: Sequence[Sequence[np.ndarray]], boxes: Tensor, side: int) -> Tensor:
    """What the mask head should answer for each box, from polygons: moved and scaled to the box, then drawn.

    Args:
        polygons: per box the polygons of its object, each x0 y0 x1 y1 ... in pixels.
        boxes: `[N, 4]` in the same pixels.
        side: cells per side of the answer.

    Returns:
        bool `[N, side, side]` on the boxes' device; an object without polygons gives an empty answer.
    """
    import numpy as np

    targets = np.zeros((len(boxes), side, side), dtype=bool)
    for i, box in enumerate(boxes.detach().double().cpu().numpy()):
        scale = side / np.maximum(box[2:] - box[:2], _LEAST_SIDE)
        moved = [(np.asarray(p, dtype=np.float64).reshape(-1, 2) - box[:2]) * scale for p in polygons[i]]
        targets[i] = _draw(moved, side)
    return torch.from_numpy(targets).to(boxes.device)


def _draw(polygons: list[np.ndarray], side: int) -> np.ndarray:
    """bool `[side, side]`: the union of polygons, drawn by COCO's rule."""
    import numpy as np
    from faster_coco_eval import mask as coco

    # The library reads four numbers as a box, so what has fewer than three corners must not reach it.
    drawable = [polygon.ravel().tolist() for polygon in polygons if len(polygon) >= 3]
    if not drawable:
        return np.zeros((side, side), dtype=bool)
    drawn = coco.frPyObjects(drawable, side, side)
    return np.asarray(coco.decode(coco.merge(drawn if isinstance(drawn, list) else [drawn]))).astype(bool)
