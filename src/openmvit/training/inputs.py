"""What differs between images and clips when a classifier is trained: data, samples, preprocessing, defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from openmvit.config import MViTConfig
from openmvit.data.clips import ClipSampling
from openmvit.data.detection_layouts import holds_detection
from openmvit.data.images import IMAGES, ImageDataset, open_images, read_image
from openmvit.data.samples import LabelledData
from openmvit.data.stills import StillSampling
from openmvit.data.transforms import TestTransform, TrainTransform
from openmvit.data.video import probe_video
from openmvit.data.video_transforms import ClipTestTransform, ClipTrainTransform, clip_preprocessing
from openmvit.data.videos import VideoDataset, VideoViews, holds_videos, open_videos
from openmvit.model import MViT
from openmvit.training.network import Start, model_axes
from openmvit.training.recipe import Recipe

Triple = tuple[float, float, float]
Samples = Dataset[dict[str, Tensor]]

_FEWEST_FRAMES = 8


class TaskInput(Protocol):
    """One kind of sample. Built from the recipe, the network's configuration and what it starts from."""

    name: ClassVar[str]
    noun: ClassVar[str]
    """Plural for messages."""
    ndim: ClassVar[int]
    smallest: ClassVar[str]
    """Architecture where none is named."""
    recipe: Recipe
    size: tuple[int, ...]
    """Training size, `(T, H, W)` or `(H, W)`."""

    def __init__(self, recipe: Recipe, config: MViTConfig, start: Start[MViT]) -> None: ...

    @staticmethod
    def open(recipe: Recipe) -> LabelledData:
        """The recipe's data."""
        ...

    def train_dataset(self, data: LabelledData) -> Samples:
        """Augmented training samples by `(epoch, index)`."""
        ...

    def val_dataset(self, data: LabelledData) -> Samples:
        """The centre of every validation sample."""
        ...

    def read(self, path: Path) -> object:
        """Decode a file, for the reason why it fails."""
        ...

    def preprocessing(self) -> dict[str, Any]:
        """How a test sample is prepared, as the card says it."""
        ...


class ImageInput:
    """Images; see `TaskInput`."""

    name: ClassVar[str] = "image"
    noun: ClassVar[str] = "images"
    ndim: ClassVar[int] = 2
    smallest: ClassVar[str] = "mvitv2_tiny"

    def __init__(self, recipe: Recipe, config: MViTConfig, start: Start[MViT]) -> None:
        self.recipe = recipe
        side = recipe.imgsz or config.input_size[-1]
        self.size = (side, side)
        self.mean = recipe.mean or _triple(start, "mean", (0.485, 0.456, 0.406))
        self.std = recipe.std or _triple(start, "std", (0.229, 0.224, 0.225))

    @staticmethod
    def open(recipe: Recipe) -> LabelledData:
        return open_images(str(recipe.data), seed=recipe.seed, val_fraction=recipe.val_fraction)

    def train_dataset(self, data: LabelledData) -> Samples:
        r = self.recipe
        augment = (r.crop_scale, r.crop_aspect, r.flip, r.auto_augment, r.erase)
        return self._dataset(
            data, "train", TrainTransform(self.size[0], *augment, self.mean, self.std, r.interpolation)
        )

    def val_dataset(self, data: LabelledData) -> Samples:
        return self._dataset(data, "val", TestTransform(**self.preprocessing()))

    def _dataset(self, data: LabelledData, split: str, transform: Any) -> Samples:
        return ImageDataset(
            data.splits[split],
            transform,
            seed=self.recipe.seed,
            multilabel=data.multilabel,
            num_classes=len(data.classes),
        )

    def read(self, path: Path) -> object:
        return read_image(path)

    def preprocessing(self) -> dict[str, Any]:
        r = self.recipe
        return {
            "imgsz": self.size[0],
            "mean": self.mean,
            "std": self.std,
            "crop_ratio": r.crop_ratio,
            "interpolation": r.interpolation,
        }


class ClipInput:
    """Clips of videos; see `TaskInput`.

    Validation in training is one centre clip with one centre crop, the same in every epoch. The authors' code draws a
    random clip and crop there, so its curve is not comparable; the protocol of the card is for `openmvit val`.
    """

    name: ClassVar[str] = "video"
    noun: ClassVar[str] = "videos"
    ndim: ClassVar[int] = 3
    smallest: ClassVar[str] = "mvitv2_small_16x4"

    def __init__(self, recipe: Recipe, config: MViTConfig, start: Start[MViT]) -> None:
        self.recipe, known = recipe, start.preprocessing
        side, frames = recipe.imgsz or config.input_size[-1], recipe.frames or config.input_size[0]
        self.size = (frames, side, side)
        self.mean = recipe.mean or _triple(start, "mean", (0.45, 0.45, 0.45))
        self.std = recipe.std or _triple(start, "std", (0.225, 0.225, 0.225))
        stride = recipe.stride or known.get("stride") or _stride_of(start.name)
        self.sampling = (StillSampling if recipe.still else ClipSampling)(frames, stride, recipe.sampling)
        segments = recipe.sampling == "segments"
        self.clips = recipe.clips or (1 if segments else 5)
        self.crops = recipe.crops or (3 if segments else 1)
        self._test(self.crops)

    @staticmethod
    def open(recipe: Recipe) -> LabelledData:
        return open_videos(str(recipe.data), seed=recipe.seed, val_fraction=recipe.val_fraction)

    def train_dataset(self, data: LabelledData) -> Samples:
        r = self.recipe
        transform = ClipTrainTransform(
            self.size[-1],
            r.crop_scale,
            r.crop_aspect,
            r.flip,
            r.auto_augment,
            r.erase,
            self.mean,
            self.std,
            r.jitter,
            r.jitter_inverse,
            r.stored_side,
        )
        return VideoDataset(
            data.splits["train"],
            self.sampling,
            transform,
            seed=r.seed,
            multilabel=data.multilabel,
            num_classes=len(data.classes),
            reader=r.reader,
        )

    def val_dataset(self, data: LabelledData) -> Samples:
        return VideoViews(
            data.splits["val"],
            self.sampling,
            self._test(1),
            clips=1,
            multilabel=data.multilabel,
            num_classes=len(data.classes),
            reader=self.recipe.reader,
        )

    def _test(self, crops: int) -> ClipTestTransform:
        r = self.recipe
        own = r.short_side if crops == self.crops else 0
        return ClipTestTransform(self.size[-1], crops, own, self.mean, self.std, r.stored_side)

    def read(self, path: Path) -> object:
        return probe_video(path, self.recipe.reader)

    def preprocessing(self) -> dict[str, Any]:
        about = clip_preprocessing(self.sampling, self._test(self.crops), self.clips)
        return about | ({"still": True} if self.recipe.still else {})


INPUTS: dict[str, type[TaskInput]] = {"image": ImageInput, "video": ClipInput}


def infer_task(recipe: Recipe) -> str:
    """`image`, `video` or `detection`: what the recipe says, else what the data are, else what its network takes.

    Raises:
        UserError: if the data do not exist.
    """
    if recipe.task != "auto":
        return recipe.task
    root = Path(str(recipe.data))
    if holds_detection(root):
        return "detection"
    return "video" if holds_videos(root) or _frame_folders(root) or model_axes(recipe) == 3 else "image"


def _frame_folders(root: Path) -> bool:
    """Whether class folders hold folders of pictures with running numbers, as extracted frames have."""
    start = next((p for p in (root / "train", root) if p.is_dir()), None)
    inner = next((p for p in sorted(start.glob("*/*")) if p.is_dir() and p.name[0] != "."), None) if start else None
    if inner is None or any(p.is_file() and IMAGES.accepts(p.name) for p in inner.parent.iterdir()):
        return False
    stems = sorted(p.stem for p in inner.iterdir() if IMAGES.accepts(p.name))
    numbers = sorted(int(found[0]) for stem in stems if (found := re.search(r"\d+$", stem)))
    return len(numbers) >= _FEWEST_FRAMES and numbers == list(range(numbers[0], numbers[0] + len(stems)))


def _triple(start: Start[MViT], key: str, default: Triple) -> Triple:
    """Channel statistics of the starting weights, or the default."""
    red, green, blue = start.preprocessing.get(key, default)
    return red, green, blue


def _stride_of(name: str) -> int:
    """Published clip networks are called by their frames and stride; 4 is that of most."""
    found = re.search(r"_\d+x(\d+)$", name)
    return int(found[1]) if found else 4
