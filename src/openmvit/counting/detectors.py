"""Operations of a detector: its backbone in closed form, neck and heads by the shapes of their calls."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

from openmvit.config import Size
from openmvit.counting.classifiers import count_trunk, stage_grids
from openmvit.counting.cost import Cost, Count, total
from openmvit.counting.layers import count_calls, parameters

if TYPE_CHECKING:
    from openmvit.detection.config import DetectorConfig
    from openmvit.detection.detector import Detector

COUNTED_SIZE = (800, 1280)
"""Height and width of the picture that the papers' tables count on, pixels."""


def count_detector(config: DetectorConfig, size: Size | None = None) -> Count:
    """Every part of a detector for one picture, whose masks are pasted into it.

    The box heads see as many proposals, and the mask head as many boxes, as the configuration allows in a search.

    Args:
        size: height and width, pixels; default 800 x 1280, or the square that the detector pads to.
    Raises:
        UserError: if the size has another number of axes.
    """
    from openmvit.detection.detector import Detector

    size = size or ((config.square_pad,) * 2 if config.square_pad else COUNTED_SIZE)
    padded = tuple(-(-max(n, config.square_pad) // config.divisor) * config.divisor for n in size)
    with torch.device("meta"):
        detector = Detector(config)
    parts = count_trunk(detector.backbone.model, padded)
    grids = stage_grids(config.backbone, padded)
    chosen = zip(detector.backbone.out_indices, detector.backbone.channels, strict=True)
    inputs = [torch.empty(1, channels, *grids[i], device="meta") for i, channels in chosen]
    norms = {"norm": 5 * sum(x.numel() for x in inputs)}
    parts["norms"] = Cost(parameters(detector.backbone.norms), norms)
    parts["neck"] = count_calls(detector.neck, inputs)
    maps = detector.neck(inputs)
    parts["proposals"] = count_calls(detector.rpn.head, maps)
    return Count(size, parts | _heads(detector, maps[0].shape[1], size))


def _heads(detector: Detector, channels: int, size: Size) -> dict[str, Cost]:
    from openmvit.detection.heads import BOX_CELLS, MASK_CELLS

    heads, config = detector.roi_heads, detector.config
    proposals, found = config.rpn_proposals[1], config.max_detections
    boxes = torch.empty(proposals, channels, BOX_CELLS, BOX_CELLS, device="meta")
    masks = torch.empty(found, channels, MASK_CELLS, MASK_CELLS, device="meta")
    stages = zip(heads.box_heads, heads.box_predictors, strict=True)
    return {
        "box heads": total(count_calls(nn.Sequential(*stage), boxes) for stage in stages),
        "mask head": count_calls(nn.Sequential(heads.mask_head, heads.mask_predictor), masks),
        # As the tables do: whole pictures are sampled, though ours samples no further than a box reaches.
        "pasting": Cost(0, {"resample": 4 * found * prod(size)}),
    }
