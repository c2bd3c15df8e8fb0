"""Pixels for the networks, as processors of transformers: the same transforms as everywhere else in this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import make_batched_videos

from openmvit.data.images import to_rgb
from openmvit.data.stills import sampling_from
from openmvit.data.transforms import TestTransform, test_transform_from
from openmvit.data.video import open_video
from openmvit.data.video_transforms import clip_test_transform_from
from openmvit.errors import UserError, did_you_mean

_RESAMPLE = {"bilinear": 2, "bicubic": 3}
# Keys that transformers writes into every file, or hands on whatever the processor.
_SERVICE = {"image_processor_type", "video_processor_type", "processor_class", "backend", "do_sample_frames", "size"}


def _square(crop_size: int | Mapping[str, int]) -> int:
    """Side of a square crop."""
    sides = {crop_size} if isinstance(crop_size, int) else {crop_size["height"], crop_size["width"]}
    if len(sides) != 1:
        raise UserError(f"crop_size is {dict(crop_size)}", "Give a square")  # type: ignore[arg-type]
    return sides.pop()


def _only(kwargs: Mapping[str, Any], accepted: list[str]) -> None:
    for name in kwargs:
        if name not in _SERVICE and not name.startswith("_"):
            raise UserError(f"The processor has no setting {name!r}", did_you_mean(name, accepted))


class MViTV2ImageProcessor(BaseImageProcessor):
    """Resize the short side, centre crop, 0..1, normalise: `data.transforms.TestTransform`, on Pillow.

    Args:
        crop_size: side of the crop in pixels, or its height and width, which are equal.
        crop_pct: the short side becomes `int(crop_size / crop_pct)`; 0 squashes the whole image.
        resample: 3 bicubic, 2 bilinear.
        image_mean, image_std: RGB, of values 0..1.
        kwargs: what transformers writes beside them; `size` is derived, and read only to be compared.
    Raises:
        UserError: if a setting does not exist or cannot be used.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(
        self,
        crop_size: int | Mapping[str, int] = 224,
        crop_pct: float = 0.875,
        resample: int = 3,
        image_mean: tuple[float, ...] | list[float] = (0.485, 0.456, 0.406),
        image_std: tuple[float, ...] | list[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        given = kwargs.pop("size", None)
        super().__init__(**{k: v for k, v in kwargs.items() if k == "processor_class"})
        side = _square(crop_size)
        self.crop_size = {"height": side, "width": side}
        self.crop_pct, self.resample = crop_pct, int(resample)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        _only(kwargs, ["crop_size", "crop_pct", "resample", "image_mean", "image_std"])
        short = int(side / crop_pct) if crop_pct else 0
        self.size = {"shortest_edge": short} if short else dict(self.crop_size)
        if given is not None and dict(given) != self.size:
            raise UserError(f"size is {given}, and crop_size with crop_pct makes it {self.size}", "Leave size out")
        self.transform()

    @classmethod
    def from_preprocessing(cls, preprocessing: Mapping[str, Any]) -> MViTV2ImageProcessor:
        """The processor of a checkpoint's card."""
        return cls(
            crop_size=preprocessing["imgsz"],
            crop_pct=preprocessing["crop_ratio"],
            resample=_RESAMPLE[preprocessing["interpolation"]],
            image_mean=preprocessing["mean"],
            image_std=preprocessing["std"],
        )

    def preprocessing(self) -> dict[str, Any]:
        """What a checkpoint's card says about it."""
        names = {number: name for name, number in _RESAMPLE.items()}
        if self.resample not in names:
            raise UserError(f"resample is {self.resample}", "Accepted: 3 (bicubic) and 2 (bilinear)")
        return {
            "imgsz": self.crop_size["height"],
            "crop_ratio": self.crop_pct,
            "interpolation": names[self.resample],
            "mean": list(self.image_mean),
            "std": list(self.image_std),
        }

    def transform(self) -> TestTransform:
        """The same as a test transform."""
        return test_transform_from(self.preprocessing())

    def preprocess(  # type: ignore[override]
        self, images: Any, return_tensors: Any = None, **changes: Any
    ) -> BatchFeature:
        """Pictures as PIL images or uint8 arrays, alone or in lists -> `pixel_values` `[B, 3, crop, crop]`.

        Args:
            images: arrays are `[H, W, 3]`, `[3, H, W]` or grey `[H, W]`, also as tensors, or a batch of such.
            return_tensors: `pt`, `np`, or None, which is `pt` here.
            changes: settings for this call alone.
        """
        transform = self.transform()
        if changes:
            own = {k: v for k, v in self.to_dict().items() if k not in _SERVICE}
            transform = type(self)(**(own | changes)).transform()
        flat: Any = [images] if getattr(images, "ndim", 0) == 2 else make_flat_list_of_images(images)
        pixels = [transform(_picture(image)) for image in flat]
        return BatchFeature({"pixel_values": torch.stack(pixels)}, tensor_type=return_tensors)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)


def _picture(image: Any) -> Image.Image:
    """One picture of any accepted kind as RGB."""
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = _bytes(image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _bytes(pixels: Any) -> np.ndarray:
    array = pixels.cpu().numpy() if isinstance(pixels, Tensor) else np.asarray(pixels)
    if array.dtype != np.uint8:
        raise UserError(f"Pixels are {array.dtype}", "Give uint8, 0..255: the processor scales and normalises")
    return array


class MViTV2VideoProcessor(BaseVideoProcessor):
    """The centre view of the centre clip: `data.clips.ClipSampling`, then `data.video_transforms.ClipTestTransform`.

    Args:
        num_frames, frame_stride, sampling: which frames of a video; see ARCHITECTURE.md, "Preprocessing of clips".
        crop_size: side of the crop in pixels, or its height and width, which are equal.
        short_side: in pixels, that frames are resized to before the crop; 0 for the released form.
        stored_side: larger frames are first shrunk to it; 0 leaves them.
        image_mean, image_std: RGB, of values 0..1.
        protocol: what the card says beyond this (`clips`, `crops`, their `short_side`, `still`): kept for the way back.
        kwargs: what transformers writes beside them.
    Raises:
        UserError: if a setting does not exist or cannot be used.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]

    def __init__(
        self,
        num_frames: int = 16,
        frame_stride: int = 4,
        sampling: str = "span",
        crop_size: int | Mapping[str, int] = 224,
        image_mean: tuple[float, ...] | list[float] = (0.45, 0.45, 0.45),
        image_std: tuple[float, ...] | list[float] = (0.225, 0.225, 0.225),
        protocol: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        side = _square(crop_size)
        self.num_frames, self.frame_stride, self.sampling = num_frames, frame_stride, sampling
        self.crop_size = {"height": side, "width": side}
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.protocol = {"clips": 1, "crops": 1, "stored_side": 256} | (protocol or {})
        accepted = ["num_frames", "frame_stride", "sampling", "crop_size", "image_mean", "image_std", "protocol"]
        _only(kwargs, accepted)
        clip_test_transform_from(self.preprocessing(), crops=1)

    @classmethod
    def from_preprocessing(cls, preprocessing: Mapping[str, Any]) -> MViTV2VideoProcessor:
        """The processor of a checkpoint's card."""
        named = ("num_frames", "stride", "sampling", "imgsz", "mean", "std")
        return cls(
            num_frames=preprocessing["num_frames"],
            frame_stride=preprocessing["stride"],
            sampling=preprocessing.get("sampling", "span"),
            crop_size=preprocessing["imgsz"],
            image_mean=preprocessing["mean"],
            image_std=preprocessing["std"],
            protocol={name: value for name, value in preprocessing.items() if name not in named},
        )

    def preprocessing(self) -> dict[str, Any]:
        """What a checkpoint's card says about it."""
        return {
            "num_frames": self.num_frames,
            "stride": self.frame_stride,
            "sampling": self.sampling,
            "imgsz": self.crop_size["height"],
            "mean": list(self.image_mean),
            "std": list(self.image_std),
            **self.protocol,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data that makes the same processor again."""
        card = self.preprocessing()
        own = {name: card[name] for name in ("num_frames", "sampling")}
        own |= {"frame_stride": self.frame_stride, "crop_size": self.crop_size, "protocol": self.protocol}
        own |= {"image_mean": self.image_mean, "image_std": self.image_std}
        return own | {"video_processor_type": type(self).__name__}

    def preprocess(  # type: ignore[override]
        self,
        videos: Any,
        num_frames: int | None = None,
        do_sample_frames: bool = False,
        fps: float = 30.0,
        return_tensors: Any = None,
    ) -> BatchFeature:
        """Videos -> `pixel_values_videos` `[B, T, 3, crop, crop]`.

        Args:
            videos: files or URLs, of which the frames are chosen; or frames as PIL images, uint8 `[T, H, W, 3]` or
                `[T, 3, H, W]`; alone or in lists.
            num_frames: of a clip, instead of the processor's.
            do_sample_frames: choose among given frames too, as of a video of `fps` frames per second.
            return_tensors: `pt`, `np`, or None, which is `pt` here.
        """
        sampling = sampling_from(self.preprocessing())
        if num_frames is not None:
            sampling = dataclasses.replace(sampling, num_frames=num_frames)
        transform, clips = clip_test_transform_from(self.preprocessing(), crops=1), []
        for video in make_batched_videos(videos):
            if isinstance(video, str):
                with open_video(video) as source:
                    frames = source.frames(sampling.test_indices(source.num_frames, source.fps))
            else:
                frames = _frames(video)
                if do_sample_frames:
                    frames = frames[sampling.test_indices(len(frames), fps)]
            clips.append(transform(frames).movedim(0, 1))
        return BatchFeature({"pixel_values_videos": torch.stack(clips)}, tensor_type=return_tensors)

    def __call__(self, videos: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(videos, *args, **kwargs)


def _frames(video: Any) -> Tensor:
    """Frames of any accepted kind as uint8 `[T, H, W, 3]`."""
    array = _bytes(video)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = np.moveaxis(array, 1, -1)
    if array.ndim != 4 or array.shape[3] != 3:
        raise UserError(f"Frames have shape {list(array.shape)}", "Give [T, H, W, 3] or [T, 3, H, W]")
    return torch.from_numpy(np.ascontiguousarray(array))
