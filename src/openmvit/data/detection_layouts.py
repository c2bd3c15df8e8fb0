"""From what the user names to annotated pictures: COCO JSON in its usual places, or YOLO folders."""

from __future__ import annotations

import re
from pathlib import Path

from openmvit.data.coco import CocoReader, category_notes, read_categories, read_json
from openmvit.data.detection_faults import FaultLog
from openmvit.data.detection_table import DetectionData, DetectionTable, hold_out
from openmvit.data.yolo import SPLITS, YoloReader, YoloSource, find_folders, number_names, read_yaml, yolo_yaml
from openmvit.errors import UserError

_GLANCE = 1 << 16
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_NAMED = re.compile(r"^instances_|\.coco\.json$", re.IGNORECASE)
_OTHER_JOBS = re.compile(r"^(captions|person_keypoints|panoptic|stuff)_", re.IGNORECASE)
_WORDS = {"training": "train", "testing": "test"} | {word: split for split, words in SPLITS.items() for word in words}


def holds_detection(root: str | Path) -> bool:
    """Whether data are annotated pictures in COCO or YOLO layout, by names and the beginnings of files."""
    root = Path(root)
    if root.is_file():
        return _is_coco(root) or yolo_yaml(root) is not None
    return root.is_dir() and (bool(_coco_files(root)) or yolo_yaml(root) is not None or find_folders(root) is not None)


def open_detection(root: str | Path, *, seed: int = 0, val_fraction: float = 0.1) -> DetectionData:
    """Annotated pictures in any known layout; decodes none, and names in `faults` what it leaves out or corrects.

    COCO: annotations/instances_train2017.json with train2017/, train/ and val/ with a JSON file in each, or one JSON
    file beside or above its pictures; YOLO: data.yaml, or images/ and labels/, with or without train/ and val/.

    Args:
        root: folder, COCO JSON file or data.yaml.
        seed: decides what is held out when there is no validation split.
        val_fraction: share of the pictures held out then, 0..1.
    Raises:
        UserError: if nothing there can be trained on, with the reason.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"{root} does not exist", "Name a folder of pictures with COCO JSON or YOLO labels")
    data = _open(root)
    train = data.splits["train"]
    if not len(train.annotated()):
        why = f" ({data.faults.note()})" if data.faults else ""
        raise UserError(f"no training picture of {root} has a usable annotation{why}", "Annotate some")
    unused = [data.classes[i] for i, n in enumerate(train.class_counts(len(data.classes))) if not n]
    if unused:
        data.notes.append(f"{len(unused)} classes have no training instance, the first is {unused[0]!r}")
    if data.faults:
        data.notes.append(data.faults.note())
    return data if "val" in data.splits else hold_out(data, val_fraction, seed)


def _open(root: Path) -> DetectionData:
    """What is there, before anything is held out."""
    files = ({"train": root} if root.suffix.lower() == ".json" else {}) if root.is_file() else _coco_files(root)
    if "train" in files:
        return _open_coco(root, files)
    file = yolo_yaml(root)
    source = read_yaml(file) if file else None if root.is_file() else find_folders(root)
    if source is not None:
        return _open_yolo(root, source)
    if files:
        raise UserError(f"{root} has no training annotations, only {', '.join(map(str, files.values()))}", _FIX)
    raise UserError(f"{root} is no data set with boxes that is known", _FIX)


_FIX = (
    "Name a folder with annotations/instances_train2017.json and train2017/, with train/ and val/ that hold a JSON "
    "file each, a COCO JSON file, or YOLO's data.yaml or images/ and labels/"
)


def _open_yolo(root: Path, source: YoloSource) -> DetectionData:
    faults = FaultLog()
    if not source.names:
        number_names(source)
    reader = YoloReader(source, faults)
    splits = {split: reader.table(split) for split in source.splits}
    for split, table in splits.items():
        if not len(table) and split != "test":
            raise UserError(f"no readable picture in {source.splits[split][0]}", "Fill it, or correct data.yaml")
    return DetectionData(tuple(source.names.values()), tuple(source.names), splits, root, source.notes, False, faults)


def _open_coco(root: Path, files: dict[str, Path]) -> DetectionData:
    faults, notes = FaultLog(), []
    splits: dict[str, DetectionTable] = {}
    categories: dict[int, str] = {}
    for split, file in files.items():
        content = read_json(file, ("images", "categories") if split == "train" else ("images",))
        if split == "train":
            categories = read_categories(content["categories"], file, split, faults)
            notes += category_notes(categories)
        elif content["categories"]:
            _compare(files["train"], categories, file, read_categories(content["categories"], file, split, FaultLog()))
        try:
            splits[split] = CocoReader(file, split, categories, faults).table(content, _places(root, file, split))
        except UserError as error:
            if split != "test":
                raise
            notes.append(f"no test split: {error.cause}")
    return DetectionData(tuple(categories.values()), tuple(categories), splits, root, notes, False, faults)


def _compare(train: Path, ours: dict[int, str], file: Path, theirs: dict[int, str]) -> None:
    """Raise a UserError if a category has another name in another split."""
    for number in ours.keys() & theirs.keys():
        if ours[number] != theirs[number]:
            raise UserError(
                f"category {number} is {ours[number]!r} in {train} and {theirs[number]!r} in {file}",
                "Give the categories the same numbers in both files",
            )


def _places(root: Path, file: Path, split: str) -> list[Path]:
    """Folders in which the pictures of a COCO file may lie, the likeliest first; none outside a folder `root`."""
    bases = [file.parent, file.parent.parent]
    if root.is_dir():
        bases = [base for base in bases if base == root or root in base.parents]
    tail = file.stem.rpartition("_")[2]
    places = [file.parent, file.parent / "images"]
    for base in bases:
        for word in (tail, *SPLITS[split]):
            places += [base / word, base / word / "images", base / "images" / word]
        places += [base / "images", base]
    return list(dict.fromkeys(places))


def _coco_files(root: Path) -> dict[str, Path]:
    """COCO files of a folder by split, `train` first; empty without any.

    Raises:
        UserError: several files for one split.
    """
    inner = {
        split: [p for word in words if (root / word).is_dir() for p in _json_files(root / word)]
        for split, words in SPLITS.items()
    }
    if any(inner.values()):
        return _chosen(root, inner)
    found = [*_json_files(root / "annotations"), *_json_files(root)]
    by_split: dict[str, list[Path]] = {split: [] for split in SPLITS}
    rest = []
    for file in found:
        split = _split_of(file)
        (rest if split is None else by_split[split]).append(file)
    by_split["train"] = by_split["train"] or rest
    return _chosen(root, by_split)


def _json_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.json")) if _is_coco(path)]


def _is_coco(file: Path) -> bool:
    """Whether a file is or was meant to be COCO JSON, by its name or its first and last lists."""
    if file.suffix.lower() != ".json" or _OTHER_JOBS.match(file.name):
        return False
    if _NAMED.search(file.name):
        return True
    with file.open("rb") as stream:
        start = stream.read(_GLANCE)
        stream.seek(max(file.stat().st_size - _GLANCE, 0))
        return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(_LISTS.search(start + stream.read()))


def _split_of(file: Path) -> str | None:
    words = re.findall(r"[a-z]+", file.stem.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def _chosen(root: Path, files: dict[str, list[Path]]) -> dict[str, Path]:
    """One file per split: of several that named instances_, then that with a folder of pictures of its name."""
    chosen: dict[str, Path] = {}
    for split, candidates in files.items():
        left = candidates
        for wanted in (
            lambda file: file.name.startswith("instances_"),
            lambda file: any((root / f / file.stem.rpartition("_")[2]).is_dir() for f in ("", "images")),
        ):
            left = [file for file in left if wanted(file)] or left
        if len(left) > 1 and split != "test":
            names = ", ".join(str(file.relative_to(root)) for file in left)
            raise UserError(f"{root} has several annotation files for {split}: {names}", "Name one of them as --data")
        if left:
            chosen[split] = min(left, key=lambda file: len(file.name))
    return chosen
