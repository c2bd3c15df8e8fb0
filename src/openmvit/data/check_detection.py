"""A look at annotated pictures before training: counts, sizes of boxes, and every broken annotation by its name."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openmvit.data.check import Group, class_table, copies_in, copy_lines, cut, examine_all, examine_image, summary
from openmvit.data.coco import WRONG_SIZE, wrong_size
from openmvit.data.detection_faults import UNREADABLE, Fault
from openmvit.data.detection_layouts import open_detection
from openmvit.data.detection_table import DetectionData, DetectionTable

_SMALL, _LARGE = 32.0**2, 96.0**2
"""Areas in pixels between small, medium and large objects, as the COCO evaluation divides them."""


@dataclass(frozen=True)
class DetectionReport:
    """What `check_detection` found.

    Args:
        root: what was checked.
        classes: class names in order.
        category_ids: their numbers in the file.
        masks: whether the instances have outlines.
        counts: per split, instances of every class without crowds.
        files: per split, number of pictures.
        empty: per split, pictures without an instance that is no crowd.
        crowds: per split, number of crowds.
        areas: per split, instances of small, medium and large area.
        unreadable: (split, path, reason) of pictures that cannot be decoded.
        duplicates: groups of (split, path) with equal bytes that touch more than one split.
        conflicts: groups of (path, instances) with equal bytes and different annotations.
        sizes: smallest, median and largest width and height of the readable pictures; empty without any.
        notes: what was decided when the data was opened.
        faults: what is wrong with single pictures and annotations.
        fault_counts: how many of each kind, those beyond a thousand too, which `faults` does not hold.
    """

    root: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: bool
    counts: dict[str, list[int]]
    files: dict[str, int]
    empty: dict[str, int]
    crowds: dict[str, int]
    areas: dict[str, list[int]]
    unreadable: list[tuple[str, str, str]]
    duplicates: list[Group]
    conflicts: list[Group]
    sizes: dict[str, list[float]]
    notes: list[str]
    faults: list[Fault]
    fault_counts: dict[str, int]

    @property
    def clean(self) -> bool:
        """No unreadable picture, no copy across splits or with other annotations, no fault."""
        return not (self.unreadable or self.duplicates or self.conflicts or self.fault_counts)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain lists, numbers and words, for JSON."""
        return {
            **asdict(self),
            "classes": list(self.classes),
            "category_ids": list(self.category_ids),
            "counts": {split: dict(zip(self.classes, counts, strict=True)) for split, counts in self.counts.items()},
            "areas": {split: dict(zip(_AREAS, counts, strict=True)) for split, counts in self.areas.items()},
            "unreadable": [dict(zip(("split", "path", "reason"), row, strict=True)) for row in self.unreadable],
            "duplicates": [[{"split": split, "path": path} for split, path in group] for group in self.duplicates],
            "conflicts": [[{"path": path, "labels": labels} for path, labels in group] for group in self.conflicts],
        }

    def lines(self) -> list[str]:
        """The report as text, lists cut after ten entries."""
        text = [f"{self.root}: {len(self.classes)} classes, {'boxes and outlines' if self.masks else 'boxes'}"]
        text += [f"note: {note}" for note in self.notes]
        for split, number in self.files.items():
            instances = f"{sum(self.counts[split])} instances, {self.crowds[split]} crowds"
            text.append(f"{split}: {number} images ({self.empty[split]} without instances), {instances}")
        text += class_table(self.classes, self.counts)
        for split, counts in self.areas.items():
            named = ", ".join(f"{count} {name}" for name, count in zip(_AREAS, counts, strict=True))
            text.append(f"{split} areas: {named} (limits 32 x 32 and 96 x 96 pixels)")
        if self.sizes:
            small, middle, large = (f"{w}x{h}" for w, h in zip(self.sizes["width"], self.sizes["height"], strict=True))
            text.append(f"width x height: smallest {small}, median {middle}, largest {large} (each side by itself)")
        text.append(f"unreadable: {len(self.unreadable)}")
        text += cut([f"  {path}: {reason}" for _, path, reason in self.unreadable])
        return text + copy_lines(self.duplicates, self.conflicts) + self._fault_lines()

    def last_line(self) -> str:
        """The numbers that decide, for a script."""
        counts = f"unreadable={len(self.unreadable)} duplicates={len(self.duplicates)} conflicts={len(self.conflicts)}"
        return f"data check images={sum(self.files.values())} {counts} faults={sum(self.fault_counts.values())}"

    def _fault_lines(self) -> list[str]:
        text = [f"faults: {sum(self.fault_counts.values())}"]
        for kind, count in self.fault_counts.items():
            text.append(f"  {kind}: {count}")
            rows = [f"  {f.split}: {f.where}: {f.what}" for f in self.faults if f.kind == kind]
            text += [f"  {row}" for row in cut(rows, count)]
        return text


_AREAS = ("small", "medium", "large")


def check_detection(root: str | Path, *, seed: int = 0, val_fraction: float = 0.1, workers: int = 1) -> DetectionReport:
    """Open annotated pictures, decode every one once and report on them; changes nothing.

    Args:
        root: folder or file, as for training.
        seed, val_fraction: as for training: they decide the split when the data has none.
        workers: processes that decode.
    Raises:
        UserError: if the data cannot be opened at all.
    """
    data = open_detection(root, seed=seed, val_fraction=val_fraction)
    log, note = data.faults, data.faults.note()
    unreadable = [(fault.split, fault.where, fault.what) for fault in log.faults if fault.kind == UNREADABLE]
    found = _decode(data, unreadable, workers)
    duplicates, conflicts = copies_in(data.splits, partial(_instances, data), lambda split, index: None)
    tables, classes = data.splits, len(data.classes)
    return DetectionReport(
        root=str(data.root),
        classes=data.classes,
        category_ids=data.category_ids,
        masks=any(table.has_masks for table in tables.values()),
        counts={split: table.class_counts(classes).tolist() for split, table in tables.items()},
        files={split: len(table) for split, table in tables.items()},
        empty={split: len(table) - len(table.annotated()) for split, table in tables.items()},
        crowds={split: int(table.crowd.sum()) for split, table in tables.items()},
        areas={split: _area_counts(table) for split, table in tables.items()},
        unreadable=unreadable,
        duplicates=duplicates,
        conflicts=conflicts,
        sizes=summary(found, ("width", "height")),
        notes=[line for line in data.notes if line != note],
        faults=[fault for fault in log.faults if fault.kind != UNREADABLE],
        fault_counts={kind: count for kind, count in log.counts.items() if kind != UNREADABLE},
    )


def _decode(data: DetectionData, unreadable: list[tuple[str, str, str]], workers: int) -> list[tuple[float, ...]]:
    """Sizes of the readable pictures; adds to `unreadable` and to the faults."""
    found: list[tuple[float, ...]] = []
    for split, index, path, (values, reason) in examine_all(data.splits, examine_image, workers):
        if values is None:
            unreadable.append((split, path, reason))
            continue
        found.append(values)
        own, annotated = (int(values[1]), int(values[0])), data.splits[split].size(index)
        if own != annotated:
            data.faults.add(WRONG_SIZE, split, path, wrong_size(annotated, own))
    return found


def _instances(data: DetectionData, split: str, index: int) -> str:
    """Classes and boxes of a picture's instances to the pixel, in words."""
    known = data.splits[split].annotations(index)
    boxes = zip(known.labels, known.boxes, strict=True)
    found = sorted(f"{data.classes[label]} at {', '.join(f'{side:.0f}' for side in box)}" for label, box in boxes)
    return f"{len(found)} instances: {'; '.join(found)}" if found else "no instance"


def _area_counts(table: DetectionTable) -> list[int]:
    """Instances of small, medium and large area, crowds left out."""
    return np.bincount(np.digitize(table.area[~table.crowd], (_SMALL, _LARGE)), minlength=3).tolist()
