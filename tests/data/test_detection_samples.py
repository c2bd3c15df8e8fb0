"""Samples depend on (seed, epoch, index) alone, follow the file's own orientation, and survive bad files."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image
from torch.utils.data import DataLoader

from openmvit.data.aspect_groups import AspectGroups
from openmvit.data.detection_samples import (
    DetectionDataset,
    DetectionTestDataset,
    collate,
    read_scene,
    to_masks,
    trainable,
)
from openmvit.data.detection_table import TableBuilder
from openmvit.data.detection_transforms import DetectionAugmentation, Pipeline, training_pipeline
from openmvit.data.samples import FileReadError
from openmvit.errors import UserError

ORIENTATION = 0x0112
LEAF = [30.0, 20.0, 70.0, 20.0, 70.0, 50.0, 30.0, 50.0]
SMALL = DetectionAugmentation(
    short_sides=(64, 80), long_side=128, crop_short_sides=(60, 70), crop_range=(48, 64), crop_size=96
)


def photo(seed, width=120, height=80):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)).resize((width, height))


def runs(height, width, rows, columns):
    bitmap = np.zeros((height, width), dtype=np.uint8, order="F")
    bitmap[rows, columns] = 1
    return coco_mask.encode(bitmap)["counts"]


@pytest.fixture
def table(tmp_path):
    """Polygons, run lengths with a crowd, a box only, nothing, only a crowd, a missing file, a file of another size."""
    builder = TableBuilder(tmp_path, ("a", "b"), (1, 2))

    def add(name, size=(80, 120), save=True, **kinds):
        if save:
            photo(len(name) + ord(name[0])).save(tmp_path / name)
        builder.image(name, ord(name[0]), size)
        for label, segments in enumerate(kinds.values()):
            builder.instance(
                (30, 20, 70, 50), label, given=(30, 20, 40, 30), area=1200, crowd="crowd" in kinds, segments=segments
            )

    add("polygons.png", first=[LEAF], second=[LEAF[:6], LEAF])
    add("runs.png", first=runs(80, 120, slice(20, 50), slice(30, 70)))
    builder.instance((0, 0, 9, 9), 1, given=(0, 0, 9, 9), area=81, crowd=True, segments=runs(80, 120, 3, 4))
    add("box.png", first=None)
    add("empty.png")
    add("crowd.png", crowd=runs(80, 120, 3, 4))
    add("missing.png", save=False, first=[LEAF])
    add("other.png", size=(100, 150), first=[LEAF])
    return builder.build()


def as_is(scene, generator):
    return Pipeline(())(scene, generator)


def test_training_pictures_have_an_instance_that_is_no_crowd(table):
    kept, left_out = trainable(table)
    assert kept.tolist() == [0, 1, 2, 5, 6]
    assert left_out == 2
    with pytest.raises(UserError):
        trainable(table.subset([3, 4]))


def test_a_sample_holds_what_the_table_says(table):
    data = DetectionDataset(table, as_is, seed=0)
    polygons, bitmap, box, empty = (data[0, i] for i in range(4))
    assert polygons["image"].dtype == torch.uint8
    assert polygons["image"].shape == (3, 80, 120)
    assert polygons["boxes"].dtype == torch.float32
    assert polygons["boxes"].tolist() == [[30, 20, 70, 50]] * 2
    assert polygons["labels"].tolist() == [0, 1]
    assert [[part.tolist() for part in one] for one in polygons["masks"]] == [[LEAF], [LEAF[:6], LEAF]]
    assert polygons["size"] == (80, 120)
    assert (polygons["index"], polygons["bad"]) == (0, 0)
    assert bitmap["labels"].tolist() == [0]  # the crowd is gone
    assert bitmap["masks"].dtype == torch.bool
    assert bitmap["masks"].shape == (1, 80, 120)
    assert bitmap["masks"][0, 20:50, 30:70].all()
    assert int(bitmap["masks"].sum()) == 1200
    assert box["masks"] == [[]]
    assert box["boxes"].tolist() == [[30, 20, 70, 50]]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"] == []


def test_masks_of_two_kinds_become_bitmaps():
    bitmap = np.zeros((80, 120), dtype=bool)
    bitmap[3:5, 7:9] = True
    masks = to_masks([bitmap, [np.array(LEAF)], None], (80, 120))
    assert isinstance(masks, torch.Tensor)
    assert masks.shape == (3, 80, 120)
    assert masks.sum((1, 2)).tolist() == [4, 1200, 0]
    assert masks[1, 20:50, 30:70].all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_annotations_hold_for_the_upright_picture(tmp_path, orientation):
    stored = photo(1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    height, width = (80, 120) if orientation < 5 else (120, 80)
    builder = TableBuilder(tmp_path, ("a",), (1,))
    builder.image("turned.png", 1, (height, width))
    builder.instance((1, 2, 30, 40), 0, given=(1, 2, 29, 38), area=100)
    scene = read_scene(builder.build(), 0)
    assert scene.image.size == (width, height)
    corner = {1: (0, 0), 2: (-1, 0), 3: (-1, -1), 4: (0, -1), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    x, y = corner[orientation]
    assert scene.image.getpixel((0, 0)) == stored.getpixel((x % 120, y % 80))


def test_sizes_written_down_as_stored_are_those_of_the_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    builder = TableBuilder(tmp_path, ("a",), (1,))
    for name, segments in (("polygons.png", [LEAF]), ("bitmap.png", runs(80, 120, 3, 4))):
        photo(1).save(tmp_path / name, exif=exif)
        builder.image(name, 1, (80, 120))
        builder.instance((30, 20, 70, 50), 0, given=(30, 20, 40, 30), area=1200, segments=segments)
    table = builder.build()
    scene = read_scene(table, 0)
    assert scene.image.size == (80, 120)
    assert scene.boxes.tolist() == [[30, 20, 70, 50]]
    with pytest.raises(FileReadError, match=r"bitmap\.png: the picture is turned"):
        read_scene(table, 1)


def test_another_picture_stands_in_for_a_bad_file(table, tmp_path):
    data = DetectionDataset(table, as_is, seed=1)
    for index in (5, 6):  # missing, and not of the size its annotations are for
        one, again = data[2, index], data[2, index]
        assert one["bad"] == 1
        assert one["index"] == index
        assert one["size"] == (80, 120)
        assert torch.equal(one["image"], again["image"])
    assert len({data[epoch, 5]["image"].numpy().tobytes() for epoch in range(20)}) > 2
    lost = DetectionDataset(table.subset([5, 6]), as_is, seed=1)[0, 0]
    assert lost["bad"] == 2
    assert not lost["image"].any()
    assert len(lost["boxes"]) == len(lost["labels"]) == 0


@pytest.mark.parametrize("kind", ["multiscale", "lsj"])
def test_a_sample_is_the_same_in_any_process_and_order(table, kind):
    augmentation = DetectionAugmentation(**{**SMALL.__dict__, "kind": kind})
    data = DetectionDataset(table, training_pipeline(augmentation), seed=5)
    keys = [(epoch, index) for epoch in range(3) for index in range(len(table))]
    alone = {key: data[key] for key in reversed(keys)}
    loader = DataLoader(data, batch_size=1, sampler=keys, num_workers=2, collate_fn=lambda samples: samples[0])
    for key, sample in zip(keys, loader, strict=True):
        assert torch.equal(sample["image"], alone[key]["image"])
        assert torch.equal(sample["boxes"], alone[key]["boxes"])
        assert str(sample["masks"]) == str(alone[key]["masks"])
    assert not torch.equal(alone[0, 0]["image"][:, :20, :20], alone[1, 0]["image"][:, :20, :20])
    assert not torch.equal(data[0, 0, 1]["image"][:, :20, :20], alone[0, 0]["image"][:, :20, :20])


def test_boxes_surround_the_masks_after_augmentation(table):
    data = DetectionDataset(table, training_pipeline(DetectionAugmentation("lsj", crop_size=96)), seed=5)
    for epoch in range(15):
        for index in (0, 1):
            sample = data[epoch, index]
            height, width = sample["image"].shape[1:]
            for box, mask in zip(sample["boxes"], sample["masks"], strict=True):
                if isinstance(mask, torch.Tensor):
                    assert mask.shape == (height, width)
                    rows, columns = mask.nonzero().unbind(1)
                    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                else:
                    points = np.concatenate(mask).reshape(-1, 2)
                    around = [*points.min(0), *points.max(0)]
                assert box.tolist() == pytest.approx([float(value) for value in around], abs=1e-5)
                assert box[2] <= width
                assert box[3] <= height


def test_batches_of_a_loader(table):
    sampler = AspectGroups(table.sizes, batch=3, seed=0)
    data = DetectionDataset(table, training_pipeline(SMALL), seed=0)
    batches = list(DataLoader(data, batch_size=3, sampler=sampler, num_workers=2, collate_fn=collate))
    assert len(batches) == 2
    for batch in batches:
        assert batch["index"].dtype == batch["bad"].dtype == torch.int64
        assert len(batch["image"]) == len(batch["targets"]) == len(batch["size"]) == len(batch["index"]) == 3
        for image, target in zip(batch["image"], batch["targets"], strict=True):
            assert image.dtype == torch.uint8
            assert set(target) == {"boxes", "labels", "masks"}
            assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])


def test_test_pictures_are_resized_and_never_replaced(table):
    data = DetectionTestDataset(table, short_side=100, long_side=140)
    loader = DataLoader(data, batch_size=1, sampler=[(0, i) for i in range(len(table))], collate_fn=collate)
    batches = list(loader)
    assert batches[0]["image"][0].shape == (3, 93, 140)
    assert batches[0]["size"] == [(80, 120)]
    assert torch.cat([batch["bad"] for batch in batches]).tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert torch.cat([batch["image_id"] for batch in batches]).tolist() == [ord(c) for c in "prbecmo"]
    assert "targets" not in batches[0]
    assert torch.equal(data[1]["image"], batches[1]["image"][0])
