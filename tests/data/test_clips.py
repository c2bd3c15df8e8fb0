"""Sampling against the published figures, and against the tensor arithmetic they were made with."""

import math

import numpy as np
import pytest
import torch

from openmvit.data import clips
from openmvit.data.clips import ClipSampling
from openmvit.errors import UserError

# checkpoints.md 1.0.1: positions within the clip at 30 fps.
TABLE = {
    (16, 4): [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63],
    (32, 3): [*range(0, 48, 3), *range(49, 92, 3), 95],
    (40, 3): [*range(0, 58, 3), *range(61, 101, 3), *range(103, 116, 3), 119],
}


@pytest.mark.parametrize(("kind", "expected"), TABLE.items())
def test_printed_indices(kind, expected):
    length = 1000
    sampling = ClipSampling(*kind)
    found = sampling.test_indices(length, 30.0)
    start = (length - kind[0] * kind[1]) // 2
    assert [index - start for index in found] == expected


@pytest.mark.parametrize("fps", [30.0, 25.0, 24.0, 30000 / 1001, 60.0, 12.5, 1.0])
@pytest.mark.parametrize("shape", [(16, 4), (32, 3), (40, 3), (8, 8), (16, 1)])
@pytest.mark.parametrize("length", [1, 2, 10, 63, 64, 65, 250, 299])
def test_all_clips_equal_the_decoder_arithmetic(fps, shape, length):
    """The published decoder: torch.linspace over start..start + span - 1, clamped, truncated."""
    count, stride = shape
    span = max(1.0, count * stride / 30.0 * fps)
    delta = max(length - span, 0)
    for number in (1, 2, 3, 5, 10):
        for clip in range(number):
            start = math.floor(delta / 2) if number == 1 else clip * math.floor(delta / (number - 1))
            points = torch.linspace(start, start + span - 1, count, dtype=torch.float64)
            expected = torch.clamp(points, 0, length - 1).long().tolist()
            found = ClipSampling(count, stride).test_indices(length, fps, clip, number)
            assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= int(fps not in (30.0, 60.0, 1.0))
            assert found == sorted(found)
            assert 0 <= found[0] <= found[-1] <= length - 1


@pytest.mark.parametrize(
    ("length", "clip", "of", "start"),
    [
        (300, 0, 1, 118),
        (300, 0, 5, 0),
        (300, 1, 5, 59),
        (300, 4, 5, 236),
        (301, 4, 5, 236),
        (50, 3, 5, 0),
        (64, 0, 1, 0),
    ],
)
def test_starts_of_test_clips(length, clip, of, start):
    assert clips.test_start(length, 64.0, clip, of) == start


def test_no_such_clip():
    with pytest.raises(UserError, match=r"clip 5 of 5 does not exist\. Clips are numbered 0\.\.4"):
        ClipSampling().test_indices(100, 30.0, 5, 5)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0.0, [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]),
        # 10.5 .. 73.5 holds the frames 11..73: the last of 64 steps falls on the clamp.
        (10.5, [11, 15, 19, 23, 27, 32, 36, 40, 44, 48, 53, 57, 61, 65, 69, 73]),
    ],
)
def test_fractional_start(start, expected):
    assert clips.span_indices(start, 64.0, 16, 300) == expected


def test_training_starts_are_real_and_uniform():
    assert clips.train_start(300, 64.0, 0.0) == 0.0
    assert clips.train_start(300, 64.0, 0.5) == 118.0
    assert clips.train_start(300, 64.0, 0.51) == pytest.approx(120.36)
    assert clips.train_start(60, 64.0, 0.9) == 0.0
    sampling = ClipSampling(16, 4)
    generator = torch.Generator().manual_seed(0)
    firsts = [sampling.train_indices(164, 30.0, generator)[0] for _ in range(2000)]
    assert min(firsts) <= 1
    assert max(firsts) >= 99
    assert abs(np.mean(firsts) - 50.5) < 2.0


def test_short_videos_repeat_their_last_frame():
    found = ClipSampling(16, 4).test_indices(20, 30.0)
    assert found == [0, 4, 8, 12, 16, *[19] * 11]
    assert ClipSampling(16, 4).test_indices(1, 30.0) == [0] * 16


@pytest.mark.parametrize(
    ("length", "count", "bounds", "centres"),
    [
        (41, 8, [(0, 5), (5, 10), (10, 15), (15, 20), (20, 25), (25, 30), (30, 35), (35, 40)],
         [2, 7, 12, 17, 22, 27, 32, 37]),
        # parts of 2.5: halves go to the even number
        (11, 4, [(0, 2), (2, 5), (5, 8), (8, 10)], [1, 3, 6, 9]),
        (3, 4, [(0, 0), (0, 1), (1, 2), (2, 2)], [0, 0, 1, 2]),
        (1, 2, [(0, 0), (0, 0)], [0, 0]),
    ],
)  # fmt: skip
def test_segments(length, count, bounds, centres):
    assert clips.segment_bounds(length, count) == bounds
    assert ClipSampling(count, rule="segments").test_indices(length, 12.0) == centres
    part = float(length - 1) / count
    theirs = [(int(np.round(part * i)) + int(np.round(part * (i + 1)))) // 2 for i in range(count)]
    assert centres == theirs
    assert clips.segment_draws(length, count, [0.0] * count) == [low for low, _ in bounds]
    assert clips.segment_draws(length, count, [0.999999] * count) == [high for _, high in bounds]


def test_segment_draws_are_uniform_over_both_ends():
    generator = torch.Generator().manual_seed(1)
    sampling = ClipSampling(2, rule="segments")
    drawn = np.array([sampling.train_indices(9, 30.0, generator) for _ in range(4000)])
    for column, low in ((0, 0), (1, 4)):
        counts = np.bincount(drawn[:, column] - low, minlength=5)
        assert len(counts) == 5
        assert counts.min() > 700


def test_views():
    assert [clips.split_view(view, 3) for view in range(7)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [clips.split_view(view, 1) for view in range(3)] == [(0, 0), (1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("height", "width", "position", "corner"),
    [
        (256, 341, 1, (16, 59)),  # (341 - 224) / 2 = 58.5 rounds up
        (256, 341, 0, (16, 0)),
        (256, 341, 2, (16, 117)),
        (341, 256, 0, (0, 16)),
        (341, 256, 1, (59, 16)),
        (341, 256, 2, (117, 16)),
        (224, 298, 0, (0, 0)),
        (224, 298, 1, (0, 37)),
        (224, 298, 2, (0, 74)),
        (224, 224, 2, (0, 0)),
    ],
)
def test_crops(height, width, position, corner):
    assert clips.crop_corner(height, width, 224, position) == corner


def test_short_sides():
    assert clips.test_short_side(224, 1) == 256
    assert clips.test_short_side(312, 1) == 356
    assert clips.test_short_side(224, 3) == 224
    assert clips.test_short_side(312, 3) == 312
    assert clips.test_short_side(224, 3, paper=True) == 256


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((240, 320), 256, (256, 341)),
        ((320, 240), 256, (341, 256)),
        ((256, 340), 256, (256, 340)),
        ((1080, 1920), 224, (224, 398)),
        ((100, 100), 64, (64, 64)),
    ],
)
def test_scaled_size(size, short, expected):
    assert clips.scaled_size(*size, short) == expected


def test_jitter():
    assert [clips.jitter_side(256, 320, draw, False) for draw in (0.0, 0.5, 1.0)] == [256, 288, 320]
    assert [clips.jitter_side(256, 320, draw, True) for draw in (0.0, 0.5, 1.0)] == [320, 284, 256]
    assert clips.jitter_side(356, 446, 0.5, True) == round(2 / (1 / 356 + 1 / 446))


@pytest.mark.parametrize(
    ("length", "span", "hop", "expected"),
    [
        (300, 64.0, 64.0, [0, 64, 128, 192, 236]),
        (256, 64.0, 64.0, [0, 64, 128, 192]),
        (50, 64.0, 32.0, [0]),
        (100, 64.0, 16.0, [0, 16, 32, 36]),
        (64, 64.0, 10.0, [0]),
    ],
)
def test_windows_cover_the_video(length, span, hop, expected):
    assert clips.window_starts(length, span, hop) == expected


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"stride": 0}, {"rule": "dense"}])
def test_bad_sampling(bad):
    with pytest.raises(UserError):
        ClipSampling(**bad)
