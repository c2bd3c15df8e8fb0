"""What is drawn stands where it belongs, in the colour of its class, and can be read at any size of picture."""

from __future__ import annotations

import numpy as np
import pytest

from openmvit.drawing import class_colour, draw_detections, sheet

NAMES = ("cat", "traffic light", "a class with a name that is longer than the picture is wide, as happens at times")


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def changed(picture: np.ndarray, ground: np.ndarray) -> np.ndarray:
    return (picture != ground).any(axis=2)


def draw(image: np.ndarray, boxes: list, labels: list, scores: list | None, masks=None, **options) -> np.ndarray:
    scores_ = None if scores is None else np.array(scores)
    return draw_detections(image, np.array(boxes, np.float32), np.array(labels), scores_, NAMES, masks, **options)


@pytest.mark.parametrize("height", [200, 640, 4000])
def test_lines_and_letters_grow_with_the_picture(height: int) -> None:
    image = grey(height, height)
    box = [0.3 * height, 0.4 * height, 0.8 * height, 0.9 * height]
    picture = draw(image, [box], [0], [0.87])
    assert (image == 128).all(), "the picture itself is left alone"
    colour = (picture == class_colour(0)).all(axis=2)
    across = colour[round(0.7 * height)]  # through both sides of the box, below the name
    edges = np.flatnonzero(np.diff(across.astype(int)))
    assert len(edges) == 4
    thickness = edges[1] - edges[0]
    assert 1 <= thickness == max(1, round(height / 330))
    assert abs(edges[0] + 1 - box[0]) <= 1
    assert abs(edges[3] + 1 - box[2]) <= 1
    tag = colour[: round(0.4 * height)]
    rows = np.flatnonzero(tag.any(axis=1))
    assert len(rows) >= 12
    assert 1 / 45 < len(rows) / height < 1 / 12
    letters = (picture[rows[0] : rows[-1] + 1] < 60).all(axis=2) | (picture[rows[0] : rows[-1] + 1] > 220).all(axis=2)
    assert letters.any(axis=1).sum() > len(rows) / 3, "a name stands on its ground"


@pytest.mark.parametrize("size", [(200, 200), (60, 300), (300, 60), (28, 32), (1, 1)])
def test_names_stay_inside_whatever_the_box(size: tuple[int, int]) -> None:
    height, width = size
    boxes = [
        [-50, -50, 5, 5],
        [width - 3, height - 3, width + 90, height + 90],
        [0, 0, width, height],
        [900, 900, 1e3, 1e3],
    ]
    picture = draw(grey(*size), boxes, [0, 1, 2, 2], [0.5, 0.9, 0.7, 0.2])
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert changed(picture, grey(*size)).any()


def name_tag(label: int, score: float, side: int) -> np.ndarray:
    """A name on its ground, cut out of a picture where it stands free above a box."""
    picture = draw(grey(side, side), [[50, 100, 250, 250]], [label], [score])
    filled = (picture == class_colour(label)).all(axis=2)
    top, right = np.flatnonzero(filled[:, 50])[0], np.flatnonzero(filled[98])[-1]
    return picture[top:100, 50 : right + 1]


def test_a_name_is_drawn_whole_at_every_border() -> None:
    tag = name_tag(1, 0.5, 300)
    height, width = tag.shape[:2]
    assert 100 > width > 5 * height > 50
    places = {(0, 0): (0, 0), (250, 0): (300 - width, 0)}
    places |= {(0, 250): (0, 250 - height), (250, 250): (300 - width, 250 - height)}
    for (left, top), (x, y) in places.items():
        picture = draw(grey(300, 300), [[left, top, left + 50, top + 50]], [1], [0.5])
        assert (picture[y : y + height, x : x + width] == tag).all()


def test_names_do_not_cover_each_other_where_there_is_room() -> None:
    box = [50.0, 100.0, 250.0, 250.0]
    first, second = name_tag(1, 0.6, 300), name_tag(0, 0.5, 300)
    both = draw(grey(300, 300), [box, box], [0, 1], [0.5, 0.6])
    assert (both[100 - first.shape[0] : 100, 50 : 50 + first.shape[1]] == first).all(), "the surest stands above"
    assert (both[100 : 100 + second.shape[0], 50 : 50 + second.shape[1]] == second).all(), "the other inside"
    names = draw(grey(300, 300), [box], [1], None)
    assert 0 < changed(names, grey(300, 300))[90].sum() < first.shape[1] - 15, "annotations have no score"


def test_masks_are_half_transparent_with_an_outline() -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    masks = np.zeros((2, 120, 160), bool)
    masks[0, 40:100, 30:120] = True
    boxes = [[30, 40, 120, 100], [0, 0, 0, 0]]
    picture = draw(image, boxes, [0, 1], [0.9, 0.1], masks)
    without = draw(image, boxes, [0, 1], [0.9, 0.1])
    differs = changed(picture, without)
    assert differs[60:90, 40:110].mean() > 0.95
    assert not differs[102:].any()
    inner, ground = picture[60:90, 40:110].astype(float), image[60:90, 40:110].astype(float)
    slope = np.polyfit(ground[..., 0].ravel(), inner[..., 0].ravel(), 1)[0]
    assert 0.4 < slope < 0.75, "the picture shows through"
    circle = np.hypot(*np.mgrid[-60:60, -80:80]) < 40
    outlined = draw(grey(120, 160), [[40, 20, 120, 100]], [0], [0.9], [circle])
    rim = (outlined == class_colour(0)).all(axis=2)[60, 45:115]  # inside the box, where the mask meets the box's middle
    assert not rim[2:-2].any()
    assert (outlined == class_colour(0)).all(axis=2)[85, 42:118].any()


def test_small_objects_lie_on_large_ones() -> None:
    masks = np.ones((2, 200, 200), bool)
    masks[0, :150] = masks[0, :, :150] = False
    both = draw(grey(200, 200), [[150, 150, 200, 200], [0, 0, 200, 200]], [0, 1], [0.5, 0.5], masks)
    swapped = draw(grey(200, 200), [[0, 0, 200, 200], [150, 150, 200, 200]], [1, 0], [0.5, 0.5], masks[::-1])
    assert (both[172:198, 172:198] == swapped[172:198, 172:198]).all()
    small, large = (np.array(class_colour(k), int) for k in (0, 1))
    middle = both[175, 175].astype(int)
    assert np.abs(middle - small).sum() < np.abs(middle - large).sum()


def test_nothing_found_is_the_picture_itself() -> None:
    image = np.random.default_rng(1).integers(0, 255, (50, 70, 3)).astype(np.uint8)
    none = draw_detections(image, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), NAMES, np.zeros((0, 50, 70), bool))
    assert (none == image).all()
    assert none is not image
    assert draw(image, [[5, 5, 30, 30]], [0], [0.5], enlarge=4).shape == (200, 280, 3)


def test_colours_differ() -> None:
    colours = np.array([class_colour(k) for k in range(72)])
    assert len({tuple(colour) for colour in colours.tolist()}) == 72
    gaps = np.abs(colours[:12, None] - colours[None, :12]).sum(axis=2) + 999 * np.eye(12)
    assert gaps.min() > 90
    assert colours[:24].max(axis=1).min() > 140, "seen on a dark ground"


def test_a_sheet_holds_pictures_of_all_sizes() -> None:
    pictures = [
        np.full((h, w, 3), 40 * i, np.uint8) for i, (h, w) in enumerate([(20, 40), (900, 30), (64, 64), (1, 1)])
    ]
    page = sheet(pictures, columns=3, cell=100, gap=10)
    assert page.shape == (10 + 100 + 10 + 100 + 10, 10 + 3 * 110, 3)
    for i, (h, w) in enumerate([(50, 100), (100, 3), (100, 100), (100, 100)]):
        assert (page == 40 * i).all(axis=2).sum() == h * w
    assert sheet(pictures[:1], columns=4, cell=100, gap=10).shape == (70, 120, 3)
