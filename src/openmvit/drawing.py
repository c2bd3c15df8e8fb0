"""Detections drawn into pictures, and pictures laid out as a sheet: arrays in, arrays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from openmvit.fonts import drawable, font

# Far from each other in CIELAB and light enough for a dark ground.
_COLOURS = (
    0xF03C4B,
    0x2EE62E,
    0x0FE1FF,
    0xE100FF,
    0xFFD21E,
    0xFFB4FF,
    0x3C963C,
    0x0087FF,
    0xFF0FA5,
    0xB4874B,
    0x00FFC3,
    0xFF7800,
    0xB4F04B,
    0xB469F0,
    0xC36978,
    0xD2E196,
    0x3C96D2,
    0x4BB496,
    0x969600,
    0x1EE15A,
    0xFF1E00,
    0xD25AA5,
    0x9678C3,
    0xFF9678,
)
_VEIL = 0.42
_PAPER = 235


class _Rect(NamedTuple):
    """Whole pixels, right and bottom outside."""

    left: int
    top: int
    right: int
    bottom: int

    def overlap(self, other: _Rect) -> int:
        """Pixels that both have."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0) * max(height, 0)


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a class, 0..255 each; after 24 classes they come again in a darker shade, then in a paler one."""
    red, green, blue = _COLOURS[label % len(_COLOURS)].to_bytes(3, "big")
    shade = label // len(_COLOURS) % 3
    values = (red, green, blue)
    if shade == 1:
        values = tuple(round(0.62 * value) for value in values)
    elif shade == 2:
        values = tuple(round(255 - 0.55 * (255 - value)) for value in values)
    return values[0], values[1], values[2]


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
    masks: np.ndarray | Sequence[np.ndarray] | None = None,
    *,
    enlarge: int = 1,
) -> np.ndarray:
    """A copy of a picture with boxes, half-transparent masks with outlines, names and scores.

    Lines and letters grow with the picture. Large objects lie below small ones; the names of the surest are placed
    first and the others where they cover least of them. A picture too small for a name has none.

    Args:
        image: uint8 `[H, W, 3]`.
        boxes: `[D, 4]` x0, y0, x1, y1 in pixels; what lies outside the picture is not drawn.
        labels: `[D]`, places in `names`.
        scores: `[D]` in 0..1, or None for annotations.
        names: of the classes.
        masks: bool `[D, H, W]` or D of bool `[H, W]`.
        enlarge: how many times as high and wide the result is, so that names can be read in a very small picture.
    """
    canvas, boxes = _repeated(image, enlarge).copy(), np.asarray(boxes, np.float64).reshape(-1, 4) * enlarge
    line, size = _stroke(*canvas.shape[:2])
    colours = [class_colour(int(label)) for label in labels]
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
    if masks is not None:
        for i in order:
            _draw_mask(canvas, _repeated(np.asarray(masks[i]), enlarge), colours[i], max(1, line // 2))
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    frames = [_pixels(box, *picture.size) for box in boxes]
    for i in order:
        _draw_frame(draw, frames[i], colours[i], line)
    texts = [drawable(names[int(label)]) for label in labels]
    for rect, text, i in reversed(_tags(frames, texts, scores, size, picture.size)):
        _draw_tag(draw, rect, text, colours[i], size)
    return np.asarray(picture).copy()


def sheet(
    pictures: Sequence[np.ndarray], columns: int, cell: int = 480, gap: int = 8, headings: Sequence[str] = ()
) -> np.ndarray:
    """Pictures of any sizes side by side on light grey, row after row.

    Args:
        pictures: uint8 `[H, W, 3]` each, at least one; the longer side becomes `cell` pixels.
        columns: pictures in a row; fewer pictures make a narrower sheet.
        cell, gap: pixels.
        headings: of the columns, above the first row.
    Returns:
        uint8 `[H, W, 3]`.
    """
    scaled = [_scaled(picture, cell) for picture in pictures]
    rows = [scaled[start : start + columns] for start in range(0, len(scaled), columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    width = min(columns, len(scaled)) * (cell + gap) + gap
    head = cell // 12 if headings else 0
    paper = np.full((head + sum(heights) + gap * (len(rows) + 1), width, 3), _PAPER, np.uint8)
    if headings:
        strip = Image.new("RGB", (width, head), (_PAPER,) * 3)
        for column, text in enumerate(headings[: (width - gap) // (cell + gap)]):
            place = (gap + column * (cell + gap) + cell // 2, head // 2 + gap // 2)
            ImageDraw.Draw(strip).text(place, text, fill="black", font=font(text, head // 2), anchor="mm")
        paper[:head] = np.asarray(strip)
    top = head + gap
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            y = top + (height - picture.shape[0]) // 2
            x = gap + column * (cell + gap) + (cell - picture.shape[1]) // 2
            paper[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        top += height + gap
    return paper


def _stroke(height: int, width: int) -> tuple[int, int]:
    """Width of lines and size of letters in pixels for a picture of this size."""
    side = math.sqrt(height * width)
    size = min(max(10, round(side / 42)), max(6, height // 3))
    return max(1, round(side / 330)), size


def _repeated(array: np.ndarray, times: int) -> np.ndarray:
    """A picture or mask with every pixel `times` times as wide and high."""
    return array if times == 1 else array.repeat(times, axis=0).repeat(times, axis=1)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _pixels(box: np.ndarray, width: int, height: int) -> _Rect:
    """The pixels of a box inside the picture, one at least."""
    left, top = (min(max(round(float(v)), 0), side - 1) for v, side in zip(box[:2], (width, height), strict=True))
    right, bottom = (min(max(round(float(v)), 0), side) for v, side in zip(box[2:], (width, height), strict=True))
    return _Rect(left, top, max(right, left + 1), max(bottom, top + 1))


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    """Blend a mask into the picture, in place, and give it an outline of full colour."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    inside, region = mask[part].astype(bool), canvas[part]
    region[inside] = np.round(region[inside] * (1 - _VEIL) + np.array(colour) * _VEIL).astype(np.uint8)
    core = inside
    for _ in range(line):
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    region[inside & ~core] = colour


def _draw_frame(draw: ImageDraw.ImageDraw, frame: _Rect, colour: tuple[int, int, int], line: int) -> None:
    """A box with a dark edge, which keeps it visible on a ground of its own colour."""
    edge = max(1, line // 3)
    left, top, right, bottom = frame
    draw.rectangle((left - edge, top - edge, right - 1 + edge, bottom - 1 + edge), outline="black", width=edge)
    if line > 2 and min(right - left, bottom - top) > 2 * (line + edge):
        draw.rectangle((left + line, top + line, right - 1 - line, bottom - 1 - line), outline="black", width=edge)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=line)


def _tags(
    frames: list[_Rect], names: list[str], scores: np.ndarray | None, size: int, picture: tuple[int, int]
) -> list[tuple[_Rect, str, int]]:
    """Place, text and number of the names that fit into the picture, surest first."""
    tags: list[tuple[_Rect, str, int]] = []
    surest = range(len(frames)) if scores is None else np.argsort(-np.asarray(scores), kind="stable").tolist()
    for i in surest:
        text = _fitting(names[i], "" if scores is None else f" {float(scores[i]):.2f}", size, picture[0])
        extent = _tag_size(text, size)
        if extent[0] <= picture[0] and extent[1] <= picture[1]:
            tags.append((_place(frames[i], extent, picture, [rect for rect, _, _ in tags]), text, i))
    return tags


def _fitting(name: str, end: str, size: int, width: int) -> str:
    """Name and score, the name cut short where the picture is narrower than it."""
    text = name + end
    while len(name) > 1 and _tag_size(text, size)[0] > width:
        name = name[:-1]
        text = f"{name}..{end}"
    return text


def _tag_size(text: str, size: int) -> tuple[int, int]:
    """Width and height of a name with its margin."""
    margin = max(1, size // 5)
    return math.ceil(font(text, size).getlength(text)) + 2 * margin, size + 2 * margin


def _place(frame: _Rect, tag: tuple[int, int], picture: tuple[int, int], taken: list[_Rect]) -> _Rect:
    """Where a name goes: above its box if that is free, else inside, below or beside it, always in the picture."""
    width, height = tag
    left, top, right, bottom = frame
    spots = (
        (left, top - height),
        (left, top),
        (left, bottom),
        (left, bottom - height),
        (right - width, top - height),
        (right, top),
        (left - width, top),
        (right - width, bottom),
    )
    best, least = _Rect(0, 0, width, height), math.inf
    for x, y in spots:
        x, y = max(min(x, picture[0] - width), 0), max(min(y, picture[1] - height), 0)
        rect = _Rect(x, y, x + width, y + height)
        covered = sum(rect.overlap(other) for other in taken)
        if covered < least:
            best, least = rect, covered
        if not covered:
            break
    return best


def _draw_tag(draw: ImageDraw.ImageDraw, rect: _Rect, text: str, colour: tuple[int, int, int], size: int) -> None:
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130
    draw.rectangle((rect.left, rect.top, rect.right - 1, rect.bottom - 1), fill=colour)
    middle = (rect.left + max(1, size // 5), (rect.top + rect.bottom) / 2)
    draw.text(middle, text, fill="black" if light else "white", font=font(text, size), anchor="lm")


def _scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side `side` pixels long."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    rule = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(picture).resize(size, rule))
