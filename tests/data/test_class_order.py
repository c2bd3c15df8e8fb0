"""A file classes.txt fixes the order of the classes; one that does not fit is a sentence."""

import csv

import numpy as np
import pytest

from openmvit.data.images import open_images
from openmvit.errors import UserError


def names_by_file(data):
    return {
        str(table.path(i)): tuple(data.classes[k] for k in table.labels(i))
        for table in data.splits.values()
        for i in range(len(table))
    }


@pytest.mark.parametrize("layout", ["folders", "splits", "csv", "folder of lists"])
def test_the_file_decides_the_numbers_and_not_the_labels(tmp_path, fill, layout):
    splits = {"splits": ("train", "val")}.get(layout, ("",))
    for split in splits:
        for number, name in enumerate(("ant", "bee", "cat")):
            fill(tmp_path / split / name, 4 + number, 100 * number)
    root = tmp_path
    if layout in ("csv", "folder of lists"):
        root = tmp_path / "list.csv" if layout == "csv" else tmp_path
        for file in ("list.csv",) if layout == "csv" else ("train.csv", "val.csv"):
            with (tmp_path / file).open("w", newline="") as stream:
                rows = [(p.relative_to(tmp_path), p.parent.name) for p in sorted(tmp_path.glob("*/*.jpg"))]
                csv.writer(stream).writerows([("path", "label"), *rows])
    plain = open_images(root, seed=1)
    (tmp_path / "classes.txt").write_text("cat\n\nant\nbee\n")
    data = open_images(root, seed=1)
    assert plain.classes == ("ant", "bee", "cat") and data.classes == ("cat", "ant", "bee")
    assert names_by_file(data) == names_by_file(plain), "labels and split stay"
    first = data.splits["train"]
    assert {first.labels(i)[0] for i in range(len(first)) if first.path(i).parent.name == "cat"} == {0}
    assert data.notes[-1] == "order of the 3 classes from classes.txt"


def test_several_labels_stay_ascending(tmp_path, fill):
    fill(tmp_path / "x", 4)
    lines = ["path,label", "x/000.jpg,a;b;c", "x/001.jpg,b", "x/002.jpg,c;a", "x/003.jpg,b;c"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    (tmp_path / "classes.txt").write_text("c\nb\na\n")
    data = open_images(tmp_path / "list.csv", val_fraction=0.5)
    labels = {t.path(i).name: t.labels(i) for t in data.splits.values() for i in range(len(t))}
    assert labels == {"000.jpg": (0, 1, 2), "001.jpg": (1,), "002.jpg": (0, 2), "003.jpg": (0, 1)}
    assert all(np.diff(t.label_ends).min() > 0 for t in data.splits.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bee\nant\nwasp\n", "names 'wasp', which is no class of"),
        ("bee\n", "leaves out 1 classes of .*, such as 'ant'"),
        ("ant\nbee\nant\n", "names 'ant' twice"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, fill, text, message):
    fill(tmp_path / "ant", 3)
    fill(tmp_path / "bee", 3, 50)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message + r".* Write every class once"):
        open_images(tmp_path)
