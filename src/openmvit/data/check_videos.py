"""A look at a video data set before training, and a copy of it that decodes faster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import torch

from openmvit import screen
from openmvit.data.check import CheckReport, Finding, examine_data, open_all
from openmvit.data.clips import scaled_size
from openmvit.data.folders import walk_samples
from openmvit.data.video import probe_video
from openmvit.data.video_pyav import PyAVReader
from openmvit.data.video_reader import VideoDecodeError
from openmvit.data.videos import VIDEOS, open_videos
from openmvit.errors import UserError

_KEPT = frozenset({".mp4", ".m4v", ".mov", ".mkv"})
_LISTS = frozenset({".csv", ".jsonl", ".json", ".txt"})
_GOP = 12
_TICKS = 90_000


def check_videos(root: str | Path, *, seed: int = 0, val_fraction: float = 0.1, workers: int = 1) -> CheckReport:
    """Open a data set, decode the first, middle and last frame of every video, and report; changes nothing.

    Args:
        root, seed, val_fraction: as for training.
        workers: processes that decode.
    Raises:
        UserError: if the data cannot be opened at all, and this is all that is wrong with them.
    """
    opened = open_all(open_videos, root, seed, val_fraction)
    return examine_data(*opened, _examine, ("width", "height", "fps", "seconds"), workers, "video")


def _examine(path: str) -> Finding:
    """Width, height, rate and length of one video, or why they cannot be had."""
    try:
        (width, height), fps, frames = probe_video(path)
    except VideoDecodeError as error:
        return None, error.reason
    return (width, height, fps, frames / fps), ""


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare_videos` did.

    Args:
        written: files that were encoded.
        kept: files that had been there from an earlier call.
        failed: path and reason of videos that cannot be decoded; they are left out.
        copied: lists that were copied unchanged.
        renamed: videos whose ending became .mp4; lists that name them have to be corrected.
    """

    written: int
    kept: int
    failed: list[tuple[str, str]]
    copied: int
    renamed: int


def prepare_videos(root: str | Path, out: str | Path, *, short_side: int = 256, workers: int = 1) -> PrepareReport:
    """Encode every video below `root` again below `out`, same names: H.264, upright, at most `short_side`, no sound.

    A keyframe in every 12 frames makes seeking cheap. Timestamps stay as they are. Each file appears whole or not at
    all, and what is there already is kept, so that a stopped call can be repeated.

    Args:
        root: folder of videos in any layout; its lists (.csv, .jsonl, .json, .txt) are copied.
        out: another folder; made if it is missing.
        short_side: in pixels; smaller videos keep their size.
        workers: processes.
    Raises:
        UserError: if there is no video, or `out` lies in `root`.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{root} is no folder", "Name the folder of the videos")
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out} lies in {root}", "Name a folder outside of it")
    if short_side < 16:
        raise UserError(f"short_side is {short_side}", "Give pixels, such as 256")
    paths = [path for path, good in walk_samples(root, "", VIDEOS) if good and (root / path).is_file()]
    if not paths:
        raise UserError(f"no video below {root}", f"Accepted file endings are {' '.join(sorted(VIDEOS.suffixes))}")
    encoded = _encode_all(paths, partial(_prepare, root, out, short_side), workers)
    outcomes = list(screen.counted(encoded, len(paths), "encoding videos"))
    copied = 0
    for source in sorted(root.rglob("*")):
        if source.suffix.lower() in _LISTS and source.is_file():
            target = out / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied += 1
    return PrepareReport(
        written=outcomes.count("written"),
        kept=outcomes.count("kept"),
        failed=[(path, o.removeprefix("!")) for path, o in zip(paths, outcomes, strict=True) if o.startswith("!")],
        copied=copied,
        renamed=sum(Path(path).suffix.lower() not in _KEPT for path in paths),
    )


def _encode_all(paths: list[str], encode: partial[str], workers: int) -> Iterator[str]:
    if workers < 2:
        yield from map(encode, paths)
        return
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(encode, paths)


def _prepare(root: Path, out: Path, short_side: int, path: str) -> str:
    """Encode one file: `written`, `kept`, or `!` and why not."""
    target = out / path
    if target.suffix.lower() not in _KEPT:
        target = target.with_suffix(".mp4")
    if target.exists():
        return "kept"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        video = PyAVReader(root / path)
        with video:
            _encode(video, partial_file, short_side)
        partial_file.replace(target)
    except VideoDecodeError as error:
        return f"!{error.reason}"
    finally:
        partial_file.unlink(missing_ok=True)
    return "written"


def _encode(video: PyAVReader, target: Path, short_side: int) -> None:
    """Write all frames of an open video with their timestamps."""
    with av.open(str(target), "w") as container:
        rate = Fraction(video.fps).limit_denominator(1001)
        # Without B-frames: with them and a variable rate the muxer states too short a length.
        options = {"crf": "18", "preset": "fast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.codec_context.time_base = Fraction(1, _TICKS)
        stream.codec_context.gop_size, stream.pix_fmt = _GOP, "yuv420p"
        first, sized = None, False
        for moment, picture in video.stream():
            first = moment if first is None else first
            if not sized:
                height, width = picture.shape[:2]
                height, width = scaled_size(height, width, min(short_side, height, width))
                stream.width, stream.height, sized = width + width % 2, height + height % 2, True
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = round((moment - first) * _TICKS), Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        if not sized:
            raise VideoDecodeError(video.source, "no frame can be decoded")
        container.mux(stream.encode())
