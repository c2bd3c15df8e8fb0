"""COCO JSON as detection tables: what can be used is taken, what cannot is named."""

from __future__ import annotations

import json
import math
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmvit.data.detection_faults import OUTSIDE, UNREADABLE, Box, FaultLog, fit_box
from openmvit.data.detection_table import DetectionTable, TableBuilder
from openmvit.data.images import ImageReadError, upright_size
from openmvit.data.run_lengths import compressed, lengths
from openmvit.errors import UserError

_SAMPLED = 64
"""Pictures that are looked for when the folder of pictures is found out."""
_SHOWN = 3
_FIX = "Export or download it again, as JSON with images, annotations and categories"


def read_json(file: Path, needed: tuple[str, ...] = ("images", "categories")) -> dict[str, list[Any]]:
    """The lists `images`, `annotations` and `categories` of a COCO file; those that are not `needed` may be missing.

    Raises:
        UserError: the file is missing, empty, cut off, or something else than COCO JSON.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})", "Name a COCO JSON file") from error
    if not content.strip():
        raise UserError(f"{file} is empty", _FIX)
    try:
        found = json.loads(content)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        why = "breaks off" if cut else "is no JSON"
        raise UserError(f"{file} {why} (line {error.lineno}, column {error.colno}: {error.msg})", _FIX) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON ({error})", _FIX) from error
    if not isinstance(found, dict):
        what = "a list, as results are written" if isinstance(found, list) else type(found).__name__
        raise UserError(f"{file} holds {what} and no annotations", _FIX)
    lists = {name: found.get(name, []) for name in ("images", "annotations", "categories")}
    wrong = [name for name, value in lists.items() if not isinstance(value, list)]
    wrong += [name for name in needed if name not in found]
    if wrong:
        raise UserError(f"{file} has no list {wrong[0]!r}", _FIX)
    return lists


def read_categories(entries: list[Any], file: Path, split: str, faults: FaultLog) -> dict[int, str]:
    """Names of the categories by their number, ascending.

    Raises:
        UserError: if there is none.
    """
    found: dict[int, str] = {}
    for place, entry in enumerate(entries):
        number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            faults.add("category without a number", split, f"category {place} of {file.name}", "left out")
        elif number in found:
            what = f"is {entry.get('name')!r} and {found[number]!r}, the first counts"
            faults.add("duplicate category id", split, f"category {number} of {file.name}", what)
        else:
            found[number] = str(entry.get("name", number))
    if not found:
        raise UserError(f"{file} has no categories", _FIX)
    return dict(sorted(found.items()))


def category_notes(categories: dict[int, str]) -> list[str]:
    """What is worth knowing of numbers and names that are in order."""
    ids, notes = list(categories), []
    missing = ids[-1] - ids[0] + 1 - len(ids)
    if missing:
        known = (i for i in range(ids[0], ids[-1]) if i not in categories)
        first = ", ".join(str(number) for number, _ in zip(known, range(_SHOWN), strict=False))
        more = ", ..." if missing > _SHOWN else ""
        notes.append(
            f"category ids {ids[0]} to {ids[-1]} lack {first}{more}: the {len(ids)} of them become the classes 0 to "
            f"{len(ids) - 1} in ascending order"
        )
    names = list(categories.values())
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        notes.append(f"{len(twice)} names belong to several categories, such as {twice[0]!r}; they stay apart")
    return notes


def whole_number(value: object) -> int | None:
    """An id as an int: whole numbers, also as 3.0 or "3"; None for anything else."""
    if isinstance(value, str):
        value = int(value) if value.strip().isascii() and value.strip().isdigit() else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62 else None


def picture_name(entry: dict[str, Any]) -> str:
    """Relative path of a picture; where only its address is given (LVIS) the last folder and the file."""
    name = entry.get("file_name")
    if not name and isinstance(entry.get("coco_url"), str):
        name = "/".join(entry["coco_url"].split("/")[-2:])
    return name.replace("\\", "/") if isinstance(name, str) else ""


class Pictures:
    """The folder in which the pictures of a file lie, with its listing read once.

    Args:
        file: the annotations, for messages.
        names: relative paths as annotated.
        folders: where they may be.
        split: for the message.
    Raises:
        UserError: if none of the pictures is in any of the folders.
    """

    def __init__(self, file: Path, names: list[str], folders: list[Path], split: str) -> None:
        if not names:
            raise UserError(f"{file} lists no pictures", _FIX)
        self._listings: dict[Path, frozenset[str]] = {}
        sample = names[:: max(len(names) // _SAMPLED, 1)]
        for self.bare in (False, True):
            hits = [sum(self._is_in(folder, name) for name in sample) for folder in folders]
            if any(hits):
                self.folder = folders[hits.index(max(hits))]
                return
        looked = ", ".join(str(folder) for folder in folders if folder.is_dir())
        raise UserError(
            f"none of the {len(names)} {split} pictures of {file} is found, such as {names[0]!r}",
            f"Put the pictures into images/ beside the file or into train/ and val/; looked into {looked}",
        )

    def path(self, name: str) -> str | None:
        """Path from `folder`, or None if there is no such file."""
        name = name.rpartition("/")[2] if self.bare else name
        return name if self._is_in(self.folder, name) else None

    def _is_in(self, folder: Path, name: str) -> bool:
        path = folder / (name.rpartition("/")[2] if self.bare else name)
        if path.parent not in self._listings:
            try:
                entries = frozenset(os.listdir(path.parent))  # noqa: PTH208 - names only
            except (OSError, ValueError):
                entries = frozenset()
            self._listings[path.parent] = entries
        return path.name in self._listings[path.parent]


@dataclass(frozen=True)
class _Picture:
    number: int
    name: str
    path: str
    size: tuple[int, int]


class CocoReader:
    """Makes a table of the lists of one COCO file.

    Args:
        file: for messages.
        split: train, val or test.
        categories: name by number, ascending; the classes in this order.
        faults: where to name what is wrong.
    """

    def __init__(self, file: Path, split: str, categories: dict[int, str], faults: FaultLog) -> None:
        self.file, self.split, self.categories, self.faults = file, split, categories, faults
        self._labels = {number: label for label, number in enumerate(categories)}

    def table(self, content: dict[str, list[Any]], folders: list[Path]) -> DetectionTable:
        """Everything usable in `content`, whose pictures lie in one of `folders`.

        Raises:
            UserError: if none of the pictures is found.
        """
        entries = self._numbered(content["images"])
        found = Pictures(self.file, [picture_name(entry) for entry in entries.values()], folders, self.split)
        grouped = self._by_picture(content["annotations"], entries)
        builder = TableBuilder(found.folder, tuple(self.categories.values()), tuple(self.categories))
        for number, entry in entries.items():
            picture = self._picture(number, entry, found)
            if picture is not None:
                self._add(builder, found.folder, picture, grouped.get(number, []))
        return builder.build()

    def _fault(self, kind: str, where: str, what: str) -> None:
        self.faults.add(kind, self.split, where, what)

    def _numbered(self, entries: list[Any]) -> dict[int, dict[str, Any]]:
        """Pictures by their number; of two with the same number the first."""
        found: dict[int, dict[str, Any]] = {}
        for place, entry in enumerate(entries):
            number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
            if number is None or not picture_name(entry):
                self._fault("picture without a number or name", f"image {place} of {self.file.name}", "left out")
            elif number in found:
                first, second = picture_name(found[number]), picture_name(entry)
                what = f"its number is that of {first}, left out"
                self._fault("duplicate image id", f"image {number} ({second})", what)
            else:
                found[number] = entry
        return found

    def _by_picture(self, entries: list[Any], pictures: dict[int, Any]) -> dict[int, list[dict[str, Any]]]:
        """Annotations by picture, without copies and strays."""
        grouped: dict[int, list[dict[str, Any]]] = {}
        seen: dict[Any, dict[str, Any]] = {}
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._fault("annotation that is no object", f"annotation {place} of {self.file.name}", "left out")
                continue
            number, own = whole_number(entry.get("image_id")), entry.get("id")
            first = seen.setdefault(own, entry) if isinstance(own, int | str) else entry
            if first is not entry:
                copy = all(first.get(key) == entry.get(key) for key in ("image_id", "category_id", "bbox"))
                what = "left out as a copy of the first" if copy else "kept under another number"
                self._fault("duplicate annotation id", f"annotation {own}", what)
                if copy:
                    continue
            if number is None or number not in pictures:
                what = f"no picture has the number {entry.get('image_id')!r}, left out"
                self._fault("annotation of an unknown picture", f"annotation {own}", what)
                continue
            grouped.setdefault(number, []).append(entry)
        return grouped

    def _picture(self, number: int, entry: dict[str, Any], found: Pictures) -> _Picture | None:
        """A picture that exists, with the size that the file gives or, without one, the picture's own."""
        name = picture_name(entry)
        path = found.path(name)
        if path is None:
            self._fault("missing picture", name, f"not in {found.folder}, left out")
            return None
        height, width = (whole_number(entry.get(side)) for side in ("height", "width"))
        if height and width and height > 0 and width > 0:
            return _Picture(number, name, path, (height, width))
        try:
            return _Picture(number, name, path, upright_size(found.folder / path))
        except ImageReadError as error:
            self._fault(UNREADABLE, str(error.path), error.reason)
            return None

    def _add(self, builder: TableBuilder, folder: Path, picture: _Picture, entries: list[dict[str, Any]]) -> None:
        """One picture with its instances."""
        boxes = [_box(entry.get("bbox")) for entry in entries]
        size = self._checked_size(folder, picture, boxes)
        builder.image(picture.path, picture.number, size)
        for entry, given in zip(entries, boxes, strict=True):
            where = f"annotation {entry.get('id', '-')} of {picture.name}"
            category = whole_number(entry.get("category_id"))
            label = self._labels.get(category) if category is not None else None
            if label is None:
                self._fault("unknown category", where, f"category {reprlib.repr(entry.get('category_id'))}, left out")
                continue
            if given is None:
                self._fault("annotation without a box", where, f"bbox is {reprlib.repr(entry.get('bbox'))}, left out")
                continue
            box, kind, what = fit_box(_corners(given), size)
            if kind:
                self._fault(kind, where, what)
            if box is None:
                continue
            segments, problem = _outline(entry.get("segmentation"), size)
            if problem:
                rest = "the rest is used" if segments else "only its box is used"
                self._fault("broken segmentation", where, f"{problem}, {rest}")
            area = _area(entry.get("area"), segments, given)
            crowd = bool(entry.get("iscrowd", 0))
            builder.instance(box, label, given=given, area=area, crowd=crowd, segments=segments)

    def _checked_size(self, folder: Path, picture: _Picture, boxes: list[Box | None]) -> tuple[int, int]:
        """The annotated size, or the picture's own where boxes reach out of the annotated one and it is wrong."""
        if not any(box is not None and fit_box(_corners(box), picture.size)[1] in OUTSIDE for box in boxes):
            return picture.size
        try:
            size = upright_size(folder / picture.path)
        except ImageReadError:
            return picture.size
        if size != picture.size:
            self._fault(WRONG_SIZE, picture.name, wrong_size(picture.size, size))
        return size


WRONG_SIZE = "size that differs from the file's"


def wrong_size(annotated: tuple[int, int], own: tuple[int, int]) -> str:
    """What to say of a picture of another size (h, w) than its annotations state."""
    turned = ": its EXIF entry turns it, and boxes are read in the turned picture" if annotated == own[::-1] else ""
    return f"annotated as {annotated[1]} x {annotated[0]}, is {own[1]} x {own[0]}{turned}"


def _box(value: object) -> Box | None:
    """x, y, width, height as floats, or None if that is something else."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        x, y, width, height = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return x, y, width, height


def _corners(box: Box) -> Box:
    x, y, width, height = box
    return x, y, x + width, y + height


def _outline(value: object, size: tuple[int, int]) -> tuple[list[np.ndarray] | bytes | None, str]:
    """Polygons or compressed run lengths, and what is wrong ("" for nothing)."""
    if not value:
        return None, ""
    if isinstance(value, dict):
        try:
            return compressed(value, size), ""
        except ValueError as error:
            return None, str(error)
    if not isinstance(value, list):
        return None, f"a segmentation that is a {type(value).__name__}"
    found = [polygon(part) for part in (value if isinstance(value[0], list) else [value])]
    good = [part for part, _ in found if part is not None]
    return good or None, next((problem for _, problem in found if problem), "")


def polygon(numbers: object) -> tuple[np.ndarray | None, str]:
    """x0, y0, x1, y1, ... as float64, or None and why they are no polygon."""
    if not isinstance(numbers, list) or len(numbers) < 6 or len(numbers) % 2:
        return None, f"a polygon of {len(numbers) if isinstance(numbers, list) else 1} numbers"
    try:
        values = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None, "a polygon that is no list of numbers"
    if values.ndim != 1 or not math.isfinite(float(values.sum())):
        return None, "a polygon with coordinates that are no numbers"
    return values, ""


def polygon_area(part: np.ndarray) -> float:
    """Pixels inside a polygon x0, y0, x1, y1, ..."""
    x, y = part[0::2], part[1::2]
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _area(value: object, segments: list[np.ndarray] | bytes | None, box: Box) -> float:
    """The annotated area, or that of the outline or the box where there is none that can be true."""
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(segments, bytes):
        return float(lengths(segments)[1::2].sum())
    return sum(map(polygon_area, segments)) if segments else box[2] * box[3]
