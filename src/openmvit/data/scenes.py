"""A picture with boxes and masks, and what can be done to all three at once; nothing here is random."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from PIL import Image

from openmvit.data.polygons import Polygons, clip_polygon

Segment = Polygons | np.ndarray | None
"""Mask of one instance: polygons, a bool bitmap `[h, w]` of the whole picture, or None where none was annotated."""

_SMALLEST_SIDE = 1e-5
_GREY = (128, 128, 128)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its instances; every transform gives a new one.

    Args:
        image: RGB, 8 bits.
        boxes: float64 `[n, 4]`, x0 y0 x1 y1 in pixels of the image, continuous.
        labels: int64 `[n]`.
        segments: n masks in the same coordinates.
    """

    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray
    segments: list[Segment]


def short_side_size(height: int, width: int, short: int, long: int | None) -> tuple[int, int]:
    """New (height, width): short side to `short`, both smaller if the long one would pass `long`; half goes up."""
    scale = short / min(height, width)
    new_height, new_width = (short, scale * width) if height < width else (scale * height, short)
    if long is not None and max(new_height, new_width) > long:
        scale = long / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def jitter_size(height: int, width: int, scale: float, side: int) -> tuple[int, int]:
    """New (height, width) that fits into a square of `side * scale`, each rounded half to even."""
    factor = min(side * scale / height, side * scale / width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """To (height, width), bilinear and antialiased, in 8 bits."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def resize(scene: Scene, size: tuple[int, int]) -> Scene:
    """To (height, width). Polygons are scaled exactly, bitmaps take the nearest pixel."""
    width, height = scene.image.size
    scale = np.array([size[1] / width, size[0] / height])

    def change(segment: Segment) -> Segment:
        if isinstance(segment, np.ndarray):
            picture = Image.fromarray(segment.astype(np.uint8))
            return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0
        return segment and [(polygon.reshape(-1, 2) * scale).reshape(-1) for polygon in segment]

    return dataclasses.replace(
        scene,
        image=resize_image(scene.image, size),
        boxes=scene.boxes * np.tile(scale, 2),
        segments=[change(segment) for segment in scene.segments],
    )


def crop(scene: Scene, left: int, top: int, width: int, height: int) -> Scene:
    """Cut out a rectangle inside the picture. Masks are cut too; boxes are only moved, `finish` clips them."""
    right, bottom = left + width, top + height

    def change(segment: Segment) -> Segment:
        if isinstance(segment, np.ndarray):
            return segment[top:bottom, left:right]
        if segment is None:
            return None
        pieces = (clip_polygon(polygon, (left, top, right, bottom)) for polygon in segment)
        return [(piece.reshape(-1, 2) - (left, top)).reshape(-1) for piece in pieces if len(piece)]

    return dataclasses.replace(
        scene,
        image=scene.image.crop((left, top, right, bottom)),
        boxes=scene.boxes - np.array([left, top, left, top], dtype=np.float64),
        segments=[change(segment) for segment in scene.segments],
    )


def pad_grey(scene: Scene, side: int) -> Scene:
    """Grey at the right and the bottom up to a square of `side`."""
    width, height = scene.image.size
    image = Image.new("RGB", (side, side), _GREY)
    image.paste(scene.image, (0, 0))

    def change(segment: Segment) -> Segment:
        if isinstance(segment, np.ndarray):
            return np.pad(segment, ((0, side - height), (0, side - width)))
        return segment

    return dataclasses.replace(scene, image=image, segments=[change(segment) for segment in scene.segments])


def flip(scene: Scene) -> Scene:
    """Mirror left and right."""
    width = scene.image.width

    def change(segment: Segment) -> Segment:
        if isinstance(segment, np.ndarray):
            return segment[:, ::-1]
        return segment and [(polygon.reshape(-1, 2) * (-1.0, 1.0) + (width, 0.0)).reshape(-1) for polygon in segment]

    boxes = scene.boxes.copy()
    boxes[:, [0, 2]] = width - scene.boxes[:, [2, 0]]
    image = scene.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Scene(image, boxes, scene.labels, [change(segment) for segment in scene.segments])


def finish(scene: Scene, tight_boxes: bool) -> Scene:
    """Clip the boxes to the picture and leave out instances with a side of at most 1e-5 or an empty mask.

    Args:
        tight_boxes: boxes around the masks where there are masks; a bitmap's pixel i covers i..i + 1.
    """
    keep = [i for i, segment in enumerate(scene.segments) if not _is_empty(segment)]
    segments = [scene.segments[i] for i in keep]
    boxes = scene.boxes[keep].reshape(-1, 4)
    if tight_boxes:
        boxes = np.array(
            [box if segment is None else tight_box(segment) for box, segment in zip(boxes, segments, strict=True)]
        ).reshape(-1, 4)
    boxes = np.clip(boxes, 0.0, np.tile(np.array(scene.image.size, dtype=np.float64), 2))
    wide = np.flatnonzero(((boxes[:, 2:] - boxes[:, :2]) > _SMALLEST_SIDE).all(axis=1))
    return Scene(scene.image, boxes[wide], scene.labels[keep][wide], [segments[i] for i in wide])


def tight_box(segment: Polygons | np.ndarray) -> np.ndarray:
    """Box float64 `[4]` around polygons or a bitmap that is not empty."""
    if isinstance(segment, np.ndarray):
        rows, columns = np.flatnonzero(segment.any(1)), np.flatnonzero(segment.any(0))
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    points = np.concatenate(segment).reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0)])


def _is_empty(segment: Segment) -> bool:
    if isinstance(segment, np.ndarray):
        return not segment.any()
    return segment is not None and not segment
