"""Test-time augmentation: a picture is searched at several sizes and mirrored, and what is found is joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from openmvit.data.detection_samples import to_pixels
from openmvit.data.scenes import resize_image, short_side_size
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detections import Detections
from openmvit.detection.detector import Detector, evaluating
from openmvit.detection.selection import select_detections
from openmvit.errors import UserError
from openmvit.nn.ops import autocast

_EIGHTHS = range(4, 13)
"""Short sides of the augmentation in eighths of the usual one: 400, 500 .. 1200 for 800."""
_LONG = 5.0
"""Its largest long side, over the usual short one: 4000 for 800."""
_MERGE_THRESHOLD = 1e-8


class View(NamedTuple):
    """A picture as the network sees it: uint8 `[3, h, w]`, RGB, perhaps mirrored left and right."""

    image: Tensor
    mirrored: bool


@dataclass(frozen=True)
class Views:
    """Which views of a picture the network sees.

    Args:
        short_sides: pixels; a view each.
        long_side: a view is smaller where its long side would exceed it, pixels.
        mirror: every view mirrored too, right behind it.
    """

    short_sides: tuple[int, ...]
    long_side: int
    mirror: bool = False

    def __call__(self, image: Image.Image) -> list[View]:
        """The views of an upright RGB picture, each resized from the picture itself; equal sizes come once."""
        sizes = [short_side_size(image.height, image.width, side, self.long_side) for side in self.short_sides]
        views = []
        for size in dict.fromkeys(sizes):
            pixels = to_pixels(resize_image(image, size))
            views.append(View(pixels, False))
            if self.mirror:
                views.append(View(pixels.flip(2), True))
        return views


def test_views(preprocessing: Mapping[str, Any], config: DetectorConfig, augmented: bool = False) -> Views:
    """The one view of a card's preprocessing, or all those of test-time augmentation around it.

    Args:
        preprocessing: `short_side` and `long_side`, pixels.
        config: of the detector; its square, if it pads to one, limits the long side.
    Raises:
        UserError: if the preprocessing lacks a side.
    Source: facebookresearch/detectron2, GeneralizedRCNNWithTTA, whose default sizes these are for a short side of 800.
    """
    missing = [key for key in ("short_side", "long_side") if not preprocessing.get(key)]
    if missing:
        raise UserError(f"The card of this detector lacks {missing[0]!r} in its preprocessing", "Train it again")
    short, long = int(preprocessing["short_side"]), int(preprocessing["long_side"])
    if not augmented:
        return Views((short,), long)
    longest = max(round(_LONG * short), long)
    longest = min(longest, config.square_pad) if config.square_pad else longest
    return Views(tuple(round(short * eighths / 8) for eighths in _EIGHTHS), longest, mirror=True)


test_views.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@torch.no_grad()
def detect_augmented(model: Detector, views: Sequence[View], size: tuple[int, int], batch: int = 1) -> Detections:
    """What is found in a picture by all its views together.

    Boxes of all views are moved back into the picture and joined as boxes of one search are: none is averaged, and
    soft suppression, if the detector uses it, works here and not in the views. Then every view gives a mask for each
    joined box, and the mean over the views counts.

    Args:
        views: at least one.
        size: height and width of the picture, in whose pixels the answer is.
        batch: views at a time. Views of one batch are padded to one size, which changes what is found a little.
    Source: facebookresearch/detectron2, GeneralizedRCNNWithTTA.
    """
    with evaluating(model), autocast(next(model.parameters())):
        found: list[Detections] = []
        with selecting(model, soft_nms="none"):
            for part in _parts(views, batch):
                maps, sizes = model.features([view.image for view in part])
                proposals, _, _ = model.rpn(maps, sizes)
                found += model.roi_heads.detect(maps, proposals, sizes, with_masks=False)
        boxes = [_into_picture(one.boxes, view, size) for one, view in zip(found, views, strict=True)]
        merged = _merge(boxes, found, size, model.roi_heads.config)
        total = torch.zeros((), device=merged.boxes.device)
        for part in _parts(views, batch):
            maps, _ = model.features([view.image for view in part])
            given = [_into_view(merged, view) for view in part]
            for view, one in zip(part, model.roi_heads.predict_masks(maps, given), strict=True):
                assert one.mask_probs is not None
                total = total + (one.mask_probs.flip(2) if view.mirrored else one.mask_probs)
    return dataclasses.replace(merged, mask_probs=total / len(views))


@contextmanager
def selecting(model: Detector, **changes: Any) -> Iterator[None]:
    """Inside the block the detector chooses its boxes by other rules.

    Args:
        changes: `score_threshold`, `nms`, `soft_nms` or `max_detections` in place of the configuration's.
    """
    before = model.roi_heads.config
    model.roi_heads.config = dataclasses.replace(before, **changes)
    try:
        yield
    finally:
        model.roi_heads.config = before


def _parts(views: Sequence[View], batch: int) -> Iterator[Sequence[View]]:
    return (views[start : start + batch] for start in range(0, len(views), batch))


def _into_picture(boxes: Tensor, view: View, size: tuple[int, int]) -> Tensor:
    """Boxes `[D, 4]` of a view in pixels of the picture."""
    height, width = view.image.shape[1:]
    moved = _mirrored(boxes, width) if view.mirrored else boxes
    return _scaled(moved, size[1] / width, size[0] / height)


def _into_view(found: Detections, view: View) -> Detections:
    """The same objects in pixels of a view."""
    height, width = view.image.shape[1:]
    boxes = _scaled(found.boxes, width / found.size[1], height / found.size[0])
    boxes = _mirrored(boxes, width) if view.mirrored else boxes
    return dataclasses.replace(found, boxes=boxes, size=(height, width))


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)


def _scaled(boxes: Tensor, across: float, down: float) -> Tensor:
    left, top, right, bottom = boxes.unbind(1)
    return torch.stack([left * across, top * down, right * across, bottom * down], dim=1)


def _merge(boxes: list[Tensor], found: list[Detections], size: tuple[int, int], config: DetectorConfig) -> Detections:
    """The boxes of all views as if one search had found them; each keeps the one class that it came with."""
    every, values = torch.cat(boxes), torch.cat([one.scores for one in found])
    labels = torch.cat([one.labels for one in found])
    scores = values.new_zeros(len(every), config.num_classes)
    scores[torch.arange(len(every), device=every.device), labels] = values
    chosen = select_detections(
        every,
        scores,
        size,
        threshold=_MERGE_THRESHOLD,
        nms=config.nms,
        limit=config.max_detections,
        soft=config.soft_nms,
    )
    return Detections(*chosen[:3], size=size).rescaled(size)
