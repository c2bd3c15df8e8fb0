"""Every accepted layout of labelled videos, and errors that name file and line."""

import json
import zlib

import pytest
from PIL import Image

from openmvit.data.videos import open_videos
from openmvit.errors import UserError


def touch(*paths):
    """Opening decodes nothing, so empty files will do."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames(folder, count=3):
    folder.mkdir(parents=True)
    colour = tuple(zlib.crc32(f"{folder.parent.name}/{folder.name}".encode()).to_bytes(4)[:3])
    for i in range(count):
        Image.new("RGB", (8, 8), colour).save(folder / f"img_{i:05d}.jpg")


def contents(data, split):
    """Path below the data's folder -> class names."""
    table = data.splits[split]
    base = data.root if data.root.is_dir() else data.root.parent
    return {
        table.path(i).relative_to(base).as_posix(): [data.classes[n] for n in table.labels(i)]
        for i in range(len(table))
    }


def test_class_folders_of_videos(tmp_path):
    for split in ("train", "val"):
        touch(tmp_path / split / "jump" / "a.MP4", tmp_path / split / "jump" / "deep" / "b.webm")
        touch(
            tmp_path / split / "run" / "c d.mkv",
            tmp_path / split / "run" / "c.jpg",
            tmp_path / split / "run" / ".x.mp4",
        )
    data = open_videos(tmp_path)
    assert data.classes == ("jump", "run")
    assert contents(data, "train") == {
        "train/jump/a.MP4": ["jump"], "train/jump/deep/b.webm": ["jump"], "train/run/c d.mkv": ["run"],
    }  # fmt: skip
    assert data.notes == [
        "1 file in train/ left out: 1 .jpg",
        "1 file in val/ left out: 1 .jpg",
    ]


def test_class_folders_of_frame_folders(tmp_path):
    for name in ("jump", "run"):
        for i in range(4):
            frames(tmp_path / name / f"clip_{i}")
        touch(tmp_path / name / "clip_9.mp4")
    data = open_videos(tmp_path, val_fraction=0.2)
    assert sorted((contents(data, "train") | contents(data, "val")).items()) == sorted(
        {f"{name}/clip_{i}{'.mp4' * (i == 9)}": [name] for name in ("jump", "run") for i in (0, 1, 2, 3, 9)}.items()
    )
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 8, "val": 2}


def test_pictures_directly_in_class_folders_are_no_videos(tmp_path, fill):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 2)
    with pytest.raises(
        UserError, match=r"no video in the 2 folders of .* \(4 \.jpg\)\. Accepted file endings are .*\.3gp .*\.mp4"
    ):
        open_videos(tmp_path)


def test_csv_with_parts_and_several_labels(tmp_path):
    touch(tmp_path / "v" / "a.mp4")
    frames(tmp_path / "v" / "b")
    (tmp_path / "l.csv").write_text(
        "path,label,start,end,split\nv/a.mp4,x;y,0.5,2,train\nv/b,y,,,train\nv/a.mp4,x,3,,val\n"
    )
    data = open_videos(tmp_path / "l.csv")
    assert data.multilabel
    assert contents(data, "train") == {"v/a.mp4": ["x", "y"], "v/b": ["y"]}
    train, val = data.splits["train"], data.splits["val"]
    assert [train.span(0), train.span(1), val.span(0)] == [(0.5, 2.0), (None, None), (3.0, None)]
    (tmp_path / "h.csv").write_text("v/a.mp4,x,0,1\nv/b,y,,\nv/a.mp4,x,1,2\nv/a.mp4,y,2,3\n")
    plain = open_videos(tmp_path / "h.csv")
    spans = sorted(str(t.span(i)) for t in plain.splits.values() for i in range(len(t)))
    assert spans == ["(0.0, 1.0)", "(1.0, 2.0)", "(2.0, 3.0)", "(None, None)"]


def test_jsonl(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b.mp4")
    rows = [
        {"path": "a.mp4", "label": ["x; y", "z"]},
        {"path": "b.mp4", "label": "z", "start": 1, "end": 2.5},
    ]
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    data = open_videos(tmp_path)
    assert contents(data, "val") == {"a.mp4": ["x; y", "z"], "b.mp4": ["z"]}
    assert data.splits["val"].span(1) == (1.0, 2.5)


def test_kinetics(tmp_path):
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(
        head + 'riding a bike,-abc_DEF012,10,20,train\n"zumba",xyzxyzxyz12,0,10,train\nzumba,gone0000000,5,15,train\n'
    )
    (tmp_path / "val.csv").write_text(head + "zumba,whole000000,3,13,val\n")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nq,1,2,test\n")
    touch(tmp_path / "videos" / "riding a bike" / "-abc_DEF012_000010_000020.mp4")
    touch(tmp_path / "more" / "xyzxyzxyz12_000000_000010.mkv", tmp_path / "videos" / "whole000000.mp4")
    data = open_videos(tmp_path)
    assert data.classes == ("riding a bike", "zumba")
    assert contents(data, "train") == {
        "videos/riding a bike/-abc_DEF012_000010_000020.mp4": ["riding a bike"],
        "more/xyzxyzxyz12_000000_000010.mkv": ["zumba"],
    }
    assert data.splits["train"].span(0) == (None, None)
    assert data.splits["val"].span(0) == (3.0, 13.0)
    assert data.notes == ["1 of 3 videos of train.csv are not on this disk", "test.csv has no labels and is left out"]
    (tmp_path / "val.csv").write_text(head + "zumba,nope,3,13,val\n")
    with pytest.raises(UserError, match=r"none of the 1 videos of .*val\.csv is below"):
        open_videos(tmp_path)
    (tmp_path / "val.csv").write_text(head + ",whole000000,3,13,val\n")
    with pytest.raises(UserError, match=r"line 2 of .*val\.csv has no label"):
        open_videos(tmp_path)


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_something_something(tmp_path, prefix):
    labels = {"Pushing something": "1", "Approaching something with your camera": "0"}
    (tmp_path / f"{prefix}labels.json").write_text(json.dumps(labels))
    train = [
        {"id": "78687", "label": "holding a cup", "template": "Approaching [something] with your camera"},
        {"id": "42326", "template": "Pushing [something]"},
        {"id": "5", "template": "Pushing [something]"},
    ]
    (tmp_path / f"{prefix}train.json").write_text(json.dumps(train))
    (tmp_path / f"{prefix}validation.json").write_text(json.dumps(train[:1]))
    touch(tmp_path / "20bn-something-something-v2" / "78687.webm")
    frames(tmp_path / "frames" / "42326")
    data = open_videos(tmp_path)
    assert data.classes == ("Approaching something with your camera", "Pushing something")
    assert contents(data, "train") == {
        "20bn-something-something-v2/78687.webm": [data.classes[0]],
        "frames/42326": [data.classes[1]],
    }
    assert len(data.splits["val"]) == 1
    assert data.notes == [f"1 of 3 videos of {prefix}train.json are not on this disk"]
    train[1]["template"] = "Dropping [something]"
    (tmp_path / f"{prefix}train.json").write_text(json.dumps(train))
    with pytest.raises(UserError, match=r"entry 2 of .*train\.json \(id 42326\) has the unknown template 'Dropping"):
        open_videos(tmp_path)


def test_slowfast_lists(tmp_path):
    touch(tmp_path / "v" / "a.mp4", tmp_path / "v" / "with space.mp4", tmp_path / "v" / "z.mp4")
    (tmp_path / "train.csv").write_text(f"{tmp_path}/v/a.mp4 10\n{tmp_path}/v/with space.mp4 2\n\n")
    (tmp_path / "val.csv").write_text(f"{tmp_path}/v/z.mp4 2\n")
    data = open_videos(tmp_path)
    assert data.classes == tuple(str(i) for i in range(11))  # in the order of the numbers: the network's columns
    assert contents(data, "train") == {"v/a.mp4": ["10"], "v/with space.mp4": ["2"]}
    assert contents(data, "val") == {"v/z.mp4": ["2"]}
    assert data.notes == ["9 of 11 class numbers have no training sample"]
    (tmp_path / "classes.txt").write_text("\n".join(f"name {i}" for i in range(11)))
    assert contents(open_videos(tmp_path), "val") == {"v/z.mp4": ["name 2"]}


def test_mmaction2_lists(tmp_path):
    touch(
        tmp_path / "videos_train" / "abc.mp4",
        tmp_path / "videos_train" / "x" / "d.mp4",
        tmp_path / "videos_val" / "e.mp4",
    )
    (tmp_path / "kinetics400_train_list_videos.txt").write_text("abc.mp4 0\nx/d.mp4 1 3\n")
    (tmp_path / "kinetics400_val_list_videos.txt").write_text("e.mp4 3\n")
    data = open_videos(tmp_path)
    assert data.multilabel
    assert contents(data, "train") == {"videos_train/abc.mp4": ["0"], "videos_train/x/d.mp4": ["1", "3"]}
    assert contents(data, "val") == {"videos_val/e.mp4": ["3"]}
    assert "paths of kinetics400_train_list_videos.txt start from videos_train/" in data.notes


def test_mmaction2_frame_folders(tmp_path):
    frames(tmp_path / "raw" / "clip 1", 5)
    frames(tmp_path / "raw" / "b", 5)
    frames(tmp_path / "raw" / "c", 5)
    (tmp_path / "l.txt").write_text("raw/clip 1 5 1\nraw/b 5 0\nraw/c 5 1\n")
    data = open_videos(tmp_path / "l.txt")
    assert not data.multilabel
    both = contents(data, "train") | contents(data, "val")
    assert both == {"raw/clip 1": ["1"], "raw/b": ["0"], "raw/c": ["1"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "a.mp4 0\na.mp4\n", r"line 2 of .*l\.txt has no label: 'a\.mp4'\. Write 'path label'"),
        ("l.txt", "a.mp4 0\nmissing one.mp4 1\n", r"line 2 of .*l\.txt: .*/missing one\.mp4 does not exist"),
        ("l.txt", "a.mp4 0\nnotes.md 1\n", r"line 2 of .*l\.txt: 'notes\.md' is no video by its ending"),
        ("l.txt", "a.mp4 zero\n", r"line 1 of .*l\.txt has no label"),
        ("l.csv", "a.mp4 0\na.mp4 b\n", r"line 2 of .*l\.csv has no label: 'a\.mp4 b'"),
        ("l.csv", "path,label\na.mp4,\n", r"line 2 of .*l\.csv has no label"),
        ("l.csv", "path,label\ngone.mp4,x\n", r"line 2 of .*l\.csv: .*gone\.mp4 does not exist"),
        ("l.csv", "path,label,start,end\na.mp4,x,2,1\n", r"line 2 of .*l\.csv: the sample begins at 2 s and ends"),
        ("l.csv", "path,label,start\na.mp4,x,soon\n", r"line 2 of .*l\.csv: 'soon' is no time"),
        ("l.csv", "path,label\na.mp4,x\nnotes.md,x\n", r"line 3 of .*l\.csv: 'notes\.md' is no video by its ending"),
        ("l.jsonl", '{"path": "a.mp4"}\n', r"line 1 of .*l\.jsonl has no label"),
        ("l.jsonl", '{"path": "a.mp4", "label": 0}\n{"path"\n', r"line 2 of .*l\.jsonl is no JSON"),
        ("l.jsonl", "[1]\n", r"line 1 of .*l\.jsonl is no JSON object"),
        ("l.doc", "a.mp4 0\n", r"is neither a folder nor a \.csv file"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(tmp_path, name, text, message):
    touch(tmp_path / "a.mp4", tmp_path / "notes.md")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_videos(tmp_path / name)


def test_numbers_that_training_does_not_know(tmp_path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "train.txt").write_text("a.mp4 0\na.mp4 2\n")
    (tmp_path / "val.txt").write_text("a.mp4 0\na.mp4 1\n")
    with pytest.raises(UserError, match=r"line 2 of .*val\.txt has label 1, which no training row has"):
        open_videos(tmp_path)
    (tmp_path / "val.txt").write_text("a.mp4 2\n")
    (tmp_path / "labels.txt").write_text("zero\none\n")
    with pytest.raises(UserError, match=r"line 2 of .*train\.txt has label 2, which the 2 class names do not reach"):
        open_videos(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"does not exist\. Name a folder of video class folders"):
        open_videos(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no class folders"):
        open_videos(tmp_path)
