"""Every operation equals timm's own, and the draws have the published distribution."""

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops

from openmvit.data.randaugment import OPERATIONS, RandAugment, apply_draw, argument, parse_randaugment
from openmvit.errors import UserError

FILL = (124, 116, 104)
PUBLISHED = "rand-m9-n6-mstd0.5-inc1"


def picture(seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return small.resize((61, 47), Image.Resampling.BICUBIC)


def timm_name(operation, increasing):
    graded = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
    return operation + "Increasing" if increasing and operation in graded else operation


def test_the_fifteen_operations_are_timms():
    for increasing, theirs in ((True, timm_ops._RAND_INCREASING_TRANSFORMS), (False, timm_ops._RAND_TRANSFORMS)):
        assert sorted(timm_name(operation, increasing) for operation in OPERATIONS) == sorted(theirs)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_argument_and_pixels_equal_timm(operation, increasing, monkeypatch):
    name = timm_name(operation, increasing)
    for level in (0.0, 0.3, 3.0, 7.0, 8.64, 9.0, 9.5, 10.0):
        for negative in (False, True):
            monkeypatch.setattr(random, "random", lambda n=negative: 0.9 if n else 0.1)
            level_map = timm_ops.LEVEL_TO_ARG[name]
            theirs = level_map(level, {}) if level_map else ()
            ours = argument(operation, level, negative, increasing)
            assert (ours,) == theirs if theirs else ours == 0.0
            expected = Image.new("RGB", picture().size)  # no bits kept: timm calls a Pillow function that may refuse
            if (operation, ours) != ("Posterize", 0):
                kwargs = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC}
                expected = timm_ops.NAME_TO_OP[name](picture(), *theirs, **kwargs)
            result = apply_draw(picture(), [(operation, ours)], FILL)
            assert result.tobytes() == expected.tobytes(), (level, negative)


@pytest.mark.parametrize(("level", "column"), [(9, 0), (7, 1)])
def test_published_arguments(level, column):
    table = {
        "Rotate": (27, 21),
        "Posterize": (1, 2),
        "Solarize": (26, 77),
        "SolarizeAdd": (99, 77),
        "Color": (1.81, 1.63),
        "ShearX": (0.27, 0.21),
        "TranslateYRel": (0.405, 0.315),
    }
    for operation, values in table.items():
        assert argument(operation, level, False, True) == pytest.approx(values[column], abs=1e-12)


def test_operations_follow_each_other_and_fill_uncovered_corners():
    image = Image.new("RGB", (20, 20), "white")
    moved = apply_draw(image, [("TranslateXRel", 0.405), ("Invert", 0.0)], FILL)
    assert moved.getpixel((0, 5)) == (0, 0, 0)
    assert moved.getpixel((19, 5)) == tuple(255 - value for value in FILL)


def test_distribution_of_draws():
    augment = parse_randaugment(PUBLISHED)
    assert augment == RandAugment(m=9, n=6, mstd=0.5, p=0.5, inc=True)
    generator = torch.Generator().manual_seed(0)
    draws = [augment.draw(generator) for _ in range(4000)]
    counts = dict.fromkeys(OPERATIONS, 0)
    for draw in draws:
        for operation, _ in draw:
            counts[operation] += 1
    lengths = np.bincount([len(draw) for draw in draws], minlength=7) / len(draws)
    binomial = np.array([math.comb(6, k) for k in range(7)]) / 64
    assert np.abs(lengths - binomial).max() < 4 * 0.5 / math.sqrt(len(draws))
    expected = 4000 * 6 * 0.5 / 15
    assert max(abs(count - expected) for count in counts.values()) < 5 * math.sqrt(expected)
    angles = np.array([value for draw in draws for operation, value in draw if operation == "Rotate"])
    assert abs((angles > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(angles))
    levels = np.abs(angles) / 3
    assert levels.max() == 10.0
    assert abs(np.median(levels) - 9) < 0.1
    inside = levels[levels < 10]
    assert (levels == 10.0).mean() == pytest.approx(0.5 * math.erfc(2 / math.sqrt(2)), abs=0.02)
    assert inside.std() == pytest.approx(0.46, abs=0.05)


def test_a_draw_depends_on_the_generator_alone():
    augment = parse_randaugment(PUBLISHED)
    first = augment.draw(torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    assert augment.draw(torch.Generator().manual_seed(5)) == first
    assert augment.draw(torch.Generator().manual_seed(6)) != first


def test_defaults_and_order_of_parts():
    assert parse_randaugment("rand") == RandAugment(10, 2, 0.0, 0.5, False)
    assert parse_randaugment("rand-inc1-p0.25-n3-mstd0-m7.5") == RandAugment(7.5, 3, 0.0, 0.25, True)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("augmix-m3", "'augmix'"),
        ("", "''"),
        ("rand-m9-x3", "'x3'"),
        ("rand-m9-n", "'n'"),
        ("rand-m11", "'m11'"),
        ("rand-n0", "'n0'"),
        ("rand-n2.5", "'n2.5'"),
        ("rand-p2", "'p2'"),
        ("rand-inc2", "'inc2'"),
        ("rand-m9-m8", "'m8'"),
        ("rand-m-3", "'m'"),
        ("rand-m9--n2", "''"),
        ("rand-tweights", "'tweights'"),
        ("rand-m9 -n2", "'m9 '"),
    ],
)
def test_bad_strings_name_the_part(text, part):
    with pytest.raises(UserError, match="auto_augment") as caught:
        parse_randaugment(text)
    assert part in caught.value.cause
