"""The demo set for detection: scans of digits strewn over textured pictures among other marks, in COCO layout."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from openmvit.data.counter import mix
from openmvit.data.generated import load_digits, write_digits

_SEED = 2022
_SIDES = (160, 224)
"""Width and height of the pictures, multiples of 16."""
_DIGITS = (2, 6)
_DISTRACTORS = (1, 4)
_INK_SIDES = (36.0, 88.0)
"""Side of the square that holds a scan, pixels; the digit itself is narrower."""
_SOLID = 0.5
"""Ink from which a pixel belongs to the digit."""
_TRIES = 25
_VISIBLE = 0.7
"""Share of a digit's ink that stays uncovered, and inside the picture, at the least."""
_BOX_OVERLAP = 0.2
"""Largest intersection over union of two digits' boxes."""

Instance = tuple[int, np.ndarray]
"""Digit and bool `[h, w]` of its visible ink."""


def write_digit_scenes(root: str | Path, *, train: int = 600, val: int = 150, seed: int = _SEED) -> Path:
    """Write pictures to train/ and val/ and their instances to annotations/instances_{train,val}.json.

    The ten digits are the classes; masks are run lengths of the ink that nothing covers. Training pictures hold scans
    that `write_digits` puts into train/, validation pictures those of its val/, so a network trained on those images
    meets new scans here too. Mirrored digits are others or none, so training must not flip. The same bytes every time.

    Args:
        root: folder to fill; made if it is missing.
        train, val: pictures of each split.
        seed: of everything random.
    Returns:
        `root`.
    """
    root = Path(root)
    (scans, labels), numbers_of = load_digits(), scan_numbers()
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(exist_ok=True)
        numbers = numbers_of[split]
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(1, count + 1):
            pixels, instances = digit_scene(scans[numbers], labels[numbers], Draws(mix(seed, len(split), i)))
            name = f"{i:05d}.jpg"
            Image.fromarray(pixels).save(root / split / name, quality=92)
            images.append({"id": i, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]})
            for digit, mask in instances:
                annotations.append(_annotation(len(annotations) + 1, i, digit, mask))
        categories = [{"id": digit + 1, "name": str(digit), "supercategory": "digit"} for digit in range(10)]
        written = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(written))
    return root


def scan_numbers() -> dict[str, np.ndarray]:
    """Numbers of the scans that `write_digits` puts into train/ and val/, ascending; found by letting it do so."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_digits(folder, size=8)
        names = {split: [path.stem for path in (root / split).rglob("*.png")] for split in ("train", "val")}
    return {split: np.array(sorted(int(stem) for stem in stems)) for split, stems in names.items()}


class Draws:
    """Random numbers of one picture.

    Args:
        seed: decides them all.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def share(self, *shape: int) -> np.ndarray:
        """Uniform in 0..1, float64 of a shape."""
        return torch.rand(shape, dtype=torch.float64, generator=self._generator).numpy()

    def between(self, low: float, high: float) -> float:
        """Uniform in low..high."""
        return low + float(self.share()) * (high - low)

    def whole(self, low: int, high: int) -> int:
        """Uniform integer in low..high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._generator))


def digit_scene(scans: np.ndarray, labels: np.ndarray, draws: Draws) -> tuple[np.ndarray, list[Instance]]:
    """One picture, uint8 `[h, w, 3]`, and its digits.

    Args:
        scans: ink 0..16 to choose from, `[N, 8, 8]`.
        labels: their digits, `[N]`.
        draws: everything random.
    """
    width, height = (16 * draws.whole(side[0] // 16, side[1] // 16) for side in (_SIDES, _SIDES))
    canvas = Canvas(_texture(height, width, draws))
    digits, others = draws.whole(*_DIGITS), draws.whole(*_DISTRACTORS)
    found: list[int] = []
    for turn in np.argsort(draws.share(digits + others)).tolist():
        low, high = _INK_SIDES
        side = round(low * (high / low) ** draws.between(0.0, 1.0))
        if turn >= digits:
            canvas.place(_distractor(side, draws), False, draws)
            continue
        number = draws.whole(0, len(scans) - 1)
        if canvas.place(digit_ink(scans[number], side, draws), True, draws):
            found.append(int(labels[number]))
    pixels = canvas.pixels + 8.0 * (draws.share(height, width, 1) - 0.5)
    instances = [(digit, canvas.owner == i) for i, digit in enumerate(found)]
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), instances


class Canvas:
    """A picture that is drawn on, and who owns each of its pixels.

    Args:
        pixels: float64 `[h, w, 3]`, 0..255.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.owner: np.ndarray = np.full(pixels.shape[:2], -1)
        self._full: list[int] = []
        self._boxes: list[tuple[int, int, int, int]] = []

    def place(self, ink: np.ndarray, digit: bool, draws: Draws) -> bool:
        """Draw ink 0..1 `[s, t]` above everything so far, where enough of all digits stays visible; or not at all."""
        colour, whole_ink = _ink_colour(draws), int((ink >= _SOLID).sum())
        for _ in range(_TRIES):
            top, rows = _place_along(ink.shape[0], self.owner.shape[0], draws)
            left, columns = _place_along(ink.shape[1], self.owner.shape[1], draws)
            inside = ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            solid = inside >= _SOLID
            if solid.sum() >= _VISIBLE * whole_ink and self._fits(solid, rows, columns, digit):
                self.pixels[rows, columns] += inside[..., None] * (colour - self.pixels[rows, columns])
                self.owner[rows, columns][solid] = len(self._full) if digit else -1
                if digit:
                    self._full.append(whole_ink)
                    self._boxes.append(_box(solid, rows.start, columns.start))
                return True
        return False

    def _fits(self, solid: np.ndarray, rows: slice, columns: slice, digit: bool) -> bool:
        """Whether the digits below stay visible, and boxes of digits do not overlap too much."""
        after = self.owner.copy()
        after[rows, columns][solid] = -1
        left_over = np.bincount(after[after >= 0], minlength=len(self._full))
        if (left_over < _VISIBLE * np.array(self._full)).any():
            return False
        box = _box(solid, rows.start, columns.start)
        return not digit or all(_overlap(box, other) <= _BOX_OVERLAP for other in self._boxes)


def _place_along(part: int, whole: int, draws: Draws) -> tuple[int, slice]:
    """Where `part` pixels begin along an axis of `whole`, up to 15 % of them outside, and the pixels inside."""
    start = round(draws.between(-0.15 * part, whole - 0.85 * part))
    return start, slice(max(start, 0), min(start + part, whole))


def digit_ink(scan: np.ndarray, side: int, draws: Draws) -> np.ndarray:
    """A scan enlarged smoothly, stretched by up to 15 % and turned by up to 15 degrees; ink 0..1."""
    padded = np.pad(scan.astype(np.float64) * (255.0 / 16.0), 1)
    width = round(side * draws.between(0.85, 1.15))
    picture = Image.fromarray(padded.astype(np.uint8)).resize((width, side), Image.Resampling.BICUBIC)
    picture = picture.rotate(draws.between(-15.0, 15.0), Image.Resampling.BICUBIC, expand=True)
    return np.clip(_trimmed(np.asarray(picture) / 255.0) * 1.6 - 0.3, 0.0, 1.0)  # steeper edges, the middle stays


def _distractor(side: int, draws: Draws) -> np.ndarray:
    """A mark that is no digit: zigzag, cross, frame, triangle, disc or hatching; ink 0..1."""
    big, pen = 2 * side, round(2 * side * draws.between(0.06, 0.12))
    picture = Image.new("L", (big, big))
    pencil = ImageDraw.Draw(picture)
    near, far = pen, big - pen
    kind = draws.whole(0, 5)
    if kind == 0:
        heights = draws.share(5) * (far - near) + near
        points = [(near + (far - near) * i / 4, float(y)) for i, y in enumerate(heights)]
        pencil.line(points, fill=255, width=pen, joint="curve")
    elif kind == 1:
        middle = big / 2
        pencil.line([(middle, near), (middle, far)], fill=255, width=pen)
        pencil.line([(near, middle), (far, middle)], fill=255, width=pen)
    elif kind == 2:
        pencil.rectangle((near, near + pen, far, far - pen), outline=255, width=pen)
    elif kind == 3:
        pencil.polygon([(big / 2, near), (far, far), (near, far)], outline=255, width=pen)
    elif kind == 4:
        inset = big * draws.between(0.1, 0.3)
        pencil.ellipse((inset, inset, big - inset, big - inset), fill=255)
    else:
        for x in range(near, far, 3 * pen):
            pencil.line([(x, near), (x, far)], fill=255, width=pen)
    picture = picture.rotate(draws.between(-45.0, 45.0), Image.Resampling.BICUBIC, expand=True)
    picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BILINEAR)
    return _trimmed(np.asarray(picture) / 255.0)


def _trimmed(ink: np.ndarray) -> np.ndarray:
    """Without empty rows and columns at the edges."""
    rows, columns = (np.flatnonzero((ink > 0.02).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _texture(height: int, width: int, draws: Draws) -> np.ndarray:
    """A light background of coloured noise at three scales, often with stripes; float64 `[h, w, 3]`."""
    pixels = np.broadcast_to(draws.share(3) * 50.0 + 180.0, (height, width, 3)).copy()
    for cells, strength in ((4, 45.0), (12, 25.0), (40, 20.0)):
        noise = (draws.share(cells, cells, 3) * 255.0).astype(np.uint8)
        smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(smooth) / 255.0 - 0.5) * strength
    if draws.between(0.0, 1.0) < 0.5:
        angle, pitch = draws.between(0.0, math.pi), draws.between(8.0, 40.0)
        across = np.arange(width) * math.cos(angle) + np.arange(height)[:, None] * math.sin(angle)
        pixels += draws.between(5.0, 14.0) * np.sin(across * (2.0 * math.pi / pitch))[..., None]
    return np.clip(pixels, 120.0, 255.0)


def _ink_colour(draws: Draws) -> np.ndarray:
    """Darker than any background and of any hue, float64 `[3]`."""
    hue = draws.share(3)
    hue = (hue - hue.min()) / (hue.max() - hue.min())
    return hue * draws.between(60.0, 170.0) * (0.6, 0.4, 1.0)  # blue looks darker than red, and red than green


def _box(mask: np.ndarray, top: int = 0, left: int = 0) -> tuple[int, int, int, int]:
    """x0 y0 x1 y1 around a bool mask whose corner lies at (left, top)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return x0 + left, y0 + top, x1 + left, y1 + top


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes."""
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def _annotation(number: int, image: int, digit: int, mask: np.ndarray) -> dict[str, Any]:
    """One instance as COCO writes it."""
    from faster_coco_eval.core import mask as coco_mask

    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    x0, y0, x1, y1 = _box(mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": digit + 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": runs["counts"].decode("ascii")},
    }
