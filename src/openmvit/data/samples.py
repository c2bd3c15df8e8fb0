"""Lists of labelled files that cost no Python object per sample, and what every data set does with a bad file."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from openmvit.data.copies import keep_together
from openmvit.data.counter import mix
from openmvit.errors import UserError

REPLACED = 1
"""`bad` of a sample whose file was unreadable: another sample stands in."""
LOST = 2
"""`bad` of a sample for which ten others were unreadable too: its pixels are all zeros and not to be trained on."""

_TRIES = 10
_LOOKED = 8
_T = TypeVar("_T")


class FileReadError(Exception):
    """A sample that cannot be decoded.

    Args:
        path: the file.
        reason: why, in a few words without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FileKind:
    """What counts as a sample file.

    Args:
        name: the singular, for messages ("image").
        suffixes: accepted endings, lower case with the dot.
        frame_suffixes: endings of the pictures whose folder is a sample too (a video as a folder of frames).
        moving_suffixes: endings of pictures that may move, which are samples where they do and no other pictures are
            beside them.
        moves: whether such a file does.
    """

    name: str
    suffixes: frozenset[str]
    frame_suffixes: frozenset[str] = frozenset()
    moving_suffixes: frozenset[str] = frozenset()
    moves: Callable[[Path], bool] = lambda path: False

    def accepts(self, file_name: str) -> bool:
        """Whether the name ends like a file of this kind, in upper or lower case."""
        return os.path.splitext(file_name)[1].lower() in self.suffixes  # noqa: PTH122 - a Path per file is slow

    def may_move(self, file_name: str) -> bool:
        """Whether the name ends like a picture that may move."""
        return os.path.splitext(file_name)[1].lower() in self.moving_suffixes  # noqa: PTH122

    def takes(self, file_name: str) -> bool:
        """Whether a file that was named by itself may be a sample."""
        return self.accepts(file_name) or self.may_move(file_name)

    def most_move(self, paths: Sequence[Path]) -> bool:
        """Whether more than half of these pictures move, by a few of them."""
        looked = paths[:: -(-len(paths) // _LOOKED)] if paths else []
        return 2 * sum(map(self.moves, looked)) > len(looked)

    def is_frame(self, file_name: str) -> bool:
        """Whether the name ends like a picture of a folder of frames."""
        return os.path.splitext(file_name)[1].lower() in self.frame_suffixes  # noqa: PTH122


@dataclass(frozen=True, eq=False)
class SampleTable:
    """Paths and labels of one split in flat arrays: workers copy nothing and a million samples take some 50 MB.

    Args:
        root: folder that the relative paths start from.
        path_bytes: uint8, all paths one behind the other as the file system spells them.
        path_ends: int64 `[N + 1]`, path i is `path_bytes[path_ends[i]:path_ends[i + 1]]`.
        label_values: int32, the class numbers of all samples one behind the other.
        label_ends: int64 `[N + 1]`, in the same way.
        times: float64 `[N, 2]`, first and last second of the part of a file that is the sample (NaN: from its
            beginning, to its end); None when every sample is a whole file.
    """

    root: Path
    path_bytes: np.ndarray
    path_ends: np.ndarray
    label_values: np.ndarray
    label_ends: np.ndarray
    times: np.ndarray | None = None

    @classmethod
    def build(
        cls, root: Path, rows: Iterable[tuple[str, Iterable[int]]], times: np.ndarray | None = None
    ) -> SampleTable:
        """A table from (path, class numbers) pairs; relative paths start from `root`."""
        paths, labels = bytearray(), array("i")
        path_ends, label_ends = array("q", [0]), array("q", [0])
        for path, numbers in rows:
            paths += os.fsencode(path)
            labels.extend(numbers)
            path_ends.append(len(paths))
            label_ends.append(len(labels))
        flat = [np.array(part) for part in (path_ends, labels, label_ends)]
        return cls(root, np.frombuffer(bytes(paths), np.uint8), flat[0].astype(np.int64), flat[1], flat[2], times)

    def __len__(self) -> int:
        return len(self.path_ends) - 1

    def path(self, index: int) -> Path:
        """Where sample `index` lies."""
        start, end = self.path_ends[index], self.path_ends[index + 1]
        return self.root / os.fsdecode(self.path_bytes[start:end].tobytes())

    def labels(self, index: int) -> tuple[int, ...]:
        """Class numbers of sample `index`, ascending."""
        return tuple(self.label_values[self.label_ends[index] : self.label_ends[index + 1]].tolist())

    def span(self, index: int) -> tuple[float | None, float | None]:
        """First and last second of sample `index` within its file; None where the file's own end holds."""
        if self.times is None:
            return None, None
        start, end = self.times[index].tolist()
        return None if math.isnan(start) else start, None if math.isnan(end) else end

    def target(self, index: int, num_classes: int, multilabel: bool) -> Tensor:
        """Label of sample `index`: its class, int64 `[]`; multi-label zeros and ones, float32 `[num_classes]`."""
        numbers = self.labels(index)
        if not multilabel:
            return torch.tensor(numbers[0])
        label = torch.zeros(num_classes)
        label[list(numbers)] = 1.0
        return label

    def first_labels(self) -> np.ndarray:
        """The lowest class number of every sample, `[N]`: its class when there is one label per sample."""
        return self.label_values[self.label_ends[:-1]]

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Samples of every class, int64 `[num_classes]`; a sample with two labels counts for both."""
        return np.bincount(self.label_values, minlength=num_classes).astype(np.int64)

    def subset(self, indices: np.ndarray) -> SampleTable:
        """The samples at `indices`, in that order."""
        paths, path_ends = _take(self.path_bytes, self.path_ends, indices)
        labels, label_ends = _take(self.label_values, self.label_ends, indices)
        times = None if self.times is None else self.times[indices]
        return SampleTable(self.root, paths, path_ends, labels, label_ends, times)


def _take(values: np.ndarray, ends: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows `indices` of a ragged array."""
    lengths = np.diff(ends)[indices]
    new_ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shift = np.repeat(ends[:-1][indices] - new_ends[:-1], lengths)
    return values[np.arange(new_ends[-1]) + shift], new_ends


@dataclass(frozen=True, eq=False)
class LabelledData:
    """Everything known about a data set before a file is decoded.

    Args:
        classes: names in the order of the class numbers: sorted as Python sorts strings ("10" before "2"), or in the
            order of a list that numbers its classes itself.
        splits: `train` and `val` always, `test` when there is one.
        multilabel: whether a sample may carry several labels.
        root: what the user named.
        notes: one sentence each about what was decided or left out; the caller shows them.
        held_out: whether `val` was drawn from the training samples, since the data have none of their own.
    """

    classes: tuple[str, ...]
    splits: dict[str, SampleTable]
    multilabel: bool
    root: Path
    notes: list[str] = field(default_factory=list)
    held_out: bool = False


def read_or_replace(
    read: Callable[[int], _T], length: int, seed: int, epoch: int, index: int
) -> tuple[_T | None, int, int]:
    """Read sample `index`, or another one in its place where that fails; a pure function of the arguments.

    Args:
        read: decodes a sample by its index; raises `FileReadError`.
        length: samples to choose stand-ins from.
        seed, epoch, index: decide the stand-ins.
    Returns:
        what was read (None if LOST), the index it comes from, and 0, REPLACED or LOST.
    """
    source = index
    for attempt in range(_TRIES + 1):
        try:
            return read(source), source, min(attempt, REPLACED)
        except FileReadError:
            source = mix(seed, epoch, index, attempt) % length
    return None, index, LOST


def stratified_split(
    table: SampleTable, val_fraction: float, seed: int, copies: Sequence[Sequence[int]] = ()
) -> tuple[SampleTable, SampleTable, int]:
    """Hold out the same share of every class; a pure function of the arguments.

    A class gives `round(n * val_fraction)` samples to validation, at least one and never all; the only sample of a
    class stays in training. A sample with several labels is counted with its lowest one.

    Args:
        copies: groups of samples that go to the same side.
    Returns:
        training table, validation table, number of classes of which none could be held out.
    Raises:
        UserError: if the share is not between 0 and 1.
    """
    if not 0.0 < val_fraction < 1.0:
        raise UserError(f"val_fraction is {val_fraction}", "Give a share between 0 and 1, such as 0.1")
    generator = torch.Generator()
    generator.manual_seed(mix(seed, len(table)))
    shuffled = torch.randperm(len(table), generator=generator).numpy()
    labels = table.first_labels()
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.zeros(len(table), dtype=bool)
    counts = np.bincount(labels)
    for start, count in zip(np.cumsum(counts) - counts, counts, strict=True):
        share = min(max(round(float(count) * val_fraction), 1), int(count) - 1) if count > 1 else 0
        held_out[by_class[start : start + share]] = True
    keep_together(held_out, copies, by_class, labels)
    single = int(((counts > 0) & (np.bincount(labels[held_out], minlength=len(counts)) == 0)).sum())
    return table.subset(np.flatnonzero(~held_out)), table.subset(np.flatnonzero(held_out)), single
