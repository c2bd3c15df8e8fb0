"""Recorded detectors against ours: build one from its settings, run it in evaluation and in training, compare."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from openmvit.detection import released
from openmvit.detection.batching import make_batch
from openmvit.detection.detections import Detections, Target
from openmvit.detection.detector import Detector
from openmvit.detection.settings import from_settings

FOLDER = Path(__file__).parents[1] / "golden" / "detection"
NAMES = ("mask_rcnn_plain", "mask_rcnn_ln_square")


@dataclass
class Differences:
    """Largest differences of one recorded detector; relative where the README's tolerance is."""

    features: float = 0.0
    boxes: float = 0.0
    scores: float = 0.0
    classes_equal: bool = True
    mask_probs: float = 0.0
    pixels_equal: float = 1.0
    losses: float = 0.0
    gradients: float = 0.0
    ours: float = 0.0
    """Distance of our features from those of the same detector in float64."""
    recorded: float = 0.0
    """That of the recorded ones: where both are alike, what separates the two is rounding."""
    where: dict[str, str] = field(default_factory=dict)

    def worse(self, name: str, value: float, place: str) -> None:
        if value > getattr(self, name):
            setattr(self, name, value)
            self.where[name] = place


@dataclass(frozen=True)
class Recorded:
    """One folder of recorded tensors."""

    settings: dict
    inputs: dict[str, Tensor]
    eval: dict[str, Tensor]
    train: dict[str, Tensor]

    @property
    def images(self) -> list[Tensor]:
        return [self.inputs[f"image.{i}"] for i in range(2)]

    @property
    def output_sizes(self) -> list[tuple[int, int]]:
        sizes = [self.inputs[f"output_size.{i}"].tolist() for i in range(2)]
        return [(height, width) for height, width in sizes]

    def targets(self, masks: str) -> list[Target]:
        """Ground truth with masks as `polygon` or `bitmask`."""
        found = []
        for i, image in enumerate(self.images):
            boxes = self.inputs[f"gt.{i}.boxes"].float()
            shape = (len(boxes), *image.shape[1:])
            made = unpacked(self.inputs[f"gt.{i}.bitmask_packed"], shape) if masks == "bitmask" else self._polygons(i)
            found.append({"boxes": boxes, "labels": self.inputs[f"gt.{i}.classes"], "masks": made})
        return found

    def _polygons(self, i: int) -> list[list[np.ndarray]]:
        lengths = self.inputs[f"gt.{i}.polygon_len"].tolist()
        pieces = self.inputs[f"gt.{i}.polygon_xy"].split(lengths)
        owners = self.inputs[f"gt.{i}.polygon_instance"].tolist()
        count = len(self.inputs[f"gt.{i}.boxes"])
        return [[p.numpy() for p, o in zip(pieces, owners, strict=True) if o == n] for n in range(count)]


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Masks `[N, H, W]` from one row of packed bits each."""
    rows = np.unpackbits(bits.numpy(), axis=1)[:, : shape[1] * shape[2]]
    return torch.from_numpy(rows.astype(bool)).view(shape)


def load(name: str) -> tuple[Detector, Recorded]:
    """The detector with the recorded weights, and everything recorded."""
    folder = FOLDER / name
    parts = [load_file(folder / f"{part}.safetensors") for part in ("inputs", "eval", "train")]
    recorded = Recorded(json.loads((folder / "config.json").read_text()), *parts)
    detector = from_settings(recorded.settings).eval()
    state = load_file(folder / "model.safetensors")
    detector.load_state_dict(released.to_native(state, detector.config))
    return detector, recorded


def compare(name: str) -> Differences:
    """Evaluation and training of one recorded detector."""
    detector, recorded = load(name)
    found = Differences()
    with torch.no_grad():
        _compare_features(detector, recorded, found)
        _compare_detections(detector, recorded, found)
    detector.train()
    _compare_training(detector, recorded, found)
    return found


def _compare_features(detector: Detector, recorded: Recorded, found: Differences) -> None:
    c = detector.config
    batch, sizes = make_batch(recorded.images, torch.tensor(c.mean), torch.tensor(c.std), c.divisor, c.square_pad)
    maps = detector.backbone(batch)
    levels = {f"backbone.scale{i}": x for i, x in enumerate(maps, start=2)}
    pyramid = detector.neck(maps)
    levels |= {f"fpn.p{i}": x for i, x in enumerate(pyramid, start=2)}
    wide = copy.deepcopy(detector).double()
    exact_maps = wide.backbone(batch.double())
    exact = dict(zip(levels, [*exact_maps, *wide.neck(exact_maps)], strict=True))
    for key, value in levels.items():
        expected = recorded.eval.get(key)
        expected = recorded.eval[f"{key}.image0"] if expected is None else expected
        found.worse("features", largest(value[: len(expected)], expected), key)
        found.worse("ours", largest(value, exact[key]), key)
        found.worse("recorded", largest(expected, exact[key][: len(expected)]), key)
    proposals, logits, _ = detector.rpn(pyramid, sizes)
    for i in range(2):
        found.worse("boxes", largest(proposals[i], recorded.eval[f"proposals.{i}.boxes"]), f"proposals.{i}")
        found.worse("scores", largest(logits[i], recorded.eval[f"proposals.{i}.logits"]), f"proposals.{i}")


def largest(value: Tensor, expected: Tensor) -> float:
    assert value.shape == expected.shape, (value.shape, expected.shape)
    return float((value - expected).abs().max()) if value.numel() else 0.0


def _compare_detections(detector: Detector, recorded: Recorded, found: Differences) -> None:
    raw = detector(recorded.images)
    final = detector(recorded.images, output_sizes=recorded.output_sizes)
    for i in range(2):
        compare_boxes(raw[i], recorded.eval, f"raw.{i}", found)
        compare_boxes(final[i], recorded.eval, f"final.{i}", found)
        probs = raw[i].mask_probs
        assert probs is not None
        found.worse("mask_probs", largest(probs, recorded.eval[f"raw.{i}.mask_probs"]), f"raw.{i}")
        compare_pixels(final[i], recorded.eval, f"final.{i}", found)
        alone = detector([recorded.images[i]], output_sizes=[recorded.output_sizes[i]])
        compare_boxes(alone[0], recorded.eval, f"alone.{i}", found)


def compare_boxes(made: Detections, recorded: dict[str, Tensor], key: str, found: Differences) -> None:
    """Boxes, scores, and classes in their order."""
    found.classes_equal &= torch.equal(made.labels, recorded[f"{key}.classes"])
    found.worse("boxes", largest(made.boxes, recorded[f"{key}.boxes"]), key)
    found.worse("scores", largest(made.scores, recorded[f"{key}.scores"]), key)


def compare_pixels(made: Detections, recorded: dict[str, Tensor], key: str, found: Differences) -> None:
    """Share of equal pixels in the pasted masks."""
    count, height, width = recorded[f"{key}.masks_shape"].tolist()
    expected = unpacked(recorded[f"{key}.masks_packed"], (count, height, width))
    same = float((made.masks() == expected).float().mean())
    found.pixels_equal = min(found.pixels_equal, same)


def _compare_training(detector: Detector, recorded: Recorded, found: Differences) -> None:
    for kind in ("polygon", "bitmask"):
        detector.zero_grad()
        _, losses = detector(recorded.images, recorded.targets(kind), detect=False)
        total = torch.stack(list(losses.values())).sum()
        for key, value in {**losses, "total": total}.items():
            expected = recorded.train[f"{kind}.loss.{key}"]
            found.worse("losses", float(abs(value.detach() - expected) / expected.abs()), f"{kind}.{key}")
        recorded_losses = {k for k in recorded.train if k.startswith(f"{kind}.loss.")}
        assert recorded_losses == {f"{kind}.loss.{key}" for key in (*losses, "total")}
        total.backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    theirs = released.from_native(gradients, detector.config)
    whole = {i for i, block in enumerate(detector.config.backbone.blocks()) if not block.window}
    zero = {f"grad_norm.backbone.bottom_up.blocks.{i}.attn.norm_k.bias" for i in whole}
    norms = {k: v for k, v in recorded.train.items() if k.startswith("grad_norm.") and k not in zero and v > 1e-3}
    for key, expected in norms.items():
        value = theirs[key.removeprefix("grad_norm.")].norm()
        found.worse("gradients", float(abs(value - expected) / expected), key)
    for key in (k for k in recorded.train if k.startswith("grad.")):
        expected = recorded.train[key]
        difference = (theirs[key.removeprefix("grad.")] - expected).norm() / expected.norm()
        found.worse("gradients", float(difference), key)
