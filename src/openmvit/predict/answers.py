"""What a model said, as records, text and CSV."""

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
class Prediction:
    """What the model says about one image or video.

    Args:
        path: the file; `image 0`, `image 1`, ... for pictures given in memory, `video 0`, ... for frames.
        labels: class names, likeliest first; empty if nothing could be read.
        probabilities: one per label, 0..1; they sum to at most 1, except for models with several labels per sample.
            Of a video, the mean over its views; of a long one, over its windows.
        error: why the file could not be read, or not to its end; else empty.
        timeline: windows of a long video, in order.
        kind: `image` or `video`.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""
    timeline: tuple[Window, ...] = ()
    kind: str = "image"

    @property
    def readable(self) -> bool:
        """Whether anything could be read."""
        return bool(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found: dict[str, Any] = {
            "path": self.path,
            "labels": list(self.labels),
            "probabilities": list(self.probabilities),
        }
        if self.error:
            found["error"] = self.error
        if self.timeline:
            found["timeline"] = [window.as_dict() for window in self.timeline]
        return found


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


def predictions_text(predictions: Sequence[Prediction]) -> str:
    """A table: file, likeliest label, its probability, the other labels; under a long video, when which label holds."""
    width = max(len(one.path) for one in predictions)
    lines = []
    for one in predictions:
        pairs = [f"{label} {p:.4f}" for label, p in zip(one.labels, one.probabilities, strict=True)]
        said = ", ".join(pairs) + (f" ({one.error})" if one.error else "")
        lines.append(f"{one.path:<{width}}  " + (said if pairs else f"unreadable: {one.error}"))
        for part in stretches(one.timeline):
            lines.append(f"  {part.start:8.1f} - {part.end:8.1f} s  {part.label} {part.probability:.4f}")
    return "\n".join(lines)


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """CSV `path,rank,label,probability,error`, one row per label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability", "error"])
    for one in predictions:
        if not one.labels:
            writer.writerow([one.path, "", "", "", one.error])
        for rank, (label, p) in enumerate(zip(one.labels, one.probabilities, strict=True), start=1):
            writer.writerow([one.path, rank, label, f"{p:.6f}", one.error])
    return text.getvalue()


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
