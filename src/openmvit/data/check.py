"""A look at a data set before training: counts, balance, unreadable files, copies, sizes, lengths, faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from openmvit import screen
from openmvit.data.copies import find_copies
from openmvit.data.faults import Faults
from openmvit.data.images import ImageReadError, open_images, read_image
from openmvit.data.samples import LabelledData
from openmvit.errors import UserError

_SHOWN = 10
_LABELS = 60
"""Characters of a sample's labels that are shown."""
Finding = tuple[tuple[float, ...] | None, str]
"""Facts of a file or None, and why it has none."""
Group = list[tuple[str, str]]
"""(split, path) of files with equal bytes, or (path, labels) of those that are labelled differently."""


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
        conflicts: groups of (path, labels) with equal bytes and different labels.
        faults: what a training would stop at, in one sentence each; of very many the first.
        fault_count: of all of them.
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
    duplicates: list[Group]
    conflicts: list[Group]
    faults: list[str]
    fault_count: int
    sizes: dict[str, list[float]]
    notes: list[str]
    kind: str = "image"

    @property
    def clean(self) -> bool:
        """No fault, no unreadable file, no copy across splits or with another label."""
        return not (self.fault_count or self.unreadable or self.duplicates or self.conflicts)

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
            "conflicts": [[{"path": path, "labels": labels} for path, labels in group] for group in self.conflicts],
            "faults": self.faults,
            "fault_count": self.fault_count,
            "sizes": self.sizes,
            "notes": self.notes,
        }

    def imbalance(self) -> float:
        """Training samples of the largest class over those of the smallest that has any."""
        counts = [count for count in self.counts.get("train", []) if count]
        return max(counts) / min(counts) if counts else 1.0

    def lines(self) -> list[str]:
        """The report as text, lists cut after ten entries."""
        kind = f"{'several labels' if self.multilabel else 'one label'} per {self.kind}"
        text = [f"{self.root}: {len(self.classes)} classes, {kind}"]
        text.append(f"faults that stop a training: {self.fault_count}")
        text += cut([f"  {fault}" for fault in self.faults], self.fault_count)
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
        return text + copy_lines(self.duplicates, self.conflicts)

    def last_line(self) -> str:
        """The numbers that decide, for a script."""
        counts = f"unreadable={len(self.unreadable)} duplicates={len(self.duplicates)} conflicts={len(self.conflicts)}"
        return f"data check {self.kind}s={sum(self.files.values())} {counts} faults={self.fault_count}"

    def _class_lines(self) -> list[str]:
        """Table of samples per class and split, the balance beneath it."""
        if not self.classes:
            return []
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
        UserError: if the data cannot be opened at all, and this is all that is wrong with them.
    """
    opened = open_all(open_images, root, seed, val_fraction)
    return examine_data(*opened, examine_image, ("width", "height"), workers, "image")


def open_all(
    opener: Callable[..., LabelledData], root: str | Path, seed: int, val_fraction: float
) -> tuple[LabelledData, Faults]:
    """What can be opened of data with faults, and the faults; nothing where the last one leaves nothing.

    Raises:
        UserError: if the data cannot be opened at all, and this is all that is wrong with them.
    """
    faults = Faults(collect=True)
    try:
        return opener(root, seed=seed, val_fraction=val_fraction, faults=faults), faults
    except UserError as error:
        if not faults.count:
            raise
        faults.note(error)
        return LabelledData((), {}, False, Path(root)), faults


def examine_data(
    data: LabelledData,
    faults: Faults,
    examine: Callable[[str], Finding],
    facts: tuple[str, ...],
    workers: int,
    kind: str,
) -> CheckReport:
    """Look at every file of opened data.

    Args:
        data: what was opened.
        faults: what was found wrong on the way.
        examine: by path: the facts or None, and why it has none.
        facts: names of the numbers that `examine` gives.
        workers: processes.
        kind: what a sample is, for the text.
    """
    seen = list(examine_all(data.splits, examine, workers))

    def label(split: str, index: int) -> str:
        return " + ".join(data.classes[number] for number in data.splits[split].labels(index))

    duplicates, conflicts = copies_in(data.splits, label, lambda split, index: data.splits[split].span(index))
    return CheckReport(
        root=str(data.root),
        classes=data.classes,
        multilabel=data.multilabel,
        counts={split: table.class_counts(len(data.classes)).tolist() for split, table in data.splits.items()},
        files={split: len(table) for split, table in data.splits.items()},
        unreadable=[(split, path, reason) for split, _, path, (values, reason) in seen if values is None],
        duplicates=duplicates,
        conflicts=conflicts,
        faults=[str(fault) for fault in faults.found],
        fault_count=faults.count,
        sizes=summary([values for *_, (values, _) in seen if values is not None], facts),
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
    """Width and height or None, and why it cannot be decoded."""
    try:
        return read_image(path).size, ""
    except ImageReadError as error:
        return None, error.reason


def copies_in(
    splits: Mapping[str, Files], label: Callable[[str, int], str], part: Callable[[str, int], object]
) -> tuple[list[Group], list[Group]]:
    """Files with equal bytes: groups that touch more than one split, and groups whose labels differ.

    Args:
        splits: tables of files.
        label: of a sample, in words.
        part: of its file that a sample is; different parts may well have different labels.
    """
    places = [(split, index) for split, table in splits.items() for index in range(len(table))]
    groups = find_copies(len(places), lambda number: splits[places[number][0]].path(places[number][1]))
    across: list[Group] = []
    differing: list[Group] = []
    for group in groups:
        own = [places[number] for number in group]
        if len({split for split, _ in own}) > 1:
            across.append(list(dict.fromkeys((split, str(splits[split].path(index))) for split, index in own)))
        parts: dict[object, Group] = {}
        for split, index in own:
            parts.setdefault(part(split, index), []).append((str(splits[split].path(index)), label(split, index)))
        differing += [same for same in parts.values() if len({words for _, words in same}) > 1]
    return across, differing


def copy_lines(duplicates: Sequence[Group], conflicts: Sequence[Group]) -> list[str]:
    """Both kinds of copies as text."""
    text = [f"same file in more than one split: {len(duplicates)}"]
    text += cut(["  " + " = ".join(path for _, path in group) for group in duplicates])
    text.append(f"same file with different labels: {len(conflicts)}")
    rows = ["  " + " = ".join(f"{path} ({_shortened(labels)})" for path, labels in group) for group in conflicts]
    return text + cut(rows)


def _shortened(labels: str) -> str:
    return labels if len(labels) <= _LABELS else f"{labels[: _LABELS - 3]}..."


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
