"""Videos through torchcodec, which needs FFmpeg libraries of the system; what troubles it goes to PyAV."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openmvit.data.video_pyav import PyAVReader
from openmvit.data.video_reader import VideoDecodeError, VideoReader, check_index


class TorchcodecReader(VideoReader):
    """A video file or URL.

    Rate and length come from PyAV, so that the clips of a run do not depend on what is installed. torchcodec gives up
    at the first damaged packet, with long C++ messages: PyAV then goes on behind the damage or says what is wrong.

    Args:
        path: file or URL.
        recover: ask PyAV where torchcodec fails.
    Raises:
        VideoDecodeError: as `PyAVReader`.
    """

    def __init__(self, path: str | Path, recover: bool = True) -> None:
        self._pyav, self._recover = PyAVReader(path), recover
        self.source, self.spent = self._pyav.source, self._pyav.spent
        self.fps, self.num_frames = self._pyav.fps, self._pyav.num_frames
        self.duration = self._pyav.duration
        self._decoder = self._open() if self._pyav.has_timestamps else None

    def _open(self) -> Any | None:
        """torchcodec's decoder, or None where it cannot open the file."""
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        try:
            decoder = VideoDecoder(self.source, dimension_order="NHWC", num_ffmpeg_threads=1)
            self._begin = float(decoder.metadata.begin_stream_seconds)
            self._end = float(decoder.metadata.end_stream_seconds)
        except Exception as error:  # RuntimeError, ValueError, TypeError for absent facts: all mean the same
            if not self._recover:
                raise VideoDecodeError(self.source, str(error).strip().partition("\n")[0]) from error
            return None
        return decoder

    @property
    def size(self) -> tuple[int, int]:
        return self._pyav.size

    def frames(self, indices: Sequence[int]) -> Tensor:
        wanted = sorted({check_index(self, index) for index in indices})
        if self._decoder is None or self._moment(wanted[-1]) >= self._end:
            return self._pyav.frames(indices)
        began = time.perf_counter()
        try:
            batch = self._decoder.get_frames_played_at([self._moment(number) for number in wanted]).data
        except (RuntimeError, ValueError, IndexError) as error:
            if not self._recover:
                raise VideoDecodeError(self.source, str(error).strip().partition("\n")[0]) from error
            self._decoder = None
            return self._pyav.frames(indices)
        self.spent["decode"] += time.perf_counter() - began
        place = {number: row for row, number in enumerate(wanted)}
        return batch[torch.tensor([place[min(index, self.num_frames - 1)] for index in indices])]

    def _moment(self, number: int) -> float:
        return self._begin + (number + 0.5) / self.fps

    def close(self) -> None:
        self._pyav.close()
