"""What is wrong with single annotations: told once each, and never the end of a training."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

_KEPT = 1000
"""Faults of one kind that are kept in words; more are only counted."""
_TOLERANCE = 1.0
"""Pixels by which a box may leave its picture without a word: annotation tools round."""
_ROUNDING = 1e-6

UNREADABLE = "unreadable picture"
"""Kind of a picture without a readable head; every other kind is spelt where it is found."""
OUTSIDE = ("box outside the picture", "box partly outside the picture")
"""Kinds of boxes that leave their picture, wholly and partly."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Args:
        kind: what sort of thing, in a few words.
        split: train, val or test.
        where: file, picture or annotation.
        what: what is wrong and what was done about it.
    """

    kind: str
    split: str
    where: str
    what: str


class FaultLog:
    """Faults in the order they were found, those of one kind beyond a thousand only as a number."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, kind: str, split: str, where: str, what: str) -> None:
        """Note one fault."""
        self.counts[kind] += 1
        if self.counts[kind] <= _KEPT:
            self.faults.append(Fault(kind, split, where, what))

    def note(self) -> str:
        """How many of each kind, in one line, and where they are named."""
        kinds = ", ".join(f"{count} x {kind}" for kind, count in self.counts.items())
        return f"faults in the annotations, left out or corrected: {kinds}; openmvit data check names them"


def fit_box(box: Box, size: tuple[int, int]) -> tuple[Box | None, str, str]:
    """A box inside its picture, or None where nothing of it can be used.

    Args:
        box: x0 y0 x1 y1 in pixels.
        size: height and width of the picture.
    Returns:
        the clipped box or None, the kind of fault ("" for none), and what is wrong.
    """
    x0, y0, x1, y1 = box
    if not math.isfinite(x0 + y0 + x1 + y1):
        return None, "coordinates that are no numbers", "left out"
    if x1 - x0 <= 0.0 or y1 - y0 <= 0.0:
        shape = f"{x1 - x0:g} x {y1 - y0:g}"
        return None, "box of zero or negative size", f"width x height is {shape}, left out"
    height, width = size
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    corners = f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), picture {width} x {height}"
    if inside[2] - inside[0] <= _ROUNDING or inside[3] - inside[1] <= _ROUNDING:
        return None, OUTSIDE[0], f"{corners}, left out"
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > _TOLERANCE:
        return inside, OUTSIDE[1], f"{corners}, clipped"
    return inside, "", ""
