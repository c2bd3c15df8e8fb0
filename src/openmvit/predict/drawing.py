"""Copies of what was predicted with the labels, or the objects, drawn in."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from openmvit.data.images import read_image
from openmvit.data.video import open_video
from openmvit.data.video_reader import VideoReader, is_url
from openmvit.predict.answers import Prediction
from openmvit.predict.detected import Detection, by_source, coco_document
from openmvit.predict.overlay import decodable, write_video
from openmvit.predict.showing import save_video, writing
from openmvit.predict.timeline import timeline_csv
from openmvit.predict.windows import is_live


def draw_labels(predictions: Sequence[Prediction], folder: str | Path) -> list[Path]:
    """Write what was predicted from files, with the labels drawn in; returns the files written.

    A picture (.png) stands above a strip with its likeliest label, a video (.mp4) above the label of the moment and a
    time bar; a timeline is written beside it (_timeline.csv). What is live was not kept, so it has a timeline only.
    A file keeps its name and the folders in which sources lie apart. Equal names are numbered, and no source is
    replaced.

    Raises:
        UserError: if the folder cannot be written.
    """
    written: list[Path] = []
    with writing(Path(folder)) as place:
        for one, target in zip(predictions, _stems(predictions, place), strict=True):
            if one.labels:
                target.parent.mkdir(parents=True, exist_ok=True)
                written += (_draw_video if one.kind == "video" else _draw_image)(one, target)
    return written


def label_targets(predictions: Sequence[Prediction], folder: Path) -> list[Path | None]:
    """The picture or video that `draw_labels` writes for each answer; None for what is live or could not be read."""
    ends = [".mp4" if one.kind == "video" else ".png" for one in predictions]
    return [
        _with_end(stem, end) if one.labels and not is_live(one.path) else None
        for one, stem, end in zip(predictions, _stems(predictions, folder), ends, strict=True)
    ]


def draw_objects(
    found: Sequence[Detection], classes: Sequence[str], category_ids: Sequence[int], folder: str | Path
) -> list[Path]:
    """Write what a detector found: pictures (.png) and videos (.mp4) with the objects drawn in, and detections.json.

    Between two frames of a video that were looked at, the objects of the earlier one stay. Names and folders are as in
    `draw_labels`. Pictures that were given in memory are in detections.json only. Its form is that of
    `coco_document`.

    Args:
        classes, category_ids: of the detector.
    Raises:
        UserError: if the folder cannot be written.
    """
    written: list[Path] = []
    with writing(Path(folder)) as place:
        targets = dict(zip(map(id, found), object_targets(found, place), strict=True))
        for path, said in by_source(found):
            seen = [one for one in said if not one.error]
            target = targets[id(seen[0])] if seen else None
            if target is None:
                continue
            written.append(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            if seen[0].seconds is None:
                Image.fromarray(seen[0].draw(read_image(path))).save(target)
            else:
                with open_video(path, "pyav") as video:
                    write_video(_drawn(video, seen), video.fps, target)
        written.append(place / "detections.json")
        written[-1].write_text(json.dumps(coco_document(found, classes, category_ids)), encoding="utf-8")
    return written


def _drawn(video: VideoReader, found: Sequence[Detection]) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video with the objects of the moment; without an odd last row or column, which H.264 lacks."""
    starts = [one.seconds or 0.0 for one in found]
    for moment, frame in decodable(video):
        picture = found[max(bisect_right(starts, moment) - 1, 0)].draw(frame)
        yield moment, picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def object_targets(found: Sequence[Detection], folder: Path) -> list[Path | None]:
    """The picture or video that `draw_objects` writes for each answer; None for what is in memory or unreadable."""
    groups = list(by_source(found))
    stems = _stems([said[0] for _, said in groups], folder)
    targets: list[Path | None] = []
    for (path, said), stem in zip(groups, stems, strict=True):
        drawn = any(not one.error for one in said) and (is_url(path) or Path(path).is_file())
        end = ".png" if said[0].seconds is None else ".mp4"
        targets += [_with_end(stem, end) if drawn else None] * len(said)
    return targets


def _with_end(stem: Path, end: str) -> Path:
    return stem.with_name(stem.name + end)


def _stems(answers: Sequence[Prediction] | Sequence[Detection], folder: Path) -> list[Path]:
    """Files without ending for the answers, in folders as their sources lie; no two are alike, and none is a source.

    What all sources have in common of their folders is left out.
    """
    local = {i: Path(one.path).absolute() for i, one in enumerate(answers) if Path(one.path).exists()}
    shared = Path(os.path.commonpath([path.parent for path in local.values()])) if local else Path()
    sources = {str(path.resolve()).casefold() for path in local.values()}
    found: list[Path] = []
    taken: set[str] = set()
    for number, one in enumerate(answers):
        place = folder / local[number].parent.relative_to(shared) if number in local else folder
        name = stem = _stem(one.path)
        tries = (f"{stem}_{number}{'_' * i}" for i in count())
        while _occupied(place / name, taken, sources):
            name = next(tries)
        taken.add(str(place / name).casefold())
        found.append(place / name)
    return found


def _occupied(stem: Path, taken: set[str], sources: set[str]) -> bool:
    """Return True if the files of this name are those of another answer, or a source."""
    files = (str(_with_end(stem, end).resolve()).casefold() for end in (".png", ".mp4", "_timeline.csv"))
    return str(stem).casefold() in taken or any(file in sources for file in files)


def _stem(path: str) -> str:
    """The name of a file without its ending, or the like for an address or camera."""
    if is_live(path):
        return "".join(c if c.isalnum() else "_" for c in path).strip("_")
    stem = Path(urlsplit(path).path if is_url(path) else path).stem.strip(".")
    return stem or ("stream" if is_url(path) else "unnamed")


def _draw_image(one: Prediction, target: Path) -> list[Path]:
    path = _with_end(target, ".png")
    one.plot().save(path)
    return [path]


def _draw_video(one: Prediction, target: Path) -> list[Path]:
    written: list[Path] = []
    if one.timeline:
        written.append(target.with_name(f"{target.name}_timeline.csv"))
        written[0].write_text(timeline_csv(one.timeline), encoding="utf-8")
    if is_live(one.path):
        return written
    written.append(_with_end(target, ".mp4"))
    save_video(one.path, one.timeline, one.labels, one.probabilities, written[-1])
    return written
