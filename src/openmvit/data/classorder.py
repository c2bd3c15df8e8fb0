"""The order of classes as a file beside the data fixes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from openmvit.data.faults import Faults
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.errors import UserError

ORDER_FILE = "classes.txt"


def in_order(data: LabelledData, faults: Faults) -> LabelledData:
    """The data with its classes in the order of classes.txt, one name per line, in the folder or beside the list.

    Without such a file, or with one that does not fit while faults are collected, the data stay as they are.

    Raises:
        UserError: if the file leaves out a class, or names one twice or one that the data do not have.
    """
    file = (data.root if data.root.is_dir() else data.root.parent) / ORDER_FILE
    if not file.is_file():
        return data
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        _check(file, names, data)
    except UserError as error:
        faults.note(error)
        return data
    new = {name: number for number, name in enumerate(names)}
    numbers = np.array([new[name] for name in data.classes], dtype=np.int32)
    splits = {split: _renumbered(table, numbers) for split, table in data.splits.items()}
    notes = [*data.notes, f"order of the {len(names)} classes from {file.name}"]
    return replace(data, classes=names, splits=splits, notes=notes)


def _check(file: Path, names: tuple[str, ...], data: LabelledData) -> None:
    fix = f"Write every class once, one per line, or remove {file}"
    listed, own = set(names), set(data.classes)
    if len(listed) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} names {twice!r} twice", fix)
    unknown = [name for name in names if name not in own]
    if unknown:
        raise UserError(f"{file} names {unknown[0]!r}, which is no class of {data.root}", fix)
    missing = [name for name in data.classes if name not in listed]
    if missing:
        raise UserError(f"{file} leaves out {len(missing)} classes of {data.root}, such as {missing[0]!r}", fix)


def _renumbered(table: SampleTable, numbers: np.ndarray) -> SampleTable:
    """Class `i` becomes `numbers[i]`; the labels of a sample stay ascending."""
    values = numbers[table.label_values]
    rows = np.repeat(np.arange(len(table)), np.diff(table.label_ends))
    return replace(table, label_values=values[np.lexsort((values, rows))])
