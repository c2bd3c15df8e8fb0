"""Detectors: one picture of any size, its boxes and their masks; pasting is left to the caller."""

from __future__ import annotations

from math import isfinite, lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from openmvit.detection.augmentation import test_views
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.errors import UserError
from openmvit.export.classifiers import LARGEST, common_stride
from openmvit.export.operators import translations
from openmvit.export.plan import Inputs, Outputs, Plan

_PIXELS = 200.0
"""A box that is off by so many pixels differs by 1: 1e-4 is 0.02 pixels."""


class DetectorGraph(nn.Module):
    """A detector for one picture, with tensors for all that it takes and gives."""

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        for name in ("mean", "std"):
            values = torch.tensor(getattr(detector.config, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, image: Tensor, size: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find objects.

        Args:
            image: float32 `[1, 3, H, W]`, RGB 0..255, at network size, padded with anything at the right and bottom.
            size: float32 `[2]`, height and width without padding.
            threshold: float32 `[1]`; only higher scores count.
        Returns:
            boxes `[K, 4]`, scores `[K]`, labels int64 `[K]` and masks `[K, 28, 28]`, as in `Detections`.
        """
        height, width = size.unbind()
        rows, columns = (torch.arange(n, device=image.device, dtype=size.dtype) for n in image.shape[2:])
        inside = (rows < height)[:, None] & (columns < width)
        x = torch.where(inside, (image - self.mean) / self.std, 0.0)
        maps = self.detector.neck(self.detector.backbone(x))
        # Sides that are tensors stay open in the graph.
        sizes: Any = [(height, width)]
        proposals, _, _ = self.detector.rpn(maps, sizes)
        (found,) = self.detector.roi_heads.detect(maps, proposals, sizes, threshold=threshold)
        assert found.mask_probs is not None
        return found.boxes, found.scores, found.labels, found.mask_probs


def plan_detector(detector: Detector, card: dict[str, Any]) -> Plan:
    """How a detector is exported: one picture, height and width open unless it pads to a square.

    Raises:
        UserError: if it suppresses softly, its card does not say how pictures are resized, or it finds nothing at all.
    """
    config = detector.config
    if config.soft_nms != "none":
        raise UserError(f"This detector has soft_nms {config.soft_nms!r}, which no graph has", "Export one without")
    test_views(card["preprocessing"], config)
    graph = DetectorGraph(detector.eval().requires_grad_(False).cpu()).eval()
    step, side = padded_to(config), config.square_pad
    # The first one is traced: as one window is not pooled like many, it has several along both sides.
    several = (_widest_window(config) // step + 1) * step
    sizes = [(several, several + step), (2 * step, 3 * step), (several + 2 * step, 2 * step), (3 * step, several)]
    sizes = [(side, side)] * 4 if side else sizes
    dynamic, named, words = _sides(step, side)
    found = [{0: "objects"} for _ in range(4)]
    probes = _probes(graph, sizes)
    return Plan(
        module=graph,
        inputs=probes[0],
        dynamic=(dynamic, {}, {}),
        names=(["image", "size", "threshold"], ["boxes", "scores", "labels", "masks"]),
        axes=([named, {}, {}], found),
        probes=probes,
        card=card | {"export": {"precision": "fp32", "multiple": step}},
        note=words,
        difference=matched_difference,
        any_size=True,
        translations=translations,
    )


def _sides(step: int, side: int) -> tuple[dict[int, Any], dict[int, str], str]:
    """Axes of the picture that stay open, their names, and words for both."""
    if side:
        return {}, {}, f"one picture, padded to {side} x {side}"
    most = LARGEST // step
    dynamic = {2: step * Dim("h", min=1, max=most), 3: step * Dim("w", min=1, max=most)}
    return dynamic, {2: "height", 3: "width"}, f"one picture, height and width multiples of {step}"


def padded_to(config: DetectorConfig) -> int:
    """Pixels of which the sides of a graph's picture are multiples: 32 in all published detectors."""
    return lcm(config.divisor, common_stride(config.backbone))


def _widest_window(config: DetectorConfig) -> int:
    """Pixels along the longest side of a window; two strides where there is none."""
    trunk = config.backbone
    strides = [
        p * q**i for i in range(len(trunk.windows)) for p, q in zip(trunk.patch_stride, trunk.stride_q, strict=True)
    ]
    sides = [side for window in trunk.windows for side in window]
    return max((n * s for n, s in zip(sides, strides, strict=True)), default=2 * padded_to(config))


def _probes(graph: DetectorGraph, sizes: list[tuple[int, int]]) -> list[Inputs]:
    probes = [_probe(graph, size, number) for number, size in enumerate(sizes)]
    if not any(threshold > 0 for *_, threshold in probes):
        raise UserError(
            "This detector finds nothing in random pictures at a threshold of 0, so that nothing could be compared",
            "Give other weights; these may hold values that are no numbers",
        )
    return probes


@torch.no_grad()
def _probe(graph: DetectorGraph, padded: tuple[int, int], seed: int) -> Inputs:
    """A random picture, a part of it without content, and a threshold that many of its boxes pass.

    Noise shows no objects: with the threshold of the detector nothing might be found, and nothing compared.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, *padded, generator=generator) * 255
    size = torch.tensor([padded[0] - 5.0 * seed, padded[1] - 7.0 * seed])
    scores = graph(image, size, torch.zeros(1))[1]
    return image, size, scores.amin(0, keepdim=True) / 2 if len(scores) else torch.zeros(1)


def matched_difference(expected: Outputs, found: Outputs) -> float:
    """Largest difference of scores and masks, and of boxes in parts of 200 pixels; detections may be in another order.

    Infinite if there is another number of detections, one has no partner of its class, or a value is no number.
    """
    (boxes, scores, labels, masks), (other, values, numbers, probs) = expected, found
    if boxes.shape != other.shape:
        return float("inf")
    if not len(boxes):
        return 0.0
    apart = (boxes[:, None] - other).abs().amax(2) / _PIXELS
    apart = torch.maximum(apart, (scores[:, None] - values).abs())
    apart = apart.masked_fill(labels[:, None] != numbers, float("inf"))
    worst, partner = apart.min(dim=1)
    if len(partner.unique()) < len(partner) or not worst.isfinite().all():
        return float("inf")
    # Tensors keep what is no number, where Python's max may drop it.
    largest = float(torch.maximum(worst.max(), (masks - probs[partner]).abs().max()))
    return largest if isfinite(largest) else float("inf")
