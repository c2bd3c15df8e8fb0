"""Opens whatever holds a video with the reader that works here."""

from __future__ import annotations

import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from openmvit.data.video_reader import FrameFolder, VideoDecodeError, VideoReader, is_url
from openmvit.errors import UserError

READERS = ("auto", "pyav", "torchcodec")


def open_video(path: str | Path, reader: str = "auto") -> VideoReader:
    """Open a video file, an http(s) or rtsp URL, or a folder of pictures in the order of their names (30 per second).

    Args:
        path: what to open.
        reader: `pyav`, `torchcodec`, or `auto` for torchcodec where it works and PyAV elsewhere.
    Raises:
        VideoDecodeError: if it is no video.
        UserError: if the reader does not exist or does not work here.
    """
    if reader not in READERS:
        raise UserError(f"video reader is {reader!r}", f"Accepted: {', '.join(READERS)}")
    if not is_url(path) and Path(path).is_dir():
        return FrameFolder(Path(path))
    if reader == "torchcodec" and torchcodec_state() != "works":
        raise UserError(
            f"torchcodec does not work here ({torchcodec_state()})", "Use the reader pyav, or see openmvit doctor"
        )
    if reader == "torchcodec" or (reader == "auto" and torchcodec_state() == "works"):
        from openmvit.data.video_torchcodec import TorchcodecReader

        return TorchcodecReader(path)
    from openmvit.data.video_pyav import PyAVReader

    return PyAVReader(path)


def probe_video(path: str | Path, reader: str = "auto") -> tuple[tuple[int, int], float, int]:
    """Decode the first, the middle and the last frame: (width, height), frames per second and number of frames.

    Raises:
        VideoDecodeError: if one of them cannot be had.
    """
    with open_video(path, reader) as video:
        video.frames([0, video.num_frames // 2, video.num_frames - 1])
        return video.size, video.fps, video.num_frames


def available_readers() -> dict[str, str]:
    """Every reader with `works` or the reason why not, found by decoding a small file."""
    return {"pyav": _try("pyav"), "torchcodec": torchcodec_state(), "frames": "works"}


@cache
def torchcodec_state() -> str:
    """`works`, or why torchcodec cannot be used. Its import succeeds without FFmpeg, so it has to decode."""
    return _try("torchcodec") if find_spec("torchcodec") else "not installed"


def _try(reader: str) -> str:
    """`works`, or the first line of what went wrong."""
    from openmvit.data.video_pyav import PyAVReader, write_trial

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mp4"
            write_trial(path)
            if reader == "pyav":
                grey = PyAVReader(path).frames([3])
            else:
                from openmvit.data.video_torchcodec import TorchcodecReader

                grey = TorchcodecReader(path, recover=False).frames([3])
    except Exception as error:  # whatever a missing or broken library raises is the finding
        reason = error.reason if isinstance(error, VideoDecodeError) else str(error)
        return (reason.strip().splitlines() or [type(error).__name__])[0][:160]
    return "works" if abs(float(grey.float().mean()) - 180.0) < 8.0 else "decodes wrong pixels"
