"""When a run draws: pictures are for people, and cost a second each."""

from __future__ import annotations

import time
from pathlib import Path

from openmvit.training.tasks import Validation


class Pictures:
    """Pictures of the best weights, drawn in a twentieth of the time at most; at the end and at a stop always.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: Validation | None = None
        self._next = 0.0

    def of(self, validation: Validation) -> None:
        """Remember the validation of the best weights so far."""
        self._waiting = validation

    def draw(self, *, now: bool) -> None:
        """Draw what is remembered, if it is time or `now`."""
        start = time.monotonic()
        if self._waiting is None or not (now or start >= self._next):
            return
        self._waiting.draw(self._folder)
        self._waiting = None
        self._next = time.monotonic() + 20 * (time.monotonic() - start)
