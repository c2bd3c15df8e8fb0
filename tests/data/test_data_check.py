"""The report counts what was put there."""

import json
import re

import pytest

from openmvit.cli import main
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
    assert "same file with different labels: 0" in lines
    assert "faults that stop a training: 0" in lines


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
    assert report.conflicts == [[(f"{root}/train/dog/000.jpg", "dog"), (f"{root}/val/cat/000.jpg", "cat")]]
    text = "\n".join(report.lines())
    assert f"  {root}/train/dog/000.jpg (dog) = {root}/val/cat/000.jpg (cat)" in text
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


def test_everything_wrong_is_named_at_once(root, fill, capsys):
    for name in ("eel", "fox"):
        (root / "train" / name).mkdir()
    (root / "train" / "fox" / "list.txt").write_text("x")
    fill(root / "val" / "gnu", 1, 120)
    (root / "classes.txt").write_text("dog\ncat\nhen\n")
    for i in range(3):
        (root / "train" / "cat" / f"{i}.PSD").write_bytes(b"x")
        (root / "val" / "dog" / f"{i}.txt").write_bytes(b"x")
    (root / "val" / "dog" / "NOTES").write_bytes(b"x")
    fill(root / "train", 1, 130)
    (root / "train" / "cat" / "001.jpg").write_bytes(b"")
    (root / "val" / "cat" / "000.jpg").write_bytes((root / "train" / "dog" / "000.jpg").read_bytes())
    assert main(["data", "check", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("faults that stop a training: 4")
    assert [line.partition(". ")[0] for line in lines[start + 1 : start + 5]] == [
        f"  class 'eel' in {root}/train has no image",
        f"  class 'fox' in {root}/train has no image",
        f"  class 'gnu' in {root}/val is not among the 2 training classes",
        f"  {root}/classes.txt names 'hen', which is no class of {root}",
    ]
    assert "note: 4 files in train/ left out: 3 .psd, 1 .txt" in lines
    assert "note: 4 files in val/ left out: 3 .txt, 1 without ending" in lines
    assert "note: 1 file directly in train/ left out, such as 000.jpg: no class folder" in lines
    assert lines[-1] == "data check images=13 unreadable=1 duplicates=1 conflicts=1 faults=4"
    assert main(["data", "check", str(root), "--json"]) == 1
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["fault_count"] == len(parsed["faults"]) == 4
    assert parsed["conflicts"][0][1] == {"path": f"{root}/val/cat/000.jpg", "labels": "cat"}


def test_every_bad_row_of_a_list_is_named(tmp_path, fill):
    fill(tmp_path, 6)
    rows = ["path,label,split", "000.jpg,a,train", "001.jpg,b,train", "gone.jpg,a,train", "002.jpg,,train"]
    rows += ["003.jpg,c,val", "004.jpg,a,dev", "notes.txt,a,train", "005.jpg,a,val"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    report = check_images(tmp_path / "l.csv")
    assert report.files == {"train": 2, "val": 1}
    assert report.fault_count == 5 and not report.clean
    assert [int(re.search(r"line (\d+)", fault)[1]) for fault in report.faults] == [4, 5, 8, 7, 6]


def test_faults_that_leave_nothing_are_named_too(tmp_path):
    (tmp_path / "l.csv").write_text("path,label\ngone.jpg,a\n")
    report = check_images(tmp_path / "l.csv")
    assert [fault.partition(". ")[0] for fault in report.faults] == [
        f"line 2 of {tmp_path}/l.csv: {tmp_path}/gone.jpg does not exist",
        f"{tmp_path}/l.csv has no training rows",
    ]
    assert report.last_line() == "data check images=0 unreadable=0 duplicates=0 conflicts=0 faults=2"
    assert "faults that stop a training: 2" in report.lines()


def test_only_the_most_frequent_endings_are_listed(root):
    for i in range(14):
        for k in range(14 - i):
            (root / "train" / "cat" / f"{k}.e{i:02d}").touch()
    (note,) = (note for note in check_images(root).notes if "left out" in note)
    assert note == "105 files in train/ left out: " + ", ".join(
        [*(f"{14 - i} .e{i:02d}" for i in range(10)), "and 4 more endings"]
    )


def test_no_data_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        check_images(tmp_path)
