"""COCO's scores of boxes and masks: the 12 numbers, AP of every class, precision over recall."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from openmvit.errors import UserError
from openmvit.evaluation.rle import as_text, encode_masks

THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
"""IoU from which a detection counts as right; AP is the mean over them."""

Array = np.ndarray | Tensor


@dataclass(frozen=True)
class ClassAP:
    """One row of the per-class table.

    Args:
        name: the class.
        count: its objects, without crowds.
        box, mask: AP 0..1; -1 for a class without objects, and for masks that are not scored.
    """

    name: str
    count: int
    box: float
    mask: float


@dataclass(frozen=True)
class CocoResult:
    """What a set of detections scores.

    Args:
        classes: names, in the order of the labels.
        counts: objects of every class, without crowds.
        box: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, each 0..1; -1 where there is nothing to
            find. Small is below 32 x 32 pixels, large above 96 x 96. With another limit AR100 bears its number.
        mask: the same of masks; None if they are not scored.
        precision: of "box" and, if scored, "mask": float64 `[10, 101, K]` at `THRESHOLDS`, recall 0, 0.01 .. 1 and
            class; -1 throughout for a class without objects.
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...]
    box: dict[str, float]
    mask: dict[str, float] | None
    precision: dict[str, np.ndarray]

    def per_class(self, kind: str = "box") -> np.ndarray:
        """AP of every class, float64 `[K]`, of "box" or "mask"; -1 for a class without objects."""
        if kind not in self.precision:
            return np.full(len(self.classes), -1.0)
        return self.precision[kind].mean(axis=(0, 1))

    def table(self) -> list[ClassAP]:
        """Per-class scores in the order of the classes."""
        rows = zip(self.classes, self.counts, self.per_class("box"), self.per_class("mask"), strict=True)
        return [ClassAP(name, count, float(box), float(mask)) for name, count, box, mask in rows]


@dataclass(frozen=True)
class _Found:
    """Detections of one image, best first: boxes float64 `[D, 4]` x, y, w, h; scores, labels `[D]`; run lengths."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rles: list[dict[str, Any]] | None


class CocoScorer:
    """Collects the detections of images in any order and scores them as pycocotools does.

    An image never added counts as one without detections; one added twice, as samplers of several processes do to
    fill their last round, counts once. Masks are kept as run lengths only.

    An object without a mask of its own (no polygon, no run lengths) is neither missed nor found when masks are
    scored: its box is treated as a crowd. If no object has a mask, masks are not scored.

    Args:
        classes: names in the order of the labels.
        category_ids: their numbers in the ground truth.
        ground_truth: `images` (id, width, height) and `annotations` (image_id, category_id, bbox, area and, for
            masks, segmentation; iscrowd) in COCO's format; neither changed nor copied.
        masks: score masks too.
        limit: detections kept per image, best first. COCO's rule is 100; LVIS takes 300, but its own AP also leaves
            out classes that were not checked in an image, which this one does not.
    Raises:
        UserError: if an annotation is of a category that is not in `category_ids`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        category_ids: Sequence[int],
        ground_truth: dict[str, Any],
        *,
        masks: bool = True,
        limit: int = 100,
    ) -> None:
        self.classes, self.category_ids, self.limit = tuple(classes), tuple(category_ids), limit
        self._truth = ground_truth
        self._images = {image["id"] for image in ground_truth["images"]}
        self._label = {category: label for label, category in enumerate(self.category_ids)}
        strangers = {row["category_id"] for row in ground_truth["annotations"]} - self._label.keys()
        if strangers:
            raise UserError(
                f"The annotations have objects of category {min(strangers)}, which is not among the classes",
                "Score with the classes of these annotations",
            )
        objects = ground_truth["annotations"]
        self.masks = masks and (not objects or any(_has_mask(row) for row in objects))
        self._found: dict[int, _Found] = {}

    def add(
        self,
        image_id: int,
        boxes: Array,
        scores: Array,
        labels: Array,
        masks: Array | Iterable[Array] | list[dict[str, Any]] | None = None,
    ) -> None:
        """Add the detections of an image.

        Args:
            image_id: its number in the ground truth.
            boxes: `[D, 4]` x0, y0, x1, y1 in pixels of the annotated picture, D may be 0.
            scores: `[D]`, any order.
            labels: `[D]`, 0..K - 1.
            masks: bool `[D, H, W]`, a series of bool `[H, W]`, or their run lengths; only needed if masks are scored.
        Raises:
            UserError: if the ground truth has no such image.
            ValueError: if a score or box is not finite, or masks are missing.
        """
        if image_id not in self._images:
            raise UserError(f"The annotations have no image {image_id}", "Score on the images that are annotated")
        corners, score, label = _numpy(boxes, np.float64), _numpy(scores, np.float64), _numpy(labels, np.int64)
        corners = corners.reshape(-1, 4)
        if not (np.isfinite(corners).all() and np.isfinite(score).all()):
            raise ValueError(f"image {image_id} has boxes or scores that are not finite")
        best = np.argsort(-score, kind="stable")[: self.limit]
        rles = None
        if self.masks:
            if masks is None and len(score):
                raise ValueError(f"image {image_id} has {len(score)} detections and no masks")
            rles = _pick(masks, best) if masks is not None else []
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        self._found.setdefault(int(image_id), _Found(boxes[best], score[best], label[best], rles))

    def state(self) -> list[tuple[Any, ...]]:
        """All that was added, as plain data for other processes: (image, boxes, scores, labels, run lengths) each."""
        return [(image, one.boxes, one.scores, one.labels, one.rles) for image, one in self._found.items()]

    def merge(self, states: Iterable[list[tuple[Any, ...]]]) -> None:
        """Add what other scorers of the same ground truth gave as `state()`; their own images may be among it."""
        for state in states:
            for image, *parts in state:
                self._found.setdefault(image, _Found(*parts))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Detections in COCO's results format, by image: boxes x, y, w, h unrounded, categories numbered as theirs."""
        for image in sorted(self._found):
            one = self._found[image]
            yield from result_rows(image, one.boxes, one.scores, [self.category_ids[i] for i in one.labels], one.rles)

    def result(self) -> CocoResult:
        """Score what has been added, against all images of the ground truth."""
        counts = [0] * len(self.classes)
        for row in self._truth["annotations"]:
            counts[self._label[row["category_id"]]] += not row.get("iscrowd", 0)
        box, curves = self._score("bbox")
        mask, precision = None, {"box": curves}
        if self.masks:
            mask, precision["mask"] = self._score("segm")
        return CocoResult(self.classes, tuple(counts), box, mask, precision)

    def _score(self, kind: str) -> tuple[dict[str, float], np.ndarray]:
        """The 12 numbers and precision `[10, 101, K]` of "bbox" or "segm"."""
        from faster_coco_eval import COCO, COCOeval_faster

        ends = (1, 10, self.limit)
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", *(f"AR{end}" for end in ends), "ARs", "ARm", "ARl")
        if not self._images or not self.classes:
            return dict.fromkeys(names, -1.0), np.full((len(THRESHOLDS), 101, len(self.classes)), -1.0)
        frame = {
            "images": list(self._frames(kind)),
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(self.classes)],
        }
        truth = COCO(frame | {"annotations": list(self._objects(kind))}, print_function=_quiet)
        found = COCO(frame | {"annotations": list(self._detections(kind))}, print_function=_quiet)
        evaluation = COCOeval_faster(truth, found, kind, print_function=_quiet)  # pyright: ignore[reportArgumentType]
        evaluation.params.maxDets = list(ends)
        evaluation.run()
        numbers = dict(zip(names, (float(n) for n in evaluation.stats), strict=True))
        return numbers, np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1].copy()

    def _frames(self, kind: str) -> Iterator[dict[str, Any]]:
        """Images; where masks were found, in their size: annotations of a turned picture may name its sides exchanged.

        Outlines are drawn in that frame, and masks of different sizes would not be compared at all.
        """
        for image in self._truth["images"]:
            one = self._found.get(image["id"])
            masks = one.rles if kind == "segm" and one else None
            height, width = masks[0]["size"] if masks else (image["height"], image["width"])
            yield {"id": image["id"], "height": height, "width": width}

    def _objects(self, kind: str) -> Iterator[dict[str, Any]]:
        """Annotations as the library wants them: numbered from 1, since 0 would mean "no match" to it."""
        for number, row in enumerate(self._truth["annotations"], start=1):
            one = {key: row[key] for key in ("image_id", "bbox", "area")}
            one |= {"id": number, "category_id": self._label[row["category_id"]] + 1, "iscrowd": row.get("iscrowd", 0)}
            if kind == "segm":
                one |= (
                    {"segmentation": _outline(row)} if _has_mask(row) else {"segmentation": _frame(row), "iscrowd": 1}
                )
            yield one

    def _detections(self, kind: str) -> Iterator[dict[str, Any]]:
        """Detections as the library wants them; a mask's size is its own area, not its box's."""
        from faster_coco_eval.core import mask as runs

        number = 0
        for image, one in self._found.items():
            masks = kind == "segm" and bool(one.rles)
            areas = runs.area(one.rles) if masks else one.boxes[:, 2] * one.boxes[:, 3]  # pyright: ignore[reportArgumentType]
            rows = result_rows(image, one.boxes, one.scores, one.labels + 1, one.rles if masks else None)
            for row, area in zip(rows, areas, strict=True):
                number += 1
                yield row | {"id": number, "area": float(area), "iscrowd": 0}


def result_rows(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    categories: Sequence[int] | np.ndarray,
    rles: list[dict[str, Any]] | None,
) -> Iterator[dict[str, Any]]:
    """Detections of an image in COCO's results format.

    Args:
        boxes: `[D, 4]` x, y, w, h in pixels; not rounded.
        scores: `[D]`.
        categories: D numbers of the data, not labels.
        rles: run lengths of D masks as `rle.encode_masks` gives them, or None.
    """
    for i, (box, score) in enumerate(zip(boxes.tolist(), scores.tolist(), strict=True)):
        row = {"image_id": image_id, "category_id": int(categories[i]), "bbox": box, "score": score}
        yield row | ({"segmentation": rles[i]} if rles else {})


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write detections as a COCO results file, a JSON list with a row per line."""
    with path.open("w", encoding="utf-8") as file:
        between = "[\n"
        for row in rows:
            file.write(between + json.dumps(row))
            between = ",\n"
        file.write("[]\n" if between == "[\n" else "\n]\n")


def _quiet(*_: object) -> None:
    """In place of the library's own printing."""


def _numpy(values: Array, dtype: type) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array.astype(dtype)


def _pick(masks: Array | Iterable[Array] | list[dict[str, Any]], best: np.ndarray) -> list[dict[str, Any]]:
    """Run lengths of the chosen masks, as text."""
    if isinstance(masks, np.ndarray | Tensor):
        return encode_masks(masks[int(i)] for i in best)
    rows = [as_text(mask) if isinstance(mask, dict) else encode_masks([mask])[0] for mask in masks]
    return [rows[i] for i in best]


def _has_mask(row: dict[str, Any]) -> bool:
    """Whether an annotation has an outline that surrounds something."""
    outline = row.get("segmentation")
    return isinstance(outline, dict) or bool(outline and any(len(polygon) >= 6 for polygon in outline))


def _outline(row: dict[str, Any]) -> Any:
    """Run lengths, or the polygons of three points and more as plain lists (one of four numbers would be a box)."""
    outline = row["segmentation"]
    return outline if isinstance(outline, dict) else [np.asarray(p).tolist() for p in outline if len(p) >= 6]


def _frame(row: dict[str, Any]) -> list[list[float]]:
    """The box of an annotation as a polygon."""
    x, y, w, h = (float(n) for n in row["bbox"])
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]
