"""The report counts what was put there."""

import json

import pytest

from openmvit.data.check import check_images
from openmvit.errors import UserError


@pytest.fixture
def root(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 6)
    fill(tmp_path / "train" / "dog", 3, 30)
    fill(tmp_path / "val" / "cat", 2, 60)
    fill(tmp_path / "val" / "dog", 2, 90)
    return tmp_path


def test_clean_data(root):
    report = check_images(root)
    assert report.clean
    assert report.files == {"train": 9, "val": 4}
    assert report.counts == {"train": [6, 3], "val": [2, 2]}
    assert report.sizes == {"width": [40, 40, 40], "height": [30, 30, 30]}
    lines = report.lines()
    assert lines[0].endswith("2 classes, one label per image")
    assert "  cat          6        2" in lines
    assert "balance: the largest training class has 2.0 x the smallest" in lines
    assert "unreadable: 0" in lines
    assert "same file in more than one split: 0" in lines


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_and_duplicates(root, workers):
    (root / "train" / "cat" / "001.jpg").write_bytes(b"")
    (root / "train" / "cat" / "002.jpg").write_bytes(b"")
    whole = (root / "val" / "dog" / "001.jpg").read_bytes()
    (root / "val" / "dog" / "001.jpg").write_bytes(whole[:-300])
    (root / "val" / "cat" / "000.jpg").write_bytes((root / "train" / "dog" / "000.jpg").read_bytes())
    (root / "train" / "dog" / "001.jpg").write_bytes((root / "train" / "dog" / "002.jpg").read_bytes())
    report = check_images(root, workers=workers)
    assert not report.clean
    assert [(split, path.rpartition("/")[2]) for split, path, _ in report.unreadable] == [
        ("train", "001.jpg"),
        ("train", "002.jpg"),
        ("val", "001.jpg"),
    ]
    assert report.unreadable[0][2] == "the file is empty"
    assert "truncated" in report.unreadable[2][2]
    assert report.duplicates == [
        [("train", f"{root}/train/dog/000.jpg"), ("val", f"{root}/val/cat/000.jpg")],
    ]
    text = "\n".join(report.lines())
    assert f"  {root}/train/cat/001.jpg: the file is empty" in text
    assert "same file in more than one split: 1" in text
    parsed = json.loads(json.dumps(report.as_dict()))
    assert parsed["counts"]["train"] == {"cat": 6, "dog": 3}
    assert len(parsed["unreadable"]) == 3
    assert parsed["duplicates"][0][1]["split"] == "val"


def test_made_up_split_is_noted_and_nothing_changes(tmp_path, fill):
    fill(tmp_path / "a", 12)
    fill(tmp_path / "b", 12, 50)
    before = sorted(tmp_path.rglob("*"))
    report = check_images(tmp_path, val_fraction=0.25)
    assert report.files == {"train": 18, "val": 6}
    assert any(line.startswith("note: no validation split") for line in report.lines())
    assert sorted(tmp_path.rglob("*")) == before


def test_only_unreadable_files(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(12):
            (tmp_path / name / f"{i}.png").write_bytes(b"x%d" % i)
    report = check_images(tmp_path)
    assert len(report.unreadable) == 24
    assert report.sizes == {}
    assert "  ... and 14 more" in report.lines()


def test_no_data_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        check_images(tmp_path)
