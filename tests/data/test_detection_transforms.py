"""Sizes and pixels equal the released pipelines', their random draws in distribution; boxes and masks go along."""

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from detection.golden_ops import operations
from openmvit.data.detection_transforms import (
    DetectionAugmentation,
    FixedCrop,
    Flip,
    RangeCrop,
    ScaleJitter,
    ShortSide,
    training_pipeline,
)
from openmvit.data.polygons import clip_polygon
from openmvit.data.scenes import (
    Scene,
    crop,
    finish,
    flip,
    jitter_size,
    resize,
    resize_image,
    short_side_size,
    tight_box,
)
from openmvit.errors import UserError

PUBLISHED = DetectionAugmentation()
LSJ = DetectionAugmentation("lsj")


@pytest.fixture(scope="module")
def ops():
    return {f"resize.{key}": value.numpy() for key, value in operations("resize").items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rasterise(polygons, height, width):
    flat = [polygon.tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width))).astype(bool)


def scene(width=200, height=120, seed=0):
    """Noise, an L, two triangles as one instance, and a bitmap."""
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    ell = np.array([20.5, 10.0, 60.0, 10.0, 60.0, 30.25, 40.0, 30.25, 40.0, 90.0, 20.5, 90.0])
    pair = [np.array([100.0, 20, 140, 20, 120, 60]), np.array([150.0, 80, 180, 80, 165, 110])]
    bitmap = np.zeros((height, width), dtype=bool)
    bitmap[70:100, 90:130] = True
    segments = [[ell], pair, bitmap]
    boxes = np.stack([tight_box(segment) for segment in segments])
    return Scene(image, boxes, np.arange(3), segments)


def test_sizes_equal_the_recorded_ones(ops):
    for h, w, short, long, *size in ops["resize.shortest_edge"].tolist():
        assert short_side_size(h, w, short, long) == tuple(size)
    rows = zip(ops["resize.scale_jitter_1024"].tolist(), ops["resize.scale_jitter_scale"].tolist(), strict=True)
    for (h, w, *size), scale in rows:
        assert jitter_size(h, w, scale, 1024) == tuple(size)


def test_resized_pixels_equal_the_recorded_ones(ops):
    image = Image.fromarray(ops["resize.image"].transpose(1, 2, 0))
    for name in ("resize.image_down", "resize.image_up"):
        expected = ops[name]
        assert np.array_equal(np.asarray(resize_image(image, expected.shape[1:])).transpose(2, 0, 1), expected)


def test_a_very_long_picture_keeps_a_pixel():
    assert short_side_size(3000, 1, 800, 1333) == (1333, 1)
    assert jitter_size(3000, 1, 0.1, 1024) == (102, 1)


def test_polygons_are_scaled_exactly_and_bitmaps_take_the_nearest_pixel():
    one = scene()
    big = resize(one, (360, 500))
    assert big.image.size == (500, 360)
    assert np.array_equal(big.segments[0][0], one.segments[0][0] * np.tile([2.5, 3.0], 6))
    assert np.array_equal(big.boxes, one.boxes * [2.5, 3.0, 2.5, 3.0])
    assert np.array_equal(tight_box(big.segments[2]), one.boxes[2] * [2.5, 3.0, 2.5, 3.0])


def test_flip_mirrors_pixels_boxes_and_masks_and_undoes_itself():
    one = scene()
    other = flip(one)
    assert np.array_equal(np.asarray(other.image), np.asarray(one.image)[:, ::-1])
    assert np.array_equal(other.boxes[0], [200 - 60.0, 10.0, 200 - 20.5, 90.0])
    for box, segment in zip(other.boxes, other.segments, strict=True):
        assert np.array_equal(tight_box(segment), box)
    again = flip(other)
    assert np.array_equal(again.boxes, one.boxes)
    assert np.array_equal(again.segments[0][0], one.segments[0][0])
    assert np.array_equal(again.segments[2], one.segments[2])
    draws = [Flip(0.5)(one, generator(seed)) is one for seed in range(400)]
    assert 160 < sum(draws) < 240


def test_a_crop_cuts_the_masks_and_moves_the_boxes():
    one = scene()
    cut = crop(one, 30, 15, 100, 60)
    assert np.array_equal(np.asarray(cut.image), np.asarray(one.image)[15:75, 30:130])
    whole = [rasterise(s, 120, 200) if isinstance(s, list) else s for s in one.segments]
    for segment, before in zip(cut.segments, whole, strict=True):
        after = rasterise(segment, 60, 100) if isinstance(segment, list) else segment
        assert np.array_equal(after, before[15:75, 30:130])
    assert len(cut.segments[1]) == 1  # the second triangle is outside
    moved = finish(cut, tight_boxes=False)
    # Of the pair only one triangle is left, and its old box covers both.
    assert np.array_equal(moved.boxes, [[0, 0, 30, 60], [70, 5, 100, 60], [60, 55, 100, 60]])
    tight = finish(cut, tight_boxes=True)
    assert np.array_equal(tight.boxes, [[0, 0, 30, 60], [70, 5, 100, 45], [60, 55, 100, 60]])
    # The rest of the L is its stem here: the old box keeps the width of its foot, the tight one does not.
    stem = crop(one, 0, 40, 200, 80)
    assert finish(stem, tight_boxes=False).boxes[0].tolist() == [20.5, 0, 60, 50]
    assert finish(stem, tight_boxes=True).boxes[0].tolist() == [20.5, 0, 40, 50]


def test_instances_without_box_or_mask_are_left_out():
    one = scene()
    gone = finish(crop(one, 141, 0, 59, 79), tight_boxes=False)
    assert gone.boxes.shape == (0, 4)
    assert gone.labels.shape == (0,)
    assert gone.segments == []
    # The box of the two triangles still reaches into this crop, their masks do not.
    assert crop(one, 141, 0, 8, 79).segments[1] == []
    # A box without a mask stays until its side is at most 1e-5.
    boxes = np.array([[10.0, 10, 10 + 2e-5, 20], [10.0, 10, 10 + 5e-6, 20]])
    only_boxes = finish(Scene(one.image, boxes, np.array([4, 5]), [None, None]), tight_boxes=True)
    assert only_boxes.labels.tolist() == [4]
    assert np.array_equal(only_boxes.boxes, boxes[:1])


def test_clipping_equals_rasterising_and_cropping():
    """Random polygons, most of them self-crossing, on whole pixels so that the rasteriser has nothing to round."""
    rng = np.random.default_rng(5)
    left, top, right, bottom = 24, 16, 72, 60
    for _ in range(300):
        count = int(rng.integers(3, 12))
        # Axis-parallel steps have exact cuts and exact pixels.
        corners = rng.integers(0, 96, (count, 2)).astype(np.float64)
        steps = np.stack([corners, np.stack([np.roll(corners[:, 0], -1), corners[:, 1]], 1)], 1).reshape(-1)
        piece = clip_polygon(steps, (left, top, right, bottom))
        expected = rasterise([steps], 96, 96)
        outside = np.ones_like(expected)
        outside[top:bottom, left:right] = False
        expected[outside] = False
        got = rasterise([piece], 96, 96) if len(piece) else np.zeros_like(expected)
        assert np.array_equal(got, expected)
        if len(piece):
            assert (piece.reshape(-1, 2) >= (left, top)).all()
            assert (piece.reshape(-1, 2) <= (right, bottom)).all()


def test_a_polygon_that_passes_outside_a_corner_gets_no_larger_box():
    # An arm enters from the left; the body goes round the corner above and comes back to it.
    arm = np.array([-20.0, 40, 10, 40, 10, 50, -30, 50, -30, -30, 30, -30, 30, -20, -20, -20])
    piece = clip_polygon(arm, (0, 0, 100, 100))
    assert tight_box([piece]).tolist() == [0, 40, 10, 50]
    assert len(clip_polygon(arm, (40, 60, 100, 100))) == 0
    around = np.array([-5.0, -5, 200, -5, 200, 200, -5, 200])
    assert sorted(clip_polygon(around, (0, 0, 100, 100)).tolist()) == [0] * 4 + [100] * 4


def test_a_polygon_inside_is_untouched():
    polygon = np.array([1.25, 1.5, 9.0, 2.0, 4.0, 7.0])
    assert clip_polygon(polygon, (0, 0, 10, 10)) is polygon


def test_range_crop_has_the_published_distribution():
    wide = Scene(Image.new("RGB", (700, 500)), np.zeros((0, 4)), np.zeros(0, np.int64), [])
    sizes = np.array([RangeCrop(384, 600)(wide, generator(seed)).image.size for seed in range(600)])
    assert sizes.min(0).tolist() == [384, 384]
    assert sizes[:, 0].max() > 595
    assert sizes[:, 1].max() == 500
    assert abs(sizes[:, 0].mean() - 492) < 8
    assert abs(sizes[:, 1].mean() - 442) < 5
    assert {RangeCrop(10, 12)(wide, generator(seed)).image.size for seed in range(99)} == {
        (w, h) for w in (10, 11, 12) for h in (10, 11, 12)
    }
    small = Scene(Image.new("RGB", (90, 400)), np.zeros((0, 4)), np.zeros(0, np.int64), [])
    assert RangeCrop(384, 600)(small, generator()).image.width == 90


def corner(picture):
    """Where a crop of `ramp` began."""
    red, green, _ = picture.getpixel((0, 0))
    return red, green


def ramp(width, height):
    """Red tells x, green y."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Scene(Image.fromarray(pixels), np.zeros((0, 4)), np.zeros(0, np.int64), [])


def test_fixed_crop_lies_on_the_diagonal():
    picture, offsets = ramp(250, 150), []
    for seed in range(300):
        cut = FixedCrop(100)(picture, generator(seed)).image
        assert cut.size == (100, 100)
        offsets.append(corner(cut))
    offsets = np.array(offsets, dtype=float)
    assert np.abs(offsets[:, 0] / 150 - offsets[:, 1] / 50).max() < 0.015  # one number, two roundings
    assert offsets.min() < 3
    assert offsets[:, 0].max() > 147
    assert abs(offsets[:, 0].mean() - 75) < 6
    # Where only one side is larger, only that one moves.
    assert {corner(FixedCrop(150)(picture, generator(seed)).image)[1] for seed in range(9)} == {0}


def test_small_pictures_are_padded_with_grey_or_not_at_all():
    one = scene()
    plain = FixedCrop(256)(one, generator())
    assert plain.image.size == (200, 120)
    grey = FixedCrop(256, grey=True)(one, generator())
    assert grey.image.size == (256, 256)
    pixels = np.asarray(grey.image)
    assert np.array_equal(pixels[:120, :200], np.asarray(one.image))
    assert (pixels[120:] == 128).all()
    assert (pixels[:, 200:] == 128).all()
    assert grey.segments[2].shape == (256, 256)
    assert np.array_equal(finish(grey, tight_boxes=True).boxes, one.boxes)


def test_jitter_draws_a_uniform_scale():
    picture = Scene(Image.new("RGB", (64, 48)), np.zeros((0, 4)), np.zeros(0, np.int64), [])
    sides = [max(ScaleJitter((0.1, 2.0), 128)(picture, generator(seed)).image.size) / 128 for seed in range(500)]
    assert 0.09 < min(sides) < 0.12
    assert 1.98 < max(sides) < 2.01
    assert np.allclose(np.quantile(sides, [0.25, 0.5, 0.75]), [0.575, 1.05, 1.525], atol=0.1)


def test_multiscale_pipeline_draws_the_published_sizes():
    pipeline, picture = training_pipeline(PUBLISHED), scene(640, 480)
    # Both branches end with a short side of the list unless the long side was too long.
    sizes = [pipeline(picture, generator(seed)).image.size for seed in range(150)]
    assert {min(size) for size in sizes if max(size) < 1333} == set(range(480, 801, 32))
    uncropped = {short_side_size(480, 640, short, 1333)[::-1] for short in range(480, 801, 32)}
    assert 50 < sum(size in uncropped for size in sizes) < 105
    assert max(max(size) for size in sizes) <= 1333


def test_jitter_pipeline_stays_inside_the_square():
    pipeline = training_pipeline(LSJ)
    for seed in range(30):
        out = pipeline(scene(640, 480), generator(seed))
        assert max(out.image.size) <= 1024
        for box, segment in zip(out.boxes, out.segments, strict=True):
            assert np.array_equal(box, tight_box(segment))
    grey = training_pipeline(DetectionAugmentation("lsj", grey_pad=True))
    assert grey(scene(), generator(1)).image.size == (1024, 1024)


def test_a_pipeline_is_a_function_of_its_generator():
    for augmentation in (PUBLISHED, LSJ):
        first, second, other = (training_pipeline(augmentation)(scene(), generator(s)) for s in (3, 3, 4))
        assert first.image.tobytes() == second.image.tobytes()
        assert np.array_equal(first.boxes, second.boxes)
        assert first.image.size != other.image.size or first.image.tobytes() != other.image.tobytes()


def test_no_augmentation_is_the_test_size():
    still = training_pipeline(DetectionAugmentation("none", short_sides=(800,), flip=0.0))
    assert still(scene(640, 480), generator()).image.size == (1067, 800)
    assert ShortSide((800,), 1333)(scene(640, 480), generator()).image.size == (1067, 800)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "lsi"}, "kind of augmentation is 'lsi'"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"short_sides": ()}, "short_sides is ()"),
        ({"jitter": (2.0, 0.1)}, "jitter is (2.0, 0.1)"),
        ({"crop_size": 0}, "crop_size is 0"),
    ],
)
def test_bad_values_are_named(change, words):
    with pytest.raises(UserError) as caught:
        DetectionAugmentation(**change)
    assert words in str(caught.value)
