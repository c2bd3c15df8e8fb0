"""What the user sees while training: one line of figures, now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import torch

from openmvit.training.folder import RunFolder


def peak_memory(device: torch.device) -> float:
    """Largest memory of this process so far in GB: of the device, or of the process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / 1e9 if sys.platform == "darwin" else used * 1024 / 1e9


def clock(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    whole = max(int(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


@dataclass
class Meter:
    """Speed since the start of an epoch, over all processes."""

    samples: int = 0
    steps: int = 0
    wait: float = 0.0
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self.start, 1e-9)

    @property
    def speed(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data, 0..1."""
        return self.wait / self.seconds


class Reporter:
    """Writes the progress line: in place on a terminal, else every `quiet` seconds.

    Args:
        folder: where lines go.
        quiet: seconds between lines when the output is no terminal.
    """

    def __init__(self, folder: RunFolder, quiet: float = 15.0) -> None:
        self._folder = folder
        self._terminal = sys.stdout.isatty()
        self._interval = 0.5 if self._terminal else quiet
        self._next, self._open = time.monotonic() + min(self._interval, 2.0), False

    def step(self, text: str) -> None:
        """Show a line if it is time."""
        now = time.monotonic()
        if not self._folder.writes or now < self._next:
            return
        self._next = now + self._interval
        if self._terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
            self._open = True
        else:
            self._folder.say(text)

    def line(self, text: str) -> None:
        """Show a line that stays."""
        if self._open:
            print("\r\x1b[2K", end="")
            self._open = False
        self._folder.say(text)
