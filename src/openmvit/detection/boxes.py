"""Arithmetic of boxes: overlap, coding against a reference, matching and sampling.

A box is x0 y0 x1 y1 in continuous pixels of the network's input. Everything is computed in float32, whatever the
precision of the network: in half precision a box far from the corner moves by a fraction of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from openmvit.nn.fast.tracing import is_exporting

_LARGEST = math.log(1000 / 16)
"""Of dw and dh when decoding: a 16 pixel reference grows to 1000 at most, and exp cannot overflow."""


class BoxCoder:
    """Boxes as offsets dx, dy, dw, dh from a reference box, times `weights`.

    dx and dy are shifts of the centre in reference widths and heights, dw and dh logarithms of the ratio of sides.

    Source: Girshick et al., Rich feature hierarchies (2014), appendix C; weights as in facebookresearch/detectron2.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = tuple(float(w) for w in weights)

    def encode(self, reference: Tensor, boxes: Tensor) -> Tensor:
        """Deltas `[N, 4]` float32 that `decode` turns into `boxes` `[N, 4]`; `reference` `[N, 4]` has no empty box."""
        x, y, width, height = _centre_form(reference.float())
        to_x, to_y, to_width, to_height = _centre_form(boxes.float())
        wx, wy, ww, wh = self.weights
        dx, dy = wx * (to_x - x) / width, wy * (to_y - y) / height
        return torch.stack((dx, dy, ww * torch.log(to_width / width), wh * torch.log(to_height / height)), dim=1)

    def decode(self, deltas: Tensor, reference: Tensor) -> Tensor:
        """Boxes `[N, 4k]` float32 of `deltas` `[N, 4k]`, k boxes per row, against `reference` `[N, 4]`."""
        x, y, width, height = (side[:, None] for side in _centre_form(reference.float()))
        dx, dy, dw, dh = (deltas.float()[:, i::4] / weight for i, weight in enumerate(self.weights))
        x, y = dx * width + x, dy * height + y
        half_width = 0.5 * (torch.exp(dw.clamp(max=_LARGEST)) * width)
        half_height = 0.5 * (torch.exp(dh.clamp(max=_LARGEST)) * height)
        corners = (x - half_width, y - half_height, x + half_width, y + half_height)
        return torch.stack(corners, dim=2).flatten(1)


def _centre_form(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height


@torch.no_grad()
def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union `[N, M]` float32 of boxes `a` `[N, 4]` and `b` `[M, 4]`; 0 where one is empty."""
    a, b = a.float().t().contiguous(), b.float().t().contiguous()
    shared = _overlap(a, b, 0).mul_(_overlap(a, b, 1))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    union = (area_a[:, None] + area_b).sub_(shared)
    return shared.div_(union).nan_to_num_(0.0)


def _overlap(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Shared length `[N, M]` along one axis, of columns of boxes `[4, N]` and `[4, M]`.

    In place: with all anchors of an image each such matrix is large.
    """
    end = torch.minimum(a[axis + 2][:, None], b[axis + 2])
    return end.sub_(torch.maximum(a[axis][:, None], b[axis])).clamp_(min=0)


def match(iou: Tensor, low: float, high: float, *, keep_best: bool) -> tuple[Tensor, Tensor]:
    """The object nearest to each box, and whether the box counts as that object.

    Args:
        iou: `[G, N]` of G objects and N boxes.
        low: below it a box is background.
        high: from it on a box is an object; between the two it is ignored.
        keep_best: boxes with the best overlap that some object has, ties too, count as objects at any overlap above 0.
            They belong to their own nearest object, which may be another one.

    Returns:
        index: int64 `[N]` of the object with the largest overlap, the first of equals; 0 without objects.
        label: int8 `[N]`: 1 object, 0 background, -1 ignored. Without objects all are background.
    """
    label = torch.zeros(iou.shape[1], dtype=torch.int8, device=iou.device)
    if iou.numel() == 0:
        return torch.zeros(iou.shape[1], dtype=torch.int64, device=iou.device), label
    value, index = iou.max(dim=0)
    label[value >= low] = -1
    label[value >= high] = 1
    if keep_best:
        best = iou.amax(dim=1, keepdim=True)
        label[((iou == best) & (best > 0)).any(dim=0)] = 1
    return index, label


def sample(
    label: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draws at most `count` of the rows labelled 1 or 0.

    Args:
        label: `[N]`: 1 object, 0 background, -1 never drawn.
        count: rows wanted; fewer are drawn where there are fewer.
        positive_fraction: largest share of `count` that may be objects; background fills the rest.
        generator: of the draw; without it the global one. Two permutations are drawn, first that of the objects.

    Returns:
        int64 row numbers of the objects, and of the background.
    """
    positive, negative = (label == 1).nonzero()[:, 0], (label == 0).nonzero()[:, 0]
    positives = min(len(positive), int(count * positive_fraction))
    negatives = min(len(negative), count - positives)
    device = label.device if generator is None else generator.device
    first = torch.randperm(len(positive), device=device, generator=generator)[:positives]
    second = torch.randperm(len(negative), device=device, generator=generator)[:negatives]
    return positive[first.to(label.device)], negative[second.to(label.device)]


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`boxes` `[N, 4k]` cut to a picture of `size` (height, width); a box outside becomes an empty one at the edge.

    In an exported graph the sides are tensors.
    """
    if is_exporting():
        height, width = (torch.as_tensor(side, dtype=boxes.dtype) for side in size)
        ends = torch.stack([width, height]).repeat(boxes.shape[1] // 2)
        return torch.minimum(boxes.clamp(min=0), ends)
    return clip_boxes_to_image(boxes, size)


def nonempty(boxes: Tensor, threshold: float = 0.0) -> Tensor:
    """Bool `[N]`: both sides of the box `[N, 4]` are longer than `threshold` pixels."""
    return (boxes[:, 2] - boxes[:, 0] > threshold) & (boxes[:, 3] - boxes[:, 1] > threshold)
