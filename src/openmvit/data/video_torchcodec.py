"""Videos through torchcodec, which needs FFmpeg libraries of the system; files that trouble it go to PyAV."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from openmvit.data.video import VideoDecodeError, VideoReader, check_index
from openmvit.data.video_pyav import PyAVReader


class TorchcodecReader(VideoReader):
    """A video file or URL.

    torchcodec gives up at the first damaged packet and with long C++ messages; PyAV then says what is wrong or goes
    on behind the damage, so that both readers give the same frames and the same reasons.

    Args:
        path: file or URL.
        recover: ask PyAV where torchcodec fails.
    Raises:
        VideoDecodeError: as `PyAVReader`.
    """

    def __init__(self, path: str | Path, recover: bool = True) -> None:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

        self.source, self._recover = str(path), recover
        self.spent = {"seek": 0.0, "decode": 0.0}
        self._instead: PyAVReader | None = None
        try:
            self._decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
            facts = self._decoder.metadata
            self.fps = float(facts.average_fps)
            self.num_frames = max(1, int(facts.num_frames))
            self.duration = float(facts.duration_seconds)
            self._begin = float(facts.begin_stream_seconds)
            self._end = float(facts.end_stream_seconds)
            self._size = (int(facts.width), int(facts.height))
        except Exception as error:  # RuntimeError, ValueError, TypeError of absent facts: all mean the same
            self._hand_over(error)

    def _hand_over(self, error: Exception) -> PyAVReader:
        if not self._recover:
            raise VideoDecodeError(self.source, str(error).strip().partition("\n")[0]) from error
        self._instead = PyAVReader(self.source)
        for name in ("fps", "num_frames", "duration"):
            setattr(self, name, getattr(self._instead, name))
        self.spent = self._instead.spent
        return self._instead

    @property
    def size(self) -> tuple[int, int]:
        return self._size if self._instead is None else self._instead.size

    def frames(self, indices: Sequence[int]) -> Tensor:
        if self._instead is not None:
            return self._instead.frames(indices)
        began = time.perf_counter()
        wanted = sorted({check_index(self, index) for index in indices})
        moments = [min(self._begin + (i + 0.5) / self.fps, self._end - 1e-4) for i in wanted]
        try:
            batch = self._decoder.get_frames_played_at(moments).data
        except (RuntimeError, ValueError, IndexError) as error:
            return self._hand_over(error).frames(indices)
        self.spent["decode"] += time.perf_counter() - began
        place = {number: row for row, number in enumerate(wanted)}
        return batch[torch.tensor([place[min(index, self.num_frames - 1)] for index in indices])]

    def close(self) -> None:
        if self._instead is not None:
            self._instead.close()
