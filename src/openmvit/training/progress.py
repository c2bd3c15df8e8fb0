"""What the user sees while training: one line of figures, now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from openmvit import screen
from openmvit.screen import Figures, Ticker, clock
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
    """Writes the progress line: in place on a terminal, else now and then as a line of its own.

    log.txt holds every line whole; what is printed fits the terminal.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._ticker = folder, Ticker(sys.stdout)

    def step(self, figures: Callable[[], Figures]) -> None:
        """Show where the run is, if it is time."""
        if not self._folder.writes or not self._ticker.due():
            return
        if screen.is_terminal(sys.stdout):
            screen.show(figures().fit(screen.columns(sys.stdout) - screen.ECHO), sys.stdout)
        else:
            self.line(figures())

    def line(self, text: str | Figures) -> None:
        """Show a line that stays."""
        shown = screen.wrapped(text) if isinstance(text, str) else text.fit(screen.columns(sys.stdout))
        self._folder.say(str(text), shown)


def step_figures(
    epoch: str, step: str, loss: float, score: str, rate: float, meter: Meter, memory: float, eta: str
) -> Figures:
    """The progress line. However narrow, it keeps epoch, step, loss, memory and the time that is left.

    Args:
        epoch, step: such as `3/10`.
        score: name and value of the best score so far, or nothing.
        memory: in GB.
    """
    texts = {
        "epoch": f"epoch {epoch}",
        "step": f"step {step}",
        "loss": f"loss {loss:.4f}",
        "score": score,
        "lr": f"lr {rate:.3e}",
        "speed": f"{meter.speed:.1f} samples/s",
        "wait": percent("wait", meter.wait_share),
        "memory": f"memory {memory:.2f} GB",
        "eta": f"eta {eta}",
    }
    cuts = [("lr", ""), ("wait", ""), ("speed", ""), ("memory", f"{memory:.2f} GB"), ("score", "")]
    cuts += [("epoch", epoch), ("step", step), ("loss", f"loss {loss:.2f}"), ("memory", f"{memory:.1f}G")]
    return Figures(texts, [*cuts, ("loss", f"{loss:.2f}"), ("eta", eta)])


def epoch_figures(
    epoch: str, row: Mapping[str, float], shown: Sequence[str], metric: str, best: tuple[str, int] | None
) -> Figures:
    """The line of an epoch. However narrow, it keeps the epoch, its loss and its score; results.csv has all of it.

    Args:
        epoch: such as `3/10`.
        row: of results.csv.
        shown: scores that the line shows where the row has them.
        metric: the one that decides.
        best: value and epoch of the best score so far, once there is one.
    """
    scores = [name for name in row if name in shown]
    texts = {"epoch": f"epoch {epoch}", "loss": f"loss {row['loss']:.4f}"}
    texts |= {name: f"{name} {row[name]:.4f}" for name in scores}
    texts |= {
        "lr": f"lr {row['lr']:.3e}",
        "speed": f"{row['samples_per_s']:.1f} samples/s",
        "wait": percent("wait", row["wait"]),
        "memory": f"memory {row['memory_gb']:.2f} GB",
        "time": f"time {clock(row['seconds'])}",
        "best": f"best {best[0]} (epoch {best[1]})" if best else "",
    }
    cuts = [(name, "") for name in ("lr", "wait", "speed", "memory")]
    cuts += [(name, "") for name in reversed(scores) if name not in (metric, "val_loss")]
    cuts += [("time", ""), ("best", f"best {best[0]}" if best else ""), ("val_loss", ""), ("best", "")]
    return Figures(texts, [*cuts, ("epoch", epoch), ("loss", f"loss {row['loss']:.2f}")])


def percent(name: str, share: float) -> str:
    """A share in whole per cent, rounded down: only the whole is 100 %."""
    return f"{name} {int(100 * share)} %"
