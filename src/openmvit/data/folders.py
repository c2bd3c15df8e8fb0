"""Class folders on a disk as sample tables: plain folders, train/ and val/, and ImageNet as it is published."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from openmvit.data.copies import about_copies, find_copies
from openmvit.data.faults import Faults
from openmvit.data.samples import FileKind, LabelledData, SampleTable, stratified_split
from openmvit.errors import UserError

VALIDATION_NAMES = ("val", "valid", "validation")
_IMAGENET_FOLDER = Path("ILSVRC/Data/CLS-LOC")
_IMAGENET_ANSWERS = "LOC_val_solution.csv"
_MANY = 100_000
"""Files from which on the look for copies takes so long that it is said before."""
_ENDINGS = 10
"""Endings of left-out files that are named."""


def open_folders(root: Path, kind: FileKind, seed: int, val_fraction: float, faults: Faults) -> LabelledData:
    """Read a folder with train/ and val/, or a folder of class folders, which is then split by `seed`."""
    notes: list[str] = []
    base = root / _IMAGENET_FOLDER if (root / _IMAGENET_FOLDER).is_dir() else root
    train = base / "train"
    others = {*VALIDATION_NAMES, "test", "train"}
    if train.is_dir() and (_folders(train) or not set(_folders(base)) - others):
        data = _open_splits(root, base, kind, notes, faults)
    else:
        classes = _train_classes(base, kind, faults)
        table = _scan(base, classes, kind, notes, faults)
        data = LabelledData(classes, {"train": table}, False, root, notes)
    return data if "val" in data.splits else split_data(data, val_fraction, seed, faults)


def split_data(data: LabelledData, val_fraction: float, seed: int, faults: Faults) -> LabelledData:
    """Hold out `val_fraction` of the training table as `val`, and say so in the notes; copies of a file stay together.

    Raises:
        UserError: if nothing can be held out.
    """
    table = data.splits["train"]
    if len(table) >= _MANY:
        print(f"Looking for copies of a file among {len(table)}, so that none is held out apart", file=sys.stderr)
    copies = list(_same_part(table, find_copies(len(table), table.path)))
    train, val, single = stratified_split(table, val_fraction, seed, copies)
    if not len(val):
        faults.add(
            f"no class in {data.root} has two {'different ' * bool(copies)}samples, so none can be held out for "
            "validation",
            "Add samples, or name the validation samples in a val/ folder or a val.csv",
        )
    data.notes.append(f"no validation split: {len(val)} of {len(train) + len(val)} samples held out (seed {seed})")
    data.notes.extend(about_copies(copies))
    if single:
        words = "no second sample that is no copy" if copies else "one sample each"
        data.notes.append(f"{single} classes have {words} and are missing from validation")
    splits = {**data.splits, "train": train, "val": val}
    return LabelledData(data.classes, splits, data.multilabel, data.root, data.notes, held_out=True)


def _same_part(table: SampleTable, copies: list[list[int]]) -> Iterator[list[int]]:
    """Copies that are the same part of their files."""
    for group in copies:
        parts: dict[tuple[float | None, float | None], list[int]] = {}
        for index in group:
            parts.setdefault(table.span(index), []).append(index)
        yield from (part for part in parts.values() if len(part) > 1)


def _open_splits(root: Path, base: Path, kind: FileKind, notes: list[str], faults: Faults) -> LabelledData:
    """The layout train/ with val/ and test/ where they exist."""
    classes = _train_classes(base / "train", kind, faults)
    tables = {"train": _scan(base / "train", classes, kind, notes, faults)}
    val = next((base / name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
    if val is not None:
        labelled = bool(_folders(val))
        tables["val"] = _scan(val, classes, kind, notes, faults) if labelled else _flat_imagenet(val, classes, kind)
        if not len(tables["val"]):
            faults.add(f"no {kind.name} in {val}", "Fill it, or remove it to have training samples held out")
        missing = [classes[i] for i, n in enumerate(tables["val"].class_counts(len(classes))) if not n]
        if missing:
            notes.append(f"{len(missing)} classes are missing from {val.name}/, the first is {missing[0]!r}")
    test = base / "test"
    if test.is_dir() and _folders(test):
        tables["test"] = _scan(test, classes, kind, notes, faults)
    elif test.is_dir():
        notes.append("test/ has no class folders and is left out")
    return LabelledData(classes, tables, False, root, notes)


def _folders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def walk_samples(folder: Path, start: str, kind: FileKind) -> Iterator[tuple[str, bool]]:
    """Visible files below `folder/start` as (path from `folder`, whether it is a sample), in sorted order.

    Where a folder of pictures is a sample, it stands for its files, unless it holds videos too or is `start` itself.
    """
    yield from _walk(folder, start, kind, _entries(folder / start))


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Visible names in a folder, sorted, and whether each is a folder."""
    with os.scandir(folder) as entries:
        return sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))


def _walk(folder: Path, start: str, kind: FileKind, found: list[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """What `found`, the entries of `folder/start`, holds."""
    moving = _are_moving(folder / start, found, kind)
    for name, is_folder in found:
        path = f"{start}/{name}" if start else name
        if not is_folder:
            yield path, kind.accepts(name) or (moving and kind.may_move(name))
            continue
        inner = _entries(folder / path)
        files = [entry for entry, is_inner in inner if not is_inner]
        films = any(map(kind.accepts, files)) or _are_moving(folder / path, inner, kind)
        if any(map(kind.is_frame, files)) and not films:
            yield path, True
        else:
            yield from _walk(folder, path, kind, inner)


def _are_moving(folder: Path, found: list[tuple[str, bool]], kind: FileKind) -> bool:
    """Whether the pictures of a folder that may move are samples: beside samples, or most of a few that are alone."""
    names = [name for name, is_folder in found if not is_folder]
    doubtful = [name for name in names if kind.may_move(name)]
    if not doubtful or any(map(kind.accepts, names)):
        return bool(doubtful)
    if any(kind.is_frame(name) and not kind.may_move(name) for name in names):
        return False
    return kind.most_move([folder / name for name in doubtful])


def _train_classes(folder: Path, kind: FileKind, faults: Faults) -> tuple[str, ...]:
    """Sorted class folder names that hold at least one sample each.

    Raises:
        UserError: no class folders, or no sample at all; and unless faults are collected one class only, or a class
            without samples.
    """
    names = _folders(folder)
    if not names:
        loose = sum(kind.accepts(path.name) for path in folder.iterdir())
        raise UserError(
            f"no class folders in {folder} ({loose} {kind.name} files lie directly in it)",
            "Put the files of each class into a folder of its own, or name a CSV file with path,label rows",
        )
    empty = [name for name in names if not any(good for _, good in walk_samples(folder, name, kind))]
    if len(empty) == len(names):
        others = _by_ending(path for name in names for path, _ in walk_samples(folder, name, kind))
        raise UserError(
            f"no {kind.name} in the {len(names)} folders of {folder}" + (f" ({others})" if others else ""),
            f"Accepted file endings are {' '.join(sorted(kind.suffixes))}",
        )
    for name in empty:
        more = f" ({len(empty)} such classes)" if len(empty) > 1 and not faults.collect else ""
        faults.add(f"class {name!r} in {folder} has no {kind.name}{more}", "Add files to it or remove the folder")
    classes = tuple(name for name in names if name not in set(empty))
    if len(classes) == 1:
        faults.add(f"{folder} has one class only ({classes[0]!r})", "Training needs at least two class folders")
    return classes


def _scan(folder: Path, classes: tuple[str, ...], kind: FileKind, notes: list[str], faults: Faults) -> SampleTable:
    """Table of all samples in the class folders of one split.

    Raises:
        UserError: if the split has a class folder with samples that training does not know.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    others: list[str] = []

    def rows() -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in _folders(folder):
            unknown = 0
            for path, good in walk_samples(folder, name, kind):
                if not good:
                    others.append(path)
                elif name in numbers:
                    yield path, (numbers[name],)
                else:
                    unknown += 1
            if unknown:
                faults.add(
                    f"class {name!r} in {folder} is not among the {len(classes)} training classes",
                    "Rename or remove the folder, or add the class to train/",
                )

    table = SampleTable.build(folder, rows())
    if others:
        notes.append(left_out(folder.name, others))
    loose = [name for name, is_folder in _entries(folder) if not is_folder and kind.accepts(name)]
    if loose:
        notes.append(f"{_files(len(loose))} directly in {folder.name}/ left out, such as {loose[0]}: no class folder")
    return table


def left_out(folder: str, paths: Sequence[str]) -> str:
    """How many files are no samples, by their endings, the most frequent first."""
    return f"{_files(len(paths))} in {folder}/ left out: {_by_ending(paths)}"


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _by_ending(paths: Iterable[str]) -> str:
    """How many files of each ending, in words."""
    endings = Counter(os.path.splitext(path)[1].lower() or "without ending" for path in paths)  # noqa: PTH122
    rows = [f"{number} {ending}" for ending, number in sorted(endings.items(), key=lambda row: (-row[1], row[0]))]
    more = len(rows) - _ENDINGS
    return ", ".join(rows[:_ENDINGS] + [f"and {more} more endings"] * (more > 0))


def _flat_imagenet(val: Path, classes: tuple[str, ...], kind: FileKind) -> SampleTable:
    """The 50,000 validation images of ImageNet in one folder, labelled by the list that comes with them.

    Raises:
        UserError: if the list is missing or names a class that is not in train/.
    """
    answers = next((p / _IMAGENET_ANSWERS for p in val.parents[:4] if (p / _IMAGENET_ANSWERS).is_file()), None)
    if answers is None:
        imagenet = f", or for ImageNet add {_IMAGENET_ANSWERS} above it" if kind.name == "image" else ""
        raise UserError(f"no class folders in {val}", f"Put its files into class folders as in train/{imagenet}")
    numbers = {name: number for number, name in enumerate(classes)}
    with answers.open(newline="") as stream:
        wanted = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)}

    def rows() -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in sorted(os.listdir(val)):  # noqa: PTH208 - names only
            if not kind.accepts(name):
                continue
            label = wanted.get(name.rpartition(".")[0])
            if label not in numbers:
                raise UserError(
                    f"{answers.name} gives {label!r} for {name}, which is no class folder of train/",
                    "Use the list and the training images of the same ImageNet release",
                )
            yield name, (numbers[label],)

    return SampleTable.build(val, rows())
