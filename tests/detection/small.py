"""A detector that is built and run in a fraction of a second, and pictures with objects for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmvit.config import MViTConfig
from openmvit.detection import Detector, DetectorConfig, Target

BACKBONE = MViTConfig(
    input_size=(64, 64), depths=(1, 2, 2, 1), embed_dim=8, num_classes=0, window=(16, 16), window_pattern="hybrid",
    global_kv_stride_factor=2, drop_path_rate=0.0,
)  # fmt: skip
CASCADE = {
    "stage_iou": (0.5, 0.6, 0.7), "class_agnostic": True, "rpn_convs": 2, "box_convs": (8, 8), "box_fcs": (16,),
    "coder_weights": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
}  # fmt: skip


def config(**changes: Any) -> DetectorConfig:
    fields: dict[str, Any] = {
        "backbone": BACKBONE, "num_classes": 3, "channels": 8, "box_fcs": (16, 16), "mask_convs": (8, 8),
        "rpn_candidates": (60, 40), "rpn_proposals": (40, 30), "score_threshold": 0.0, "max_detections": 7,
        "anchor_sizes": (16.0, 32.0, 48.0, 64.0, 96.0),
    }  # fmt: skip
    return DetectorConfig(**fields | changes)


def detector(**changes: Any) -> Detector:
    torch.manual_seed(0)
    return Detector(config(**changes)).eval()


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]


def target(size: tuple[int, int], count: int = 2, polygons: bool = False) -> Target:
    h, w = size
    corners = [(4.0 + 5 * i, 6.0 + 3 * i, w / 2 + 5 * i, h / 2 + 4 * i) for i in range(count)]
    masks = torch.zeros(count, h, w, dtype=torch.bool)
    shapes = []
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
        shapes.append([np.array([x0, y0, x1, y0, x1, y1, x0, y1])])
    return {
        "boxes": torch.tensor(corners).reshape(-1, 4),
        "labels": torch.arange(count) % 3,
        "masks": shapes if polygons else masks,
    }
