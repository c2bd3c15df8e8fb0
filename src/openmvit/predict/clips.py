"""Videos for a network: files, folders of frames, addresses, cameras, frames in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openmvit.data.clips import clip_span
from openmvit.data.folders import walk_samples
from openmvit.data.images import IMAGES
from openmvit.data.stills import sampling_from
from openmvit.data.video import open_video
from openmvit.data.video_reader import FOLDER_FPS, VideoDecodeError, VideoReader, check_index
from openmvit.data.video_transforms import clip_test_transform_from
from openmvit.data.videos import VIDEOS
from openmvit.errors import UserError
from openmvit.predict.sources import Look, Source
from openmvit.predict.windows import LiveVideo, LongVideo, StoredVideo, is_live, open_live, read_small

_LONG = 10
"""Spans from which on a video is followed by windows: 21 seconds for 16 x 4."""


class ClipKind:
    """Sources of a clip classifier, seen as its card's test protocol says: clips over time, crops over the frame.

    Args:
        card: of the checkpoint.
    Raises:
        UserError: if the card does not say how clips are sampled.
    """

    noun = "video"
    batch = 4

    def __init__(self, card: dict[str, Any]) -> None:
        preprocessing = card["preprocessing"]
        self.sampling = sampling_from(preprocessing)
        self.transform = clip_test_transform_from(preprocessing)
        self.centre = clip_test_transform_from(preprocessing, crops=1)
        self.clips = int(preprocessing.get("clips", 1))
        self.views = self.clips * self.transform.crops

    def check(self, source: Source) -> None:
        """Raise a UserError for pictures, arrays that are no frames and cameras that are missing."""
        if is_live(source):
            open_live(str(source)).close()
        if isinstance(source, str | Path):
            if IMAGES.accepts(str(source)) and not VIDEOS.may_move(str(source)):
                raise UserError(
                    f"{source} is an image and this network takes clips",
                    "Give videos or a folder of frames, or a network for images",
                )
        elif not isinstance(source, np.ndarray):
            raise UserError("A picture was given and this network takes clips", "Give frames as uint8 [T, H, W, 3]")
        elif source.dtype != np.uint8 or source.ndim != 4 or source.shape[3] != 3 or not source.size:
            raise UserError(
                f"An array of {source.dtype} with shape {list(source.shape)} is no video", "Give uint8 [T, H, W, 3]"
            )

    def in_folder(self, folder: Path) -> list[Path]:
        """The videos and folders of frames in a folder and below, or itself if it holds pictures.

        Raises:
            UserError: if there is none.
        """
        found = [folder / path for path, good in walk_samples(folder, "", VIDEOS) if good]
        if not found and any(IMAGES.accepts(path.name) for path in folder.iterdir()):
            return [folder]
        if not found:
            accepted = " ".join(sorted(VIDEOS.suffixes))
            raise UserError(f"The folder {folder} holds no videos", f"Accepted: {accepted}, and folders of pictures")
        return found

    def prepare(self, source: Source, look: Look) -> Tensor | LongVideo | str:
        """All views `[views, 3, T, imgsz, imgsz]`, a video to follow, or why it cannot be read."""
        side = max(self.transform.stored_side, self.transform.side) if self.transform.stored_side else 0
        if is_live(source):
            return LiveVideo(str(source), self.sampling, self.centre, side, look.hop, look.seconds)
        try:
            with _open(source) as video:
                span = clip_span(self.sampling.num_frames, self.sampling.stride, video.fps)
                long = self.sampling.rule == "span" and video.num_frames > _LONG * span
                if look.timeline or long:
                    return StoredVideo(partial(_open, source), self.sampling, self.centre, side, look.hop)
                return torch.stack(list(self._views(video, side)))
        except VideoDecodeError as error:
            return error.reason

    def _views(self, video: VideoReader, side: int) -> Iterator[Tensor]:
        for clip in range(self.clips):
            chosen = self.sampling.test_indices(video.num_frames, video.fps, clip, self.clips)
            unique = sorted(set(chosen))
            frames = dict(zip(unique, read_small(video, unique, side), strict=True))
            stacked = torch.stack([frames[i] for i in chosen])
            for crop in range(self.transform.crops):
                yield self.transform(stacked, crop)


def _open(source: Source) -> VideoReader:
    return FrameArray(source) if isinstance(source, np.ndarray) else open_video(str(source))


class FrameArray(VideoReader):
    """Frames in memory, uint8 `[T, H, W, 3]`, as a video of 30 frames per second."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = torch.from_numpy(np.ascontiguousarray(frames))
        self.source, self.fps, self.num_frames = "frames in memory", FOLDER_FPS, len(frames)
        self.duration = self.num_frames / self.fps
        self.spent = {"seek": 0.0, "decode": 0.0}

    @property
    def size(self) -> tuple[int, int]:
        return self._frames.shape[2], self._frames.shape[1]

    def frames(self, indices: Sequence[int]) -> Tensor:
        return self._frames[[check_index(self, i) for i in indices]]
