"""Samples with equal bytes are found wherever they lie, stay on one side of a drawn split, and little else is read."""

import json
import shutil

import numpy as np
import pytest
from boxfiles import coco_split
from clipfiles import write_video
from PIL import Image

from openmvit.data import copies
from openmvit.data.copies import find_copies, keep_together
from openmvit.data.detection_layouts import open_detection
from openmvit.data.images import open_images
from openmvit.data.videos import open_videos


def write(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.bin" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def sides(data, name=lambda path: path.name):
    """Split of every file, by its name."""
    return {name(table.path(i)): split for split, table in data.splits.items() for i in range(len(table))}


def test_groups_have_the_same_bytes_to_the_last_one(tmp_path):
    long = bytes(range(256)) * 4000
    near = [long[:-1] + b"x", b"x" + long[1:], long[:512_000] + b"x" + long[512_001:]]
    paths = write(tmp_path, [long, b"ab", *near, b"ba", long, b"", b"", b"ab", b"ab", near[1]])
    paths.append(tmp_path / "gone.bin")
    assert find_copies(len(paths), paths.__getitem__) == [[0, 6], [1, 9, 10], [3, 11]]
    assert find_copies(0, paths.__getitem__) == []


def test_folders_of_frames_are_compared_frame_by_frame(tmp_path):
    def frames(name, values):
        folder = tmp_path / name
        folder.mkdir()
        for i, value in enumerate(values):
            Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / f"{i}.bmp")
        return folder

    same = [0, 5, 9, 7, 3]
    folders = [frames("a", same), frames("b", same), frames("c", [0, 6, 9, 7, 3]), frames("d", same[:4])]
    (tmp_path / "b" / ".hidden").write_text("x")
    assert find_copies(4, folders.__getitem__) == [[0, 1]]


def test_only_what_shares_size_and_middle_is_read_whole(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = write(tmp_path, [rng.bytes(9000 + i) for i in range(50)] + [rng.bytes(20_000) for _ in range(50)])
    shutil.copy(paths[70], tmp_path / "copy.bin")
    paths.append(tmp_path / "copy.bin")
    read = {"_middle": [], "_all": []}
    for name, seen in read.items():
        key = getattr(copies, name)
        monkeypatch.setattr(copies, name, lambda path, key=key, seen=seen: (seen.append(path), key(path))[1])
    assert find_copies(len(paths), paths.__getitem__) == [[70, 100]]
    assert sorted(read["_middle"]) == sorted(paths[50:]) and sorted(read["_all"]) == sorted([paths[70], paths[100]])


def test_the_draw_goes_on_behind_copies_that_were_drawn_apart():
    held_out = np.zeros(10, dtype=bool)
    order, labels = np.array([3, 1, 4, 0, 2, 9, 8, 7, 6, 5]), np.array([0] * 5 + [1] * 5)
    held_out[[3, 1, 9, 8]] = True
    keep_together(held_out, [[1, 2, 5], [8, 9]], order, labels)
    # 1 goes back to its copies in training, and 4, the next of its class, is held out instead; 8 and 9 stay.
    assert np.flatnonzero(held_out).tolist() == [3, 4, 8, 9]


def test_a_split_without_copies_is_that_of_earlier_versions(tmp_path, fill):
    for name, count, start in (("a", 20, 0), ("b", 10, 100), ("c", 7, 200)):
        fill(tmp_path / name, count, start)
    data = open_images(tmp_path, seed=3, val_fraction=0.2)
    val = data.splits["val"]
    assert [val.path(i).relative_to(tmp_path).as_posix() for i in range(len(val))] == [
        *("a/000.jpg", "a/005.jpg", "a/012.jpg", "a/015.jpg", "b/007.jpg", "b/009.jpg", "c/003.jpg"),
    ]
    assert data.notes == ["no validation split: 7 of 37 samples held out (seed 3)"]


@pytest.mark.parametrize("seed", range(6))
def test_copies_of_pictures_stay_on_one_side(tmp_path, fill, seed):
    fill(tmp_path / "a", 12)
    fill(tmp_path / "b", 12, 50)
    for i in range(4):
        shutil.copy(tmp_path / "a" / f"{i:03d}.jpg", tmp_path / "a" / f"again{i}.jpg")
        shutil.copy(tmp_path / "a" / f"{i:03d}.jpg", tmp_path / "b" / f"also{i}.jpg")
    data = open_images(tmp_path, seed=seed, val_fraction=0.3)
    side = sides(data, lambda path: path.relative_to(tmp_path).as_posix())
    for i in range(4):
        assert side[f"a/{i:03d}.jpg"] == side[f"a/again{i}.jpg"] == side[f"b/also{i}.jpg"]
    assert data.splits["val"].class_counts(2).tolist() == [5, 5]
    assert "8 samples are copies of others by their bytes, and stay on their side of the split" in data.notes
    again = open_images(tmp_path, seed=seed, val_fraction=0.3)
    assert sides(again, str) == sides(data, str)


def test_copies_of_films_stay_on_one_side_and_parts_of_one_film_are_no_copies(tmp_path):
    for name in "ab":
        for i in range(5):
            write_video(tmp_path / name / f"{i}.mp4", 8, size=(32 + 16 * i, 32 + 16 * "ab".index(name)))
    for i in (0, 1):
        shutil.copy(tmp_path / "a" / f"{i}.mp4", tmp_path / "a" / f"copy{i}.mp4")
    for seed in range(6):
        side = sides(open_videos(tmp_path, seed=seed, val_fraction=0.4), lambda p: f"{p.parent.name}/{p.name}")
        assert side["a/0.mp4"] == side["a/copy0.mp4"] and side["a/1.mp4"] == side["a/copy1.mp4"]
    rows = [f"a/0.mp4,{'xy'[i % 2]},{i / 50},{i / 50 + 0.1}" for i in range(6)]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    assert not any("copies" in note for note in open_videos(tmp_path / "l.csv", val_fraction=0.3).notes)


def test_copies_of_annotated_pictures_stay_on_one_side(tmp_path):
    coco_split(tmp_path / "images", tmp_path / "a.json", 10)
    content = json.loads((tmp_path / "a.json").read_text())
    for i in (0, 1, 2):
        shutil.copy(tmp_path / "images" / f"{i:03d}.jpg", tmp_path / "images" / f"copy{i}.jpg")
        content["images"].append({**content["images"][i], "id": 900 + i, "file_name": f"copy{i}.jpg"})
    (tmp_path / "a.json").write_text(json.dumps(content))
    for seed in range(6):
        data = open_detection(tmp_path, seed=seed, val_fraction=0.3)
        side = sides(data)
        assert all(side[f"{i:03d}.jpg"] == side[f"copy{i}.jpg"] for i in (0, 1, 2))
        assert len(data.splits["val"]) == 4
