"""Score a run, a file or a released model by the protocol of its card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from openmvit import processes, screen
from openmvit.data.detection_layouts import open_detection
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.evaluation.classification import ClassificationScores, MultiLabelScores
from openmvit.exported import ExportedClassifier, ExportedNetwork
from openmvit.model import MViT
from openmvit.validate.heldout import as_held_out, open_data, split_of
from openmvit.validate.protocols import ClipProtocol, ImageProtocol, TestProtocol, ViewOrder
from openmvit.validate.scoring import Evaluation, evaluate, over_processes
from openmvit.zoo import load_network

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
    **options: Any,
) -> dict[str, Any]:
    """Score a run, a file of weights, an exported ONNX file or a released model: the scores and a row per class.

    Of classifiers the scores are `top1` and `top5` (or `mAP`), of detectors `box` and `mask` with COCO's 12 numbers.
    Under torchrun every process calls it: each scores its share of the samples, every sample once, and all get the
    scores of the whole. Of videos the views' probabilities are averaged, and `one_view_top1` is the middle one's score.

    Args:
        data: as for training; default: the data of the run, split as it was (by the run's val.txt).
        split: val, test, train, or all.
        batch: images or clips per step; default 32 or 8, and 1 for detectors (see `detection.search.Search`).
        options: in place of the checkpoint's: `imgsz`; for images `crop_ratio` (0 squashes the whole image), for
            videos `clips` and `crops`; for detectors those of `Search` and `out`, a folder for results and pictures.
    Raises:
        UserError: if target, data or an option cannot be used, or the data's classes are not those of the model.
    """
    if (batch is not None and batch < 1) or workers < 0:
        raise UserError(f"batch is {batch} and workers is {workers}", "Accepted: at least 1, and at least 0")
    place, (model, card) = _place(device), load_network(target)
    if isinstance(model, ExportedNetwork):
        model, place = model.on(device), torch.device("cpu")
    if not isinstance(model, MViT | ExportedClassifier):
        from openmvit.validate.detection import validate_detector

        annotated = as_held_out(open_data(open_detection, card, data), target, card, data)
        return validate_detector(model.to(place), card, annotated, split, (batch or 1, workers), options)
    if not model.config.num_classes:
        raise UserError(f"{target} has no classifier", "Give a network that was trained on classes")
    protocol = PROTOCOLS[model.config.ndim](card["preprocessing"], _for_classifier(options))
    labelled = as_held_out(open_data(protocol.open, card, data), target, card, data)
    return _validate_classifier(model.to(place), card, protocol, labelled, split, (batch, workers, place))


def _validate_classifier(
    model: MViT | ExportedClassifier,
    card: Mapping[str, Any],
    protocol: TestProtocol,
    labelled: LabelledData,
    split: str,
    means: tuple[int | None, int, torch.device],
) -> dict[str, Any]:
    """Scores on a split; `means` are batch, workers and device."""
    table = split_of(labelled, split)
    assert isinstance(table, SampleTable)
    table, classes = _classes(table, labelled, card.get("classes") or [], model.config.num_classes)
    with processes.together(means[2]):
        found = _score(model, protocol, labelled.multilabel, (table, classes), means)
    about = {"data": str(labelled.root), "split": split, "noun": protocol.noun, "protocol": protocol.values}
    return about | {"view": protocol.describe()} | _results(found, protocol, labelled, table, classes)


def _for_classifier(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those of detectors, which must not be set."""
    for name in ("tta", "soft_nms", "out"):
        if options.get(name):
            raise UserError(f"--{name.replace('_', '-')} is for detectors, and this network classifies", "Leave it out")
    return {key: value for key, value in options.items() if key not in ("tta", "soft_nms", "out")}


def _score(
    model: MViT | ExportedClassifier,
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
    batches = screen.counted(loader, len(loader), "scoring batches")
    return over_processes(evaluate(model, batches, len(classes), place, multilabel, protocol.average(multilabel)))


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
