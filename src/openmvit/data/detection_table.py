"""Annotated pictures as flat arrays: boxes, classes, polygons and run lengths of a split without an object for each."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from openmvit.data.copies import about_copies, find_copies, keep_together
from openmvit.data.counter import mix
from openmvit.data.detection_faults import FaultLog
from openmvit.errors import UserError

RunLengths: TypeAlias = dict[str, Any]
"""A mask as COCO writes it: `size` [h, w] and `counts`, the compressed run lengths in column order as bytes."""
Segments: TypeAlias = list[np.ndarray] | RunLengths | None
"""Outline of one instance: polygons (float64 x0 y0 x1 y1 ...), run lengths, or None where only the box is known."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths one behind the other.

    Args:
        values: all rows.
        ends: int64 `[N + 1]`, row i is `values[ends[i]:ends[i + 1]]`.
    """

    values: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.ends[index] : self.ends[index + 1]]

    def take(self, indices: np.ndarray) -> Ragged:
        """The rows at `indices`, in that order."""
        positions, ends = _positions(self.ends, indices)
        return Ragged(self.values[positions], ends)


def _positions(ends: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of rows `indices` lie, one row behind the other, and the ends of the rows taken."""
    lengths = np.diff(ends)[indices]
    new_ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shift = np.repeat(ends[:-1][indices] - new_ends[:-1], lengths)
    return np.arange(new_ends[-1]) + shift, new_ends


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of M instances.

    Args:
        owners: int64 `[M + 1]`, instance i has the polygons `owners[i]` to `owners[i + 1]`.
        polygons: float64 x0 y0 x1 y1 ... of every polygon.
        runs: uint8 compressed run lengths of every instance; empty where it has none.
    """

    owners: np.ndarray
    polygons: Ragged
    runs: Ragged

    def get(self, index: int, size: tuple[int, int]) -> Segments:
        """Outline of instance `index` in a picture of `size` (h, w)."""
        first, last = int(self.owners[index]), int(self.owners[index + 1])
        if last > first:
            return [self.polygons[i] for i in range(first, last)]
        runs = self.runs[index]
        return {"size": list(size), "counts": runs.tobytes()} if len(runs) else None

    def take(self, indices: np.ndarray) -> Outlines:
        """Those of the instances at `indices`."""
        polygons, owners = _positions(self.owners, indices)
        return Outlines(owners, self.polygons.take(polygons), self.runs.take(indices))


@dataclass(frozen=True, eq=False)
class Annotations:
    """What is known of one picture with n instances, in pixels of the upright picture.

    Args:
        boxes: float64 `[n, 4]`, x0 y0 x1 y1, inside the picture and not empty.
        labels: int32 `[n]`, class numbers.
        crowd: bool `[n]`, whether the box holds a group that is not told apart: not trained on, ignored in scoring.
        area: float64 `[n]`, pixels of the instance as annotated.
        segments: outline of each instance.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    segments: list[Segments]


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """Pictures and instances of one split in flat arrays: a million instances cost no Python objects.

    Args:
        root: folder that the relative paths start from.
        paths: uint8, as the file system spells them.
        image_ids: int64 `[N]`.
        sizes: int32 `[N, 2]`, height and width as annotated.
        rows: int64 `[N + 1]`, picture i has the instances `rows[i]` to `rows[i + 1]`.
        boxes: float64 `[M, 4]`, x0 y0 x1 y1, clipped to the picture.
        given: float64 `[M, 4]`, x y width height as in the file.
        labels: int32 `[M]`.
        crowd: bool `[M]`.
        area: float64 `[M]`.
        outlines: of the M instances.
        classes: names by class number.
        category_ids: the file's numbers of the classes.
    """

    root: Path
    paths: Ragged
    image_ids: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    boxes: np.ndarray
    given: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    outlines: Outlines
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Where picture `index` lies."""
        return self.root / os.fsdecode(self.paths[index].tobytes())

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of picture `index` as annotated; the file's own may differ where the data are wrong."""
        height, width = self.sizes[index].tolist()
        return height, width

    def image_id(self, index: int) -> int:
        """Number of picture `index` in the file."""
        return int(self.image_ids[index])

    def annotations(self, index: int) -> Annotations:
        """Instances of picture `index`, crowds included, in the order of the file."""
        start, end = int(self.rows[index]), int(self.rows[index + 1])
        part, size = slice(start, end), self.size(index)
        segments = [self.outlines.get(row, size) for row in range(start, end)]
        return Annotations(self.boxes[part], self.labels[part], self.crowd[part], self.area[part], segments)

    @property
    def has_masks(self) -> bool:
        """Whether any instance that is no crowd has an outline."""
        outlined = (np.diff(self.outlines.owners) > 0) | (np.diff(self.outlines.runs.ends) > 0)
        return bool((outlined & ~self.crowd).any())

    def annotated(self) -> np.ndarray:
        """Indices of the pictures with at least one instance that is no crowd, int64, ascending."""
        return np.unique(np.repeat(np.arange(len(self)), np.diff(self.rows))[~self.crowd])

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Instances of every class without crowds, int64 `[num_classes]`."""
        return np.bincount(self.labels[~self.crowd], minlength=num_classes).astype(np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> DetectionTable:
        """The pictures at `indices`, in that order, with their instances."""
        indices = np.asarray(indices, dtype=np.int64)
        kept, rows = _positions(self.rows, indices)
        return replace(
            self,
            paths=self.paths.take(indices),
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            rows=rows,
            boxes=self.boxes[kept],
            given=self.given[kept],
            labels=self.labels[kept],
            crowd=self.crowd[kept],
            area=self.area[kept],
            outlines=self.outlines.take(kept),
        )

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The split as a COCO dictionary: every picture, every instance with its box as in the file, crowds included.

        Instances are numbered from 1, since the evaluation takes the number 0 for none. An instance without an outline
        has no `segmentation`.
        """
        images, annotations = [], []
        for i in range(len(self)):
            height, width = self.size(i)
            name = os.fsdecode(self.paths[i].tobytes())
            images.append({"id": self.image_id(i), "file_name": name, "height": height, "width": width})
            for row, segments in zip(range(self.rows[i], self.rows[i + 1]), self.annotations(i).segments, strict=True):
                entry = {
                    "id": row + 1,
                    "image_id": self.image_id(i),
                    "category_id": self.category_ids[self.labels[row]],
                    "bbox": self.given[row].tolist(),
                    "area": float(self.area[row]),
                    "iscrowd": int(self.crowd[row]),
                }
                annotations.append(entry | _written(segments))
        categories = [{"id": i, "name": n} for i, n in zip(self.category_ids, self.classes, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}


def _written(segments: Segments) -> dict[str, Any]:
    """An outline as a part of an annotation that JSON can hold."""
    if segments is None:
        return {}
    if isinstance(segments, list):
        return {"segmentation": [polygon.tolist() for polygon in segments]}
    return {"segmentation": {"size": segments["size"], "counts": segments["counts"].decode("ascii")}}


class TableBuilder:
    """Fills a `DetectionTable` picture by picture.

    Args:
        root: folder that the relative paths start from.
        classes: names by class number.
        category_ids: the file's numbers of the classes, ascending.
    """

    def __init__(self, root: Path, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        self.root, self.classes, self.category_ids = root, tuple(classes), tuple(category_ids)
        self._paths, self._runs = bytearray(), bytearray()
        self._ids, self._sizes, self._labels, self._crowd = array("q"), array("i"), array("i"), array("b")
        self._boxes, self._given, self._area, self._points = array("d"), array("d"), array("d"), array("d")
        self._path_ends, self._rows, self._owners = array("q", [0]), array("q", [0]), array("q", [0])
        self._point_ends, self._run_ends = array("q", [0]), array("q", [0])

    def image(self, path: str, image_id: int, size: tuple[int, int]) -> None:
        """Begin a picture.

        Args:
            path: relative to the root, or absolute.
            image_id: its number in the file.
            size: height and width of the upright picture, pixels.
        """
        self._paths += os.fsencode(path)
        self._path_ends.append(len(self._paths))
        self._ids.append(image_id)
        self._sizes.extend(size)
        self._rows.append(self._rows[-1])

    def instance(
        self,
        box: Iterable[float],
        label: int,
        *,
        given: Iterable[float],
        area: float,
        crowd: bool = False,
        segments: Sequence[Sequence[float] | np.ndarray] | bytes | None = None,
    ) -> None:
        """Add an instance to the picture begun last.

        Args:
            box: x0 y0 x1 y1, inside the picture.
            label: class number.
            given: x y width height as in the file.
            area: pixels.
            crowd: whether it is a group that is not told apart.
            segments: polygons x0 y0 x1 y1 ..., or compressed run lengths of a mask of the picture's size.
        """
        self._boxes.extend(box)
        self._given.extend(given)
        self._labels.append(label)
        self._area.append(area)
        self._crowd.append(crowd)
        if isinstance(segments, bytes):
            self._runs += segments
        else:
            for polygon in segments or ():
                self._points.frombytes(np.asarray(polygon, np.float64).tobytes())
                self._point_ends.append(len(self._points))
        self._owners.append(len(self._point_ends) - 1)
        self._run_ends.append(len(self._runs))
        self._rows[-1] += 1

    def build(self) -> DetectionTable:
        """The table of everything added so far."""
        runs = Ragged(_flat(self._runs, np.uint8), _flat(self._run_ends, np.int64))
        polygons = Ragged(_flat(self._points, np.float64), _flat(self._point_ends, np.int64))
        return DetectionTable(
            root=self.root,
            paths=Ragged(_flat(self._paths, np.uint8), _flat(self._path_ends, np.int64)),
            image_ids=_flat(self._ids, np.int64),
            sizes=_flat(self._sizes, np.int32).reshape(-1, 2),
            rows=_flat(self._rows, np.int64),
            boxes=_flat(self._boxes, np.float64).reshape(-1, 4),
            given=_flat(self._given, np.float64).reshape(-1, 4),
            labels=_flat(self._labels, np.int32),
            crowd=_flat(self._crowd, np.int8).astype(bool),
            area=_flat(self._area, np.float64),
            outlines=Outlines(_flat(self._owners, np.int64), polygons, runs),
            classes=self.classes,
            category_ids=self.category_ids,
        )


def _flat(values: array[Any] | bytearray, kind: type[np.generic]) -> np.ndarray:
    """A copy as an array of its own, so that the builder may go on."""
    return np.array(np.frombuffer(values, kind) if len(values) else [], dtype=kind)


@dataclass(frozen=True, eq=False)
class DetectionData:
    """Everything known about a data set before a picture is decoded.

    Args:
        classes: names in the order of the class numbers, which is that of the file's category numbers.
        category_ids: the file's numbers of the classes, ascending.
        splits: `train` and `val` always, `test` when there is one.
        root: what the user named.
        notes: one sentence each about what was decided or left out; the caller shows them.
        held_out: whether `val` was drawn from the training pictures, since the data have none of their own.
        faults: what is wrong with single pictures and annotations, and was left out or corrected.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: dict[str, DetectionTable]
    root: Path
    notes: list[str] = field(default_factory=list)
    held_out: bool = False
    faults: FaultLog = field(default_factory=FaultLog)


def hold_out(data: DetectionData, val_fraction: float, seed: int) -> DetectionData:
    """Move a share of the training pictures to `val`, a pure function of the data, the share and the seed.

    Pictures with the same bytes go to the same side.

    Args:
        val_fraction: share of the pictures, between 0 and 1; at least one picture is held out and one is kept.
        seed: decides which.
    Raises:
        UserError: a share outside 0..1, or fewer than two pictures.
    """
    train = data.splits["train"]
    if not 0.0 < val_fraction < 1.0:
        raise UserError(f"val_fraction is {val_fraction}", "Give a share between 0 and 1, such as 0.1")
    if len(train) < 2:
        raise UserError(f"{data.root} has one picture only, so none can be held out for validation", "Add pictures")
    generator = torch.Generator()
    generator.manual_seed(mix(seed, len(train)))
    shuffled = torch.randperm(len(train), generator=generator).numpy()
    held_out = np.zeros(len(train), dtype=bool)
    held_out[shuffled[: min(max(round(len(train) * val_fraction), 1), len(train) - 1)]] = True
    copies = find_copies(len(train), train.path)
    keep_together(held_out, copies, shuffled, np.zeros(len(train), np.int64))
    if not held_out.any():
        raise UserError(f"all pictures of {data.root} are the same, so none can be held out", "Add pictures")
    note = f"no validation split: {held_out.sum()} of {len(train)} images held out (seed {seed})"
    parts = {"train": train.subset(np.flatnonzero(~held_out)), "val": train.subset(np.flatnonzero(held_out))}
    return replace(
        data, splits={**data.splits, **parts}, notes=[*data.notes, note, *about_copies(copies)], held_out=True
    )
