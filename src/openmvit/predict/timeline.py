"""What a model said over the time of a video, as records and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any


@dataclass(frozen=True)
class Window:
    """What the model says about a part of a long video.

    Args:
        start, end: seconds from the first frame.
        labels: class names, likeliest first.
        probabilities: one per label, 0..1.
    """

    start: float
    end: float
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        times = {"start": self.start, "end": self.end}
        return times | {"labels": list(self.labels), "probabilities": list(self.probabilities)}


@dataclass(frozen=True)
class Stretch:
    """Neighbouring windows with the same likeliest label.

    Args:
        start, end: seconds; a border lies halfway between the centres of the two windows that it parts.
        label: what they have in common.
        probability: mean over the windows.
    """

    start: float
    end: float
    label: str
    probability: float


def stretches(timeline: Sequence[Window]) -> list[Stretch]:
    """A timeline without overlaps: each moment has the label of the window whose centre is nearest."""
    centres = [(window.start + window.end) / 2 for window in timeline]
    borders = [(a + b) / 2 for a, b in pairwise(centres)]
    starts, ends = [0.0, *borders], [*borders, *(window.end for window in timeline[-1:])]
    found = []
    for label, run in groupby(range(len(timeline)), key=lambda i: timeline[i].labels[0]):
        numbers = list(run)
        mean = sum(timeline[i].probabilities[0] for i in numbers) / len(numbers)
        found.append(Stretch(starts[numbers[0]], ends[numbers[-1]], label, mean))
    return found


def timeline_csv(timeline: Sequence[Window]) -> str:
    """CSV `start,end,label,probability,label_2,probability_2,...`, one row per window, seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    most = max((len(window.labels) for window in timeline), default=1)
    names = [name for k in range(2, most + 1) for name in (f"label_{k}", f"probability_{k}")]
    writer.writerow(["start", "end", "label", "probability", *names])
    for window in timeline:
        pairs = zip(window.labels, window.probabilities, strict=True)
        answers = [cell for label, p in pairs for cell in (label, f"{p:.6f}")]
        writer.writerow([f"{window.start:.3f}", f"{window.end:.3f}", *answers])
    return text.getvalue()
