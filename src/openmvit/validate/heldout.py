"""The validation samples that a run held out itself, read from the list that it wrote down."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from openmvit import screen
from openmvit.data.detection_table import DetectionData, DetectionTable, TableBuilder
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.errors import UserError

Data = TypeVar("Data", LabelledData, DetectionData)
Table = TypeVar("Table", SampleTable, DetectionTable)


def open_data(opener: Callable[..., Data], card: Mapping[str, Any], data: str | Path | None) -> Data:
    """The data that the user named, or those of the run; split by the run's seed where they have no split.

    Args:
        opener: such as `open_images`.
        card: of the checkpoint.
    Raises:
        UserError: if there are none, or they cannot be opened.
    """
    recipe = card.get("recipe") or {}
    root = data if data is not None else card.get("data")
    if not root:
        raise UserError("This model does not say what it was trained on", "Give --data DIR")
    screen.doing("reading the data")
    try:
        return opener(root, seed=recipe.get("seed", 0), val_fraction=recipe.get("val_fraction", 0.1))
    except UserError as error:
        if data is not None:
            raise
        cause = f"The data that the run recorded, {root}, cannot be opened: {error.cause}"
        raise UserError(cause, "Give --data with the folder or list to score") from error


def split_of(data: LabelledData | DetectionData, split: str) -> SampleTable | DetectionTable:
    """Samples of a split, or of all splits together.

    Raises:
        UserError: if there is no such split.
    """
    if split != "all":
        if split not in data.splits:
            raise UserError(f"{data.root} has no split {split!r}", f"Accepted: {', '.join(data.splits)}, all")
        return data.splits[split]
    return _join(list(data.splits.values()), data.root)


def as_held_out(labelled: Data, target: str | Path, card: Mapping[str, Any], data: str | Path | None) -> Data:
    """The data split as the run split it, whatever has been added since; splits of the data's own stay as they are.

    Args:
        labelled: the data, split by the run's seed.
        target: run folder, or a file in its weights/.
        card: of that run.
        data: what the user named instead of the run's data, or None.
    Raises:
        UserError: if the list or some of its files are gone, and the data are those of the run.
    """
    if not labelled.held_out:
        return labelled
    file = _list_of(Path(target))
    rows = _rows(file, card, labelled.root) if file is not None else []
    chosen, fitting = _choose(labelled, rows)
    if rows and fitting:
        train, val = _parted(labelled, chosen)
        note = f"no validation split: the {len(val)} samples that {file} lists are held out"
        return replace(labelled, splits={**labelled.splits, "train": train, "val": val}, notes=[note])
    if data is not None:
        return labelled
    if file is None:
        raise UserError(
            f"{target} held out a part of {labelled.root} and the list of it (val.txt) is not beside it",
            "Give the run folder, or validation samples with --data",
        )
    raise UserError(
        f"{file} lists {len(rows)} validation samples and {labelled.root} holds {len(chosen)} of them",
        "Restore the files, or give validation samples with --data",
    )


def _list_of(target: Path) -> Path | None:
    places = (target, target.parent.parent) if target.exists() else ()
    return next((place / "val.txt" for place in places if (place / "val.txt").is_file()), None)


def _rows(file: Path, card: Mapping[str, Any], root: Path) -> list[str]:
    """Absolute paths of the list, which counts from the run's data as its user typed them."""
    typed = Path(str((card.get("recipe") or {}).get("data") or root))
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    base, typed = (p.parent if root.is_file() else p for p in (root.absolute(), typed))
    # Absolute lines of a list of relative data are absolute in the list itself.
    own = [not typed.is_absolute() and Path(line).is_absolute() for line in lines]
    moved = [line if keep else os.path.relpath(line, typed) for line, keep in zip(lines, own, strict=True)]
    return [os.path.normpath(base / line) for line in moved]


def _choose(data: LabelledData | DetectionData, rows: list[str]) -> tuple[set[str], bool]:
    """Rows that the data hold, and whether each stands for one sample."""
    wanted, found = set(rows), 0
    here: set[str] = set()
    for table in (data.splits["train"], data.splits["val"]):
        for i in range(len(table)):
            name = _name(table, i)
            if name in wanted:
                here.add(name)
                found += 1
    return here, here == wanted and found == len(rows)


def _parted(data: LabelledData | DetectionData, chosen: set[str]) -> tuple[Any, Any]:
    """Training and validation table; validation are the samples whose path is chosen."""
    joined = _join([data.splits["train"], data.splits["val"]], data.root)
    held = np.array([_name(joined, i) in chosen for i in range(len(joined))])
    return joined.subset(np.flatnonzero(~held)), joined.subset(np.flatnonzero(held))


def _name(table: SampleTable | DetectionTable, index: int) -> str:
    return os.path.normpath(table.path(index).absolute())


def _join(tables: list[Any], root: Path) -> Any:
    """The samples of several tables of one kind, one behind the other, with absolute paths."""
    return (join_pictures if isinstance(tables[0], DetectionTable) else join_tables)(tables, root)


def join_tables(tables: list[SampleTable], root: Path) -> SampleTable:
    """Labelled samples, one table behind the other."""
    rows = ((str(table.path(i).absolute()), table.labels(i)) for table in tables for i in range(len(table)))
    times = [np.full((len(t), 2), np.nan) if t.times is None else t.times for t in tables]
    whole = all(t.times is None for t in tables)
    return SampleTable.build(root, rows, None if whole else np.concatenate(times))


def join_pictures(tables: list[DetectionTable], root: Path) -> DetectionTable:
    """Annotated pictures, one table behind the other, numbered anew if several have one number."""
    numbers = np.concatenate([table.image_ids for table in tables])
    if len(np.unique(numbers)) < len(numbers):
        numbers = np.arange(1, len(numbers) + 1)
    builder = TableBuilder(root, tables[0].classes, tables[0].category_ids)
    places = ((table, i) for table in tables for i in range(len(table)))
    for number, (table, i) in zip(numbers.tolist(), places, strict=True):
        builder.image(str(table.path(i).absolute()), number, table.size(i))
        found, start = table.annotations(i), int(table.rows[i])
        for k, segments in enumerate(found.segments):
            builder.instance(
                found.boxes[k],
                int(found.labels[k]),
                given=table.given[start + k],
                area=float(found.area[k]),
                crowd=bool(found.crowd[k]),
                segments=segments["counts"] if isinstance(segments, dict) else segments,
            )
    return builder.build()
