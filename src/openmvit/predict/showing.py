"""One answer drawn into its file, as a picture or a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from openmvit.data.images import read_image
from openmvit.data.video import open_video
from openmvit.data.video_reader import is_url
from openmvit.errors import UserError
from openmvit.predict.overlay import draw_video, moments, text_strip
from openmvit.predict.timeline import Window

_SHOWN = 8
"""Frames of a video in its picture."""
_LATE = 1e-6


def check(path: str, error: str) -> None:
    """Raise a UserError if there is nothing to draw: the file could not be read, or there is none."""
    if error:
        raise UserError(f"{path} could not be read ({error}), so there is nothing to draw", "Look at .error first")
    if not (is_url(path) or Path(path).exists()):
        raise UserError(f"{path} was given in memory or is live, so there is no file to draw", "Predict from a file")


def labelled_file(path: str, kind: str, text: str) -> Image.Image:
    """A picture, or eight frames of a video side by side, above a text."""
    if kind != "video":
        return _labelled(read_image(path), text)
    with open_video(path) as video:
        numbers = np.linspace(0, video.num_frames - 1, min(_SHOWN, video.num_frames)).round().astype(int)
        frames = video.frames(numbers.tolist()).numpy()
    return _labelled(Image.fromarray(np.concatenate(list(frames), axis=1)), text)


def frame_at(path: str, seconds: float | None) -> Image.Image | np.ndarray:
    """A picture, or the frame of a video that is shown at a moment."""
    if seconds is None:
        return read_image(path)
    with open_video(path, "pyav") as video:
        return next(frame for moment, frame in moments(video) if moment >= seconds - _LATE)


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture in the format of its ending.

    Raises:
        UserError: if the place cannot be written, or the ending is of no format.
    """
    with writing(path.parent):
        try:
            picture.save(path)
        except ValueError as error:
            raise UserError(f"{path} ends like no picture", "Name it .png or .jpg") from error
    return path


def save_video(
    source: str, timeline: Sequence[Window], labels: tuple[str, ...], probabilities: tuple[float, ...], path: Path
) -> Path:
    """Write the frames of a video above the label of the moment, or of the whole, and a time bar."""
    with writing(path.parent), open_video(source, "pyav") as video:
        whole = Window(0.0, video.duration, labels, probabilities)
        draw_video(video, timeline or (whole,), path)
    return path


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """The folder, made if it is not there; a disk that refuses is the user's to hear of."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error.strerror or error})", "Choose another --out") from error


def _labelled(image: Image.Image, text: str) -> Image.Image:
    """The picture, enlarged to a width of at least 160 pixels, above a strip with the text."""
    scale = max(1, -(-160 // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    strip = text_strip(text, image.width, max(14, image.width // 20))
    canvas = Image.new("RGB", (image.width, image.height + strip.height), "white")
    canvas.paste(image, (0, 0))
    canvas.paste(strip, (0, image.height))
    return canvas
