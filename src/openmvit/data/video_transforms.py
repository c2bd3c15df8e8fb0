"""From the frames of a clip to the network's input: the published training and test pipelines for video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from openmvit.data.clips import ClipSampling, crop_corner, jitter_side, scaled_size, test_short_side
from openmvit.data.randaugment import Draw, RandAugment, apply_draw, parse_randaugment
from openmvit.data.transforms import Triple, draw_crop, erase_
from openmvit.errors import UserError

_GREY = (128, 128, 128)
_ERASE_TRIES = 100


@dataclass(frozen=True)
class ClipTrainTransform:
    """RandAugment once per clip on 8-bit frames, to 0..1, normalise, crop, flip, erase; all draws from the generator.

    Called with frames uint8 `[T, H, W, 3]` and a generator it returns float32 `[3, T, imgsz, imgsz]`.

    Args:
        imgsz: side of the crop in pixels.
        crop_scale, crop_aspect: of the random resized crop (area as a share of the frame; width / height).
        flip: probability of a horizontal flip; 0 where left and right matter (Something-Something).
        auto_augment: RandAugment string or None.
        erase: probability of erasing one box, the same in all frames, with noise that differs from frame to frame.
        mean, std: RGB, of values 0..1.
        jitter: smallest and largest short side for a resize with a random square crop, in place of the random resized
            crop (Something-Something: 256, 320); None for the latter.
        jitter_inverse: draw the short side as 1 / U(1 / largest, 1 / smallest), as the SSv2 recipes do.
        stored_side: larger frames are first shrunk to this short side in 8 bits, smoothed, as the videos of the
            published runs were stored (or to imgsz / 0.875, the largest jitter, if that is more); 0 leaves them.
        resize_uint8: crop and resize in 8 bits, then normalise: faster, and rounds each value (see `data bench`).
    Raises:
        UserError: if a value cannot be used.
    """

    imgsz: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 4.0 / 3.0)
    flip: float = 0.5
    auto_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    erase: float = 0.25
    mean: Triple = (0.45, 0.45, 0.45)
    std: Triple = (0.225, 0.225, 0.225)
    jitter: tuple[int, int] | None = None
    jitter_inverse: bool = True
    stored_side: int = 256
    resize_uint8: bool = False
    randaugment: RandAugment | None = field(init=False)

    def __post_init__(self) -> None:
        _check(self.imgsz, self.std, self.stored_side)
        for name in ("crop_scale", "crop_aspect"):
            low, high = getattr(self, name)
            if not 0.0 < low <= high:
                raise UserError(f"{name} is {low}..{high}", "Give two positive numbers, the smaller one first")
        for name in ("flip", "erase"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}", "Give a probability between 0 and 1")
        if self.jitter is not None and not self.imgsz <= self.jitter[0] <= self.jitter[1]:
            raise UserError(f"jitter is {self.jitter} and imgsz is {self.imgsz}", "Give imgsz <= smallest <= largest")
        chosen = parse_randaugment(self.auto_augment) if self.auto_augment else None
        object.__setattr__(self, "randaugment", chosen)

    def __call__(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        largest = self.jitter[1] if self.jitter else test_short_side(self.imgsz, 1)
        frames = shrink(frames, max(self.stored_side, largest) if self.stored_side else 0)
        if self.randaugment is not None:
            frames = augment_clip(frames, self.randaugment.draw(generator))
        height, width = frames.shape[1:3]
        if self.jitter is None:
            left, top, w, h = draw_crop((width, height), self.crop_scale, self.crop_aspect, generator)
            # Cutting out before normalising gives the same numbers as after it, for less work.
            x = _resize(frames[:, top : top + h, left : left + w], (self.imgsz, self.imgsz), self)
        else:
            draws = torch.rand(3, dtype=torch.float64, generator=generator).tolist()
            short = jitter_side(*self.jitter, draws[0], self.jitter_inverse)
            x = _resize(frames, scaled_size(height, width, short), self)
            # The released code never starts at the last place; so here, unless it is the only one.
            top, left = (int(u * (side - self.imgsz)) for u, side in zip(draws[1:], x.shape[-2:], strict=True))
            x = x[..., top : top + self.imgsz, left : left + self.imgsz]
        if torch.rand(1, generator=generator).item() < self.flip:
            x = x.flip(-1)
        x = x.transpose(0, 1).contiguous()  # [3, T, imgsz, imgsz]
        if torch.rand(1, generator=generator).item() < self.erase:
            erase_(x, generator, _ERASE_TRIES)
        return x


@dataclass(frozen=True)
class ClipTestTransform:
    """One view: short side to `short_side`, then a square crop; frames uint8 `[T, H, W, 3]` to `[3, T, imgsz, imgsz]`.

    Args:
        imgsz: side of the crop in pixels.
        crops: spatial crops of the protocol, 1 or 3 along the longer side.
        short_side: in pixels; 0 for the released form (`test_short_side`: 256 for one crop of 224, 224 for three).
        mean, std, stored_side, resize_uint8: as in training.
    Raises:
        UserError: if a value cannot be used.
    """

    imgsz: int
    crops: int = 1
    short_side: int = 0
    mean: Triple = (0.45, 0.45, 0.45)
    std: Triple = (0.225, 0.225, 0.225)
    stored_side: int = 256
    resize_uint8: bool = False

    def __post_init__(self) -> None:
        _check(self.imgsz, self.std, self.stored_side)
        if self.crops not in (1, 3):
            raise UserError(f"crops is {self.crops}", "Accepted: 1 (centre) or 3 (left, centre, right)")
        if self.short_side and self.short_side < self.imgsz:
            raise UserError(f"short_side is {self.short_side} and imgsz is {self.imgsz}", "Give short_side >= imgsz")

    @property
    def side(self) -> int:
        """Short side that frames are resized to, in pixels."""
        return self.short_side or test_short_side(self.imgsz, self.crops)

    def __call__(self, frames: Tensor, crop: int = 0) -> Tensor:
        """The view of crop number `crop`: 0..2 of three, 0 of one (the centre)."""
        if not 0 <= crop < self.crops:
            raise ValueError(f"crop {crop} of {self.crops}")
        frames = shrink(frames, max(self.stored_side, self.side) if self.stored_side else 0)
        height, width = scaled_size(frames.shape[1], frames.shape[2], self.side)
        top, left = crop_corner(height, width, self.imgsz, crop if self.crops == 3 else 1)
        x = _resize(frames, (height, width), self)
        return x[..., top : top + self.imgsz, left : left + self.imgsz].transpose(0, 1).contiguous()


def clip_preprocessing(sampling: ClipSampling, transform: ClipTestTransform, clips: int) -> dict[str, Any]:
    """What a checkpoint's card says about its clips; `clip_test_transform_from` and its kin read it again."""
    return {
        "imgsz": transform.imgsz,
        "mean": transform.mean,
        "std": transform.std,
        "num_frames": sampling.num_frames,
        "stride": sampling.stride,
        "sampling": sampling.rule,
        "clips": clips,
        "crops": transform.crops,
        "short_side": transform.side,
        "stored_side": transform.stored_side,
    }


def clip_test_transform_from(preprocessing: Mapping[str, Any], crops: int | None = None) -> ClipTestTransform:
    """The test transform of a checkpoint's card: imgsz, crops, mean, std; short_side, stored_side if given.

    Args:
        preprocessing: of the card.
        crops: 1 or 3 instead of the card's, with the short side that belongs to it.
    Raises:
        UserError: naming the key that is missing.
    """
    _need(preprocessing, ("imgsz", "crops", "mean", "std"))
    own = crops is None or crops == preprocessing["crops"]
    return ClipTestTransform(
        imgsz=preprocessing["imgsz"],
        crops=preprocessing["crops"] if crops is None else crops,
        short_side=preprocessing.get("short_side", 0) if own else 0,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        stored_side=preprocessing.get("stored_side", 256),
    )


def clip_sampling_from(preprocessing: Mapping[str, Any]) -> ClipSampling:
    """The sampling that a checkpoint's card describes (num_frames, stride; `sampling` if it is not `span`).

    Raises:
        UserError: naming the key that is missing.
    """
    _need(preprocessing, ("num_frames", "stride"))
    rule = preprocessing.get("sampling", "span")
    return ClipSampling(preprocessing["num_frames"], preprocessing["stride"], rule)


def augment_clip(frames: Tensor, draw: Draw) -> Tensor:
    """One RandAugment draw on every frame; image statistics are each frame's own. uint8 `[T, H, W, 3]`, as a copy."""
    if not draw:
        return frames
    images = (apply_draw(Image.fromarray(frame), draw, _GREY) for frame in frames.numpy())
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def shrink(frames: Tensor, short: int) -> Tensor:
    """Frames uint8 `[T, H, W, 3]` with a short side of at most `short` pixels, antialiased; 0 leaves them."""
    height, width = frames.shape[1:3]
    if not short or min(height, width) <= short:
        return frames
    size = scaled_size(height, width, short)
    x = F.interpolate(frames.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False, antialias=True)
    return x.permute(0, 2, 3, 1).contiguous()


def _resize(frames: Tensor, size: tuple[int, int], transform: ClipTrainTransform | ClipTestTransform) -> Tensor:
    """Normalise and resize, bilinear with half-pixel centres and without antialias: float32 `[T, 3, *size]`."""
    x = frames.permute(0, 3, 1, 2)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (transform.mean, transform.std))
    same = tuple(x.shape[-2:]) == size
    if transform.resize_uint8:
        x = x if same else F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x.contiguous().to(torch.float32).div_(255.0).sub_(mean).div_(std)
    x = x.contiguous().to(torch.float32).div_(255.0).sub_(mean).div_(std)
    return x if same else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _need(preprocessing: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in preprocessing]
    if missing:
        raise UserError(f"the checkpoint's preprocessing lacks {missing[0]!r}", "Give a checkpoint of a video model")


def _check(imgsz: int, std: Triple, stored_side: int) -> None:
    """Raise a UserError for values that no transform can use."""
    if imgsz < 1:
        raise UserError(f"imgsz is {imgsz}", "Give the side of the square input in pixels, such as 224")
    if min(std) <= 0.0:
        raise UserError(f"std is {std}", "Give three numbers above 0")
    if stored_side < 0:
        raise UserError(f"stored_side is {stored_side}", "Give a short side in pixels, or 0 for none")
