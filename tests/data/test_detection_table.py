"""A table gives back what was put in, in any order, cheaply, and as a dictionary that the COCO evaluation reads."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from openmvit.data.detection_table import DetectionData, TableBuilder, hold_out
from openmvit.errors import UserError

SQUARE = [2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]
TRIANGLE = [1.0, 1.0, 5.0, 1.0, 3.0, 4.5]


def filled(images=4):
    """Picture i has i instances: the first with two polygons, the second with run lengths, the others boxes only."""
    from faster_coco_eval.core import mask

    builder = TableBuilder(Path("/pictures"), ("cat", "dog", "owl"), (1, 2, 5))
    for i in range(images):
        size = (20 + i, 30)
        builder.image(f"sub/{i}\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", 100 + i, size)
        runs = mask.frPyObjects([SQUARE], *size)[0]["counts"]
        for j in range(i):
            segments = (
                ([SQUARE, np.array(TRIANGLE)], runs if isinstance(runs, bytes) else runs.encode())[j] if j < 2 else None
            )
            builder.instance(
                (j, 1, j + 4.5, 9), j % 3, given=(j, 1, 4.5, 8), area=36 + j, crowd=j == 1, segments=segments
            )
    return builder.build()


def test_gives_back_what_was_put_in():
    table = filled()
    assert len(table) == 4 and table.path(3) == Path("/pictures/sub/3\N{LATIN SMALL LETTER E WITH ACUTE}.jpg")
    assert table.image_id(2) == 102 and table.size(2) == (22, 30)
    empty, full = table.annotations(0), table.annotations(3)
    assert empty.boxes.shape == (0, 4) and empty.segments == [] and empty.labels.dtype == np.int32
    assert full.boxes.tolist() == [[0, 1, 4.5, 9], [1, 1, 5.5, 9], [2, 1, 6.5, 9]]
    assert full.labels.tolist() == [0, 1, 2] and full.crowd.tolist() == [False, True, False]
    assert full.area.tolist() == [36, 37, 38] and full.boxes.dtype == np.float64
    assert [part.tolist() for part in full.segments[0]] == [SQUARE, TRIANGLE]
    assert full.segments[1]["size"] == [23, 30] and isinstance(full.segments[1]["counts"], bytes)
    assert full.segments[2] is None


def test_subset_in_any_order_and_through_pickle():
    table = filled()
    part = pickle.loads(pickle.dumps(table.subset([3, 0, 2])))
    assert [part.image_id(i) for i in range(3)] == [103, 100, 102]
    for new, old in enumerate([3, 0, 2]):
        ours, theirs = part.annotations(new), table.annotations(old)
        assert ours.boxes.tolist() == theirs.boxes.tolist() and ours.labels.tolist() == theirs.labels.tolist()
        assert str(ours.segments) == str(theirs.segments)
    assert part.path(0) == table.path(3) and part.size(2) == table.size(2)
    none = table.subset([])
    assert len(none) == 0 and none.class_counts(3).tolist() == [0, 0, 0]


def test_counts_leave_crowds_out():
    table = filled()
    assert table.class_counts(3).tolist() == [3, 0, 1]
    assert table.annotated().tolist() == [1, 2, 3] and table.has_masks
    assert filled(1).annotated().tolist() == [] and not filled(1).has_masks


def test_size_does_not_grow_with_objects():
    builder = TableBuilder(Path(), ("a",), (1,))
    builder.image("a.jpg", 1, (100, 100))
    for _ in range(20_000):
        builder.instance((1, 2, 3, 4), 0, given=(1, 2, 2, 2), area=4, segments=[TRIANGLE])
    data = pickle.dumps(builder.build())
    assert len(data) < 20_000 * 170


def test_ground_truth_is_read_by_the_evaluation():
    from faster_coco_eval import COCO
    from faster_coco_eval.core import mask

    table = filled()
    truth = table.ground_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert truth["categories"][2] == {"id": 5, "name": "owl"}
    assert truth["annotations"][5]["category_id"] == 5 and "segmentation" not in truth["annotations"][5]
    assert truth["annotations"][4]["iscrowd"] == 1 and truth["annotations"][4]["bbox"] == [1, 1, 4.5, 8]
    coco = COCO(truth)
    crowd = coco.annToRLE(truth["annotations"][4])
    assert mask.area([crowd])[0] == 36
    assert mask.decode([coco.annToRLE(truth["annotations"][3])]).shape == (23, 30, 1)


def test_hold_out_depends_on_the_seed_alone():
    data = DetectionData(("cat", "dog", "owl"), (1, 2, 5), {"train": filled(20)}, Path("/pictures"))
    first, again, other = (hold_out(data, 0.25, seed) for seed in (3, 3, 4))
    ids = [sorted(part.splits["val"].image_ids.tolist()) for part in (first, again, other)]
    assert ids[0] == ids[1] != ids[2] and len(ids[0]) == 5
    both = np.concatenate([first.splits["train"].image_ids, first.splits["val"].image_ids])
    assert sorted(both.tolist()) == list(range(100, 120))
    assert first.held_out and first.notes == ["no validation split: 5 of 20 images held out (seed 3)"]
    with pytest.raises(UserError, match="between 0 and 1"):
        hold_out(data, 1.0, 0)
    with pytest.raises(UserError, match="one picture only"):
        hold_out(DetectionData((), (), {"train": filled(1)}, Path("p")), 0.5, 0)
