"""Copies of what was predicted with the labels, or the objects, drawn in."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from openmvit.data.images import read_image
from openmvit.data.video import open_video
from openmvit.data.video_reader import VideoReader, is_url
from openmvit.errors import UserError
from openmvit.predict.answers import Prediction, Window, timeline_csv
from openmvit.predict.detected import Detection, by_source, coco_document
from openmvit.predict.overlay import decodable, draw_video, text_strip, write_video
from openmvit.predict.windows import is_live


def draw_labels(predictions: Sequence[Prediction], folder: str | Path) -> list[Path]:
    """Write what was predicted from files, with the labels drawn in; returns the files written.

    A picture (.png) stands above a strip with its likeliest label, a video (.mp4) above the label of the moment and a
    time bar; a timeline is written beside it (_timeline.csv). What is live was not kept, so it has a timeline only.
    A file keeps its name; equal names are numbered.

    Raises:
        UserError: if the folder cannot be written.
    """
    written: list[Path] = []
    with _writing(Path(folder)) as place:
        taken: set[str] = set()
        for number, one in enumerate(predictions):
            if one.labels:
                target = place / _free(one.path, number, taken)
                written += (_draw_video if one.kind == "video" else _draw_image)(one, target)
    return written


def draw_objects(
    found: Sequence[Detection], classes: Sequence[str], category_ids: Sequence[int], folder: str | Path
) -> list[Path]:
    """Write what a detector found: pictures (.png) and videos (.mp4) with the objects drawn in, and detections.json.

    Between two frames of a video that were looked at, the objects of the earlier one stay. A file keeps its name; equal
    names are numbered. Pictures that were given in memory are in detections.json only. Its form is that of
    `coco_document`.

    Args:
        classes, category_ids: of the detector.
    Raises:
        UserError: if the folder cannot be written.
    """
    written: list[Path] = []
    with _writing(Path(folder)) as place:
        taken: set[str] = set()
        for number, (path, said) in enumerate(by_source(found)):
            seen = [one for one in said if not one.error]
            if not seen or not (is_url(path) or Path(path).is_file()):
                continue
            target = place / _free(path, number, taken)
            if seen[0].seconds is None:
                written.append(target.with_name(f"{target.name}.png"))
                Image.fromarray(seen[0].draw(read_image(path))).save(written[-1])
            else:
                written.append(target.with_name(f"{target.name}.mp4"))
                with open_video(path, "pyav") as video:
                    write_video(_drawn(video, seen), video.fps, written[-1])
        written.append(place / "detections.json")
        written[-1].write_text(json.dumps(coco_document(found, classes, category_ids)), encoding="utf-8")
    return written


def _drawn(video: VideoReader, found: Sequence[Detection]) -> Iterator[tuple[float, np.ndarray]]:
    """The frames of a video with the objects of the moment; without an odd last row or column, which H.264 lacks."""
    starts = [one.seconds or 0.0 for one in found]
    for moment, frame in decodable(video):
        picture = found[max(bisect_right(starts, moment) - 1, 0)].draw(frame)
        yield moment, picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """The folder, made if it is not there; a disk that refuses is the user's to hear of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error.strerror or error})", "Choose another --out") from error


def _free(path: str, number: int, taken: set[str]) -> str:
    """A name without ending for what comes from `path`, which nothing else has."""
    stem = _stem(path)
    stem = f"{stem}_{number}" if stem in taken else stem
    taken.add(stem)
    return stem


def _stem(path: str) -> str:
    """The name of a file without its ending, or the like for an address or camera."""
    if is_live(path):
        return "".join(c if c.isalnum() else "_" for c in path).strip("_")
    return Path(urlsplit(path).path if is_url(path) else path).stem or "stream"


def _draw_image(one: Prediction, target: Path) -> list[Path]:
    path = target.with_name(f"{target.name}.png")
    _labelled(read_image(one.path), f"{one.labels[0]}  {one.probabilities[0]:.1%}").save(path)
    return [path]


def _draw_video(one: Prediction, target: Path) -> list[Path]:
    written: list[Path] = []
    if one.timeline:
        written.append(target.with_name(f"{target.name}_timeline.csv"))
        written[0].write_text(timeline_csv(one.timeline), encoding="utf-8")
    if is_live(one.path):
        return written
    written.append(target.with_name(f"{target.name}.mp4"))
    with open_video(one.path, "pyav") as video:
        whole = Window(0.0, video.duration, one.labels, one.probabilities)
        draw_video(video, one.timeline or (whole,), written[-1])
    return written


def _labelled(image: Image.Image, text: str) -> Image.Image:
    """The picture, enlarged to a width of at least 160 pixels, above a strip with the text."""
    scale = max(1, -(-160 // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    strip = text_strip(text, image.width, max(14, image.width // 20))
    canvas = Image.new("RGB", (image.width, image.height + strip.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(strip, (0, image.height))
    return canvas
