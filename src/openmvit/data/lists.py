"""CSV and JSONL lists of path and label as sample tables."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from openmvit.data.faults import Faults
from openmvit.data.folders import VALIDATION_NAMES, split_data
from openmvit.data.samples import FileKind, LabelledData, SampleTable
from openmvit.errors import UserError

_COLUMNS = {
    "path": ("path", "file", "filename", "filepath", "image", "video"),
    "label": ("label", "labels", "class", "classes", "category"),
    "split": ("split", "subset"),
    "start": ("start", "start_time", "time_start"),
    "end": ("end", "end_time", "time_end"),
}
_SUFFIXES = (".csv", ".jsonl")
_PLAIN = {"path": 0, "label": 1, "split": -1, "start": -1, "end": -1}
_TIMED = {**_PLAIN, "start": 2, "end": 3}


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    labels: tuple[str, ...]
    split: str
    start: float
    end: float


def open_lists(root: Path, kind: FileKind, seed: int, val_fraction: float, faults: Faults) -> LabelledData:
    """Read one list (with a `split` column, or split by `seed`), or a folder with train.csv and val.csv (or .jsonl).

    Several labels in any row make the data multi-label.

    Raises:
        UserError: naming file and line of a row that cannot be used.
    """
    files = {"": root} if root.is_file() else _split_files(root)
    rows = {file: list(_read(file, kind, faults)) for file in files.values()}
    grouped: dict[str, tuple[Path, list[_Row]]] = {}
    for split, file in files.items():
        for row in rows[file]:
            try:
                name = split or _split_name(row, file)
            except UserError as error:
                faults.note(error)
                continue
            grouped.setdefault(name, (file, []))[1].append(row)
    if "train" not in grouped:
        raise UserError(f"{root} has no training rows", "Add rows path,label")
    classes = tuple(sorted({label for row in grouped["train"][1] for label in row.labels}))
    if len(classes) == 1:
        faults.add(f"{root} has one class only ({classes[0]!r})", "Training needs rows of at least two classes")
    multilabel = any(len(row.labels) > 1 for _, part in grouped.values() for row in part)
    tables = {split: _table(file, part, classes, faults) for split, (file, part) in grouped.items()}
    data = LabelledData(classes, tables, multilabel, root, [])
    return data if "val" in tables else split_data(data, val_fraction, seed, faults)


def has_lists(root: Path) -> bool:
    """Whether the folder is described by a train.csv or train.jsonl."""
    return any((root / f"train{suffix}").is_file() for suffix in _SUFFIXES)


def _split_files(root: Path) -> dict[str, Path]:
    """The training list with those of validation and test where they exist."""
    wanted = {"train": ("train",), "val": VALIDATION_NAMES, "test": ("test",)}
    found = {
        split: [
            root / f"{name}{suffix}" for name in names for suffix in _SUFFIXES if (root / f"{name}{suffix}").is_file()
        ]
        for split, names in wanted.items()
    }
    return {split: paths[0] for split, paths in found.items() if paths}


def _split_name(row: _Row, file: Path) -> str:
    """train, val or test as the row says; train where the list has no split column."""
    name = "val" if row.split in VALIDATION_NAMES else row.split or "train"
    if name not in ("train", "val", "test"):
        raise UserError(f"line {row.line} of {file} has split {row.split!r}", "Accepted: train, val, test")
    return name


def _read(file: Path, kind: FileKind, faults: Faults) -> Iterator[_Row]:
    """The rows of one list, checked one by one."""
    cells_of = _json_rows if file.suffix.lower() == ".jsonl" else _csv_rows
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            for line, cells, columns in cells_of(stream, kind):
                try:
                    cells = _json_cells(cells, line, file) if isinstance(cells, str) else cells
                    row = _row(cells, columns, line, file, kind)
                except UserError as error:
                    faults.note(error)
                    continue
                yield row
    except (OSError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV ({error})", "Give a text file with path,label rows") from error


def _json_rows(stream: TextIO, kind: FileKind) -> Iterator[tuple[int, str, dict[str, int]]]:
    """Number and text of every line, and the columns of its cells."""
    yield from ((line, text, _JSON) for line, text in enumerate(stream, 1) if text.strip())


def _csv_rows(stream: TextIO, kind: FileKind) -> Iterator[tuple[int, list[str], dict[str, int] | None]]:
    """Number and cells of every row behind the header, and its columns."""
    columns: dict[str, int] | None = None
    reader = csv.reader(stream)
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if columns is None:
            columns = _header(cells, kind)
            if columns:
                continue
        yield reader.line_num, cells, columns


_JSON = {name: number for number, name in enumerate(("path", "label", "split", "start", "end"))}


def _json_cells(text: str, line: int, file: Path) -> list[str]:
    """One line of JSONL as the cells of a CSV row."""
    try:
        entry: Any = json.loads(text)
    except ValueError as error:
        raise UserError(f"line {line} of {file} is no JSON ({error})", 'Write {"path": ..., "label": ...}') from error
    if not isinstance(entry, dict):
        raise UserError(f"line {line} of {file} is no JSON object", 'Write {"path": ..., "label": ...}')
    cells = [next((entry[key] for key in _COLUMNS[name] if entry.get(key) is not None), "") for name in _JSON]
    labels = cells[1] if isinstance(cells[1], list) else [cells[1]]
    cells[1] = ";".join(str(label).replace(";", "\\;") for label in labels)
    return [str(cell) for cell in cells]


def _header(cells: list[str], kind: FileKind) -> dict[str, int]:
    """Columns by the names in the first line; empty when that line already names a sample."""
    if any(kind.takes(cell) for cell in cells):
        return {}
    lower = [cell.lower() for cell in cells]
    found = {
        column: next((lower.index(name) for name in names if name in lower), -1) for column, names in _COLUMNS.items()
    }
    return found if found["path"] >= 0 and found["label"] >= 0 else {**found, "path": 0, "label": 1}


def _row(cells: list[str], header: dict[str, int] | None, line: int, file: Path, kind: FileKind) -> _Row:
    """One checked row.

    Raises:
        UserError: wrong number of columns, no label, another kind of file, or a file that does not exist.
    """
    where = f"line {line} of {file}"
    timed = bool(kind.frame_suffixes) and len(cells) == len(_TIMED) - 1
    columns = header or (_TIMED if timed else _PLAIN)
    if len(cells) < 2 or (not header and len(cells) > 2 and not timed) or len(cells) <= max(columns.values()):
        raise UserError(
            f"{where} has {len(cells)} column{'s' * (len(cells) != 1)}",
            "Write path,label; several labels are joined by ';', and a path with a comma stands in double quotes",
        )
    path = cells[columns["path"]]
    labels = [part.strip().replace("\\;", ";") for part in re.split(r"(?<!\\);", cells[columns["label"]])]
    labels = tuple(sorted({label for label in labels if label}))
    if not labels:
        raise UserError(f"{where} has no label", "Write path,label in every row or remove the row")
    if not kind.takes(path) and not (kind.frame_suffixes and (file.parent / path).is_dir()):
        accepted = " ".join(sorted(kind.suffixes))
        raise UserError(f"{where}: {path!r} is no {kind.name} by its ending", f"Accepted file endings are {accepted}")
    if not (file.parent / path).exists():
        raise UserError(
            f"{where}: {file.parent / path} does not exist", "Paths are absolute, or relative to the folder of the CSV"
        )
    split = cells[columns["split"]].lower() if columns["split"] >= 0 else ""
    start, end = (
        _seconds(cells[columns[name]], where) if columns[name] >= 0 else math.nan for name in ("start", "end")
    )
    if start >= end or start < 0.0:
        raise UserError(f"{where}: the sample begins at {start:g} s and ends at {end:g} s", "Give 0 <= start < end")
    return _Row(line, path, labels, split, start, end)


def _seconds(text: str, where: str) -> float:
    """A time of a row; NaN where there is none."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise UserError(f"{where}: {text!r} is no time", "Write start and end in seconds, such as 12.5") from None


def _table(file: Path, rows: list[_Row], classes: tuple[str, ...], faults: Faults) -> SampleTable:
    """Rows of one split as a table.

    Raises:
        UserError: if a row carries a label that no training row has.
    """
    numbers, known = {name: number for number, name in enumerate(classes)}, list[_Row]()
    for row in rows:
        unknown = [label for label in row.labels if label not in numbers]
        if unknown:
            faults.add(
                f"line {row.line} of {file}: label {unknown[0]!r} is not among the {len(classes)} training classes",
                "Correct the label, or add training rows of this class",
            )
        else:
            known.append(row)
    times = np.array([(row.start, row.end) for row in known])
    numbered = ((row.path, sorted(numbers[label] for label in row.labels)) for row in known)
    return SampleTable.build(file.parent, numbered, None if np.isnan(times).all() else times)
