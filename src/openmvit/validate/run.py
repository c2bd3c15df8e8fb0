"""Score a run, a file or a released model by the protocol of its card."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from openmvit import processes
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.evaluation.classification import ClassificationScores, MultiLabelScores
from openmvit.model import MViT
from openmvit.validate.heldout import as_held_out, join_tables
from openmvit.validate.protocols import ClipProtocol, ImageProtocol, TestProtocol, ViewOrder
from openmvit.validate.scoring import Evaluation, evaluate, over_processes
from openmvit.zoo import load_model

# Networks trained on the joined ImageNet-21K list have the classes of ImageNet-1K first.
_JOINED_CLASSES, _FIRST_CLASSES = 19168, 1000
PROTOCOLS: dict[int, type[TestProtocol]] = {2: ImageProtocol, 3: ClipProtocol}
"""By the axes of the network."""


def validate(
    target: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    batch: int | None = None,
    workers: int = 2,
    device: str = "auto",
    **options: int | float | None,
) -> dict[str, Any]:
    """Score a run, file or released model; the result holds `top1` and `top5` (or `mAP`) and a row per class.

    Under torchrun every process calls it: each scores its share of the samples, every sample once, and all get the
    scores of the whole. Of videos the views' probabilities are averaged, and `one_view_top1` is the middle one's score.

    Args:
        data: as for training; default: the data of the run, split as it was (by the run's val.txt).
        split: val, test, train, or all.
        batch: images or clips per step; default 32 or 8.
        options: in place of the checkpoint's: `imgsz`; for images `crop_ratio` (0 squashes the whole image), for
            videos `clips` and `crops`.
    Raises:
        UserError: if target, data or an option cannot be used, or the data's classes are not those of the model.
    """
    if (batch is not None and batch < 1) or workers < 0:
        raise UserError(f"batch is {batch} and workers is {workers}", "Accepted: at least 1, and at least 0")
    place = _place(device)
    model, card = load_model(target)
    if not model.config.num_classes:
        raise UserError(f"{target} has no classifier", "Give a network that was trained on classes")
    protocol = PROTOCOLS[model.config.ndim](card["preprocessing"], options)
    labelled = as_held_out(_open(protocol, card, data), target, card, data)
    table, classes = _classes(_table(labelled, split), labelled, card.get("classes") or [], model.config.num_classes)
    with processes.together(place):
        found = _score(model.to(place), protocol, labelled.multilabel, (table, classes), (batch, workers, place))
    about = {"data": str(labelled.root), "split": split, "noun": protocol.noun, "protocol": protocol.values}
    return about | {"view": protocol.describe()} | _results(found, protocol, labelled, table, classes)


def _score(
    model: MViT,
    protocol: TestProtocol,
    multilabel: bool,
    samples: tuple[SampleTable, tuple[str, ...]],
    means: tuple[int | None, int, torch.device],
) -> Evaluation:
    """The scores of all processes; `samples` are table and classes, `means` batch, workers and device."""
    (table, classes), (batch, workers, place) = samples, means
    own = ResumableSampler(len(table), seed=0, shuffle=False, rank=processes.rank(), world_size=processes.world_size())
    dataset = protocol.dataset(table, multilabel, len(classes))
    loader = DataLoader(
        dataset, batch_size=batch or protocol.batch, sampler=ViewOrder(own, protocol.views), num_workers=workers
    )
    return over_processes(evaluate(model, loader, len(classes), place, multilabel, protocol.average(multilabel)))


def _place(device: str) -> torch.device:
    """The device of this process."""
    place = pick_device(device)
    if place.type == "cuda" and place.index is None and processes.launched():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return place


def _results(
    found: Evaluation, protocol: TestProtocol, data: LabelledData, table: SampleTable, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Scores and what was left out, as plain data.

    Raises:
        UserError: if no sample could be read.
    """
    if not found.samples:
        raise UserError(
            f"None of the {len(table)} {protocol.noun} of {data.root} can be read", "See openmvit data check"
        )
    single = found.single.compute() if found.single is not None else {}
    extra = {f"one_view_{key}": single[key] for key in ("top1", "mAP") if key in single}
    return {
        **found.scores.compute(),
        **extra,
        "samples": found.samples,
        **({"views": protocol.views} if single else {}),
        "unreadable": [str(table.path(i)) for i in found.bad],
        "notes": data.notes,
        "classes": _rows(found.scores, classes),
    }


def _open(protocol: TestProtocol, card: dict[str, Any], data: str | Path | None) -> LabelledData:
    recipe = card.get("recipe") or {}
    root = data if data is not None else card.get("data")
    if not root:
        raise UserError("This model does not say what it was trained on", "Give --data DIR")
    try:
        return protocol.open(root, seed=recipe.get("seed", 0), val_fraction=recipe.get("val_fraction", 0.1))
    except UserError as error:
        if data is not None:
            raise
        cause = f"The data that the run recorded, {root}, cannot be opened: {error.cause}"
        raise UserError(cause, "Give --data with the folder or list to score") from error


def _table(data: LabelledData, split: str) -> SampleTable:
    """Samples of a split, or of all splits together."""
    if split != "all":
        if split not in data.splits:
            raise UserError(f"{data.root} has no split {split!r}", f"Accepted: {', '.join(data.splits)}, all")
        return data.splits[split]
    return join_tables(list(data.splits.values()), data.root)


def _classes(
    table: SampleTable, data: LabelledData, names: list[str], outputs: int
) -> tuple[SampleTable, tuple[str, ...]]:
    """The table with labels that count in the model's outputs, and the classes to score.

    Raises:
        UserError: if the data's classes are not the model's.
    """
    own = data.classes
    known = not set(own).isdisjoint(names)
    if outputs == _JOINED_CLASSES and len(own) == _FIRST_CLASSES and not known:
        data.notes.append(f"scored by the first {_FIRST_CLASSES} of {_JOINED_CLASSES} outputs")
        return table, own
    if not names:
        if len(own) != outputs:
            raise UserError(
                f"The model has {outputs} classes without names and {data.root} has {len(own)}",
                "Give data with the classes that the model was trained on",
            )
        return table, own
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [name for name in own if name not in numbers]
    if unknown:
        raise UserError(
            f"{data.root} has {len(unknown)} classes that the model does not know, such as {unknown[0]!r}",
            f"Its {len(names)} classes are {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
        )
    mapped = np.array([numbers[name] for name in own], dtype=table.label_values.dtype)
    return replace(table, label_values=mapped[table.label_values]), tuple(names)


def _rows(scores: ClassificationScores | MultiLabelScores, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Per-class table as plain data; a figure that does not exist is None."""
    if isinstance(scores, MultiLabelScores):
        counts = scores.tensors()[1].sum(0).tolist()
        values = scores.average_precisions().tolist()
        return [
            {"name": name, "count": count, "average_precision": None if value != value else value}
            for name, count, value in zip(classes, counts, values, strict=True)
        ]
    return [
        {
            "name": row.name,
            "count": row.count,
            "accuracy": row.accuracy if row.count else None,
            "confused_with": row.confused_with,
            "confused_count": row.confused_count,
        }
        for row in scores.table(classes)
    ]
