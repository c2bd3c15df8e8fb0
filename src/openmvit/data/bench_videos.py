"""How fast clips come off the disk, and which step takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openmvit import screen
from openmvit.data.clips import ClipSampling
from openmvit.data.counter import mix, sample_generator
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.data.video import open_video
from openmvit.data.video_reader import VideoDecodeError
from openmvit.data.videos import open_videos, part_of
from openmvit.errors import UserError

_STEPS = ("open", "seek", "decode", "transform")


@dataclass(frozen=True)
class LoaderSpeed:
    """What `bench_videos` measured, in one process with one thread.

    Args:
        reader: the back end asked for.
        clips: clips that were read.
        unreadable: files that were passed over.
        clips_per_second: of one worker process; several workers on as many free cores give as many times that.
        shares: share of the time of `open`, `seek`, `decode` and `transform`, together 1.
        milliseconds: median time of a clip.
    """

    reader: str
    clips: int
    unreadable: int
    clips_per_second: float
    shares: dict[str, float]
    milliseconds: float

    def workers_for(self, clips_per_second: float) -> float:
        """Worker processes that a model needs which takes so many clips per second."""
        return clips_per_second / self.clips_per_second

    def lines(self) -> list[str]:
        """The measurement as text."""
        parts = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        lines = [f"{self.clips} clips by {self.reader}: {self.clips_per_second:.1f} clips/s per worker ({parts})"]
        if self.unreadable:
            lines.append(f"{self.unreadable} unreadable files passed over; see openmvit data check")
        return lines


def bench_videos(
    data: str | Path | LabelledData,
    sampling: ClipSampling,
    transform: Callable[[Tensor, torch.Generator], Tensor],
    *,
    clips: int = 64,
    reader: str = "auto",
    seed: int = 0,
) -> LoaderSpeed:
    """Read random training clips and time every step.

    Args:
        data: folder or list as for training, or opened data.
        sampling, transform: as for training.
        clips: clips to read, after one that is not counted.
        reader: as for `open_video`.
        seed: chooses files and clips.
    Raises:
        UserError: if the data cannot be opened or no video can be read.
    """
    table = (data if isinstance(data, LabelledData) else open_videos(data, seed=seed)).splits["train"]
    threads, unreadable = torch.get_num_threads(), 0
    runs: list[dict[str, float]] = []
    torch.set_num_threads(1)
    try:
        for number in screen.counted(range(clips + 1), clips + 1, "reading clips"):
            index = mix(seed, number) % len(table)
            try:
                runs.append(
                    _time_clip(table, index, sampling, transform, reader, sample_generator(seed, number, index))
                )
            except VideoDecodeError:
                unreadable += 1
    finally:
        torch.set_num_threads(threads)
    if len(runs) < 2:
        raise UserError(f"{unreadable} of {clips + 1} videos cannot be read", "See openmvit data check")
    return _summary(runs[1:], reader, unreadable)  # the first one pays for imports and tables


def _summary(runs: list[dict[str, float]], reader: str, unreadable: int) -> LoaderSpeed:
    """Rates and shares of timed clips."""
    spent = {name: sum(run[name] for run in runs) for name in _STEPS}
    total = sum(spent.values())
    return LoaderSpeed(
        reader=reader,
        clips=len(runs),
        unreadable=unreadable,
        clips_per_second=len(runs) / total,
        shares={name: seconds / total for name, seconds in spent.items()},
        milliseconds=1000.0 * sorted(sum(run.values()) for run in runs)[len(runs) // 2],
    )


def _time_clip(
    table: SampleTable,
    index: int,
    sampling: ClipSampling,
    transform: Callable[[Tensor, torch.Generator], Tensor],
    reader: str,
    generator: torch.Generator,
) -> dict[str, float]:
    """Seconds of every step of one clip."""
    began = time.perf_counter()
    with open_video(table.path(index), reader) as video:
        opened = time.perf_counter()
        start, length = part_of(video, table.span(index))
        frames = video.frames([start + i for i in sampling.train_indices(length, video.fps, generator)])
        read = {"seek": video.spent["seek"], "decode": video.spent["decode"]}
    decoded = time.perf_counter()
    transform(frames, generator)
    return {"open": opened - began, **read, "transform": time.perf_counter() - decoded}
