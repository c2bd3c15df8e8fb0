"""Class folders on a disk as sample tables: plain folders, train/ and val/, and ImageNet as it is published."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from openmvit.data.samples import FileKind, LabelledData, SampleTable, stratified_split
from openmvit.errors import UserError

VALIDATION_NAMES = ("val", "valid", "validation")
_IMAGENET_FOLDER = Path("ILSVRC/Data/CLS-LOC")
_IMAGENET_ANSWERS = "LOC_val_solution.csv"


def open_folders(root: Path, kind: FileKind, seed: int, val_fraction: float) -> LabelledData:
    """Read a folder with train/ and val/, or a folder of class folders, which is then split by `seed`."""
    notes: list[str] = []
    base = root / _IMAGENET_FOLDER if (root / _IMAGENET_FOLDER).is_dir() else root
    train = base / "train"
    others = {*VALIDATION_NAMES, "test", "train"}
    if train.is_dir() and (_folders(train) or not set(_folders(base)) - others):
        return _open_splits(root, base, kind, (seed, val_fraction), notes)
    classes = _train_classes(base, kind)
    table = _scan(base, classes, kind, notes)
    return split_data(LabelledData(classes, {"train": table}, False, root, notes), val_fraction, seed)


def split_data(data: LabelledData, val_fraction: float, seed: int) -> LabelledData:
    """Hold out `val_fraction` of the training table as `val`, and say so in the notes.

    Raises:
        UserError: if nothing can be held out.
    """
    train, val, single = stratified_split(data.splits["train"], val_fraction, seed)
    if not len(val):
        raise UserError(
            f"no class in {data.root} has two samples, so none can be held out for validation",
            "Add samples, or name the validation samples in a val/ folder or a val.csv",
        )
    data.notes.append(f"no validation split: {len(val)} of {len(train) + len(val)} samples held out (seed {seed})")
    if single:
        data.notes.append(f"{single} classes have one sample each and are missing from validation")
    splits = {**data.splits, "train": train, "val": val}
    return LabelledData(data.classes, splits, data.multilabel, data.root, data.notes, held_out=True)


def _open_splits(root: Path, base: Path, kind: FileKind, split: tuple[int, float], notes: list[str]) -> LabelledData:
    """The layout train/ with val/ and test/ where they exist; without val/, a part of train/ is held out."""
    classes = _train_classes(base / "train", kind)
    tables = {"train": _scan(base / "train", classes, kind, notes)}
    val = next((base / name for name in VALIDATION_NAMES if (base / name).is_dir()), None)
    if val is not None:
        tables["val"] = _scan(val, classes, kind, notes) if _folders(val) else _flat_imagenet(val, classes, kind)
        if not len(tables["val"]):
            raise UserError(f"no {kind.name} in {val}", "Fill it, or remove it to have training samples held out")
        missing = [classes[i] for i, n in enumerate(tables["val"].class_counts(len(classes))) if not n]
        if missing:
            notes.append(f"{len(missing)} classes are missing from {val.name}/, the first is {missing[0]!r}")
    test = base / "test"
    if test.is_dir() and _folders(test):
        tables["test"] = _scan(test, classes, kind, notes)
    elif test.is_dir():
        notes.append("test/ has no class folders and is left out")
    data = LabelledData(classes, tables, False, root, notes)
    return data if val is not None else split_data(data, split[1], split[0])


def _folders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__MACOSX")))


def walk_samples(folder: Path, start: str, kind: FileKind) -> Iterator[tuple[str, bool]]:
    """Visible files below `folder/start` as (path from `folder`, whether it is a sample), in sorted order.

    Where a folder of pictures is a sample, it stands for its files, unless it holds videos too or is `start` itself.
    """
    with os.scandir(folder / start) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    yield from _walk(folder, start, kind, found)


def _walk(folder: Path, start: str, kind: FileKind, found: list[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    """What `found`, the entries of `folder/start`, holds."""
    for name, is_folder in found:
        path = f"{start}/{name}" if start else name
        if not is_folder:
            yield path, kind.accepts(name)
            continue
        with os.scandir(folder / path) as entries:
            inner = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
        files = [entry for entry, is_inner in inner if not is_inner]
        if kind.frame_suffixes and any(map(kind.is_frame, files)) and not any(map(kind.accepts, files)):
            yield path, True
        else:
            yield from _walk(folder, path, kind, inner)


def _train_classes(folder: Path, kind: FileKind) -> tuple[str, ...]:
    """Sorted class folder names that hold at least one sample each.

    Raises:
        UserError: no class folders, one only, no sample at all, or a class without samples.
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
        accepted = " ".join(sorted(kind.suffixes))
        raise UserError(
            f"no {kind.name} in the {len(names)} folders of {folder}", f"Accepted file endings are {accepted}"
        )
    if empty:
        raise UserError(
            f"class {empty[0]!r} in {folder} has no {kind.name}"
            + (f" ({len(empty)} such classes)" if len(empty) > 1 else ""),
            "Add files to it or remove the folder",
        )
    if len(names) == 1:
        raise UserError(f"{folder} has one class only ({names[0]!r})", "Training needs at least two class folders")
    return tuple(names)


def _scan(folder: Path, classes: tuple[str, ...], kind: FileKind, notes: list[str]) -> SampleTable:
    """Table of all samples in the class folders of one split.

    Raises:
        UserError: if the split has a class folder with samples that training does not know.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    ignored = 0

    def rows() -> Iterator[tuple[str, tuple[int, ...]]]:
        nonlocal ignored
        for name in _folders(folder):
            for path, good in walk_samples(folder, name, kind):
                if not good:
                    ignored += 1
                elif name not in numbers:
                    raise UserError(
                        f"class {name!r} in {folder} is not among the {len(classes)} training classes",
                        "Rename or remove the folder, or add the class to train/",
                    )
                else:
                    yield path, (numbers[name],)

    table = SampleTable.build(folder, rows())
    if ignored:
        notes.append(f"{ignored} files in {folder.name}/ are no {kind.name} by their ending and are left out")
    return table


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
