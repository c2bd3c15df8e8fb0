"""RandAugment on 8-bit RGB images, drawing apart from applying so that one draw can serve every frame of a clip."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance, ImageOps

from openmvit.errors import UserError

Colour = tuple[int, int, int]
Draw = list[tuple[str, float]]
"""Operations to apply in order, each with its argument (0 where it takes none)."""

_LEVELS = 10.0
_SIGNED = frozenset({"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"})

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)


def argument(operation: str, level: float, negative: bool, increasing: bool) -> float:
    """What an operation is called with at a level of 0..10.

    Degrees for Rotate, bits kept for Posterize, the threshold for Solarize, grey steps for SolarizeAdd, factors for
    the four enhancements, an affine coefficient for the shears, and a share of width or height for the translations.

    Args:
        operation: one of OPERATIONS.
        level: 0..10.
        negative: the drawn sign, used where the argument has one.
        increasing: posterise, solarise and enhance more the higher the level.
    Source: RandAugment (Cubuk et al., 2020) with the level maps of timm's `inc0` and `inc1` sets.
    """
    share = level / _LEVELS
    sign = -1.0 if negative else 1.0
    if operation in _SIGNED:
        span = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}.get(operation, 0.45)
        return sign * (share * span)
    if operation in ("Color", "Contrast", "Brightness", "Sharpness"):
        return max(0.1, 1.0 + sign * (share * 0.9)) if increasing else share * 1.8 + 0.1
    if operation == "Posterize":
        return 4 - int(share * 4) if increasing else int(share * 4)
    if operation == "Solarize":
        return 256 - int(share * 256) if increasing else int(share * 256)
    return int(share * 110) if operation == "SolarizeAdd" else 0.0


@dataclass(frozen=True)
class RandAugment:
    """`n` operations drawn with replacement, each applied with probability `p` at a level around `m`.

    Args:
        m: mean level, 0..10.
        n: operations per image.
        mstd: standard deviation of the level, which is clipped to 0..10.
        p: probability of each drawn operation.
        inc: whether posterise, solarise and the enhancements grow with the level.
    """

    m: float = 10.0
    n: int = 2
    mstd: float = 0.0
    p: float = 0.5
    inc: bool = False

    def draw(self, generator: torch.Generator) -> Draw:
        """The operations of one image or clip, in order."""
        which = torch.randint(len(OPERATIONS), (self.n,), generator=generator).tolist()
        chance = torch.rand(self.n, generator=generator).tolist()
        sign = torch.rand(self.n, generator=generator).tolist()
        noise = torch.randn(self.n, generator=generator).tolist()
        drawn: Draw = []
        for k in range(self.n):
            if chance[k] < self.p:
                level = min(max(self.m + self.mstd * noise[k], 0.0), _LEVELS)
                operation = OPERATIONS[which[k]]
                drawn.append((operation, argument(operation, level, sign[k] < 0.5, self.inc)))
        return drawn


def parse_randaugment(text: str) -> RandAugment:
    """Read `rand-m9-n6-mstd0.5-inc1`: parts `m`, `n`, `mstd`, `p` and `inc` in any order.

    Raises:
        UserError: naming the part that cannot be read.
    """
    head, *parts = text.split("-")
    fix = "Write it like rand-m9-n6-mstd0.5-inc1, with the parts m 0..10, n 1.., mstd 0..10, p 0..1 and inc 0 or 1"
    if head != "rand":
        raise UserError(f"auto_augment {text!r} begins with {head!r} instead of 'rand'", fix)
    limits = {"m": (0, 10), "n": (1, math.inf), "mstd": (0, 10), "p": (0, 1), "inc": (0, 1)}
    values: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        name = match[1] if match else ""
        if match is None or name not in limits or name in values:
            raise UserError(f"part {part!r} of auto_augment {text!r} is unknown or given twice", fix)
        value = float(match[2])
        low, high = limits[name]
        if not low <= value <= high or (name in ("n", "inc") and not value.is_integer()):
            raise UserError(f"part {part!r} of auto_augment {text!r} is out of range", fix)
        values[name] = value
    return RandAugment(
        m=values.get("m", 10.0),
        n=int(values.get("n", 2)),
        mstd=values.get("mstd", 0.0),
        p=values.get("p", 0.5),
        inc=bool(values.get("inc", 0)),
    )


def apply_draw(
    image: Image.Image, draw: Draw, fill: Colour, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Apply drawn operations to an RGB image.

    Args:
        image: 8-bit RGB.
        draw: from `RandAugment.draw`.
        fill: RGB 0..255 of the corners that geometric operations uncover.
        resample: filter of the geometric operations.
    """
    for operation, value in draw:
        if operation in _SIGNED:
            image = _geometric(image, operation, value, fill, resample)
        else:
            image = _PIXELWISE[operation](image, value)
    return image


def _geometric(
    image: Image.Image, operation: str, value: float, fill: Colour, resample: Image.Resampling
) -> Image.Image:
    """Rotate about the centre, or an affine map from output to input pixels about the image origin."""
    if operation == "Rotate":
        return image.rotate(value, resample=resample, fillcolor=fill)
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if operation == "ShearX":
        b = value
    elif operation == "ShearY":
        d = value
    elif operation == "TranslateXRel":
        c = value * image.width
    else:
        f = value * image.height
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample=resample, fillcolor=fill)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    """Keep the upper bits of each value. No bits is black: Pillow's own function refuses that from version 13 on."""
    mask = 256 - (1 << (8 - int(bits)))
    return image.point([value & mask for value in range(256)] * 3)


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    """Brighten the dark half."""
    table = [min(255, i + int(value)) if i < 128 else i for i in range(256)]
    return image.point(table * 3)


_PIXELWISE: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
