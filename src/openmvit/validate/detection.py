"""Score a detector on annotated pictures: COCO's 12 numbers of boxes and masks, and AP of every class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openmvit import processes, screen
from openmvit.data.detection_samples import read_picture
from openmvit.data.detection_table import DetectionData, DetectionTable
from openmvit.data.sampler import ResumableSampler
from openmvit.data.samples import FileReadError
from openmvit.detection.augmentation import Views, test_views
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.detection.search import Search, run_lengths
from openmvit.device import device_of
from openmvit.errors import UserError
from openmvit.evaluation.coco import CocoResult, CocoScorer
from openmvit.exported.detectors import ExportedDetector
from openmvit.validate.heldout import split_of
from openmvit.validate.pictures import write_report

_NOT_OURS = ("crop_ratio", "clips", "crops")


class TestPictures(Dataset[dict[str, Any]]):
    """The views of every picture by the sampler's keys `(epoch, index)`; a file that cannot be used has none.

    Such a file is unreadable, or of another size than its annotations name; see `read_picture`.
    """

    __test__ = False

    def __init__(self, table: DetectionTable, views: Views) -> None:
        self.table, self.views = table, views

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """`index`, `views`, empty if the file cannot be used, and `size` (h, w) of the file."""
        try:
            image = read_picture(self.table, key[1])
        except FileReadError:
            return {"index": key[1], "views": [], "size": (0, 0)}
        return {"index": key[1], "views": self.views(image), "size": (image.height, image.width)}


def validate_detector(
    model: Detector | ExportedDetector,
    card: Mapping[str, Any],
    data: DetectionData,
    split: str,
    means: tuple[int, int],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Score a detector on a split; under torchrun each process searches its share, and all get the scores.

    Args:
        model: on its device.
        card: of its checkpoint.
        data: annotated pictures; their classes may be a part of the model's.
        split: val, test, train or all.
        means: pictures per step and processes that load.
        options: `imgsz` in place of the card's short side (the long one is scaled with it), `tta`, `soft_nms`, and
            `out`, a folder for results.json and pictures.
    Raises:
        UserError: if an option cannot be used, the data have classes that the model does not know, or no file of the
            split can be read.
    """
    _check(options)
    search = Search(None, options.get("soft_nms"), bool(options.get("tta")), means[0])
    preprocessing = _preprocessing(card, options.get("imgsz"))
    views, rules = test_views(preprocessing, model.config, search.tta), search.rules(model.config)
    numbers, table = class_numbers(data, card, model.config.num_classes), split_of(data, split)
    assert isinstance(table, DetectionTable)
    with processes.together(device_of(model)):
        loader = _loader(TestPictures(table, views), 1 if search.tta else search.batch, means[1])
        scorer = CocoScorer(data.classes, data.category_ids, table.ground_truth(), limit=finds_scored(model.config))
        bad = search_all(model, loader, search, scorer, table, numbers)
        results = _together(scorer, bad, table, options.get("out"))
    about = {"task": "detection", "noun": "images", "data": str(data.root), "split": split}
    return about | {
        "protocol": {**preprocessing, "tta": search.tta, "batch": search.batch, **rules},
        "view": _describe(views, search, rules["soft_nms"]),
        "notes": _notes(data, model.config.num_classes),
        **results,
    }


def _check(options: Mapping[str, Any]) -> None:
    for name in _NOT_OURS:
        if options.get(name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} does not belong to this model: detectors see whole pictures",
                "Leave it out",
            )


def _loader(pictures: TestPictures, batch: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Lists of this process's share of the pictures, each once and in order."""
    place = {"rank": processes.rank(), "world_size": processes.world_size()}
    own = ResumableSampler(len(pictures), seed=0, shuffle=False, **place)
    return DataLoader(pictures, batch_size=batch, sampler=own, num_workers=workers, collate_fn=list)


def search_all(
    model: Detector | ExportedDetector,
    loader: DataLoader[dict[str, Any]],
    search: Search,
    scorer: CocoScorer,
    table: DetectionTable,
    numbers: Tensor,
) -> list[int]:
    """Search the pictures of this process and give what is found to the scorer; returns those that cannot be used.

    Args:
        loader: lists of what `TestPictures` of `table` gives.
        numbers: int64 `[num_classes]`, the data's class of each of the model's, -1 for none: such finds do not count.
    """
    bad: list[int] = []
    for batch in screen.counted(loader, len(loader), "searching batches"):
        good = [one for one in batch if one["views"]]
        bad += [one["index"] for one in batch if not one["views"]]
        found = search.find(model, [(one["views"], one["size"]) for one in good])
        for one, objects in zip(good, found, strict=True):
            known = objects[numbers[objects.labels] >= 0]
            masks = run_lengths(known) if scorer.masks else None
            scorer.add(table.image_id(one["index"]), known.boxes, known.scores, numbers[known.labels], masks)
    return bad


def class_numbers(data: DetectionData, card: Mapping[str, Any], outputs: int) -> Tensor:
    """The data's class number of every class of the model, int64 `[outputs]`; -1 where the data have no such class.

    Classes are matched by their names; if the model has none, by the category numbers that it knows; if it has neither,
    in order, and there must be as many.

    Raises:
        UserError: if the data have a class that the model does not know.
    """
    names, ids = list(card.get("classes") or ()), list(card.get("category_ids") or ())
    if names:
        return _matched(data, names, list(data.classes), "classes", outputs)
    if ids:
        return _matched(data, ids, list(data.category_ids), "category numbers", outputs)
    if len(data.classes) != outputs:
        raise UserError(
            f"The model has {outputs} classes without names and {data.root} has {len(data.classes)}",
            "Give data with the classes that the model was trained on",
        )
    return torch.arange(outputs)


def _matched(data: DetectionData, known: list[Any], wanted: list[Any], what: str, outputs: int) -> Tensor:
    unknown = [one for one in wanted if one not in known]
    if unknown:
        raise UserError(
            f"{data.root} has {len(unknown)} {what} that the model does not know, such as {unknown[0]!r}",
            f"Its {len(known)} are {', '.join(map(str, known[:3]))}{', ...' if len(known) > 3 else ''}",
        )
    numbers = torch.full((outputs,), -1)
    for number, one in enumerate(wanted):
        numbers[known.index(one)] = number
    return numbers


def _together(scorer: CocoScorer, bad: list[int], table: DetectionTable, out: str | Path | None) -> dict[str, Any]:
    """The results of what all processes found, against the pictures that could be used; the first one writes `out`.

    Raises:
        UserError: if no picture could be used.
    """
    scorer, bad = gather_finds(scorer, bad, table)
    if len(bad) == len(table):
        raise UserError(f"None of the {len(table)} images of {table.root} can be used", "See openmvit data check")
    results: dict[str, Any] = {}
    if processes.is_main():
        screen.doing("scoring what was found")
        result = scorer.result()
        if out:
            write_report(Path(out), result, scorer, table)
        unreadable = [str(table.path(i)) for i in bad]
        results = results_of(result) | {"samples": len(table) - len(bad), "unreadable": unreadable}
    return processes.broadcast(results)


def gather_finds(scorer: CocoScorer, bad: list[int], table: DetectionTable) -> tuple[CocoScorer, list[int]]:
    """On the first process what all of them found, against the pictures that could be used; and which could not.

    Args:
        scorer: of all pictures of `table`, with the finds of this process.
        bad: indices of this process's pictures that cannot be used; their objects are left out with them.
    """
    parts = processes.gather((scorer.state(), bad))
    bad = sorted(index for _, own in parts for index in own)
    if processes.is_main():
        if bad:
            good = table.subset(np.setdiff1d(np.arange(len(table)), bad)).ground_truth()
            scorer = CocoScorer(table.classes, table.category_ids, good, masks=scorer.masks, limit=scorer.limit)
        scorer.merge(state for state, _ in parts)
    return scorer, bad


def finds_scored(config: DetectorConfig) -> int:
    """Finds per picture that are scored: COCO's 100, or more where the detector gives more (LVIS: 300)."""
    return max(100, config.max_detections)


def results_of(result: CocoResult) -> dict[str, Any]:
    """Scores as plain data; AP of a class without objects is None."""
    rows = [
        {
            "name": row.name,
            "count": row.count,
            "box_AP": row.box if row.box >= 0 else None,
            **({} if result.mask is None else {"mask_AP": row.mask if row.mask >= 0 else None}),
        }
        for row in result.table()
    ]
    return {"box": result.box, "mask": result.mask, "classes": rows}


def _preprocessing(card: Mapping[str, Any], imgsz: int | None) -> dict[str, Any]:
    given = dict(card["preprocessing"])
    if imgsz is None:
        return given
    if imgsz < 32:
        raise UserError(f"imgsz is {imgsz}", "Accepted: 32 and more")
    return given | {"short_side": imgsz, "long_side": round(given["long_side"] * imgsz / given["short_side"])}


def _describe(views: Views, search: Search, soft: str) -> str:
    sides = [str(side) for side in views.short_sides]
    shown = sides[0] if len(sides) == 1 else f"{sides[0]} to {sides[-1]} in {len(sides)} steps"
    parts = [f"short side {shown}, long side at most {views.long_side}", "mirrored too" * views.mirror]
    parts += [f"{soft} soft suppression" * (soft != "none"), f"{search.batch} per step" * (search.batch > 1)]
    return ", ".join(part for part in parts if part)


def _notes(data: DetectionData, outputs: int) -> list[str]:
    fewer = len(data.classes) < outputs
    return data.notes + [f"scored on {len(data.classes)} of the model's {outputs} classes"] * fewer
