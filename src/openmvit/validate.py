"""Score a classifier on labelled images: top-1, top-5, every class; mean average precision for several labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from openmvit.data.images import ImageDataset, open_images
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import LabelledData, SampleTable
from openmvit.data.transforms import test_transform_from
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.evaluation.classification import ClassificationScores, MultiLabelScores
from openmvit.zoo import load_model

# Networks trained on the joined ImageNet-21K list have the classes of ImageNet-1K first.
_JOINED_CLASSES, _FIRST_CLASSES = 19168, 1000


@dataclass(frozen=True)
class Evaluation:
    """Scores of one pass.

    Args:
        scores: the sums, for tables and confusion.
        samples: images that were scored.
        bad: indices of the samples that were left out because their files are unreadable.
    """

    scores: ClassificationScores | MultiLabelScores
    samples: int
    bad: list[int]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[dict[str, Tensor]],
    num_classes: int,
    device: torch.device,
    multilabel: bool = False,
) -> Evaluation:
    """Score a network on batches of `ImageDataset`; the network is left in the mode it was in.

    Args:
        num_classes: classes to score; further outputs of the network are left out.
    """
    scores = MultiLabelScores(num_classes) if multilabel else ClassificationScores(num_classes)
    was_training, samples = model.training, 0
    bad: list[int] = []
    model.eval()
    for batch in loader:
        keep = batch["bad"] == 0
        bad += batch["index"][~keep].tolist()
        samples += int(keep.sum())
        logits = model(batch["image"].to(device, non_blocking=True))
        scores.update(logits.cpu(), batch["label"], keep)
    model.train(was_training)
    return Evaluation(scores, samples, bad)


def validate(
    target: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    imgsz: int | None = None,
    crop_ratio: float | None = None,
    batch: int = 32,
    workers: int = 2,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a run, file or released model; the result holds `top1` and `top5` (or `mAP`) and a row per class.

    Args:
        data: as for training; default: the data of the run, split as it was.
        split: val, test, train, or all.
        imgsz, crop_ratio: instead of the checkpoint's; crop_ratio 0 squashes the whole image.
    Raises:
        UserError: if target or data cannot be used, or the data's classes are not those of the model.
    """
    if batch < 1 or workers < 0:
        raise UserError(f"batch is {batch} and workers is {workers}", "Accepted: at least 1, and at least 0")
    place = pick_device(device)
    model, card = load_model(target)
    if model.config.ndim != 2:
        raise UserError(f"{target} takes clips, not images", "Give an image classifier")
    changes = (("imgsz", imgsz), ("crop_ratio", crop_ratio))
    protocol = card["preprocessing"] | {key: value for key, value in changes if value is not None}
    labelled = _open(card, data)
    table, classes = _classes(_table(labelled, split), labelled, card.get("classes") or [], model.config.num_classes)
    view = test_transform_from(protocol)
    dataset = ImageDataset(table, view, seed=0, multilabel=labelled.multilabel, num_classes=len(classes))
    sampler = ResumableSampler(len(table), seed=0, shuffle=False)
    loader = DataLoader(dataset, batch_size=batch, sampler=sampler, num_workers=workers)
    found = evaluate(model.to(place), loader, len(classes), place, labelled.multilabel)
    about = {"data": str(labelled.root), "split": split, "protocol": protocol}
    return about | _results(found, labelled, table, classes)


def _results(found: Evaluation, data: LabelledData, table: SampleTable, classes: tuple[str, ...]) -> dict[str, Any]:
    """Scores and what was left out, as plain data.

    Raises:
        UserError: if no image could be read.
    """
    if not found.samples:
        raise UserError(f"None of the {len(table)} images of {data.root} can be read", "See openmvit data check")
    return {
        **found.scores.compute(),
        "samples": found.samples,
        "unreadable": [str(table.path(i)) for i in found.bad],
        "notes": data.notes,
        "classes": _rows(found.scores, classes),
    }


def _open(card: dict[str, Any], data: str | Path | None) -> LabelledData:
    recipe = card.get("recipe") or {}
    root = data if data is not None else card.get("data")
    if not root:
        raise UserError("This model does not say what it was trained on", "Give --data DIR")
    return open_images(root, seed=recipe.get("seed", 0), val_fraction=recipe.get("val_fraction", 0.1))


def _table(data: LabelledData, split: str) -> SampleTable:
    """Samples of a split, or of all splits together."""
    if split != "all":
        if split not in data.splits:
            raise UserError(f"{data.root} has no split {split!r}", f"Accepted: {', '.join(data.splits)}, all")
        return data.splits[split]
    rows = (
        (str(table.path(i).absolute()), table.labels(i)) for table in data.splits.values() for i in range(len(table))
    )
    return SampleTable.build(data.root, rows)


def _classes(
    table: SampleTable, data: LabelledData, names: list[str], outputs: int
) -> tuple[SampleTable, tuple[str, ...]]:
    """The table with labels that count in the model's outputs, and the classes to score.

    Raises:
        UserError: if the data's classes are not the model's.
    """
    own = data.classes
    if outputs == _JOINED_CLASSES and len(own) == _FIRST_CLASSES:
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


def results_text(results: dict[str, Any], most: int = 50) -> str:
    """`validate`'s results: notes, the classes (of many the worst), protocol, and one line of totals."""
    metric = "average_precision" if "mAP" in results else "accuracy"
    rows = [row for row in results["classes"] if row["count"]]
    shown = rows if len(rows) <= most else sorted(rows, key=lambda row: row[metric])[:most]
    width = max([len("class"), *(len(row["name"]) for row in shown)])
    lines = [f"note: {note}" for note in results["notes"]]
    lines += [f"unreadable, left out: {path}" for path in results["unreadable"]]
    lines.append(f"{'class':<{width}}  images  {metric}" + ("  most often taken for" if metric == "accuracy" else ""))
    for row in shown:
        wrong = f"  {row['confused_with']} ({row['confused_count']})" if row.get("confused_with") else ""
        lines.append(f"{row['name']:<{width}}  {row['count']:>6}  {row[metric]:>{len(metric)}.4f}{wrong}")
    if len(rows) > len(shown):
        lines.append(f"... the worst {most} of {len(rows)} classes")
    p = results["protocol"]
    view = (
        f"resized to {int(p['imgsz'] / p['crop_ratio'])}, centre crop" if p["crop_ratio"] else "whole image squashed to"
    )
    lines.append(f"{results['data']}, {results['split']}: {view} {p['imgsz']} x {p['imgsz']}, {p['interpolation']}")
    totals = " ".join(f"{key}={results[key]:.4f}" for key in ("top1", "top5", "mAP") if key in results)
    return "\n".join([*lines, f"val {totals} samples={results['samples']}"])
