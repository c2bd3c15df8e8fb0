"""YOLO folders in their usual spellings: the same boxes in all of them, and faults that are named."""

import json
import math
from pathlib import Path

import pytest
import yaml
from boxfiles import ORIENTATION, picture
from PIL import Image

from openmvit.data.check_detection import check_detection
from openmvit.data.detection_layouts import holds_detection, open_detection
from openmvit.errors import UserError

BOX = "1 0.5 0.5 0.25 0.5"
TRIANGLE = "0 0.25 0.25 0.75 0.25 0.75 0.75"


def labelled(images: Path, labels: Path, count: int, seed: int = 0, rows: str = f"{BOX}\n{TRIANGLE}\n") -> None:
    labels.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(images / f"{i:02d}.jpg", seed=seed + i)
        (labels / f"{i:02d}.txt").write_text(rows)


def standard(root: Path, val: str = "val") -> None:
    labelled(root / "images" / "train", root / "labels" / "train", 6)
    labelled(root / "images" / val, root / "labels" / val, 3, 50)


def with_yaml(root, **entries):
    standard(root)
    content = {"path": str(root), "train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}
    (root / "data.yaml").write_text(yaml.safe_dump({**content, **entries}))
    return root


def names_as_list(root):
    return with_yaml(root, names=["cat", "dog"])


def moved_since(root):
    return with_yaml(root, path="../datasets/mine")


def named_yaml(root):
    return with_yaml(root, path=None) / "data.yaml"


def lists_of_folders(root):
    with_yaml(root, train=["images/first", "images/second"])
    for name, part in (("first", 4), ("second", 2)):
        labelled(root / "images" / name, root / "labels" / name, part, 7 * part)
    return root


def lists_of_files(root):
    with_yaml(root, train="train.txt")
    (root / "train.txt").write_text("".join(f"./images/train/{i:02d}.jpg\n" for i in range(6)))
    return root


def split_outside(root):
    labelled(root / "train" / "images", root / "train" / "labels", 6)
    labelled(root / "valid" / "images", root / "valid" / "labels", 3, 50)
    content = {"train": "../train/images", "val": "../valid/images", "nc": 2, "names": ["cat", "dog"]}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


def without_yaml(root):
    standard(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    return root


def flat(root):
    labelled(root / "images", root / "labels", 9)
    (root / "labels" / "classes.txt").write_text("cat\ndog\n")
    return root


LAYOUTS = [names_as_list, with_yaml, moved_since, named_yaml, lists_of_folders, lists_of_files, split_outside]


@pytest.mark.parametrize("layout", [*LAYOUTS, without_yaml, flat])
def test_layouts(tmp_path, layout):
    root = layout(tmp_path / "mine")
    assert holds_detection(root)
    data = open_detection(root, val_fraction=0.3)
    assert data.classes == ("cat", "dog") and data.category_ids == (0, 1) and not data.faults
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 6, "val": 3}
    assert data.held_out == (layout is flat)
    for table in data.splits.values():
        assert len(set(table.image_ids.tolist())) == len(table)
        for i in range(len(table)):
            found = table.annotations(i)
            assert table.path(i).is_file() and table.size(i) == (48, 64)
            assert found.boxes.tolist() == [[24, 12, 40, 36], [16, 12, 48, 36]]
            assert found.labels.tolist() == [1, 0] and found.area.tolist() == [16 * 24, 32 * 24 / 2]
            assert found.segments[0] is None and found.segments[1][0].tolist() == [16, 12, 48, 12, 48, 36]
    assert data.splits["val"].ground_truth()["annotations"][0]["bbox"] == [24, 12, 16, 24]


def test_relative_root(tmp_path, monkeypatch):
    flat(tmp_path)
    monkeypatch.chdir(tmp_path)
    data = open_detection(".", val_fraction=0.3)
    assert data.splits["train"].class_counts(2).tolist() == [6, 6]


def test_without_names_the_classes_are_numbers(tmp_path):
    labelled(tmp_path / "images", tmp_path / "labels", 4, rows="3 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    data = open_detection(tmp_path, val_fraction=0.25)
    assert data.classes == ("0", "1", "2", "3") and any("no names" in note for note in data.notes)


def test_boxes_are_shares_of_the_turned_picture(tmp_path):
    labelled(tmp_path / "images", tmp_path / "labels", 2, rows="0 0.25 0.25 0.5 0.5\n")
    picture(tmp_path / "images" / "00.jpg", (64, 48), orientation=6)
    with Image.open(tmp_path / "images" / "00.jpg") as stored:
        assert stored.size == (64, 48) and stored.getexif()[ORIENTATION] == 6
    data = open_detection(tmp_path, val_fraction=0.5)
    tables = {table.path(0).name: table for table in data.splits.values()}
    assert tables["00.jpg"].size(0) == (64, 48)
    assert tables["00.jpg"].annotations(0).boxes.tolist() == [[0, 0, 24, 32]]
    assert tables["01.jpg"].annotations(0).boxes.tolist() == [[0, 0, 32, 24]]
    assert check_detection(tmp_path, val_fraction=0.5).clean


ROWS = {
    "box of zero or negative size": "1 0.5 0.5 0.0 0.2",
    "box outside the picture": "1 1.5 0.5 0.2 0.2",
    "box partly outside the picture": "1 0.95 0.5 0.3 0.2",
    "unknown category": "7 0.5 0.5 0.2 0.2",
    "coordinates that are no numbers": "1 nan 0.5 0.2 0.2",
    "broken segmentation": "1 0.5 0.5 0.2 0.2 0.3",
    "row that is no list of numbers": "1 0.5 half 0.2 0.2",
    "duplicate annotation": BOX,
}


def test_each_fault_is_named_once_and_training_data_stay(tmp_path):
    root = names_as_list(tmp_path)
    rows = [BOX, *ROWS.values()]
    (root / "labels" / "train" / "00.txt").write_text("\n".join(rows))
    (root / "labels" / "train" / "01.txt").unlink()
    (root / "labels" / "train" / "02.txt").write_text("")
    (root / "labels" / "train" / "stray.txt").write_text(BOX)
    (root / "images" / "train" / "03.jpg").write_bytes(b"")
    report = check_detection(root)
    named = [(fault.kind, fault.where) for fault in report.faults]
    strays = [("annotation of an unknown picture", "labels/train/stray.txt")]
    assert named == strays + [(kind, f"line {line} of labels/train/00.txt") for line, kind in enumerate(ROWS, 2)]
    assert [(path, reason) for _, path, reason in report.unreadable] == [
        (f"{root}/images/train/03.jpg", "the file is empty")
    ]
    assert report.files == {"train": 5, "val": 3} and report.empty == {"train": 2, "val": 0}
    first = open_detection(root).splits["train"].annotations(0)
    assert first.boxes[0].tolist() == [24, 12, 40, 36] and first.boxes[1, 2] == 64 and len(first.boxes) == 2
    assert all(math.isfinite(value) for value in first.boxes.flat)
    json.dumps(report.as_dict())


def test_a_list_with_a_missing_picture(tmp_path):
    root = lists_of_files(tmp_path)
    (root / "images" / "train" / "04.jpg").unlink()
    report = check_detection(root)
    assert [(fault.kind, fault.where) for fault in report.faults] == [("missing picture", "images/train/04.jpg")]
    assert report.files["train"] == 5


def test_test_folder_without_labels(tmp_path):
    root = with_yaml(tmp_path, test="images/test")
    assert any("no test split" in note for note in open_detection(root).notes)
    picture(root / "images" / "test" / "a.jpg")
    assert len(open_detection(root).splits["test"]) == 1


@pytest.mark.parametrize(
    "content, message",
    [
        ({"train": "images/nowhere"}, "names .*nowhere as train, which does not exist"),
        ({"names": []}, "has no class names"),
        ({"train": None}, "names no training pictures"),
    ],
)
def test_yaml_that_cannot_be_used_says_why(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        open_detection(with_yaml(tmp_path, **content))


def test_yaml_that_is_none(tmp_path):
    standard(tmp_path)
    (tmp_path / "data.yaml").write_text("train: [images\nnames: {\n")
    with pytest.raises(UserError, match="cannot be read as YAML"):
        open_detection(tmp_path)
