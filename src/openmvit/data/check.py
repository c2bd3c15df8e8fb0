"""A look at a data set before training: counts, balance, unreadable files, duplicates, sizes, lengths."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from openmvit import screen
from openmvit.data.images import ImageReadError, open_images, read_image
from openmvit.data.samples import LabelledData

_SHOWN = 10
Finding = tuple[bytes, tuple[float, ...] | None, str]
"""Hash of a file, its facts or None, and why it has none."""


@dataclass(frozen=True)
class CheckReport:
    """What `check_images` or `check_videos` found.

    Args:
        root: what was checked.
        classes: class names in order.
        multilabel: whether samples may carry several labels.
        counts: per split, samples of every class.
        files: per split, number of samples.
        unreadable: (split, path, reason) of files that cannot be decoded.
        duplicates: groups of (split, path) with equal bytes that touch more than one split.
        sizes: smallest, median and largest width and height of the readable files in pixels; empty without any. Of
            videos also `fps`, and their length in `seconds`.
        notes: what was decided or left out when the data was opened.
        kind: what a sample is, for the text.
    """

    root: str
    classes: tuple[str, ...]
    multilabel: bool
    counts: dict[str, list[int]]
    files: dict[str, int]
    unreadable: list[tuple[str, str, str]]
    duplicates: list[list[tuple[str, str]]]
    sizes: dict[str, list[float]]
    notes: list[str]
    kind: str = "image"

    @property
    def clean(self) -> bool:
        """No unreadable file and no duplicate across splits."""
        return not self.unreadable and not self.duplicates

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain lists, numbers and words, for JSON."""
        return {
            "root": self.root,
            "classes": list(self.classes),
            "multilabel": self.multilabel,
            "files": self.files,
            "counts": {split: dict(zip(self.classes, counts, strict=True)) for split, counts in self.counts.items()},
            "imbalance": self.imbalance(),
            "unreadable": [dict(zip(("split", "path", "reason"), row, strict=True)) for row in self.unreadable],
            "duplicates": [[{"split": split, "path": path} for split, path in group] for group in self.duplicates],
            "sizes": self.sizes,
            "notes": self.notes,
        }

    def imbalance(self) -> float:
        """Training samples of the largest class over those of the smallest that has any."""
        counts = [count for count in self.counts["train"] if count]
        return max(counts) / min(counts)

    def lines(self) -> list[str]:
        """The report as text, lists cut after ten entries."""
        kind = f"{'several labels' if self.multilabel else 'one label'} per {self.kind}"
        text = [f"{self.root}: {len(self.classes)} classes, {kind}"]
        text += [f"note: {note}" for note in self.notes]
        text += [f"{split}: {number} {self.kind}s" for split, number in self.files.items()]
        text += self._class_lines()
        if self.sizes:
            small, middle, large = (f"{w}x{h}" for w, h in zip(self.sizes["width"], self.sizes["height"], strict=True))
            text.append(f"width x height: smallest {small}, median {middle}, largest {large} (each side by itself)")
        for name in ("fps", "seconds"):
            if name in self.sizes:
                small, middle, large = (f"{value:.4g}" for value in self.sizes[name])
                text.append(f"{name}: smallest {small}, median {middle}, largest {large}")
        text.append(f"unreadable: {len(self.unreadable)}")
        text += cut([f"  {path}: {reason}" for _, path, reason in self.unreadable])
        text.append(f"same file in more than one split: {len(self.duplicates)}")
        text += cut(["  " + " = ".join(path for _, path in group) for group in self.duplicates])
        return text

    def last_line(self) -> str:
        """The numbers that decide, for a script."""
        counts = f"unreadable={len(self.unreadable)} duplicates={len(self.duplicates)}"
        return f"data check {self.kind}s={sum(self.files.values())} {counts}"

    def _class_lines(self) -> list[str]:
        """Table of samples per class and split, the balance beneath it."""
        balance = f"balance: the largest training class has {self.imbalance():.1f} x the smallest"
        return [*class_table(self.classes, self.counts), balance]


def class_table(classes: tuple[str, ...], counts: dict[str, list[int]]) -> list[str]:
    """Samples per class and split as text, cut after twenty classes."""
    width = max(len("class"), *(len(name) for name in classes))
    rows = [f"  {'class':<{width}}" + "".join(f"{split:>9}" for split in counts)]
    for i, name in enumerate(classes):
        rows.append(f"  {name:<{width}}" + "".join(f"{numbers[i]:>9}" for numbers in counts.values()))
    head, more = rows[: 1 + 2 * _SHOWN], len(rows) - 1 - 2 * _SHOWN
    return [*head, f"  ... and {more} more classes"] if more > 0 else head


def check_images(root: str | Path, *, seed: int = 0, val_fraction: float = 0.1, workers: int = 1) -> CheckReport:
    """Open a data set, decode every file once and report on it; changes nothing.

    Args:
        root: folder or CSV file, as for training.
        seed, val_fraction: as for training: they decide the split when the data has none.
        workers: processes that decode.
    Raises:
        UserError: if the data cannot be opened at all.
    """
    data = open_images(root, seed=seed, val_fraction=val_fraction)
    return examine_data(data, examine_image, ("width", "height"), workers, "image")


def examine_data(
    data: LabelledData, examine: Callable[[str], Finding], facts: tuple[str, ...], workers: int, kind: str
) -> CheckReport:
    """Look at every file of opened data.

    Args:
        data: what was opened.
        examine: by path: hash of the bytes (empty if there are none), the facts or None, and why it has none.
        facts: names of the numbers that `examine` gives.
        workers: processes.
        kind: what a sample is, for the text.
    """
    unreadable: list[tuple[str, str, str]] = []
    seen: dict[bytes, dict[tuple[str, str], None]] = {}
    found: list[tuple[float, ...]] = []
    for split, _, path, (digest, values, reason) in examine_all(data.splits, examine, workers):
        if digest:
            seen.setdefault(digest, {})[split, path] = None
        if values is None:
            unreadable.append((split, path, reason))
        else:
            found.append(values)
    return CheckReport(
        root=str(data.root),
        classes=data.classes,
        multilabel=data.multilabel,
        counts={split: table.class_counts(len(data.classes)).tolist() for split, table in data.splits.items()},
        files={split: len(table) for split, table in data.splits.items()},
        unreadable=unreadable,
        duplicates=across_splits(seen),
        sizes=summary(found, facts),
        notes=data.notes,
        kind=kind,
    )


class Files(Protocol):
    """Any table of files."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path:
        """Where file `index` lies."""
        ...


def examine_all(
    splits: Mapping[str, Files], examine: Callable[[str], Finding], workers: int
) -> Iterator[tuple[str, int, str, Finding]]:
    """Split, index, path and finding of every file, in order."""
    total = sum(len(table) for table in splits.values())
    yield from screen.counted(_examine_splits(splits, examine, workers), total, "reading files")


def _examine_splits(
    splits: Mapping[str, Files], examine: Callable[[str], Finding], workers: int
) -> Iterator[tuple[str, int, str, Finding]]:
    for split, table in splits.items():
        paths = (str(table.path(i)) for i in range(len(table)))
        if workers < 2:
            yield from ((split, i, path, examine(path)) for i, path in enumerate(paths))
            continue
        # A forked process that used several torch threads before would wait for them for ever.
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            known = list(paths)
            yield from zip(repeat(split), count(), known, pool.map(examine, known, chunksize=16), strict=False)


def examine_image(path: str) -> Finding:
    """Hash of the bytes (empty if there are none), width and height or None, and why it cannot be decoded."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return b"", None, error.strerror or type(error).__name__
    if not content:
        return b"", None, "the file is empty"
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        return digest, read_image(path, io.BytesIO(content)).size, ""
    except ImageReadError as error:
        return digest, None, error.reason


def across_splits(seen: dict[bytes, dict[tuple[str, str], None]]) -> list[list[tuple[str, str]]]:
    """Groups of (split, path) with equal bytes that touch more than one split."""
    return [list(group) for group in seen.values() if len({split for split, _ in group}) > 1]


def summary(found: list[tuple[float, ...]], facts: tuple[str, ...]) -> dict[str, list[float]]:
    """Smallest, median and largest of each fact; pixels as whole numbers."""
    if not found:
        return {}
    ranges: dict[str, list[float]] = {}
    for name, values in zip(facts, np.array(found, dtype=float).T, strict=True):
        numbers = [float(values.min()), float(np.median(values)), float(values.max())]
        ranges[name] = [int(number) for number in numbers] if name in ("width", "height") else numbers
    return ranges


def cut(rows: list[str], total: int | None = None) -> list[str]:
    """The first ten rows and how many follow, of `total` where that is more than there are rows."""
    more = (total or len(rows)) - _SHOWN
    return rows[:_SHOWN] + ([f"  ... and {more} more"] if more > 0 else [])
