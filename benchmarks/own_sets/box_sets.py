"""A set of boxes in COCO layout: emoji of some subjects pasted on photographs."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.own_sets import sources
from benchmarks.own_sets.emoji_sets import Emoji, divided
from benchmarks.own_sets.folders import line_of
from benchmarks.own_sets.sources import VENDORS, unpacked
from PIL import Image

CLASSES = ("animals", "flags", "food", "smileys", "symbols", "travel")
SIDE = 128
VAL = 120
Box = tuple[int, int, int, int]  # left, top, right, bottom
Scene = tuple[Image.Image, list[tuple[int, Box]]]  # picture, and class and box of each object


def write_boxes(folder: Path, root: Path, pictures: int, seed: int) -> str:
    """Write train/ with this many pictures and val/, each with annotations.json; say what is there.

    Emoji and photographs of the validation split are not in the training split.
    """
    _, groups = divided(root, seed)
    grounds = photographs(root)
    random.Random(f"boxes/{seed}").shuffle(grounds)
    for side, (split, count) in enumerate((("train", pictures), ("val", VAL))):
        subjects = [groups[name][side] for name in CLASSES]
        photos = [_shrunk(path) for path in (grounds[7:] if split == "train" else grounds[:7])]
        scenes = [paste(photos, subjects, f"boxes/{seed}/{split}/{i}") for i in range(count)]
        write_coco(folder / split, scenes, CLASSES)
    packages = (*VENDORS.values(), sources.PHOTOS, sources.MATE)
    return line_of(len(CLASSES), pictures, VAL, map(str, packages))


def photographs(root: Path) -> list[Path]:
    """Photographs among the wallpapers of two packages."""
    lomiri = unpacked(root, sources.PHOTOS) / "usr/share/backgrounds"
    mate = unpacked(root, sources.MATE) / "usr/share/backgrounds/mate/nature"
    return sorted([*lomiri.glob("*.jpg"), *mate.glob("*.jpg")])


def _shrunk(path: Path, shortest: int = 3 * SIDE) -> Image.Image:
    with Image.open(path) as opened:
        scale = shortest / min(opened.size)
        return opened.convert("RGB").resize((round(opened.width * scale), round(opened.height * scale)))


def paste(
    photos: list[Image.Image], subjects: list[list[Emoji]], key: str
) -> tuple[Image.Image, list[tuple[int, Box]]]:
    """A crop of a photograph with one to four emoji that hardly overlap."""
    rng = random.Random(key)
    photo = rng.choice(photos)
    side = rng.randint(SIDE, 3 * SIDE)
    left, top = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
    picture = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BOX)
    objects: list[tuple[int, Box]] = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(len(subjects))
        shape = _turned(rng.choice(rng.choice(subjects[kind]).pictures), rng)
        for _ in range(20):
            x, y = rng.randint(0, SIDE - shape.width), rng.randint(0, SIDE - shape.height)
            box = (x, y, x + shape.width, y + shape.height)
            if all(overlap(box, other) < 0.1 for _, other in objects):
                picture.paste(shape, (x, y), shape)
                objects.append((kind, box))
                break
    return picture, objects


def _turned(path: Path, rng: random.Random) -> Image.Image:
    """An emoji, scaled and turned a little, cut to what can be seen of it."""
    with Image.open(path) as opened:
        shape = opened.convert("RGBA").rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    shape = shape.crop(_seen(shape))
    scale = rng.randint(26, 60) / max(shape.size)
    return shape.resize((round(shape.width * scale), round(shape.height * scale)), Image.Resampling.LANCZOS)


def _seen(shape: Image.Image) -> Box:
    return shape.getchannel("A").point([0] * 65 + [255] * 191).getbbox() or (0, 0, *shape.size)


def overlap(one: Box, other: Box) -> float:
    """Share of the smaller box that the other covers."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0, width) * max(0, height) / min(areas)


def write_coco(folder: Path, scenes: list[Scene], classes: tuple[str, ...]) -> None:
    """Write pictures and annotations.json beside them."""
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number, (picture, objects) in enumerate(scenes, 1):
        name = f"{number:04d}.png"
        picture.save(folder / name)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for kind, (left, top, right, bottom) in objects:
            width, height = right - left, bottom - top
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "iscrowd": 0}
            annotations.append({**entry, "bbox": [left, top, width, height], "area": width * height})
    categories = [{"id": index, "name": name} for index, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
