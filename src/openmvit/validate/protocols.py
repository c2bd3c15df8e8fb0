"""How test samples are prepared: one view of an image, or the clips and crops of a video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.utils.data import Dataset, Sampler

from openmvit.data.images import ImageDataset, open_images
from openmvit.data.sampler import Key, ResumableSampler
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.data.stills import sampling_from
from openmvit.data.transforms import test_transform_from
from openmvit.data.video_transforms import clip_preprocessing, clip_test_transform_from
from openmvit.data.videos import VideoViews, open_videos
from openmvit.errors import UserError
from openmvit.evaluation.views import ViewAverage

Options = Mapping[str, int | float | None]


class TestProtocol(Protocol):
    """One way to test. Built from the preprocessing of a card and the options that replace its values."""

    noun: ClassVar[str]
    """What samples are called, plural."""
    batch: ClassVar[int]
    """Views per step where the user does not say."""
    views: int
    """Views per sample."""
    values: dict[str, Any]
    """What the results say of it."""

    def __init__(self, preprocessing: Mapping[str, Any], options: Options) -> None: ...

    @staticmethod
    def open(root: Any, *, seed: int, val_fraction: float) -> LabelledData: ...

    def dataset(self, table: SampleTable, multilabel: bool, num_classes: int) -> Dataset[dict[str, Tensor]]:
        """All views by `(epoch, sample * views + view)`."""
        ...

    def average(self, multilabel: bool) -> ViewAverage | None:
        """What joins the views of a sample, if it has several."""
        ...

    def describe(self) -> str:
        """In words."""
        ...


class ImageProtocol:
    """Resize and centre crop, or the whole image squashed. Options: imgsz, crop_ratio."""

    noun: ClassVar[str] = "images"
    batch: ClassVar[int] = 32
    views = 1

    def __init__(self, preprocessing: Mapping[str, Any], options: Options) -> None:
        _refuse(options, ("clips", "crops"), "images have one view")
        self.values = {**preprocessing, **_given(options)}
        self._transform = test_transform_from(self.values)

    @staticmethod
    def open(root: Any, *, seed: int, val_fraction: float) -> LabelledData:
        return open_images(root, seed=seed, val_fraction=val_fraction)

    def dataset(self, table: SampleTable, multilabel: bool, num_classes: int) -> Dataset[dict[str, Tensor]]:
        return ImageDataset(table, self._transform, seed=0, multilabel=multilabel, num_classes=num_classes)

    def average(self, multilabel: bool) -> None:
        return None

    def describe(self) -> str:
        p = self.values
        resized = f"resized to {int(p['imgsz'] / p['crop_ratio'])}, centre crop" if p["crop_ratio"] else ""
        return f"{resized or 'whole image squashed to'} {p['imgsz']} x {p['imgsz']}, {p['interpolation']}"


class ClipProtocol:
    """Clips spread over the video, each with its crops, softmax averaged over all. Options: imgsz, clips, crops."""

    noun: ClassVar[str] = "videos"
    batch: ClassVar[int] = 8

    def __init__(self, preprocessing: Mapping[str, Any], options: Options) -> None:
        _refuse(options, ("crop_ratio",), "clips are cropped by their short side")
        known, crops = {**preprocessing, **_given(options)}, options.get("crops")
        if options.get("imgsz") is not None:
            known["short_side"] = 0
        self._sampling = sampling_from(known)
        self._clips = int(known.get("clips", 1))
        known["crops"] = preprocessing.get("crops", 1)
        self._transform = clip_test_transform_from(known, None if crops is None else int(crops))
        self.views = self._clips * self._transform.crops
        self.values = clip_preprocessing(self._sampling, self._transform, self._clips)
        self.values |= {"still": True} if preprocessing.get("still") else {}

    @staticmethod
    def open(root: Any, *, seed: int, val_fraction: float) -> LabelledData:
        return open_videos(root, seed=seed, val_fraction=val_fraction)

    def dataset(self, table: SampleTable, multilabel: bool, num_classes: int) -> Dataset[dict[str, Tensor]]:
        return VideoViews(
            table, self._sampling, self._transform, clips=self._clips, multilabel=multilabel, num_classes=num_classes
        )

    def average(self, multilabel: bool) -> ViewAverage:
        crops = self._transform.crops
        return ViewAverage(self.views, self._clips // 2 * crops + crops // 2, multilabel)

    def describe(self) -> str:
        p = self.values
        return (
            f"{p['clips']} clips x {p['crops']} crops of {p['num_frames']} frames ({p['sampling']}, stride "
            f"{p['stride']}), short side {p['short_side']}, crop {p['imgsz']} x {p['imgsz']}"
        )


class ViewOrder(Sampler[Key]):
    """The keys of all views of a sampler's samples; views of a sample follow each other."""

    def __init__(self, samples: ResumableSampler, views: int) -> None:
        self._samples, self._views = samples, views

    def __len__(self) -> int:
        return len(self._samples) * self._views

    def __iter__(self) -> Iterator[Key]:
        for epoch, index, *_ in self._samples:
            yield from ((epoch, index * self._views + view) for view in range(self._views))


def _given(options: Options) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _refuse(options: Options, keys: tuple[str, ...], why: str) -> None:
    for key in keys:
        if options.get(key) is not None:
            name = key.replace("_", "-")
            raise UserError(f"--{name} does not belong to this model: {why}", f"Leave --{name} out")
