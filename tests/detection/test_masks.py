"""Masks against the recorded operations of the original detector and plain loops."""

import math

import numpy as np
import torch

from detection.golden_ops import operations
from openmvit.detection.masks import bitmask_targets, mask_targets, paste_masks, polygon_targets


def recorded_polygons():
    ops = operations("mask_target")
    polygons = [[], []]
    for owner, points in zip(
        ops["polygon_instance"].tolist(), ops["polygon_xy"].split(ops["polygon_len"].tolist()), strict=True
    ):
        polygons[owner].append(points.numpy())
    return ops, polygons


def test_recorded_pasting():
    ops = operations("paste")
    pasted = paste_masks(ops["masks"], ops["boxes"], tuple(ops["image_size"].tolist()))
    assert torch.equal(pasted, ops["result"].bool())


def test_recorded_targets_of_both_kinds():
    ops, polygons = recorded_polygons()
    rows, masks = torch.arange(2), ops["bitmask"].bool()
    assert torch.equal(polygon_targets(polygons, ops["boxes"], 28), ops["from_polygon"].bool())
    assert torch.equal(bitmask_targets(masks, ops["boxes"], 28), ops["from_bitmask"].bool())
    assert torch.equal(mask_targets(polygons, rows, ops["boxes"], 28), ops["from_polygon"].bool())
    assert torch.equal(mask_targets(masks, rows, ops["boxes"], 28), ops["from_bitmask"].bool())


def sampled(probs, box, y, x):
    """The map at the centre of one pixel, in float64: bilinear between cell centres, zero beyond."""
    cells = len(probs)
    u = (x + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
    v = (y + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
    value = 0.0
    for i in (math.floor(v), math.floor(v) + 1):
        for j in (math.floor(u), math.floor(u) + 1):
            if 0 <= i < cells and 0 <= j < cells:
                value += probs[i][j] * (1 - abs(v - i)) * (1 - abs(u - j))
    return value


def test_every_pixel_follows_the_rule_at_any_threshold():
    torch.manual_seed(0)
    probs = torch.rand(6, 5, 5)
    boxes = torch.tensor(
        [[3.2, 4.1, 19.7, 17.9], [-8.0, -3.0, 50.0, 40.0], [7.1, 2.0, 7.9, 29.0], [30, 20, 80, 90], [50, 3, 60, 9]]
    )
    boxes = torch.cat([boxes, torch.tensor([[4.0, 0.3, 33.3, 8.8]])])
    for threshold in (0.5, 0.1):
        pasted = paste_masks(probs, boxes, (30, 40), threshold)
        for n in range(6):
            rows, box = probs[n].tolist(), boxes[n].tolist()
            for y in range(30):
                for x in range(40):
                    value = sampled(rows, box, y, x)
                    assert abs(value - threshold) < 1e-5 or bool(pasted[n, y, x]) == (value >= threshold), (n, y, x)


def test_boxes_without_area_or_number_give_no_pixel():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [9.0, 9.0, 5.0, 5.0], [math.nan] * 4, [0.0, 0.0, math.inf, 9.0]])
    assert not paste_masks(torch.ones(4, 28, 28), boxes, (20, 20)).any()
    assert paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (20, 30)).shape == (0, 20, 30)


def test_many_boxes_share_masks():
    torch.manual_seed(0)
    masks, rows = torch.rand(40, 30, 50) > 0.5, torch.randint(0, 40, (90,))
    boxes = torch.rand(90, 4) * 10
    boxes[:, 2:] += 12
    assert torch.equal(bitmask_targets(masks, boxes, 28, rows), bitmask_targets(masks[rows], boxes, 28))
    assert bitmask_targets(masks[:0], boxes[:0], 28, rows[:0]).shape == (0, 28, 28)


def test_polygons_that_enclose_nothing():
    square = np.array([2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0])
    boxes = torch.tensor([[2.0, 2.0, 10.0, 10.0]]).expand(4, 4)
    drawn = polygon_targets([[], [np.array([2.0, 2.0, 9.0, 9.0])], [square], [square[:4], square]], boxes, 8)
    assert not drawn[:2].any()
    assert drawn[2, :4, :4].all() and drawn[2].sum() == 16
    assert torch.equal(drawn[3], drawn[2])
    assert polygon_targets([], boxes[:0], 8).shape == (0, 8, 8)
