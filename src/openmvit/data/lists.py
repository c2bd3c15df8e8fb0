"""CSV lists `path,label[;label...]` as sample tables, and a split written down as such a list."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openmvit.data.folders import VALIDATION_NAMES, split_data
from openmvit.data.samples import FileKind, LabelledData, SampleTable
from openmvit.errors import UserError

_COLUMNS = {
    "path": ("path", "file", "filename", "filepath", "image", "video"),
    "label": ("label", "labels", "class", "classes", "category"),
    "split": ("split", "subset"),
}


@dataclass(frozen=True, slots=True)
class _Row:
    line: int
    path: str
    labels: tuple[str, ...]
    split: str


def open_lists(root: Path, kind: FileKind, seed: int, val_fraction: float) -> LabelledData:
    """Read one CSV file (with a `split` column, or split by `seed`), or a folder with train.csv and val.csv.

    Several labels in any row make the data multi-label.

    Raises:
        UserError: naming file and line of a row that cannot be used.
    """
    files = {"": root} if root.is_file() else _split_files(root)
    rows = {file: list(_read(file, kind)) for file in files.values()}
    grouped: dict[str, tuple[Path, list[_Row]]] = {}
    for split, file in files.items():
        for row in rows[file]:
            name = split or _split_name(row, file)
            grouped.setdefault(name, (file, []))[1].append(row)
    if "train" not in grouped:
        raise UserError(f"{root} has no training rows", "Add rows path,label")
    classes = tuple(sorted({label for row in grouped["train"][1] for label in row.labels}))
    if len(classes) == 1:
        raise UserError(f"{root} has one class only ({classes[0]!r})", "Training needs rows of at least two classes")
    multilabel = any(len(row.labels) > 1 for _, part in grouped.values() for row in part)
    tables = {split: _table(file, part, classes) for split, (file, part) in grouped.items()}
    data = LabelledData(classes, tables, multilabel, root, [])
    return data if "val" in tables else split_data(data, val_fraction, seed)


def has_lists(root: Path) -> bool:
    """Whether the folder is described by a train.csv."""
    return (root / "train.csv").is_file()


def write_split(data: LabelledData, path: Path) -> None:
    """Write every sample with its split as a CSV `path,label,split` with absolute paths; it opens like any list."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path", "label", "split"])
        for split, table in data.splits.items():
            for i in range(len(table)):
                labels = ";".join(data.classes[number].replace(";", "\\;") for number in table.labels(i))
                writer.writerow([table.path(i).resolve(), labels, split])


def _split_files(root: Path) -> dict[str, Path]:
    """train.csv with val.csv and test.csv where they exist."""
    files = {"train": root / "train.csv"}
    val = next((root / f"{name}.csv" for name in VALIDATION_NAMES if (root / f"{name}.csv").is_file()), None)
    if val is not None:
        files["val"] = val
    if (root / "test.csv").is_file():
        files["test"] = root / "test.csv"
    return files


def _split_name(row: _Row, file: Path) -> str:
    """train, val or test as the row says; train where the list has no split column."""
    name = "val" if row.split in VALIDATION_NAMES else row.split or "train"
    if name not in ("train", "val", "test"):
        raise UserError(f"line {row.line} of {file} has split {row.split!r}", "Accepted: train, val, test")
    return name


def _read(file: Path, kind: FileKind) -> Iterator[_Row]:
    """The rows of one list, checked one by one."""
    columns: dict[str, int] | None = None
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                cells = [cell.strip() for cell in cells]
                if not any(cells):
                    continue
                if columns is None:
                    columns = _header(cells, kind)
                    if columns:
                        continue
                yield _row(cells, columns, reader.line_num, file, kind)
    except (OSError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as CSV ({error})", "Give a text file with path,label rows") from error


def _header(cells: list[str], kind: FileKind) -> dict[str, int]:
    """Columns by the names in the first line; empty when that line already names a sample."""
    if any(kind.accepts(cell) for cell in cells):
        return {}
    lower = [cell.lower() for cell in cells]
    found = {
        column: next((lower.index(name) for name in names if name in lower), -1) for column, names in _COLUMNS.items()
    }
    return found if found["path"] >= 0 and found["label"] >= 0 else {"path": 0, "label": 1, "split": found["split"]}


def _row(cells: list[str], header: dict[str, int] | None, line: int, file: Path, kind: FileKind) -> _Row:
    """One checked row.

    Raises:
        UserError: wrong number of columns, no label, another kind of file, or a file that does not exist.
    """
    where = f"line {line} of {file}"
    columns = header or {"path": 0, "label": 1, "split": -1}
    if len(cells) < 2 or (not header and len(cells) > 2) or len(cells) <= max(columns.values()):
        raise UserError(
            f"{where} has {len(cells)} column{'s' * (len(cells) != 1)}",
            "Write path,label; several labels are joined by ';', and a path with a comma stands in double quotes",
        )
    path = cells[columns["path"]]
    labels = [part.strip().replace("\\;", ";") for part in re.split(r"(?<!\\);", cells[columns["label"]])]
    labels = tuple(sorted({label for label in labels if label}))
    if not labels:
        raise UserError(f"{where} has no label", "Write path,label in every row or remove the row")
    if not kind.accepts(path):
        accepted = " ".join(sorted(kind.suffixes))
        raise UserError(f"{where}: {path!r} is no {kind.name} by its ending", f"Accepted file endings are {accepted}")
    if not (file.parent / path).exists():
        raise UserError(
            f"{where}: {file.parent / path} does not exist", "Paths are absolute, or relative to the folder of the CSV"
        )
    split = cells[columns["split"]].lower() if columns["split"] >= 0 else ""
    return _Row(line, path, labels, split)


def _table(file: Path, rows: list[_Row], classes: tuple[str, ...]) -> SampleTable:
    """Rows of one split as a table.

    Raises:
        UserError: if a row carries a label that no training row has.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    for row in rows:
        unknown = [label for label in row.labels if label not in numbers]
        if unknown:
            raise UserError(
                f"line {row.line} of {file}: label {unknown[0]!r} is not among the {len(classes)} training classes",
                "Correct the label, or add training rows of this class",
            )
    return SampleTable.build(file.parent, ((row.path, sorted(numbers[label] for label in row.labels)) for row in rows))
