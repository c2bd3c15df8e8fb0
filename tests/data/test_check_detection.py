"""Every fault is named, and named once; whole data have none."""

import json
import re

import pytest
from boxfiles import annotation, broken_coco, coco_split, image, picture, write

from openmvit.cli import main
from openmvit.data.check_detection import check_detection

EXPECTED = {
    "box of zero or negative size": ["annotation 101 of 0.jpg", "annotation 102 of 0.jpg"],
    "box outside the picture": ["annotation 103 of 0.jpg"],
    "box partly outside the picture": ["annotation 104 of 1.jpg"],
    "unknown category": ["annotation 105 of 1.jpg"],
    "annotation of an unknown picture": ["annotation 106"],
    "coordinates that are no numbers": ["annotation 107 of 1.jpg"],
    "broken segmentation": [f"annotation {n} of 2.jpg" for n in (108, 109, 110, 111)],
    "annotation without a box": ["annotation 112 of 2.jpg"],
    "duplicate annotation id": ["annotation 1"],
    "duplicate image id": ["image 6 (second.jpg)"],
    "missing picture": ["absent.jpg"],
    "size that differs from the file's": ["turned.jpg"],
}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_fault_is_named_once(tmp_path, workers):
    report = check_detection(broken_coco(tmp_path), workers=workers)
    found = {}
    for fault in report.faults:
        found.setdefault(fault.kind, []).append(fault.where)
        assert fault.split == "train"
    assert found == EXPECTED
    assert report.fault_counts == {kind: len(places) for kind, places in EXPECTED.items()}
    assert [(path.rpartition("/")[2], reason.split()[0]) for _, path, reason in report.unreadable] == [
        ("zero.jpg", "the"),
        ("cut.jpg", "image"),
    ]
    assert report.notes[0].startswith("category ids 1 to 5 lack 3, 4:") and len(report.notes) == 1
    assert report.files == {"train": 8, "val": 3} and report.empty == {"train": 1, "val": 0}
    assert report.crowds == {"train": 1, "val": 0} and report.masks and not report.clean
    assert report.counts["val"] == [1, 1, 1]


def test_the_command_prints_the_same(tmp_path, capsys):
    broken_coco(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    for kind, places in EXPECTED.items():
        assert text.count(f"  {kind}: {len(places)}\n") == 1
        for place in places:
            assert len(re.findall(rf"^    train: {re.escape(place)}: ", text, re.MULTILINE)) == 1
    assert len(re.findall(r"zero\.jpg", text)) == len(re.findall(r"cut\.jpg", text)) == 1
    assert text.splitlines()[-1] == "data check images=11 unreadable=2 duplicates=0 conflicts=0 faults=16"
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    parsed = json.loads(capsys.readouterr().out)
    assert parsed["fault_counts"]["broken segmentation"] == 4 and len(parsed["faults"]) == 16
    assert parsed["counts"]["val"] == {"cat": 1, "dog": 1, "owl": 1}
    assert parsed["areas"]["val"] == {"small": 3, "medium": 0, "large": 0}


def test_whole_data_are_clean_and_stay_as_they_are(tmp_path, capsys):
    coco_split(tmp_path / "train", tmp_path / "train" / "_annotations.coco.json", 4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["data", "check", str(tmp_path), "--val-fraction", "0.25"]) == 0
    text = capsys.readouterr().out
    assert "3 classes, boxes and outlines" in text and "faults: 0" in text
    assert re.search(r"^note: no validation split: 1 of 4 images held out", text, re.MULTILINE)
    assert "width x height: smallest 64x48, median 64x48, largest 64x48" in text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("orientation, size, faults", [(6, (48, 64), 0), (6, (64, 48), 1), (3, (64, 48), 0)])
def test_sizes_are_those_of_the_turned_picture(tmp_path, orientation, size, faults):
    picture(tmp_path / "images" / "a.jpg", (64, 48), orientation=orientation)
    picture(tmp_path / "images" / "b.jpg", (64, 48), seed=1)
    write(tmp_path / "a.json", [image(1, "a.jpg", size), image(2, "b.jpg")], [annotation(1, 1), annotation(2, 2)])
    report = check_detection(tmp_path, val_fraction=0.5)
    assert len(report.faults) == faults
    for fault in report.faults:
        assert fault.what.startswith("annotated as 64 x 48, is 48 x 64: its EXIF entry turns it")


def test_areas_and_duplicates_across_splits(tmp_path):
    coco_split(tmp_path / "val", tmp_path / "val" / "a.json", 2)
    for i in range(3):
        picture(tmp_path / "train" / f"{i}.jpg", (512, 512), seed=90 + i)
    (tmp_path / "train" / "3.jpg").write_bytes((tmp_path / "val" / "000.jpg").read_bytes())
    sides = (31, 32, 96, 40)
    images = [image(i, f"{i}.jpg", (512, 512) if i < 3 else (64, 48)) for i in range(4)]
    write(tmp_path / "train" / "a.json", images, [annotation(i, i, 1, (0, 0, s, s)) for i, s in enumerate(sides)])
    report = check_detection(tmp_path)
    assert report.areas["train"] == [1, 2, 1]
    assert [[split for split, _ in group] for group in report.duplicates] == [["train", "val"]]
    assert report.conflicts == [
        [
            (f"{tmp_path}/train/3.jpg", "1 instances: cat at 0, 0, 40, 40"),
            (f"{tmp_path}/val/000.jpg", report.conflicts[0][1][1]),
        ]
    ]
    assert report.conflicts[0][1][1].startswith("1 instances: ") and not report.clean
    assert "same file with different labels: 1" in report.lines()
    assert report.notes == [
        "category ids 1 to 5 lack 3, 4: the 3 of them become the classes 0 to 2 in ascending order",
        "2 classes have no training instance, the first is 'dog'",
    ]


def test_many_faults_of_a_kind_are_counted(tmp_path):
    picture(tmp_path / "images" / "0.jpg")
    picture(tmp_path / "images" / "1.jpg", seed=1)
    many = [annotation(i, 1, box=(300, 0, 5, 5)) for i in range(1500)]
    write(
        tmp_path / "a.json", [image(1, "0.jpg"), image(2, "1.jpg")], [*many, annotation(2000, 1), annotation(2001, 2)]
    )
    report = check_detection(tmp_path, val_fraction=0.5)
    assert report.fault_counts == {"box outside the picture": 1500} and len(report.faults) == 1000
    assert "  box outside the picture: 1500" in report.lines() and "    ... and 1490 more" in report.lines()
    assert report.last_line().endswith("faults=1500")


def test_bench_is_for_videos(tmp_path, capsys):
    coco_split(tmp_path / "images", tmp_path / "a.json", 3)
    assert main(["data", "bench", str(tmp_path)]) == 2
    assert "data bench measures videos only" in capsys.readouterr().err
