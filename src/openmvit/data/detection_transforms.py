"""Pictures with boxes and masks: the two published training pipelines of the detectors, and the resize of their tests.

Sizes, rounding and box rules are those of the released runs; random numbers come from a torch generator, so the
distributions agree with theirs and the streams do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from openmvit.data.scenes import Scene, crop, finish, flip, jitter_size, pad_grey, resize, short_side_size
from openmvit.errors import UserError

_KINDS = ("multiscale", "lsj", "none")

Step = Callable[[Scene, torch.Generator], Scene]


@dataclass(frozen=True)
class DetectionAugmentation:
    """Which pipeline makes training pictures, as plain data; sizes in pixels.

    Raises:
        UserError: if a value cannot be used.
    """

    kind: Literal["multiscale", "lsj", "none"] = "multiscale"
    """`multiscale`: short side drawn, perhaps after a crop; `lsj`: large-scale jitter; `none`: largest short side."""
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_probability: float = 0.5
    """Share of the pictures of `multiscale` that are resized and cropped first."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)
    """Smallest and largest side of that crop."""
    jitter: tuple[float, float] = (0.1, 2.0)
    """Scale of `lsj`, relative to the picture that just fits into the crop."""
    crop_size: int = 1024
    """Side of the square of `lsj`."""
    grey_pad: bool = False
    """Fill that square with grey that counts as picture; otherwise smaller pictures stay smaller."""
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name in ("short_sides", "crop_short_sides", "crop_range", "jitter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in _KINDS:
            raise UserError(f"kind of augmentation is {self.kind!r}", f"Accepted: {', '.join(_KINDS)}")
        for name in ("crop_probability", "flip"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}", "Give a probability between 0 and 1")
        for name in ("short_sides", "crop_short_sides"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "Give at least one size of at least 1 pixel")
        for name in ("crop_range", "jitter"):
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise UserError(f"{name} is {values}", "Give two positive numbers, the smaller one first")
        for name in ("long_side", "crop_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "Give at least 1 pixel")


@dataclass(frozen=True)
class Pipeline:
    """Transforms in turn, then the boxes are clipped and instances without box or mask left out.

    Args:
        steps: the transforms.
        tight_boxes: boxes anew around what is left of the masks; otherwise the old boxes are moved and clipped.
    """

    steps: tuple[Step, ...]
    tight_boxes: bool = False

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        for step in self.steps:
            scene = step(scene, generator)
        return finish(scene, self.tight_boxes)


def training_pipeline(augmentation: DetectionAugmentation) -> Pipeline:
    """The pipeline that an augmentation names."""
    if augmentation.kind == "lsj":
        return jitter_pipeline(augmentation)
    if augmentation.kind == "multiscale":
        return multiscale_pipeline(augmentation)
    return Pipeline((ShortSide((max(augmentation.short_sides),), augmentation.long_side), Flip(augmentation.flip)))


def multiscale_pipeline(a: DetectionAugmentation) -> Pipeline:
    """Perhaps resize and crop, short side from a list, flip: the 3x schedules."""
    crop = Sometimes(a.crop_probability, (ShortSide(a.crop_short_sides, None), RangeCrop(*a.crop_range)))
    return Pipeline((crop, ShortSide(a.short_sides, a.long_side), Flip(a.flip)))


def jitter_pipeline(a: DetectionAugmentation) -> Pipeline:
    """Flip, large-scale jitter, crop to a square: the long schedules of the large detectors."""
    steps = (Flip(a.flip), ScaleJitter(a.jitter, a.crop_size), FixedCrop(a.crop_size, a.grey_pad))
    return Pipeline(steps, tight_boxes=True)


@dataclass(frozen=True)
class ShortSide:
    """Resize the short side to one of `sizes`, drawn uniformly, or less if the long side would pass `long_side`."""

    sizes: tuple[int, ...]
    long_side: int | None

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        short = self.sizes[_integer(0, len(self.sizes) - 1, generator)]
        return resize(scene, short_side_size(scene.image.height, scene.image.width, short, self.long_side))


@dataclass(frozen=True)
class ScaleJitter:
    """Resize to fit into a square of `side` times a scale drawn uniformly from `scales`."""

    scales: tuple[float, float]
    side: int

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        scale = self.scales[0] + _share(generator) * (self.scales[1] - self.scales[0])
        return resize(scene, jitter_size(scene.image.height, scene.image.width, scale, self.side))


@dataclass(frozen=True)
class RangeCrop:
    """Crop with height and width uniform integers in `smallest..largest`, as far as the picture goes; place uniform."""

    smallest: int
    largest: int

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        width, height = scene.image.size
        h = _integer(min(height, self.smallest), min(height, self.largest), generator)
        w = _integer(min(width, self.smallest), min(width, self.largest), generator)
        top, left = _integer(0, height - h, generator), _integer(0, width - w, generator)
        return crop(scene, left, top, w, h)


@dataclass(frozen=True)
class FixedCrop:
    """Crop to a square of `side`; one uniform number sets both offsets, so crops lie on a diagonal.

    A smaller picture stays as it is, or with `grey` gets 128 at its right and bottom, which then counts as picture.
    """

    side: int
    grey: bool = False

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        share = _share(generator)
        width, height = scene.image.size
        left, top = (round(share * max(length - self.side, 0)) for length in (width, height))
        scene = crop(scene, left, top, min(width, self.side), min(height, self.side))
        return pad_grey(scene, self.side) if self.grey else scene


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with a probability; x becomes W - x."""

    probability: float

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        return flip(scene) if _share(generator) < self.probability else scene


@dataclass(frozen=True)
class Sometimes:
    """Several transforms together, or none of them."""

    probability: float
    steps: tuple[Step, ...]

    def __call__(self, scene: Scene, generator: torch.Generator) -> Scene:
        if _share(generator) < self.probability:
            for step in self.steps:
                scene = step(scene, generator)
        return scene


def _share(generator: torch.Generator) -> float:
    """Uniform in 0..1, float64."""
    return torch.rand((), dtype=torch.float64, generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
