"""From samples that are drawn on demand to class folders: nested training splits, one validation split, a marker."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
Draw = Callable[[], T]
DONE = "done.txt"


@dataclass
class Splits(Generic[T]):
    """Samples of each class, in the order in which a training split takes them. A draw always gives the same sample."""

    train: dict[str, list[Draw[T]]]
    val: dict[str, list[Draw[T]]]
    sources: list[str]


def hold_out(families: dict[Hashable, list[T]], count: int, rng: random.Random) -> tuple[list[T], list[T]]:
    """(training, validation): whole families are held out until they have `count` members, of which `count` are kept.

    The order of both is random. No family is on both sides.
    """
    names = sorted(families, key=str)
    rng.shuffle(names)
    held: list[T] = []
    while names and len(held) < count:
        held += families[names.pop()]
    rest = [member for name in names for member in families[name]]
    rng.shuffle(rest)
    rng.shuffle(held)
    return rest, held[:count]


def by_family(items: Iterable[T], family: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    """Items that share a family, together."""
    families: dict[Hashable, list[T]] = {}
    for item in items:
        families.setdefault(family(item), []).append(item)
    return families


def write_folders(folder: Path, splits: Splits[T], per_class: int, save: Callable[[T, Path], None], ending: str) -> str:
    """Write train/CLASS/ with the first `per_class` samples of each and val/CLASS/ with all; say what is there."""
    counts = {}
    for split, classes in (("train", splits.train), ("val", splits.val)):
        counts[split] = 0
        for name, draws in classes.items():
            place = folder / split / name
            place.mkdir(parents=True)
            for index, draw in enumerate(draws[: per_class if split == "train" else None]):
                save(draw(), place / f"{index:04d}{ending}")
                counts[split] += 1
    return line_of(len(splits.train), counts["train"], counts["val"], splits.sources)


def line_of(classes: int, train: int, val: int, sources: Iterable[str]) -> str:
    return f"{classes} classes, {train} to train, {val} to validate, from {', '.join(sources)}"


def once(folder: Path, fill: Callable[[Path], str]) -> Path:
    """`folder`, filled by `fill` unless its marker says that it is full; half-built ones are made anew."""
    if (folder / DONE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as name:
        work = Path(name) / "new"
        work.mkdir()
        line = fill(work)
        (work / DONE).write_text(line + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    return folder
