"""YOLO folders as detection tables: a text file of normalised boxes or polygons beside every picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from openmvit.data.coco import polygon_area
from openmvit.data.detection_faults import UNREADABLE, FaultLog, fit_box
from openmvit.data.detection_table import DetectionTable, TableBuilder
from openmvit.data.folders import VALIDATION_NAMES, left_out
from openmvit.data.images import IMAGES, ImageReadError, upright_size
from openmvit.errors import UserError

NAMES_FILE = "classes.txt"
SPLITS = {"train": ("train",), "val": VALIDATION_NAMES, "test": ("test",)}
_BOX, _FEWEST = 5, 7
_FIX = "Write names (a list) and train (a folder of pictures) into it"


@dataclass
class YoloSource:
    """What a YOLO data set says of itself.

    Args:
        base: folder that paths start from.
        splits: folders of pictures, or lists of them (.txt), per split.
        names: class names by number; empty where nothing names them.
        notes: what was decided.
    """

    base: Path
    splits: dict[str, list[Path]]
    names: dict[int, str]
    notes: list[str] = field(default_factory=list)


def yolo_yaml(root: Path) -> Path | None:
    """The YAML file of the data set that `root` is or holds, if there is one."""
    files = [root] if root.is_file() else [root / "data.yaml", root / "dataset.yaml", *sorted(root.glob("*.y*ml"))]
    for file in files:
        if file.suffix.lower() in (".yaml", ".yml") and file.is_file():
            words = [line.split(":")[0] for line in file.read_text(errors="replace").splitlines() if ":" in line]
            if {"train", "val"} & set(words) and {"names", "nc"} & set(words):
                return file
    return None


def read_yaml(file: Path) -> YoloSource:
    """What data.yaml names.

    Raises:
        UserError: it is no YAML mapping, or names no training pictures or no classes.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as YAML ({error})", _FIX) from error
    if not isinstance(content, dict) or not content.get("train"):
        raise UserError(f"{file} names no training pictures", _FIX)
    base = _base(file, content.get("path"))
    entries = {
        split: next((content[word] for word in words if content.get(word)), None) for split, words in SPLITS.items()
    }
    source = YoloSource(base, {}, _names(file, content))
    for split, entry in entries.items():
        paths = [_resolve(base, file, word) for word in (entry if isinstance(entry, list) else [entry]) if word]
        missing = [path for path in paths if not path.exists()]
        if missing and split == "test":
            source.notes.append(f"{missing[0]} does not exist, so there is no test split")
        elif missing:
            raise UserError(f"{file} names {missing[0]} as {split}, which does not exist", "Correct path and " + split)
        elif paths:
            source.splits[split] = paths
    if source.splits.get("val") == source.splits["train"]:
        source.notes.append("train and val are the same pictures, so scores say nothing about others")
    return source


def _base(file: Path, given: object) -> Path:
    """The folder that the entries start from: `path`, or that of the file if it was moved there."""
    if not isinstance(given, str):
        return file.parent
    return next((p for p in (file.parent / given, Path(given)) if p.is_dir()), file.parent)


def _resolve(base: Path, file: Path, entry: object) -> Path:
    """An entry as a path; `../train/images` is also looked for beside the file, as some exports mean it."""
    word = str(entry)
    tried = [base / word, file.parent / word, file.parent / word.removeprefix("../")]
    return next((path for path in tried if path.exists()), tried[0])


def _names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, list) and names:
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict) and names and all(str(number).isdigit() for number in names):
        return dict(sorted((int(number), str(name)) for number, name in names.items()))
    if names is None and isinstance(count, int) and count > 0:
        return {number: str(number) for number in range(count)}
    raise UserError(f"{file} has no class names (names is {names!r})", "Write names: [cat, dog] in class order")


def find_folders(root: Path) -> YoloSource | None:
    """images/ and labels/, with train/ and val/ in them, around them or neither; None if it is not so."""
    splits: dict[str, list[Path]] = {}
    for split, words in SPLITS.items():
        pairs = [(root / "images" / word, root / "labels" / word) for word in words]
        pairs += [(root / word / "images", root / word / "labels") for word in words]
        found = [images for images, labels in pairs if images.is_dir() and (labels.is_dir() or split == "test")]
        if found:
            splits[split] = found[:1]
    if "train" not in splits and (root / "images").is_dir() and any((root / "labels").glob("*.txt")):
        splits = {"train": [root / "images"]}
    labelled = (label_path(path / "x.jpg").parent for path in splits.get("train", []))
    if not any(next(folder.rglob("*.txt"), None) for folder in labelled):
        return None
    places = [root / NAMES_FILE, root / "labels" / NAMES_FILE]
    file = next((path for path in places if path.is_file()), None)
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines() if file else []
    return YoloSource(root, splits, dict(enumerate(line.strip() for line in lines if line.strip())))


def label_path(picture: Path) -> Path:
    """Where the labels of a picture lie: below labels/ in place of the last images/, else beside it."""
    parts = picture.parts
    last = next((i for i in range(len(parts) - 2, -1, -1) if parts[i] == "images"), None)
    moved = picture if last is None else Path(*parts[:last], "labels", *parts[last + 1 :])
    return moved.with_suffix(".txt")


def number_names(source: YoloSource) -> None:
    """Name the classes by their numbers where nothing else names them."""
    highest = -1
    for split in source.splits:
        for picture in pictures(source, split):
            for _, row in _rows(label_path(picture)):
                number = _numbers(row[:1])
                highest = max(highest, int(number[0])) if number and math.isfinite(number[0]) else highest
    source.names = {number: str(number) for number in range(min(highest, 9999) + 1)}
    source.notes.append(f"no names: the classes are called 0 to {highest}; a file {NAMES_FILE} or data.yaml names them")


def pictures(source: YoloSource, split: str) -> list[Path]:
    """The pictures of a split in the order of their paths; those of a list whether they exist or not."""
    found: dict[Path, None] = {}
    for place in source.splits[split]:
        if place.is_dir():
            for folder, inner, names in os.walk(place):
                inner.sort()
                found |= {Path(folder, n): None for n in sorted(names) if IMAGES.accepts(n) and not n.startswith(".")}
            continue
        lines = place.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        for line in filter(None, map(str.strip, lines)):
            tried = [place.parent / line, source.base / line]
            found[next((path for path in tried if path.exists()), tried[0])] = None
    return list(found)


class YoloReader:
    """Makes tables of the splits of a YOLO data set.

    Args:
        source: where its pictures are, and the names of its classes.
        faults: where to name what is wrong.
    """

    def __init__(self, source: YoloSource, faults: FaultLog) -> None:
        self.source, self.faults = source, faults
        self._labels = {number: label for label, number in enumerate(source.names)}

    def table(self, split: str) -> DetectionTable:
        """Everything usable of one split; pictures are numbered from 1."""
        builder = TableBuilder(self.source.base, tuple(self.source.names.values()), tuple(self.source.names))
        known = pictures(self.source, split)
        self._strays(split, known)
        self._others(split)
        for number, picture in enumerate(known, 1):
            name = os.path.relpath(picture, self.source.base)
            try:
                size = upright_size(picture)
            except ImageReadError as error:
                kind = UNREADABLE if picture.exists() else "missing picture"
                where, what = (str(picture), error.reason) if picture.exists() else (name, "left out")
                self.faults.add(kind, split, where, what)
                continue
            builder.image(name, number, size)
            self._instances(builder, split, label_path(picture), size)
        return builder.build()

    def _strays(self, split: str, known: list[Path]) -> None:
        """Name label files in the folders of a split that have no picture."""
        wanted = {label_path(picture) for picture in known}
        for place in (path for path in self.source.splits[split] if path.is_dir()):
            folder = label_path(place / "x.jpg").parent
            for file in sorted(folder.rglob("*.txt")) if folder != place else ():
                if file not in wanted and file.name != NAMES_FILE:
                    name = os.path.relpath(file, self.source.base)
                    what = "no such picture, left out"
                    self.faults.add("annotation of an unknown picture", split, name, what)

    def _others(self, split: str) -> None:
        """Note the files in the folders of a split that are neither pictures nor annotations."""
        for place in (path for path in self.source.splits[split] if path.is_dir()):
            names = [name for _, _, inner in os.walk(place) for name in inner if not name.startswith(".")]
            others = [n for n in names if not IMAGES.accepts(n) and not n.endswith((".txt", ".cache"))]
            if others:
                self.source.notes.append(left_out(place.name, others))

    def _instances(self, builder: TableBuilder, split: str, file: Path, size: tuple[int, int]) -> None:
        seen: set[tuple[str, ...]] = set()
        name = os.path.relpath(file, self.source.base)
        for line, words in _rows(file):
            kind, what = ("duplicate annotation", "left out") if words in seen else self._row(builder, words, size)
            seen.add(words)
            if kind:
                self.faults.add(kind, split, f"line {line} of {name}", what)

    def _row(self, builder: TableBuilder, words: tuple[str, ...], size: tuple[int, int]) -> tuple[str, str]:
        """Add one row; what is wrong with it ("" for nothing) and what was done."""
        numbers = _numbers(words)
        if numbers is None:
            return "row that is no list of numbers", "left out"
        label = self._labels.get(int(numbers[0])) if numbers[0].is_integer() else None
        if label is None:
            return "unknown category", f"class {words[0]}, left out"
        if len(numbers) != _BOX and (len(numbers) < _FEWEST or len(numbers) % 2 == 0):
            return "broken segmentation", f"{len(numbers) - 1} numbers are neither a box nor a polygon, left out"
        height, width = size
        part = np.array(numbers[1:])
        part[0::2] *= width
        part[1::2] *= height
        if len(numbers) == _BOX:
            x, y, w, h = part.tolist()
            corners, segments, area = (x - w / 2, y - h / 2, x + w / 2, y + h / 2), None, w * h
        else:
            xs, ys = part[0::2], part[1::2]
            corners = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
            segments, area = [part], polygon_area(part)
        box, kind, what = fit_box(corners, size)
        if box is not None:
            x0, y0, x1, y1 = corners
            builder.instance(box, label, given=(x0, y0, x1 - x0, y1 - y0), area=area, segments=segments)
        return kind, what


def _rows(file: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line numbers and words of a label file; nothing where there is none."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return
    for line, row in enumerate(text.splitlines(), 1):
        if words := tuple(row.split()):
            yield line, words


def _numbers(words: tuple[str, ...]) -> list[float] | None:
    try:
        return [float(word) for word in words]
    except ValueError:
        return None
