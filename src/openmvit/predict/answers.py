"""What a model said, as records, text and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from openmvit.predict import showing
from openmvit.predict.timeline import Window, stretches


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
        output: the copy with the label drawn in; empty if there is none.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""
    timeline: tuple[Window, ...] = ()
    kind: str = "image"
    output: str = ""

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
        if self.output:
            found["output"] = self.output
        return found

    def to_json(self) -> str:
        """The answer as a JSON object."""
        return json.dumps(self.as_dict())

    def plot(self) -> Image.Image:
        """The picture above its likeliest label; of a video, eight frames over time.

        Raises:
            UserError: if there is no file to draw, or nothing could be read from it.
        """
        showing.check(self.path, self.error if not self.labels else "")
        return showing.labelled_file(self.path, self.kind, self._title)

    def save(self, path: str | Path) -> Path:
        """Write a copy of the file with the label drawn in: a picture, or of a video an .mp4 file.

        Raises:
            UserError: as for `plot`, or if the place cannot be written.
        """
        if self.kind != "video":
            return showing.save_picture(self.plot(), Path(path))
        showing.check(self.path, self.error if not self.labels else "")
        return showing.save_video(self.path, self.timeline, self.labels, self.probabilities, Path(path))

    @property
    def _title(self) -> str:
        return f"{self.labels[0]}  {self.probabilities[0]:.1%}"


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
    """CSV `path,rank,label,probability,error,output`, one row per label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability", "error", "output"])
    for one in predictions:
        if not one.labels:
            writer.writerow([one.path, "", "", "", one.error, one.output])
        for rank, (label, p) in enumerate(zip(one.labels, one.probabilities, strict=True), start=1):
            writer.writerow([one.path, rank, label, f"{p:.6f}", one.error, one.output])
    return text.getvalue()
