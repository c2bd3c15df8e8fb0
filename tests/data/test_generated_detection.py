"""The demo set for detection: right masks, no scan in both splits, the same bytes, and open as a COCO folder."""

import hashlib
import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from openmvit.data.detection_layouts import open_detection
from openmvit.data.detection_samples import read_scene
from openmvit.data.generated import load_digits
from openmvit.data.generated_detection import Canvas, Draws, digit_ink, digit_scene, scan_numbers, write_digit_scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_digit_scenes(tmp_path_factory.mktemp("scenes"), train=40, val=12)


def annotations(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def bitmap(annotation):
    return coco_mask.decode(annotation["segmentation"]).astype(bool)


def test_annotations_agree_with_the_pictures(root):
    for split, count in (("train", 40), ("val", 12)):
        found = annotations(root, split)
        assert len(found["images"]) == count
        assert [category["name"] for category in found["categories"]] == list("0123456789")
        sizes = {}
        for image in found["images"]:
            with Image.open(root / split / image["file_name"]) as picture:
                assert picture.mode == "RGB"
                assert picture.size == (image["width"], image["height"])
            sizes[image["id"]] = [image["height"], image["width"]]
        for one in found["annotations"]:
            mask = bitmap(one)
            rows, columns = np.nonzero(mask)
            x, y, width, height = one["bbox"]
            assert one["segmentation"]["size"] == sizes[one["image_id"]]
            assert one["area"] == mask.sum() > 20
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
    assert len({tuple(size) for size in sizes.values()}) > 5


def test_masks_hold_what_is_seen(root):
    """No pixel belongs to two digits, and the ink is darker than what surrounds it."""
    found, overlapping = annotations(root, "train"), 0
    for image in found["images"]:
        masks = [bitmap(one) for one in found["annotations"] if one["image_id"] == image["id"]]
        assert np.sum(masks, axis=0).max() == 1
        boxes = [one["bbox"] for one in found["annotations"] if one["image_id"] == image["id"]]
        overlapping += any(
            a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        )
        grey = np.asarray(Image.open(root / "train" / image["file_name"]).convert("L"), float)
        assert all(grey[mask].mean() + 50 < np.median(grey) for mask in masks)
    assert overlapping > 5


def test_what_lies_above_is_taken_out_of_the_mask():
    canvas = Canvas(np.full((40, 40, 3), 255.0))
    below, above = np.ones((36, 36)), np.ones((12, 12))
    assert canvas.place(below, True, Draws(1))
    before = (canvas.owner == 0).sum()
    while canvas.place(above, False, Draws(int((canvas.owner == 0).sum()))):
        after = (canvas.owner == 0).sum()
        assert after < before or (canvas.owner == -1).any()
        assert after >= 0.7 * below.size  # a mark that would hide more finds no place
    assert (canvas.owner == 0).sum() < before


def test_splits_share_no_scan():
    numbers = scan_numbers()
    assert not set(numbers["train"].tolist()) & set(numbers["val"].tolist())
    assert len(numbers["train"]) + len(numbers["val"]) == 1797 - 20
    scans, labels = load_digits()
    assert np.bincount(labels[numbers["val"]]).min() > 30
    # A scene is drawn from the scans given and no others.
    for seed in range(3):
        assert {digit for digit, _ in digit_scene(scans[labels == 3], labels[labels == 3], Draws(seed))[1]} <= {3}


def test_drawn_digits_are_the_scans_and_upright():
    scans, _ = load_digits()
    likeness = []
    for number in range(0, 200, 5):
        ink = digit_ink(scans[number], 60, Draws(number))
        rows, columns = (np.flatnonzero(scans[number].any(axis)) for axis in (1, 0))
        core = scans[number][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        small = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(core.shape[::-1], Image.Resampling.BOX))
        views = (core, core[:, ::-1], core[::-1], core[::-1, ::-1])
        likeness.append([np.corrcoef(small.ravel(), view.ravel())[0, 1] for view in views])
    own, *turned = np.mean(likeness, axis=0)
    assert own > 0.7
    assert max(turned) < own - 0.2


def test_the_same_bytes_every_time(root, tmp_path):
    again = write_digit_scenes(tmp_path / "again", train=3, val=2)
    for path in [*(again / "train").iterdir(), *(again / "val").iterdir()]:
        twin = root / path.relative_to(again)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()
    other = write_digit_scenes(tmp_path / "other", train=1, val=1, seed=5)
    assert (other / "train" / "00001.jpg").read_bytes() != (root / "train" / "00001.jpg").read_bytes()


def test_opens_as_a_coco_folder(root):
    data = open_detection(root)
    assert data.classes == tuple("0123456789")
    assert data.category_ids == tuple(range(1, 11))
    assert not data.held_out
    table, found = data.splits["train"], annotations(root, "train")
    assert len(table) == 40
    assert len(data.splits["val"]) == 12
    assert table.class_counts(10).sum() == len(found["annotations"])
    first = [one for one in found["annotations"] if one["image_id"] == table.image_id(0)]
    scene = read_scene(table, 0)
    for one, segment in zip(first, scene.segments, strict=True):
        assert np.array_equal(segment, bitmap(one))
