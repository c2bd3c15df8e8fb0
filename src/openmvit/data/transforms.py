"""From an RGB image to the network's input: the published training pipeline and the two test protocols."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openmvit.data.randaugment import RandAugment, apply_draw, parse_randaugment
from openmvit.errors import UserError

Triple = tuple[float, float, float]
Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""

_CROP_TRIES = 10
_ERASE_TRIES = 10
_ERASE_AREA = (0.02, 1.0 / 3.0)
_ERASE_ASPECT = 0.3
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip, RandAugment, to tensor, normalise, random erasing; every draw from the generator.

    The fields carry the names, units and defaults of the recipe. Called with a PIL RGB image and a generator it
    returns float32 `[3, imgsz, imgsz]`.

    Raises:
        UserError: if `auto_augment` or a value cannot be used.
    """

    imgsz: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4.0 / 3.0)
    flip: float = 0.5
    auto_augment: str | None = "rand-m9-n6-mstd0.5-inc1"
    erase: float = 0.25
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    randaugment: RandAugment | None = field(init=False)

    def __post_init__(self) -> None:
        _check(self.imgsz, self.interpolation, self.std)
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise UserError(f"{name} is {low}..{high}", "Give two positive numbers, the smaller one first")
        for name in ("flip", "erase"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}", "Give a probability between 0 and 1")
        chosen = parse_randaugment(self.auto_augment) if self.auto_augment else None
        object.__setattr__(self, "randaugment", chosen)

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        left, top, width, height = draw_crop(image.size, self.crop_scale, self.crop_aspect, generator)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.imgsz, self.imgsz), _FILTERS[self.interpolation])
        if torch.rand(1, generator=generator).item() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.randaugment is not None:
            red, green, blue = (round(255 * value) for value in self.mean)
            draw = self.randaugment.draw(generator)
            image = apply_draw(image, draw, (red, green, blue), _FILTERS[self.interpolation])
        x = normalise(image, self.mean, self.std)
        if torch.rand(1, generator=generator).item() < self.erase:
            erase_(x, generator)
        return x


@dataclass(frozen=True)
class TestTransform:
    """Resize and centre crop, or the whole image squashed to the square; returns float32 `[3, imgsz, imgsz]`.

    Args:
        imgsz: side of the result in pixels.
        crop_ratio: the short side becomes `int(imgsz / crop_ratio)` before the crop, 0..1; 0 squashes.
        interpolation: bicubic or bilinear.
        mean, std: RGB, of values 0..1.
    Raises:
        UserError: if a value cannot be used.
    """

    __test__ = False  # not a test class, whatever its name suggests to pytest

    imgsz: int
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check(self.imgsz, self.interpolation, self.std)
        if not 0.0 <= self.crop_ratio <= 1.0:
            raise UserError(f"crop_ratio is {self.crop_ratio}", "Give a number between 0 and 1, such as 0.875")

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """`generator` is accepted and left alone, so that both transforms are called alike."""
        size, resample = self.imgsz, _FILTERS[self.interpolation]
        if not self.crop_ratio:
            return normalise(image.resize((size, size), resample), self.mean, self.std)
        short = int(size / self.crop_ratio)
        width, height = image.size
        if width <= height:
            width, height = short, int(short * height / width)
        else:
            width, height = int(short * width / height), short
        if image.size != (width, height):
            image = image.resize((width, height), resample)
        left, top = round((width - size) / 2.0), round((height - size) / 2.0)
        return normalise(image.crop((left, top, left + size, top + size)), self.mean, self.std)


def test_transform_from(preprocessing: Mapping[str, Any]) -> TestTransform:
    """The test transform that a checkpoint's card describes (keys imgsz, mean, std, crop_ratio, interpolation).

    Raises:
        UserError: naming the key that is missing.
    """
    names = ("imgsz", "crop_ratio", "interpolation", "mean", "std")
    missing = [name for name in names if name not in preprocessing]
    if missing:
        raise UserError(f"the checkpoint's preprocessing lacks {missing[0]!r}", "Give a checkpoint with a whole card")
    values = {name: preprocessing[name] for name in names}
    return TestTransform(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


test_transform_from.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def draw_crop(
    size: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], generator: torch.Generator
) -> Box:
    """Box of a random resized crop: area share and log aspect uniform, ten tries, then the largest central crop.

    Args:
        size: width and height of the image in pixels.
        scale: range of the area as a share of the image.
        aspect: range of width / height.
    Source: the Inception crop as torchvision draws it, with the same rounding and fallback.
    """
    width, height = size
    draws = torch.rand(_CROP_TRIES, 4, dtype=torch.float64, generator=generator).tolist()
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for u_area, u_aspect, u_left, u_top in draws:
        area = width * height * (scale[0] + u_area * (scale[1] - scale[0]))
        ratio = math.exp(low + u_aspect * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h
    w, h = width, height
    if width / height < aspect[0]:
        h = min(round(width / aspect[0]), height)
    elif width / height > aspect[1]:
        w = min(round(height * aspect[1]), width)
    return (width - w) // 2, (height - h) // 2, w, h


def normalise(image: Image.Image, mean: Triple, std: Triple) -> Tensor:
    """8-bit RGB to float32 `[3, H, W]`: values to 0..1, minus mean, over std."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    x = pixels.to(torch.float32).div_(255.0)
    return x.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))


def draw_erase_box(height: int, width: int, tries: int, generator: torch.Generator) -> Box | None:
    """Box of random erasing, or None if no try fits: area U(0.02, 1/3), height / width log-uniform in 0.3..1/0.3."""
    draws = torch.rand(tries, 4, dtype=torch.float64, generator=generator).tolist()
    reach = -math.log(_ERASE_ASPECT)
    for u_area, u_aspect, u_left, u_top in draws:
        area = height * width * (_ERASE_AREA[0] + u_area * (_ERASE_AREA[1] - _ERASE_AREA[0]))
        aspect = math.exp(reach * (2.0 * u_aspect - 1.0))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h
    return None


def erase_(x: Tensor, generator: torch.Generator, tries: int = _ERASE_TRIES) -> None:
    """Overwrite one box of a normalised image `[C, H, W]` or clip `[C, T, H, W]` with N(0, 1) noise, in place.

    A clip has the box in the same place in all frames and fresh noise in each.
    """
    box = draw_erase_box(x.shape[-2], x.shape[-1], tries, generator)
    if box is None:
        return
    left, top, width, height = box
    noise = torch.randn(*x.shape[:-2], height, width, dtype=x.dtype, generator=generator)
    x[..., top : top + height, left : left + width] = noise


def _check(imgsz: int, interpolation: str, std: Triple) -> None:
    """Raise a UserError for values that no transform can use."""
    if imgsz < 1:
        raise UserError(f"imgsz is {imgsz}", "Give the side of the square input in pixels, such as 224")
    if interpolation not in _FILTERS:
        raise UserError(f"interpolation is {interpolation!r}", f"Accepted: {', '.join(_FILTERS)}")
    if min(std) <= 0.0:
        raise UserError(f"std is {std}", "Give three numbers above 0")
