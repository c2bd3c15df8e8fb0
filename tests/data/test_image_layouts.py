"""Class folders, splits, CSV lists and ImageNet open as labelled data; everything else is a sentence."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from openmvit.data.images import open_images
from openmvit.data.samples import SampleTable
from openmvit.errors import UserError


def contents(data):
    return {
        split: {str(table.path(i)): tuple(data.classes[k] for k in table.labels(i)) for i in range(len(table))}
        for split, table in data.splits.items()
    }


def test_plain_class_folders_get_a_fixed_stratified_split(tmp_path, fill):
    fill(tmp_path / "zebra", 20)
    fill(tmp_path / "10", 10, 100)
    fill(tmp_path / "2" / "deeper" / "down", 5, 200)
    data = open_images(tmp_path, seed=3, val_fraction=0.2)
    assert data.classes == ("10", "2", "zebra")
    assert data.splits["train"].class_counts(3).tolist() == [8, 4, 16]
    assert data.splits["val"].class_counts(3).tolist() == [2, 1, 4]
    assert not data.multilabel
    assert any("held out" in note and "7 of 35" in note for note in data.notes)
    again, other = (open_images(tmp_path, seed=seed, val_fraction=0.2) for seed in (3, 4))
    assert contents(again) == contents(data) != contents(other)
    assert not set(contents(data)["train"]) & set(contents(data)["val"])
    assert all(Path(path).exists() for path in contents(data)["train"])


def test_list_of_a_split_opens_as_the_same_data(tmp_path, fill):
    fill(tmp_path / "set" / "a,b;c", 6)
    fill(tmp_path / "set" / "d\u00e9", 7)
    data = open_images(tmp_path / "set", val_fraction=0.3)
    with (tmp_path / "split.csv").open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["path", "label", "split"])
        for split, files in contents(data).items():
            rows.writerows(
                [path, ";".join(name.replace(";", "\\;") for name in names), split] for path, names in files.items()
            )
    again = open_images(tmp_path / "split.csv", seed=99)
    assert contents(again) == contents(data)
    assert again.classes == ("a,b;c", "d\u00e9")
    assert not again.multilabel


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders(tmp_path, fill, name):
    for split, count in (("train", 3), (name, 2), ("test", 1)):
        fill(tmp_path / split / "cat", count)
        fill(tmp_path / split / "dog", count, 50)
    (tmp_path / "train" / "cat" / "001.jpg").rename(tmp_path / "train" / "cat" / "001.JPG")
    (tmp_path / "train" / "cat" / "readme.txt").write_text("x")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_text("x")
    data = open_images(tmp_path)
    assert {split: table.class_counts(2).tolist() for split, table in data.splits.items()} == {
        "train": [3, 3],
        "val": [2, 2],
        "test": [1, 1],
    }
    assert data.notes == ["1 file in train/ left out: 1 .txt"]


def test_train_without_val_is_split_and_flat_test_is_noted(tmp_path, fill):
    fill(tmp_path / "train" / "cat", 10)
    fill(tmp_path / "train" / "dog", 10, 10)
    fill(tmp_path / "test", 3)
    data = open_images(tmp_path)
    assert [len(data.splits[split]) for split in ("train", "val")] == [18, 2]
    assert any("test/" in note for note in data.notes)


def test_a_class_may_be_called_train(tmp_path, fill):
    for name in ("train", "plane"):
        fill(tmp_path / name, 4)
    assert open_images(tmp_path).classes == ("plane", "train")


def test_small_classes(tmp_path, fill):
    fill(tmp_path / "one", 1)
    fill(tmp_path / "two", 2, 50)
    data = open_images(tmp_path)
    assert data.splits["train"].class_counts(2).tolist() == [1, 1]
    assert data.splits["val"].class_counts(2).tolist() == [0, 1]
    assert any("1 classes have one sample" in note for note in data.notes)


def test_class_missing_from_val_is_noted(tmp_path, fill):
    for split, names in (("train", "abc"), ("val", "ab")):
        for name in names:
            fill(tmp_path / split / name, 2)
    assert open_images(tmp_path).notes == ["1 classes are missing from val/, the first is 'c'"]


def test_imagenet_as_it_is(tmp_path, fill):
    base = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for wnid in ("n01440764", "n01443537"):
        fill(base / "train" / wnid, 2)
    fill(base / "val", 3)
    for i in range(3):
        (base / "val" / f"{i:03d}.jpg").rename(base / "val" / f"ILSVRC2012_val_0000000{i}.JPEG")
    answers = tmp_path / "LOC_val_solution.csv"
    rows = "".join(f"ILSVRC2012_val_0000000{i},n0144{('0764', '3537')[i % 2]} 1 2 3 4\n" for i in range(3))
    answers.write_text("ImageId,PredictionString\n" + rows)
    for root in (tmp_path, base):
        data = open_images(root)
        assert data.classes == ("n01440764", "n01443537")
        assert [data.splits["val"].labels(i) for i in range(3)] == [(0,), (1,), (0,)]
    answers.unlink()
    with pytest.raises(UserError, match=r"no class folders in .*val.*LOC_val_solution"):
        open_images(tmp_path)


@pytest.mark.parametrize("header", ["", "path,label\n", "Image,Class\n", "foo,bar\n", "\ufeffpath,label\n"])
def test_csv_with_and_without_header(tmp_path, fill, header):
    fill(tmp_path / "pictures", 6)
    rows = [f"pictures/{i:03d}.jpg,{'cat' if i % 2 else 'dog'}" for i in range(5)]
    rows.append(f'"{tmp_path / "pictures" / "005.jpg"}", cat')
    (tmp_path / "list.csv").write_text(header + "\n\n".join(rows), encoding="utf-8")
    data = open_images(tmp_path / "list.csv", val_fraction=0.34)
    assert data.classes == ("cat", "dog")
    assert [data.splits[s].class_counts(2).tolist() for s in ("train", "val")] == [[2, 2], [1, 1]]
    assert all(Path(path).exists() for part in contents(data).values() for path in part)


def test_csv_folder_and_multilabel(tmp_path, fill):
    fill(tmp_path / "p", 4)
    (tmp_path / "train.csv").write_text("p/000.jpg,b;a\np/001.jpg,c\np/002.jpg,a;a\n")
    (tmp_path / "val.csv").write_text("p/003.jpg,a\n")
    data = open_images(tmp_path)
    assert data.multilabel
    assert data.classes == ("a", "b", "c")
    assert [data.splits["train"].labels(i) for i in range(3)] == [(0, 1), (2,), (0,)]
    assert data.splits["train"].class_counts(3).tolist() == [2, 1, 1]


def test_csv_split_column(tmp_path, fill):
    fill(tmp_path, 5)
    lines = ["split,path,label", "train,000.jpg,a", "train,001.jpg,b", "valid,002.jpg,a", "test,003.jpg,b"]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    assert {k: len(v) for k, v in open_images(tmp_path / "l.csv").splits.items()} == {"train": 2, "val": 1, "test": 1}
    (tmp_path / "l.csv").write_text("\n".join([*lines, "dev,004.jpg,a"]))
    with pytest.raises(UserError, match=r"line 6 of .* has split 'dev'"):
        open_images(tmp_path / "l.csv")


def empty_class(root, fill):
    fill(root / "a", 2)
    fill(root / "b", 2)
    (root / "c").mkdir()


def no_images(root, fill):
    for name in "ab":
        (root / name).mkdir(parents=True)
        (root / name / "x.txt").write_text("x")


def one_class(root, fill):
    fill(root / "train" / "a", 2)


def unknown_class(root, fill):
    for split, names in (("train", "ab"), ("val", "ax")):
        for name in names:
            fill(root / split / name, 2)


def empty_val(root, fill):
    for split, count in (("train", 2), ("val", 0)):
        for name in "ab":
            fill(root / split / name, count)


def singles(root, fill):
    for start, name in enumerate("abc"):
        fill(root / name, 1, start)


def no_train_classes(root, fill):
    fill(root / "train", 2)
    fill(root / "val" / "a", 1)


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda root, fill: None, "does not exist"),
        (lambda root, fill: fill(root, 3), r"no class folders in .* \(3 image files lie directly in it\)"),
        (empty_class, "class 'c' in .* has no image"),
        (no_images, "no image in the 2 folders .*jpg"),
        (one_class, r"one class only \('a'\)"),
        (unknown_class, "class 'x' in .*val is not among the 2 training classes"),
        (empty_val, "no image in .*val"),
        (singles, "no class in .* has two samples"),
        (no_train_classes, "no class folders in .*train"),
    ],
)
def test_unusable_folders(tmp_path, fill, make, fragment):
    make(tmp_path / "set", fill)
    with pytest.raises(UserError, match=fragment) as caught:
        open_images(tmp_path / "set")
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("000.jpg,a\n001.jpg\n", r"line 2 of .* has 1 column\."),
        ("000.jpg,a\n001.jpg,\n", "line 2 of .* has no label"),
        ("000.jpg,a\n\n001.jpg,;\n", "line 3 of .* has no label"),
        ("000.jpg,a,b\n001.jpg,b\n", "line 1 of .* has 3 columns.*double quotes"),
        ("000.jpg,a\n777.jpg,b\n", "line 2 of .*777.jpg does not exist"),
        ("000.jpg,a\nlist.csv,b\n", "line 2 of .*'list.csv' is no image by its ending"),
        ("000.jpg,a\n001.jpg,a\n", "one class only"),
        ("path,label\n", "no training rows"),
        ("", "no training rows"),
        ("000.jpg,a\n001.jpg,b\n", "no class in .* has two samples"),
    ],
)
def test_unusable_csv(tmp_path, fill, text, fragment):
    fill(tmp_path, 3)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=fragment):
        open_images(tmp_path / "list.csv")


def test_val_csv_with_unknown_label_names_the_line(tmp_path, fill):
    fill(tmp_path, 4)
    (tmp_path / "train.csv").write_text("000.jpg,a\n001.jpg,b\n")
    (tmp_path / "val.csv").write_text("002.jpg,a\n003.jpg,bb\n")
    with pytest.raises(UserError, match=r"line 2 of .*val.csv: label 'bb' is not among the 2"):
        open_images(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_bad_val_fraction(tmp_path, fill, fraction):
    for name in "ab":
        fill(tmp_path / name, 3)
    with pytest.raises(UserError, match="val_fraction"):
        open_images(tmp_path, val_fraction=fraction)


def test_other_file_is_refused(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="neither a folder nor"):
        open_images(tmp_path / "x.zip")


def test_table_is_flat_and_keeps_odd_names(tmp_path):
    names = ["a", "b/\u00e9.jpg", os.fsdecode(b"raw\xff.jpg"), "/absolute/x.jpg"]
    table = SampleTable.build(tmp_path, zip(names, [(0,), (1, 2), (), (2,)], strict=True))
    assert [str(table.path(i)) for i in range(3)] == [str(tmp_path / name) for name in names[:3]]
    assert str(table.path(3)) == "/absolute/x.jpg"
    assert [table.labels(i) for i in range(4)] == [(0,), (1, 2), (), (2,)]
    part = table.subset(np.array([3, 1]))
    assert [part.labels(i) for i in range(2)] == [(2,), (1, 2)]
    assert part.path(1) == table.path(1)
    big = SampleTable.build(tmp_path, ((f"class/{i:09d}.jpg", (i % 7,)) for i in range(100_000)))
    arrays = (big.path_bytes, big.path_ends, big.label_values, big.label_ends)
    assert sum(array.nbytes for array in arrays) == 100_000 * (len("class/000000000.jpg") + 8 + 4 + 8) + 16
