"""Annotated pictures on a real disk, whole and with one fault of each kind."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 5, "name": "owl"}]
ORIENTATION = 0x0112


def picture(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0, orientation: int | None = None) -> Path:
    """Smooth noise, width x height as stored, turned by EXIF if asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed + 1000 * len(path.parts)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image, exif = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


def image(number, name, size=(64, 48)):
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def annotation(number, image_id, category=1, box=(10, 10, 20, 16), **more):
    x, y, w, h = box
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    entry = {"id": number, "image_id": image_id, "category_id": category, "bbox": list(box), "area": w * h}
    return {**entry, "iscrowd": 0, "segmentation": outline, **more}


def write(file: Path, images, annotations, categories=None) -> Path:
    """One COCO file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories or CATEGORIES}
    file.write_text(json.dumps(content))
    return file


def coco_split(folder: Path, file: Path, count: int, seed: int = 0) -> Path:
    """`count` pictures with one instance each, of the three classes in turn."""
    images, annotations = [], []
    for i in range(count):
        picture(folder / f"{i:03d}.jpg", seed=seed + i)
        images.append(image(i + 1, f"{i:03d}.jpg"))
        annotations.append(annotation(10 + i, i + 1, CATEGORIES[i % 3]["id"]))
    return write(file, images, annotations)


FAULTS = {
    101: annotation(101, 1, box=(10, 10, -4, 8)),
    102: annotation(102, 1, box=(10, 10, 0, 8)),
    103: annotation(103, 1, box=(200, 10, 20, 8)),
    104: annotation(104, 2, box=(50, 10, 30, 8)),
    105: annotation(105, 2, category=3),
    106: annotation(106, 77),
    107: annotation(107, 2, box=(float("nan"), 10, 20, 8)),
    108: annotation(108, 3, segmentation=[[1, 1, 9, 9]]),
    109: annotation(109, 3, segmentation=[[1, 1, 9, 1, 9, 9, 4]]),
    110: annotation(110, 3, segmentation={"size": [48, 64], "counts": [10, 20]}),
    111: annotation(111, 3, segmentation={"size": [48, 64], "counts": "\u00e9!"}),
    112: annotation(112, 3, bbox=[1, 2, 3]),
}


def broken_coco(root: Path, more: int = 0) -> Path:
    """Three classes with a gap in their numbers, five whole pictures of which one is turned, and each fault once.

    Args:
        more: further whole pictures with an object each.
    """
    folder = root / "train2017"
    for i in range(4):
        picture(folder / f"{i}.jpg", seed=i)
    picture(folder / "turned.jpg", seed=7, orientation=6)
    picture(folder / "plain.jpg", seed=8)
    picture(folder / "second.jpg", seed=9)
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes((folder / "0.jpg").read_bytes()[:-300])
    images = [image(i + 1, f"{i}.jpg") for i in range(4)]
    images += [image(5, "turned.jpg"), image(6, "plain.jpg"), image(7, "absent.jpg"), image(6, "second.jpg")]
    images += [image(8, "zero.jpg"), image(9, "cut.jpg")]
    good = [annotation(1, 1, 1), annotation(2, 2, 2), annotation(3, 3, 5), annotation(4, 5, 2, (10, 20, 30, 40))]
    runs = {"size": [48, 64], "counts": [48 * 10, 48 * 3, 48 * 51]}
    good += [annotation(5, 4, 5, iscrowd=1, segmentation=runs), annotation(6, 7), annotation(7, 8), annotation(8, 9)]
    twice = [annotation(1, 4, 2, (5, 5, 9, 9))]
    for i in range(more):
        picture(folder / f"more{i}.jpg", seed=20 + i)
        images.append(image(1000 + i, f"more{i}.jpg"))
        good.append(annotation(1000 + i, 1000 + i, (1, 2, 5)[i % 3], (8 + i % 9, 9, 30, 20)))
    write(root / "annotations" / "instances_train2017.json", images, [*good, *FAULTS.values(), *twice])
    coco_split(root / "val2017", root / "annotations" / "instances_val2017.json", 3, 50)
    return root
