"""COCO JSON in every place it is found, and what becomes of what is broken in it."""

import json
import shutil

import numpy as np
import pytest
from boxfiles import CATEGORIES, annotation, broken_coco, coco_split, image, picture, write

from openmvit.data.detection_layouts import holds_detection, open_detection
from openmvit.errors import UserError


def published(root):
    coco_split(root / "train2017", root / "annotations" / "instances_train2017.json", 6)
    coco_split(root / "val2017", root / "annotations" / "instances_val2017.json", 3, 50)
    (root / "annotations" / "captions_train2017.json").write_text('{"images": [], "annotations": []}')
    return root


def roboflow(root):
    for split, count in (("train", 6), ("valid", 3), ("test", 2)):
        coco_split(root / split, root / split / "_annotations.coco.json", count, 100 * count)
    return root


def pairs(root):
    coco_split(root / "images" / "train", root / "train.json", 6)
    coco_split(root / "images" / "val", root / "val.json", 3, 50)
    return root


def one_file(root):
    coco_split(root / "images", root / "labels.json", 9)
    return root


def file_above(root):
    coco_split(root / "images", root / "annotations" / "instances_default.json", 9)
    return root


def named_file(root):
    return coco_split(root / "pictures", root / "pictures" / "any.json", 9)


@pytest.mark.parametrize(
    "layout, sizes",
    [
        (published, {"train": 6, "val": 3}),
        (roboflow, {"train": 6, "val": 3, "test": 2}),
        (pairs, {"train": 6, "val": 3}),
        (one_file, {"train": 7, "val": 2}),
        (file_above, {"train": 7, "val": 2}),
        (named_file, {"train": 7, "val": 2}),
    ],
)
def test_layouts(tmp_path, layout, sizes):
    root = layout(tmp_path)
    assert holds_detection(root)
    data = open_detection(root, val_fraction=0.25)
    assert {split: len(table) for split, table in data.splits.items()} == sizes
    assert data.classes == ("cat", "dog", "owl") and data.category_ids == (1, 2, 5)
    assert data.held_out == (sizes["train"] == 7) and data.root == root and not data.faults
    for table in data.splits.values():
        for i in range(len(table)):
            found = table.annotations(i)
            assert table.path(i).is_file() and table.size(i) == (48, 64)
            assert found.boxes.tolist() == [[10, 10, 30, 26]] and found.area.tolist() == [320]
            assert found.segments[0][0].tolist() == [10, 10, 30, 10, 30, 26, 10, 26]


def test_gaps_in_category_ids_are_a_note_and_numbers_go_up(tmp_path):
    folder = tmp_path / "images"
    for i in range(2):
        picture(folder / f"{i}.jpg", seed=i)
    entries = [annotation(1, 1, 90), annotation(2, 2, 7), annotation(3, 2, 2)]
    categories = [{"id": 90, "name": "z"}, {"id": 2, "name": "b"}, {"id": 7, "name": "m"}]
    file = write(tmp_path / "all.json", [image(1, "0.jpg"), image(2, "1.jpg")], entries, categories)
    data = open_detection(file, val_fraction=0.5)
    assert data.classes == ("b", "m", "z") and data.category_ids == (2, 7, 90)
    assert data.notes[0].startswith("category ids 2 to 90 lack 3, 4, 5, ...: the 3 of them become the classes 0 to 2")
    both = {t.image_id(0): t.annotations(0).labels.tolist() for t in data.splits.values()}
    assert both == {1: [2], 2: [1, 0]}
    truth = data.splits["train"].ground_truth()["annotations"]
    assert {entry["category_id"] for entry in truth} <= {2, 7, 90}


def test_broken_annotations_are_left_out_or_mended(tmp_path):
    data = open_detection(broken_coco(tmp_path))
    train = data.splits["train"]
    place = {train.path(i).name: i for i in range(len(train))}
    assert set(place) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "turned.jpg", "plain.jpg", "zero.jpg", "cut.jpg"}
    first, second, third, fourth = (train.annotations(place[f"{i}.jpg"]) for i in range(4))
    assert first.boxes.tolist() == [[10, 10, 30, 26]]
    assert second.boxes.tolist() == [[10, 10, 30, 26], [50, 10, 64, 18]]
    assert third.labels.tolist() == [2, 0, 0, 0, 0] and third.segments[1:] == [None] * 4
    assert fourth.crowd.tolist() == [True, False] and fourth.boxes[1].tolist() == [5, 5, 14, 14]
    assert fourth.segments[0]["size"] == [48, 64]
    assert train.size(place["turned.jpg"]) == (64, 48), "boxes that leave the stored picture show that it is turned"
    assert train.annotations(place["turned.jpg"]).boxes.tolist() == [[10, 20, 40, 60]]
    for table in data.splits.values():
        for i in range(len(table)):
            found, (height, width) = table.annotations(i), table.size(i)
            assert np.isfinite(found.boxes).all() and (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert (found.boxes >= 0).all() and (found.boxes <= [width, height, width, height]).all()
    assert data.notes[-1].startswith("faults in the annotations, left out or corrected: 1 x duplicate image id, ")
    given = [entry["bbox"] for entry in train.ground_truth()["annotations"]]
    assert [50, 10, 30, 8] in given, "the evaluation sees boxes as they were annotated"
    numbers = [entry["id"] for entry in train.ground_truth()["annotations"]]
    assert numbers == list(range(1, len(given) + 1))


def test_run_lengths_in_both_spellings(tmp_path):
    from faster_coco_eval.core import mask

    picture(tmp_path / "images" / "0.jpg")
    picture(tmp_path / "images" / "1.jpg", seed=1)
    shape = np.zeros((48, 64), np.uint8)
    shape[10:26, 10:30] = 1
    packed = mask.encode(np.asfortranarray(shape))["counts"].decode()
    flat = shape.T.reshape(-1)
    plain = np.diff([0, *np.flatnonzero(np.diff(flat)) + 1, flat.size]).tolist()
    entries = [
        annotation(i, i, segmentation={"size": [48, 64], "counts": counts}, area=None)
        for i, counts in ((1, packed), (2, plain))
    ]
    write(tmp_path / "a.json", [image(1, "0.jpg"), image(2, "1.jpg")], entries)
    data = open_detection(tmp_path, val_fraction=0.5)
    assert not data.faults
    for table in data.splits.values():
        found = table.annotations(0)
        assert found.area.tolist() == [320]
        assert (mask.decode([found.segments[0]])[:, :, 0] == shape).all()
        truth = table.ground_truth()["annotations"][0]["segmentation"]
        assert json.loads(json.dumps(truth)) == {"size": [48, 64], "counts": packed}


def test_missing_area_and_size_are_worked_out(tmp_path):
    picture(tmp_path / "0.jpg", orientation=8)
    picture(tmp_path / "1.jpg", seed=1)
    entries = [annotation(1, 1), annotation(2, 2, segmentation=[])]
    for entry in entries:
        del entry["area"]
    images = [{"id": 1, "file_name": "0.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    entries[0]["segmentation"] = [[0, 0, 10, 0, 10, 10]]
    write(tmp_path / "instances.json", images, entries)
    data = open_detection(tmp_path / "instances.json", val_fraction=0.5)
    tables = {table.image_id(0): table for table in data.splits.values()}
    assert tables[1].size(0) == (64, 48) and tables[2].size(0) == (48, 64)
    assert tables[1].annotations(0).area.tolist() == [50] and tables[2].annotations(0).area.tolist() == [320]
    assert tables[2].annotations(0).segments == [None]


def test_test_list_without_annotations_or_pictures(tmp_path):
    root = published(tmp_path)
    listed = {"images": [image(1, "000.jpg"), image(2, "001.jpg")], "categories": CATEGORIES}
    (root / "annotations" / "image_info_test2017.json").write_text(json.dumps(listed))
    assert any("no test split" in note for note in open_detection(root).notes)
    for i in range(2):
        picture(root / "test2017" / f"{i:03d}.jpg", seed=70 + i)
    table = open_detection(root).splits["test"]
    assert len(table) == 2 and len(table.annotated()) == 0


def test_lvis_names_its_pictures_by_address(tmp_path):
    picture(tmp_path / "train2017" / "7.jpg")
    picture(tmp_path / "val2017" / "8.jpg", seed=1)
    images = [
        {"id": i, "coco_url": f"http://images.cocodataset.org/{folder}/{i}.jpg", "width": 64, "height": 48}
        for i, folder in ((7, "train2017"), (8, "val2017"))
    ]
    write(tmp_path / "annotations" / "lvis_v1_train.json", images, [annotation(1, 7), annotation(2, 8)])
    data = open_detection(tmp_path, val_fraction=0.5)
    assert sorted(t.path(0).name for t in data.splits.values()) == ["7.jpg", "8.jpg"] and not data.faults


def cut_off(file):
    file.write_text(file.read_text()[:-200])


def emptied(file):
    file.write_text("")


def no_json(file):
    file.write_text("<html>not found</html>")


def results(file):
    file.write_text('[{"image_id": 1, "score": 0.5}]')


def without_categories(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "categories": []}))


def without_images(file):
    file.write_text(json.dumps({"annotations": [], "categories": CATEGORIES}))


def without_instances(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))


def without_pictures(file):
    shutil.rmtree(file.parent.parent / "train2017")


def renumbered(file):
    other = file.with_name("instances_val2017.json")
    other.write_text(other.read_text().replace('"name": "cat"', '"name": "cow"'))


def second_file(file):
    shutil.copy(file, file.with_name("instances_train2014.json"))
    (file.parent.parent / "train2014").mkdir()


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut_off, "instances_train2017.json breaks off"),
        (emptied, "instances_train2017.json is empty"),
        (no_json, "instances_train2017.json is no JSON"),
        (results, "holds a list, as results are written"),
        (without_categories, "has no categories"),
        (without_images, "has no list 'images'"),
        (without_instances, "no training picture of .* has a usable annotation"),
        (without_pictures, "none of the 6 train pictures"),
        (renumbered, "category 1 is 'cat' in .* and 'cow' in"),
        (second_file, "several annotation files for train"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, damage, message):
    root = published(tmp_path)
    damage(root / "annotations" / "instances_train2017.json")
    with pytest.raises(UserError, match=message) as caught:
        open_detection(root)
    assert caught.value.fix


def test_other_data_are_not_taken_for_boxes(tmp_path, fill):
    fill(tmp_path / "images" / "train" / "cat", 2)
    fill(tmp_path / "images" / "train" / "dog", 2)
    (tmp_path / "labels.csv").write_text("a.jpg,cat\n")
    (tmp_path / "kinetics.json").write_text('{"-3B32lodo2M": {"annotations": {"label": "x", "segment": [0, 1]}}}')
    assert not holds_detection(tmp_path)
    assert not holds_detection(tmp_path / "labels.csv") and not holds_detection(tmp_path / "kinetics.json")
    assert not holds_detection(tmp_path / "nothing")
    with pytest.raises(UserError, match="no data set with boxes"):
        open_detection(tmp_path)
