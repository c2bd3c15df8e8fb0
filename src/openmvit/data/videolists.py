"""Video lists as others publish them: Kinetics, Something-Something v2, and numbered `path label` lines."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from openmvit.data.faults import Faults
from openmvit.data.folders import VALIDATION_NAMES, split_data, walk_samples
from openmvit.data.samples import FileKind, LabelledData, SampleTable
from openmvit.errors import UserError

_SPLITS = {"train": ("train",), "val": VALIDATION_NAMES, "test": ("test",)}
_CLASS_FILES = ("classes.txt", "labels.txt", "label_map*.txt", "*label_map*.txt", "*label*.txt")
_NUMBERED = re.compile(r".*\S[ \t]+\d+")


def published_layout(root: Path) -> Callable[[Path, FileKind, int, float, Faults], LabelledData] | None:
    """What reads `root`, if it is one of the published forms."""
    if root.is_dir() and _ssv2_labels(root) is not None:
        return open_ssv2
    lists = _split_lists(root) if root.is_dir() else {"": root}
    first = next(iter(lists.values()), None)
    if first is None or not first.is_file() or first.suffix.lower() not in (".csv", ".txt"):
        return None
    line = next((text for _, text in _lines(first)), "")
    if "youtube_id" in line.split(","):
        return open_kinetics
    return open_numbered if first.suffix.lower() == ".txt" or ("," not in line and _NUMBERED.fullmatch(line)) else None


def open_kinetics(root: Path, kind: FileKind, seed: int, val_fraction: float, faults: Faults) -> LabelledData:
    """Kinetics' own CSV files beside the videos, wherever these lie below: `id_000010_000020.mp4`, or whole `id.mp4`.

    Listed videos that are not there (many are gone from their source) are left out and counted in the notes.

    Raises:
        UserError: if no video of a split is there, or a row has no label.
    """
    folder = root if root.is_dir() else root.parent
    lists = _split_lists(root) if root.is_dir() else {"train": root}
    found = _by_stem(folder, kind)
    parts: dict[str, list[tuple[str, str, float, float]]] = {}
    notes: list[str] = []
    for split, file in lists.items():
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if split == "test" and "label" not in (reader.fieldnames or []):
                notes.append(f"{file.name} has no labels and is left out")
                continue
            rows = list(_kinetics_rows(reader, found, file, faults))
        parts[split] = [row for row in rows if row is not None]
        if not parts[split]:
            raise UserError(f"none of the {len(rows)} videos of {file} is below {folder}", "Put the videos there")
        if len(parts[split]) < len(rows):
            notes.append(f"{len(rows) - len(parts[split])} of {len(rows)} videos of {file.name} are not on this disk")
    classes = tuple(sorted({label for _, label, _, _ in chain.from_iterable(parts.values())}))
    numbers = {name: number for number, name in enumerate(classes)}
    tables = {
        split: SampleTable.build(folder, ((path, (numbers[label],)) for path, label, _, _ in rows), _times(rows))
        for split, rows in parts.items()
    }
    data = LabelledData(classes, tables, False, root, notes)
    return data if "val" in tables else split_data(data, val_fraction, seed, faults)


def _kinetics_rows(
    reader: csv.DictReader[str], found: dict[str, str], file: Path, faults: Faults
) -> Iterator[tuple[str, str, float, float] | None]:
    """What `_kinetics_row` gives for every row that is whole."""
    for row in reader:
        try:
            yield _kinetics_row(row, found, f"line {reader.line_num} of {file}")
        except UserError as error:
            faults.note(error)


def _kinetics_row(row: dict[str, str], found: dict[str, str], where: str) -> tuple[str, str, float, float] | None:
    """Path, label and the part of the file, or None if the video is not there."""
    label = (row.get("label") or "").strip()
    if not label:
        raise UserError(f"{where} has no label", "Use the list of the same release as the videos")
    start, end = float(row.get("time_start") or 0), float(row.get("time_end") or 0)
    name = row["youtube_id"]
    trimmed = found.get(f"{name}_{int(start):06d}_{int(end):06d}")
    if trimmed is not None:
        return trimmed, label, np.nan, np.nan
    whole = found.get(name)
    return None if whole is None else (whole, label, start, end if end > start else np.nan)


def _times(rows: list[tuple[str, str, float, float]]) -> np.ndarray | None:
    times = np.array([(start, end) for _, _, start, end in rows])
    return None if np.isnan(times).all() else times


def open_ssv2(root: Path, kind: FileKind, seed: int, val_fraction: float, faults: Faults) -> LabelledData:
    """Something-Something v2 as published: label, train and validation JSON, videos or frame folders named by id.

    Raises:
        UserError: naming the entry whose label is unknown, or if no video of a split is there.
    """
    file = _ssv2_labels(root)
    assert file is not None
    numbers = {name: int(number) for name, number in json.loads(file.read_text(encoding="utf-8")).items()}
    classes = tuple(sorted(numbers, key=lambda name: numbers[name]))
    found = _by_stem(root, kind)
    tables: dict[str, SampleTable] = {}
    notes: list[str] = []
    stem = file.name.replace("labels.json", "")
    for split, names in (("train", ("train",)), ("val", VALIDATION_NAMES)):
        list_file = next((p for name in names if (p := file.with_name(f"{stem}{name}.json")).is_file()), None)
        if list_file is not None:
            rows = list(_ssv2_rows(list_file, numbers, faults))
            there = [(found[name], (number,)) for name, number in rows if name in found]
            if not there:
                raise UserError(f"none of the {len(rows)} videos of {list_file} is below {root}", "Put them there")
            if len(there) < len(rows):
                gone = len(rows) - len(there)
                notes.append(f"{gone} of {len(rows)} videos of {list_file.name} are not on this disk")
            tables[split] = SampleTable.build(root, there)
    if "train" not in tables:
        raise UserError(f"{file.parent} has no training list", f"Put {stem}train.json beside {file.name}")
    data = LabelledData(classes, tables, False, root, notes)
    return data if "val" in tables else split_data(data, val_fraction, seed, faults)


def _ssv2_rows(file: Path, numbers: dict[str, int], faults: Faults) -> Iterator[tuple[str, int]]:
    """Id and class number of every entry; the label is the template without its brackets."""
    for place, entry in enumerate(json.loads(file.read_text(encoding="utf-8")), 1):
        label = re.sub(r"[\[\]]", "", entry.get("template", ""))
        if label not in numbers:
            where = f"entry {place} of {file} (id {entry.get('id')})"
            faults.add(f"{where} has the unknown template {label!r}", "Use lists of the same release")
            continue
        yield str(entry["id"]), numbers[label]


def _ssv2_labels(root: Path) -> Path | None:
    """The file that numbers the templates."""
    names = ("something-something-v2-labels.json", "labels.json")
    places = (root, root / "labels", root / "annotations")
    return next((p / name for p in places for name in names if (p / name).is_file()), None)


def open_numbered(root: Path, kind: FileKind, seed: int, val_fraction: float, faults: Faults) -> LabelledData:
    """Lists of `path label [label ...]` by class number, as SlowFast (.csv) and mmaction2 (.txt) have them.

    A folder of pictures may have its number of frames before the label. Paths are absolute, or start from the folder
    of the list or from a folder in it (found by the first line). A path may hold spaces. Names of the classes come
    from a classes.txt or label map beside the list, one per line; else they are their numbers.

    Raises:
        UserError: naming file and line of what cannot be used.
    """
    lists = _split_lists(root) if root.is_dir() else {"train": root}
    folder = root if root.is_dir() else root.parent
    notes: list[str] = []
    parts = {split: list(_numbered_rows(file, kind, notes, faults)) for split, file in lists.items()}
    names_file = next(
        (p for pattern in _CLASS_FILES for p in sorted(folder.glob(pattern)) if p not in lists.values()), None
    )
    known = {label for _, _, labels in parts["train"] for label in labels}
    if names_file is None:
        classes = tuple(str(number) for number in range(max(known) + 1))
    else:
        classes = tuple(text for _, text in _lines(names_file))
        notes.append(f"{len(classes)} class names from {names_file.name}")
    for split, rows in parts.items():
        for row in list(rows):
            bad = [label for label in row[2] if label not in known or label >= len(classes)]
            if bad:
                what = "no training row has" if bad[0] not in known else f"the {len(classes)} class names do not reach"
                faults.add(f"line {row[0]} of {lists[split]} has label {bad[0]}, which {what}", "Correct the list")
                rows.remove(row)
    if len(known) < len(classes):
        notes.append(f"{len(classes) - len(known)} of {len(classes)} class numbers have no training sample")
    multilabel = any(len(labels) > 1 for _, _, labels in chain.from_iterable(parts.values()))
    tables = {split: SampleTable.build(folder, ((p, labels) for _, p, labels in rows)) for split, rows in parts.items()}
    data = LabelledData(classes, tables, multilabel, root, notes)
    return data if "val" in tables else split_data(data, val_fraction, seed, faults)


def _numbered_rows(
    file: Path, kind: FileKind, notes: list[str], faults: Faults
) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Line, absolute path and sorted class numbers of every row."""
    prefix: Path | None = None
    for line, text in _lines(file):
        where = f"line {line} of {file}"
        candidates = list(_readings(text))
        if not candidates:
            faults.add(f"{where} has no label: {text!r}", "Write 'path label', the label as a class number")
            continue
        if prefix is None:
            prefix = _prefix(file.parent, [path for path, _ in candidates])
            if prefix != file.parent:
                notes.append(f"paths of {file.name} start from {prefix.name}/")
        try:
            path, numbers = _present(prefix, candidates, where, kind)
        except UserError as error:
            faults.note(error)
            continue
        yield line, str((prefix / path).absolute()), tuple(sorted(set(numbers)))


def _present(
    prefix: Path, candidates: list[tuple[str, tuple[int, ...]]], where: str, kind: FileKind
) -> tuple[str, tuple[int, ...]]:
    """The reading of a line whose sample exists.

    Raises:
        UserError: if there is none, or it is of another kind.
    """
    there = [(path, numbers) for path, numbers in candidates if (prefix / path).exists()]
    if not there:
        path = next((path for path, _ in candidates if kind.takes(path)), candidates[0][0])
        raise UserError(f"{where}: {prefix / path} does not exist", f"Paths start from {prefix}, or are absolute")
    path, numbers = there[0]
    if (prefix / path).is_dir():
        return path, numbers[-1:]  # what stands before it is the number of frames
    if not kind.takes(path):
        raise UserError(f"{where}: {path!r} is no {kind.name} by its ending", "Correct or remove the line")
    return path, numbers


def _readings(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Ways to read a line as a path and the class numbers behind it, the longest path first."""
    tail = re.search(r"(?:[ \t]+\d+)+$", text)
    count = len(tail[0].split()) if tail else 0
    for number in range(1, count + 1):
        path, *labels = text.rsplit(None, number)
        yield path, tuple(int(label) for label in labels)


def _prefix(folder: Path, paths: Iterable[str]) -> Path:
    """Where paths start from: the folder, or the first folder in it that holds one of them."""
    places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))]
    return next((place for place in places if any((place / path).exists() for path in paths)), folder)


def _split_lists(root: Path) -> dict[str, Path]:
    """train, val and test lists of a folder: train.csv, train.txt, or one .txt with train and list in its name."""
    found: dict[str, Path] = {}
    for split, names in _SPLITS.items():
        exact = [root / f"{name}{suffix}" for name in names for suffix in (".csv", ".txt")]
        loose = [p for name in names[:1] for p in sorted(root.glob(f"*{name}*.txt")) if "list" in p.name]
        path = next((p for p in (*exact, *loose) if p.is_file()), None)
        if path is not None:
            found[split] = path
    return found if "train" in found else {}


def _by_stem(folder: Path, kind: FileKind) -> dict[str, str]:
    """Every sample below a folder by its name without ending."""
    return {Path(path).stem: path for path, good in walk_samples(folder, "", kind) if good}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not empty."""
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            for number, text in enumerate(stream, 1):
                if text.strip():
                    yield number, text.strip()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "Give a text file") from error
