"""The 12 numbers are those of pycocotools; what is added in parts, twice or not at all changes nothing else."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as oracle_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from openmvit.errors import UserError
from openmvit.evaluation.coco import THRESHOLDS, CocoScorer, write_rows
from openmvit.evaluation.rle import encode_masks

CATEGORY_IDS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 90, 91)
CLASSES = tuple(f"class {i}" for i in CATEGORY_IDS)
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def ellipse(box, size):
    """Mask of the ellipse in a box x, y, w, h."""
    x, y, w, h = box
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 < 1


def polygon(box):
    x, y, w, h = box
    angle = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))], axis=1)
    return points.ravel().tolist()


def plain_counts(mask):
    """Run lengths one by one, as uncompressed COCO files have them."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def segmentation(kind, box, size):
    if kind == 0:
        return [polygon(box)]
    if kind == 1:
        x, y, w, h = box
        return [polygon((x, y, w / 2, h)), polygon((x + w / 2, y, w / 2, h))]
    mask = ellipse(box, size)
    if kind == 2:
        return {"size": list(size), "counts": plain_counts(mask)}
    rle = oracle_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(size), "counts": rle["counts"].decode()}


def make_truth(rng, images):
    truth = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS]}
    for image in range(images):
        size = (int(rng.integers(90, 260)), int(rng.integers(90, 260)))
        image_id = 1000 - 7 * image
        truth["images"].append({"id": image_id, "height": size[0], "width": size[1]})
        for _ in range(0 if image % 9 == 0 else int(rng.integers(1, 9))):
            w, h = np.exp(rng.uniform(np.log(8), np.log(150), 2)).clip(max=np.array(size[::-1]) - 2)
            box = [float(rng.uniform(0, size[1] - w)), float(rng.uniform(0, size[0] - h)), float(w), float(h)]
            crowd = int(rng.random() < 0.1)
            row = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "bbox": box, "iscrowd": crowd}
            row["segmentation"] = segmentation(2 if crowd else int(rng.integers(4)), box, size)
            row |= {"area": 0.75 * float(w * h), "category_id": int(rng.choice(CATEGORY_IDS[:-1]))}
            truth["annotations"].append(row)
    return truth


def make_detections(rng, truth):
    """image id -> boxes, scores, labels, masks: objects moved, relabelled, doubled, invented; in some images none."""
    found = {}
    for image in truth["images"]:
        size, boxes, labels = (image["height"], image["width"]), [], []
        for row in truth["annotations"]:
            if row["image_id"] == image["id"]:
                for _ in range(int(rng.integers(0, 4))):
                    x, y, w, h = np.array(row["bbox"]) + rng.normal(0, 0.06, 4) * np.tile(row["bbox"][2:], 2)
                    boxes.append([x, y, x + w, y + h])
                    right = rng.random() < 0.85
                    labels.append(CATEGORY_IDS.index(row["category_id"]) if right else rng.integers(len(CLASSES)))
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = rng.uniform(5, 80, 4)
            boxes.append([x, y, x + w, y + h])
            labels.append(rng.integers(len(CLASSES)))
        keep = 0 if rng.random() < 0.1 else len(boxes)
        boxes = np.array(boxes, np.float32).reshape(-1, 4)[:keep]
        scores = rng.integers(1, 40, keep).astype(np.float32) / 40  # many are equal
        masks = np.zeros((keep, *size), bool)
        for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            masks[i] = ellipse((x0, y0, x1 - x0, y1 - y0), size)
        found[image["id"]] = (boxes, scores, np.array(labels[:keep], np.int64), masks)
    return found


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    truth = make_truth(rng, 110)
    return truth, make_detections(rng, truth)


def score(truth, found, **options):
    scorer = CocoScorer(CLASSES, CATEGORY_IDS, truth, **options)
    for image_id, parts in found.items():
        scorer.add(image_id, *parts)
    return scorer


def oracle(truth, rows, kind):
    """pycocotools' numbers and precisions; Detectron2 too leaves the boxes away where masks are scored."""
    reference = COCO()
    reference.dataset = copy.deepcopy(truth)
    reference.createIndex()
    gone = "segmentation" if kind == "bbox" else "bbox"
    results = reference.loadRes([{key: value for key, value in row.items() if key != gone} for row in rows])
    evaluation = COCOeval(reference, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, 2]


def test_all_numbers_are_those_of_pycocotools(data):
    truth, found = data
    untouched = copy.deepcopy(truth)
    scorer = score(truth, found)
    result, rows = scorer.result(), list(scorer.rows())
    assert truth == untouched
    assert sum(row["iscrowd"] for row in truth["annotations"]) > 20
    for kind, numbers in (("bbox", result.box), ("segm", result.mask)):
        expected, precision = oracle(truth, rows, kind)
        assert tuple(numbers) == NAMES
        np.testing.assert_allclose(list(numbers.values()), expected, rtol=0, atol=1e-12)
        assert 0.05 < expected.min() < expected.max() < 0.95  # a test of many ways to be right and wrong
        curves = result.precision["box" if kind == "bbox" else "mask"]
        np.testing.assert_allclose(curves, precision, rtol=0, atol=1e-12)
        filled = [k for k, count in enumerate(result.counts) if count]
        assert len(filled) == len(CLASSES) - 1
        per_class = [row.box if kind == "bbox" else row.mask for row in result.table()]
        np.testing.assert_allclose(np.array(per_class)[filled], precision.mean(axis=(0, 1))[filled], rtol=0, atol=1e-12)
        assert per_class[-1] == -1
        assert np.mean(np.array(per_class)[filled]) == pytest.approx(numbers["AP"], abs=1e-12)
    assert result.precision["box"].shape == (len(THRESHOLDS), 101, len(CLASSES))


def test_rows_keep_what_was_added(data, tmp_path):
    truth, found = data
    scorer = score(truth, found)
    write_rows(scorer.rows(), tmp_path / "results.json")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert rows == list(scorer.rows())
    assert len(rows) == sum(len(parts[1]) for parts in found.values())
    image_id = rows[0]["image_id"]
    boxes, scores, labels, masks = found[image_id]
    best = int(np.argmax(scores))
    assert rows[0]["category_id"] == CATEGORY_IDS[labels[best]]
    x0, y0, x1, y1 = boxes[best].astype(np.float64)
    assert rows[0]["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert rows[0]["score"] == float(scores[best])
    assert rows[0]["segmentation"] == encode_masks(masks[best : best + 1])[0]


def test_processes_together_give_the_scores_of_one(data):
    truth, found = data
    whole = score(truth, found)
    parts = [score(truth, dict(list(found.items())[start : start + 60])) for start in (60, 0, 50)]  # some images twice
    parts[0].merge(pickle.loads(pickle.dumps([part.state() for part in parts])))
    assert list(parts[0].rows()) == list(whole.rows())
    first, second = parts[0].result(), whole.result()
    assert (first.box, first.mask) == (second.box, second.mask)


def test_tensors_and_run_lengths_are_taken_for_arrays(data):
    truth, found = data
    plain = score(truth, found)
    tensors = score(truth, {image: [torch.from_numpy(part) for part in parts] for image, parts in found.items()})
    encoded = {image: (*parts[:3], encode_masks(parts[3])) for image, parts in found.items()}
    series = {image: (*parts[:3], (mask for mask in parts[3])) for image, parts in found.items()}
    for other in (tensors, score(truth, encoded), score(truth, series)):
        assert list(other.rows()) == list(plain.rows())


def test_the_library_is_silent(data, capfd, caplog):
    truth, found = data
    with caplog.at_level(logging.DEBUG):
        score(truth, found).result()
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_boxes_alone(data):
    truth, found = data
    boxes = {image: parts[:3] for image, parts in found.items()}
    result = score(truth, boxes, masks=False).result()
    assert result.mask is None
    assert result.box == score(truth, found).result().box
    assert {row.mask for row in result.table()} == {-1.0}
    without = truth | {"annotations": [{**row, "segmentation": []} for row in truth["annotations"]]}
    assert score(without, boxes).result().mask is None
    with pytest.raises(ValueError, match="no masks"):
        score(truth, boxes)


def test_an_object_without_a_mask_is_neither_missed_nor_found(data):
    truth, found = data
    first = truth["annotations"][0]
    same_kind = [r for r in truth["annotations"] if r["category_id"] == first["category_id"] and not r["iscrowd"]]
    bare = {**first, "iscrowd": 0, "id": 5000, "bbox": [0.0, 0.0, 60.0, 60.0], "area": 3600.0}
    bare["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]
    more = truth | {"annotations": [*truth["annotations"], bare]}
    crowd = {**bare, "iscrowd": 1, "segmentation": [[0.0, 0.0, 60.0, 0.0, 60.0, 60.0, 0.0, 60.0]]}
    expected = score(truth | {"annotations": [*truth["annotations"], crowd]}, found).result()
    result = score(more, found).result()
    assert result.mask == expected.mask
    assert result.box != expected.box
    assert result.counts[CATEGORY_IDS.index(first["category_id"])] == len(same_kind) + 1


@pytest.mark.parametrize("start", [0, 1, None])
def test_numbers_of_annotations_do_not_matter(start):
    """The original counts a match with annotation 0 as none, and loses one of two with the same number."""
    boxes = [[10.0 * i, 5.0, 8.0, 20.0] for i in range(6)]
    truth = {"images": [{"id": 4, "height": 50, "width": 80}], "annotations": []}
    for i, box in enumerate(boxes):
        row = {"id": 7 if start is None else start + i, "image_id": 4, "category_id": 2, "bbox": box, "area": 160.0}
        truth["annotations"].append(row)
    scorer = CocoScorer(("digit",), (2,), truth)
    corners = np.array(boxes)
    corners[:, 2:] += corners[:, :2]
    scorer.add(4, corners, np.linspace(0.2, 0.9, 6), np.zeros(6, np.int64))
    assert scorer.result().box["AP"] == pytest.approx(1.0, abs=1e-12)


def test_masks_are_compared_in_the_size_that_they_were_found_in():
    """Some tools write down an upright box and outline, and the size as stored, before EXIF turns the picture."""
    row = {"image_id": 1, "category_id": 1, "bbox": [5, 40, 20, 16], "area": 320, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "width": 64, "height": 48}],
        "annotations": [row | {"segmentation": [[5, 40, 25, 40, 25, 56, 5, 56]]}],
    }
    scorer = CocoScorer(("a",), (1,), truth)
    mask = np.zeros((1, 64, 48), bool)
    mask[0, 40:56, 5:25] = True
    scorer.add(1, np.array([[5.0, 40.0, 25.0, 56.0]]), np.array([0.9]), np.array([0]), mask)
    found = scorer.result()
    assert found.mask is not None and found.box["AP"] == found.mask["AP"] == pytest.approx(1.0)


def test_nothing_found_and_nothing_to_find(data):
    truth, found = data
    empty = np.zeros(0)
    for scorer in (score(truth, {}), score(truth, dict.fromkeys(found, (empty, empty, empty)))):
        result = scorer.result()
        assert set(result.box.values()) == set(result.mask.values()) == {0.0}
        assert list(scorer.rows()) == []
    nothing = truth | {"annotations": []}
    for truth_, found_ in ((nothing, found), (nothing, {}), ({"images": [], "annotations": []}, {})):
        result = score(truth_, found_).result()
        assert tuple(result.box) == NAMES
        assert set(result.box.values()) == set(result.mask.values()) == {-1.0}
        assert (result.per_class("mask") == -1).all()


def test_an_empty_results_file_is_json(tmp_path):
    write_rows([], tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_hundred_per_image_are_kept_and_more_if_asked():
    """The one right detection is the 151st by score."""
    truth = {"images": [{"id": 1, "height": 100, "width": 100}]}
    truth["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 40], "area": 1600}]
    boxes = np.tile(np.array([[60.0, 60.0, 70.0, 70.0]]), (200, 1))
    boxes[49] = [0, 0, 40, 40]
    for limit, kept, recall in ((100, 100, 0.0), (300, 200, 1.0)):
        scorer = CocoScorer(("a", "b"), (1, 2), truth, limit=limit)
        scorer.add(1, boxes, np.linspace(0, 1, 200), np.zeros(200, np.int64))
        result = scorer.result()
        assert len(list(scorer.rows())) == kept
        assert result.box[f"AR{limit}"] == recall
        assert (result.box["AP"] > 0) == (recall > 0)


def test_what_does_not_belong_is_refused(data):
    truth, _ = data
    with pytest.raises(UserError, match="no image 3"):
        CocoScorer(CLASSES, CATEGORY_IDS, truth).add(3, np.zeros((0, 4)), np.zeros(0), np.zeros(0))
    with pytest.raises(UserError, match="category 1,"):
        CocoScorer(CLASSES[1:-1], CATEGORY_IDS[1:-1], truth)
    image = truth["images"][0]["id"]
    for box, value in (([0.0, 0, 1, np.nan], 0.5), ([0.0, 0, 1, 1], np.inf)):
        with pytest.raises(ValueError, match="not finite"):
            CocoScorer(CLASSES, CATEGORY_IDS, truth, masks=False).add(image, np.array([box]), np.array([value]), [0])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (5, 4), (40, 30)])
def test_run_lengths_are_those_of_pycocotools(size):
    rng = np.random.default_rng(sum(size))
    masks = [rng.random(size) < share for share in (0.02, 0.3, 0.5, 0.9)]
    masks += [np.zeros(size, bool), np.ones(size, bool)]
    stripe = np.zeros(size, bool)
    stripe[:, size[1] // 2 :] = True  # whole columns are one run
    corner = np.zeros(size, bool)
    corner[-1, -1] = True
    masks += [stripe, ~stripe, corner, ~corner]
    for mask, rle in zip(masks, encode_masks(masks), strict=True):
        expected = oracle_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(size), "counts": expected["counts"].decode()}
    assert encode_masks(torch.zeros(0, *size)) == []
