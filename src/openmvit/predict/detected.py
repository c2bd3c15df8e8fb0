"""What a detector found, as records, text, CSV and COCO JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openmvit.drawing import draw_detections
from openmvit.evaluation.coco import result_rows
from openmvit.predict import showing

_SMALL = 320
"""Pictures whose longer side is shorter, in pixels, are drawn enlarged."""


@dataclass(frozen=True, eq=False)
class Detection:
    """The objects that a detector found in one picture, or in one frame of a video, best first.

    Args:
        path: the file; `image 0`, `image 1`, ... for pictures given in memory.
        size: height and width of the upright picture; (0, 0) if it could not be read.
        boxes: float32 `[D, 4]`, x0 y0 x1 y1 in pixels of the picture.
        scores: float32 `[D]`, 0..1.
        labels: D class names.
        classes: int64 `[D]`, numbers of the classes from 0.
        rles: masks as COCO's run lengths, `{"size": [h, w], "counts": str}` each.
        error: why the picture, or the rest of the video, could not be read; else empty.
        seconds: of a video, when the frame is shown, from the first one.
        threshold: scores that were asked for are higher.
        best: where a picture has none of these, the highest score of all; None if that is not known.
        output: the copy with the objects drawn in; empty if there is none.
    """

    path: str
    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    classes: np.ndarray
    rles: tuple[dict[str, Any], ...]
    error: str = ""
    seconds: float | None = None
    threshold: float = 0.0
    best: float | None = None
    output: str = ""

    @staticmethod
    def unreadable(path: str, error: str, seconds: float | None = None) -> Detection:
        """The answer for a picture, or the rest of a video, that cannot be read."""
        boxes, numbers = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return Detection(path, (0, 0), boxes, np.zeros(0, np.float32), (), numbers, (), error, seconds)

    @property
    def readable(self) -> bool:
        """Whether there was a picture."""
        return not self.error

    def __len__(self) -> int:
        return len(self.labels)

    def masks(self) -> np.ndarray:
        """The pixels of each object, bool `[D, h, w]`."""
        return np.stack(list(_Lazy(self.rles))) if self.rles else np.zeros((0, *self.size), bool)

    def draw(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """A copy of the picture, uint8 `[h, w, 3]`, with boxes, masks, names and scores; a very small one enlarged."""
        names = dict(zip(self.classes.tolist(), self.labels, strict=True))
        listed = [names.get(number, "") for number in range(max(names, default=-1) + 1)]
        enlarge = max(1, -(-_SMALL // max(self.size)))
        masks = _Lazy(self.rles)
        pixels = np.asarray(picture)
        return draw_detections(pixels, self.boxes, self.classes, self.scores, listed, masks, enlarge=enlarge)

    def to_json(self) -> str:
        """The answer as a JSON object."""
        return json.dumps(self.as_dict())

    def plot(self) -> Image.Image:
        """The picture, or the frame of a video, with the objects drawn in.

        Raises:
            UserError: if there is no file to draw, or it could not be read.
        """
        showing.check(self.path, self.error)
        return Image.fromarray(self.draw(showing.frame_at(self.path, self.seconds)))

    def save(self, path: str | Path) -> Path:
        """Write `plot()` as a picture.

        Raises:
            UserError: as for `plot`, or if the place cannot be written.
        """
        return showing.save_picture(self.plot(), Path(path))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found: dict[str, Any] = {"path": self.path} | ({"output": self.output} if self.output else {})
        if self.seconds is not None:
            found["seconds"] = self.seconds
        if self.error:
            return found | {"error": self.error, "objects": []}
        rows = zip(self.labels, self.scores.tolist(), self.boxes.tolist(), self.rles, strict=True)
        objects = [{"label": name, "score": score, "box": box, "mask": rle} for name, score, box, rle in rows]
        return found | {"height": self.size[0], "width": self.size[1], "objects": objects}


class _Lazy(Sequence[np.ndarray]):
    """Masks bool `[h, w]`, decoded when they are asked for: all of a large picture at once would fill the memory."""

    def __init__(self, rles: Sequence[dict[str, Any]]) -> None:
        self._rles = rles

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Any) -> Any:
        from faster_coco_eval.core import mask as runs

        return np.asarray(runs.decode(self._rles[index])).astype(bool)


def detections_text(found: Sequence[Detection], verbose: bool = False) -> str:
    """A line per picture and per video, with how often each class was seen.

    Args:
        verbose: of pictures, every object with its score.
    """
    width = max(len(one.path) for one in found)
    lines = []
    for path, said in by_source(found):
        lines.append(f"{path:<{width}}  {_video(said) if said[0].seconds is not None else _picture(said[0], verbose)}")
    return "\n".join(lines)


def by_source(found: Sequence[Detection]) -> Iterator[tuple[str, list[Detection]]]:
    """Path and answers of every source: all frames of a video together."""
    numbers, number = [], -1
    for i, one in enumerate(found):
        number += not (i and _continues(found[i - 1], one))
        numbers.append(number)
    for _, rows in groupby(range(len(found)), key=lambda i: numbers[i]):
        said = [found[i] for i in rows]
        yield said[0].path, said


def _continues(before: Detection, one: Detection) -> bool:
    """Whether two answers that follow each other are of one video."""
    if one.path != before.path or one.seconds is None or before.seconds is None or before.error:
        return False
    return bool(one.error) or one.seconds > before.seconds


def _picture(one: Detection, verbose: bool) -> str:
    if one.error:
        return f"unreadable: {one.error}"
    if not len(one):
        return f"nothing above {one.threshold:g}" + ("" if one.best is None else f"; best {one.best:.2f}")
    if not verbose:
        return ", ".join(f"{count} {name}" for name, count in Counter(one.labels).most_common())
    said = ", ".join(f"{name} {score:.2f}" for name, score in zip(one.labels, one.scores.tolist(), strict=True))
    return f"{_counted(len(one), 'object')}: {said}"


def _video(said: list[Detection]) -> str:
    frames = [one for one in said if not one.error]
    error = next((one.error for one in said if one.error), "")
    if not frames:
        return f"unreadable: {error}"
    names = Counter(name for one in frames for name in one.labels)
    seen = ", ".join(f"{name} {count}" for name, count in names.most_common())
    counts = f"{_counted(len(frames), 'frame')}, {_counted(names.total(), 'object')}"
    return counts + (f": {seen}" if seen else "") + (f" ({error})" if error else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def detections_csv(found: Sequence[Detection]) -> str:
    """CSV `path,seconds,rank,label,score,x0,y0,x1,y1,error,output`: a row per object, and one for what has none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "seconds", "rank", "label", "score", "x0", "y0", "x1", "y1", "error", "output"])
    for one in found:
        start = [one.path, "" if one.seconds is None else f"{one.seconds:.3f}"]
        if not len(one):
            writer.writerow([*start, *[""] * 7, one.error, one.output])
        rows = zip(one.labels, one.scores.tolist(), one.boxes.tolist(), strict=True)
        for rank, (name, score, box) in enumerate(rows, start=1):
            writer.writerow(
                [*start, rank, name, f"{score:.6f}", *(f"{side:.2f}" for side in box), one.error, one.output]
            )
    return text.getvalue()


def coco_document(
    found: Iterable[Detection], classes: Sequence[str], category_ids: Sequence[int]
) -> dict[str, list[dict[str, Any]]]:
    """COCO JSON that stands alone: `images` (numbered from 1; frames of a video one each), `categories`, `annotations`.

    An annotation is a row of COCO's results format (`image_id`, `category_id`, `bbox` x y w h, `score`,
    `segmentation`) and has besides what a file of annotations must have: `id`, `area` of the mask and `iscrowd`.

    Args:
        classes: names by class number.
        category_ids: numbers of the classes in the file.
    """
    from faster_coco_eval.core import mask as runs

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for one in found:
        if one.error:
            continue
        image = {"id": len(images) + 1, "file_name": one.path, "height": one.size[0], "width": one.size[1]}
        images.append(image if one.seconds is None else image | {"seconds": one.seconds})
        boxes = one.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        categories = [category_ids[number] for number in one.classes.tolist()]
        areas = runs.area(list(one.rles)) if one.rles else []  # pyright: ignore[reportArgumentType]
        rows = result_rows(image["id"], boxes, one.scores, categories, list(one.rles))
        for row, area in zip(rows, areas, strict=True):
            annotations.append({"id": len(annotations) + 1, **row, "area": float(area), "iscrowd": 0})
    named = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
    return {"images": images, "categories": named, "annotations": annotations}
