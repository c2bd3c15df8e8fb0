"""The control that shows what motion adds: clips of one repeated frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from openmvit.data.clips import ClipSampling
from openmvit.data.video_transforms import clip_sampling_from


@dataclass(frozen=True)
class StillSampling(ClipSampling):
    """One of the frames that `ClipSampling` would choose, T times: a random one in training, the middle one in tests.

    A score above chance on such clips is what single frames give away.
    """

    def train_indices(self, length: int, fps: float, generator: torch.Generator) -> list[int]:
        """One random frame number, T times."""
        chosen = super().train_indices(length, fps, generator)
        return [chosen[int(torch.randint(len(chosen), (), generator=generator))]] * self.num_frames

    def test_indices(self, length: int, fps: float, clip: int = 0, clips: int = 1) -> list[int]:
        """The middle frame number of a test clip, T times."""
        chosen = super().test_indices(length, fps, clip, clips)
        return [chosen[len(chosen) // 2]] * self.num_frames


def sampling_from(preprocessing: Mapping[str, Any]) -> ClipSampling:
    """The sampling of a checkpoint's card, `still` included.

    Raises:
        UserError: naming the key that is missing.
    """
    found = clip_sampling_from(preprocessing)
    return StillSampling(found.num_frames, found.stride, found.rule) if preprocessing.get("still") else found
