"""Copies of what was predicted with the labels drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from openmvit.data.images import read_image
from openmvit.data.video import open_video
from openmvit.data.video_reader import is_url
from openmvit.errors import UserError
from openmvit.predict.answers import Prediction, Window, timeline_csv
from openmvit.predict.overlay import draw_video, text_strip
from openmvit.predict.windows import is_live


def draw_labels(predictions: Sequence[Prediction], folder: str | Path) -> list[Path]:
    """Write what was predicted from files, with the labels drawn in; returns the files written.

    A picture (.png) stands above a strip with its likeliest label, a video (.mp4) above the label of the moment and a
    time bar; a timeline is written beside it (_timeline.csv). What is live was not kept, so it has a timeline only.
    A file keeps its name; equal names are numbered.

    Raises:
        UserError: if the folder cannot be written.
    """
    folder = Path(folder)
    written: list[Path] = []
    taken: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(predictions):
            if one.labels:
                stem = _stem(one.path)
                stem = f"{stem}_{number}" if stem in taken else stem
                taken.add(stem)
                written += (_draw_video if one.kind == "video" else _draw_image)(one, folder / stem)
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error.strerror or error})", "Choose another --out") from error
    return written


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
