"""Labelled videos as samples that depend on (seed, epoch, index) alone, and as the views of a test protocol."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from openmvit.data.clips import ClipSampling, split_view
from openmvit.data.counter import sample_generator
from openmvit.data.faults import Faults
from openmvit.data.folders import walk_samples
from openmvit.data.images import IMAGES, is_moving
from openmvit.data.layouts import open_labelled
from openmvit.data.samples import REPLACED, FileKind, LabelledData, SampleTable, read_or_replace
from openmvit.data.video import open_video
from openmvit.data.video_reader import VideoDecodeError, VideoReader
from openmvit.data.video_transforms import ClipTestTransform
from openmvit.data.videolists import published_layout
from openmvit.errors import UserError

VIDEOS = FileKind(
    "video",
    frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"})
    | {".ts", ".mts", ".m2ts", ".m2v", ".mpe", ".vob", ".asf", ".f4v", ".3g2", ".mxf", ".y4m"},
    frame_suffixes=IMAGES.suffixes,
    moving_suffixes=frozenset({".gif"}),
    moves=is_moving,
)

# Where a clip lies is drawn from a stream of its own, which all copies of a sample share.
_TEMPORAL = -1
_GLANCE = 1 << 16


def open_videos(
    root: str | Path, *, seed: int = 0, val_fraction: float = 0.1, faults: Faults | None = None
) -> LabelledData:
    """Labelled videos: class folders of videos or frame folders (with train/ and val/ or without), a CSV or JSONL list
    `path,label[,start,end]`, the published lists of Kinetics and Something-Something v2, SlowFast's and mmaction2's.

    Decodes nothing but a few GIF files, where a folder has no other pictures or videos. See `open_labelled` and
    `videolists` for the layouts and errors.

    Raises:
        UserError: if nothing there can be trained on, with the reason.
    """
    path = Path(root)
    reader = published_layout(path) if path.exists() else None
    if reader is not None:
        return reader(path, VIDEOS, seed, val_fraction, faults or Faults())
    return open_labelled(path, VIDEOS, seed=seed, val_fraction=val_fraction, faults=faults)


def holds_videos(root: str | Path) -> bool:
    """Whether data are videos rather than images, by the first files of a folder or list.

    GIF files decide only where there are neither other pictures nor videos: they are videos if most of a few move.
    Folders of frame folders look like folders of images; they have to be named as videos by the user.

    Raises:
        UserError: if `root` does not exist.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root} does not exist", "Name a folder of class folders or a list")
    if published_layout(root) is not None:
        return True
    files = [root] if root.is_file() else [p for p in (root / "train.csv", root / "train.jsonl") if p.is_file()]
    if files:
        return _names_videos(files[0])
    gifs = False
    for path, good in walk_samples(root, "", VIDEOS):
        if good and not VIDEOS.may_move(path):
            return VIDEOS.accepts(path)
        gifs |= good
        # A picture directly in the folder of another class: the GIF files are pictures of theirs.
        if not good and VIDEOS.is_frame(path) and not VIDEOS.may_move(path):
            return False
    return gifs


def _names_videos(file: Path) -> bool:
    """Whether a list is one of videos, by its beginning."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        words = re.split(r"[\s,;\"]+", stream.read(_GLANCE))
    if any(map(VIDEOS.accepts, words)):
        return True
    pictures = [word for word in words if IMAGES.accepts(word)]
    return all(map(VIDEOS.may_move, pictures)) and VIDEOS.most_move([file.parent / word for word in pictures])


def part_of(video: VideoReader, span: tuple[float | None, float | None]) -> tuple[int, int]:
    """First frame and number of frames of the part of a video between two seconds.

    Raises:
        VideoDecodeError: if the part begins behind the end.
    """
    start = 0 if span[0] is None else math.floor(span[0] * video.fps + 0.5)
    end = video.num_frames if span[1] is None else min(math.floor(span[1] * video.fps + 0.5), video.num_frames)
    if start >= video.num_frames:
        raise VideoDecodeError(video.source, f"{span[0]:g} s is behind its end at {video.duration:.2f} s")
    return start, max(end - start, 1)


class VideoDataset(Dataset[dict[str, Tensor]]):
    """Augmented clips by key: `dataset[(epoch, index)]` or `dataset[(epoch, index, copy)]`.

    A sample is a pure function of (seed, epoch, index, copy); the copies of a sample see the same frames, augmented
    differently. An unreadable video is replaced by another of the table; see REPLACED and LOST.

    Args:
        table: files and labels.
        sampling: which frames.
        transform: from frames uint8 `[T, H, W, 3]` and generator to float32 `[C, T, H, W]`.
        seed: the run's seed.
        multilabel: labels as float32 `[num_classes]` of zeros and ones instead of int64 `[]`.
        num_classes: number of classes.
        reader: as for `open_video`.
    """

    def __init__(
        self,
        table: SampleTable,
        sampling: ClipSampling,
        transform: Callable[[Tensor, torch.Generator], Tensor],
        *,
        seed: int,
        multilabel: bool,
        num_classes: int,
        reader: str = "auto",
    ) -> None:
        self.table, self.sampling, self.transform = table, sampling, transform
        self.seed, self.multilabel, self.num_classes, self.reader = seed, multilabel, num_classes, reader
        # Copies of a sample follow each other, so the last clip serves them all.
        self._last: tuple[tuple[int, int], tuple[Tensor | None, int, int]] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Tensor]:
        """`image` float32 `[C, T, H, W]`, `label`, `index` int64 `[]` and `bad` int64 `[]`."""
        epoch, index = key[:2]
        copy = key[2] if len(key) > 2 else 0
        if self._last is None or self._last[0] != (epoch, index):
            found = read_or_replace(lambda i: self._read(epoch, i), len(self), self.seed, epoch, index)
            self._last = (epoch, index), found
        frames, source, bad = self._last[1]
        if frames is None:
            frames = torch.zeros(self.sampling.num_frames, 32, 32, 3, dtype=torch.uint8)
        return {
            "image": self.transform(frames, sample_generator(self.seed, epoch, index, copy)),
            "label": self.table.target(source, self.num_classes, self.multilabel),
            "index": torch.tensor(index),
            "bad": torch.tensor(bad),
        }

    def _read(self, epoch: int, index: int) -> Tensor:
        """The frames of a sample in an epoch."""
        with open_video(self.table.path(index), self.reader) as video:
            start, length = part_of(video, self.table.span(index))
            generator = sample_generator(self.seed, epoch, index, _TEMPORAL)
            chosen = self.sampling.train_indices(length, video.fps, generator)
            return video.frames([start + i for i in chosen])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


class VideoViews(Dataset[dict[str, Tensor]]):
    """Every view of every video, for tests: item i is view `i % views` of sample `i // views`.

    Views of a sample are its clips, each with its crops; a clip whose file cannot be read is zeros with `bad` 1, and
    is not to be counted. Indexed by the sampler's keys `(epoch, i)`, or by i.

    Args:
        table: files and labels.
        sampling: which frames.
        transform: the test transform; its `crops` are the views of a clip.
        clips: clips per video, spread evenly.
        multilabel, num_classes, reader: as for `VideoDataset`.
    """

    def __init__(
        self,
        table: SampleTable,
        sampling: ClipSampling,
        transform: ClipTestTransform,
        *,
        clips: int,
        multilabel: bool,
        num_classes: int,
        reader: str = "auto",
    ) -> None:
        if clips < 1 or (sampling.rule == "segments" and clips != 1):
            raise UserError(
                f"clips is {clips} with the sampling {sampling.rule!r}", "Accepted: at least 1; exactly 1 for segments"
            )
        self.table, self.sampling, self.transform, self.clips = table, sampling, transform, clips
        self.multilabel, self.num_classes, self.reader = multilabel, num_classes, reader
        self.views = clips * transform.crops

    def __len__(self) -> int:
        return len(self.table) * self.views

    def __getitem__(self, key: tuple[int, ...] | int) -> dict[str, Tensor]:
        """`image` float32 `[C, T, H, W]`, `label`, `index` (of the sample), `view` and `bad`, int64 `[]` each."""
        number = key if isinstance(key, int) else key[1]
        index, view = divmod(number, self.views)
        clip, crop = split_view(view, self.transform.crops)
        try:
            image, bad = self.transform(self._read(index, clip), crop), 0
        except VideoDecodeError:
            side = self.transform.imgsz
            image, bad = torch.zeros(3, self.sampling.num_frames, side, side), REPLACED
        return {
            "image": image,
            "label": self.table.target(index, self.num_classes, self.multilabel),
            "index": torch.tensor(index),
            "view": torch.tensor(view),
            "bad": torch.tensor(bad),
        }

    def _read(self, index: int, clip: int) -> Tensor:
        with open_video(self.table.path(index), self.reader) as video:
            start, length = part_of(video, self.table.span(index))
            chosen = self.sampling.test_indices(length, video.fps, clip, self.clips)
            return video.frames([start + i for i in chosen])
