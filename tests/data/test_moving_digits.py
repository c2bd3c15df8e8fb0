"""The demo clips: real files, the motion they are named for, and nothing in a single frame."""

import itertools
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from openmvit.data.generated import load_digits
from openmvit.data.generated_clips import MOTIONS, moving_digit, write_moving_digits
from openmvit.data.video import open_video
from openmvit.data.videos import open_videos


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_moving_digits(tmp_path_factory.mktemp("clips") / "set", train=480, val=160)


def test_written_folder(root, tmp_path):
    data = open_videos(root)
    assert set(data.classes) == set(MOTIONS)
    assert data.splits["train"].class_counts(8).tolist() == [60] * 8
    assert data.splits["val"].class_counts(8).tolist() == [20] * 8
    with open_video(data.splits["val"].path(3)) as video:
        assert (video.fps, video.num_frames, video.size) == (30.0, 16, (64, 64))
        frames = video.frames(range(16)).float()
        assert float(frames.mean()) > 150
        assert float((frames[1:] - frames[:-1]).abs().mean()) > 1
    again = write_moving_digits(tmp_path / "again", train=16, val=8)
    for path in sorted(again.rglob("*.mp4")):
        assert path.read_bytes() == (root / path.relative_to(again)).read_bytes()
    other = write_moving_digits(tmp_path / "other", train=8, val=8, seed=1)
    path = next(other.rglob("*.mp4"))
    assert path.read_bytes() != (root / path.relative_to(other)).read_bytes()


def test_a_few_hundred_clips_take_seconds(tmp_path):
    began = time.process_time()
    write_moving_digits(tmp_path, train=64, val=16)
    assert (time.process_time() - began) * 8 < 40.0


def shift(a, b):
    """Rows and columns by which `b` is `a` rolled on, from the peak of their correlation round the edges."""
    product = torch.fft.fft2(b) * torch.fft.fft2(a).conj()
    peak = int(torch.fft.ifft2(product).real.argmax())
    rows, columns = divmod(peak, a.shape[1])
    half = a.shape[0] // 2
    return (rows + half) % a.shape[0] - half, (columns + half) % a.shape[1] - half


def clip(motion, seed, frames=9):
    scan = load_digits()[0][seed + 20]
    found = moving_digit(scan, MOTIONS.index(motion), 64, frames, torch.Generator().manual_seed(seed))
    return 255.0 - found.float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_straight_motions(motion, axis, sign, seed):
    x = clip(motion, seed)
    for a, b in itertools.pairwise(x):
        moved = shift(a, b)
        assert 3 <= sign * moved[axis] <= 8
        assert abs(moved[1 - axis]) <= 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("motion", "sign"), [("zoom_in", 1), ("zoom_out", -1)])
def test_zooms_change_the_area_in_one_direction_but_for_the_wrap(motion, sign, seed):
    ink = clip(motion, seed).sum((1, 2))
    steps = sign * (ink[1:] / ink[:-1] - 1.0)
    assert int((steps > 0.05).sum()) >= 7
    assert int((steps < 0.0).sum()) <= 1


@pytest.mark.parametrize("seed", [1, 2, 3, 7])
@pytest.mark.parametrize(("motion", "sign"), [("counterclockwise", 1), ("clockwise", -1)])
def test_turns(motion, sign, seed):
    x = clip(motion, seed, 9)
    votes = 0
    for a, b in itertools.pairwise(x):
        # Bring the digit to the middle, turn it both ways and see which of the two is the next frame.
        mass = torch.fft.fft(torch.stack([a.sum(0), a.sum(1)]))[:, 1]
        left, top = (round(32 - float(-angle / (2 * np.pi) * 64)) for angle in mass.angle())
        middle, after = (torch.roll(frame, (top, left), (0, 1)) for frame in (a, b))
        picture = Image.fromarray(middle.byte().numpy())
        match = [
            float((torch.from_numpy(np.array(picture.rotate(d, Image.Resampling.BILINEAR))).float() * after).sum())
            for d in (30, -30)
        ]
        votes += int(np.sign(match[0] - match[1]))
    assert sign * votes >= 4


def test_no_single_frame_tells_the_motion(root):
    """A classifier on single decoded frames, compression and all, stays at chance."""
    data = open_videos(root)
    for place in (0, 8, 15):
        features = {}
        for split, table in data.splits.items():
            pictures = []
            for i in range(len(table)):
                with open_video(table.path(i)) as video:
                    pictures.append(
                        np.asarray(Image.fromarray(video.frames([place])[0].numpy()).convert("L").resize((16, 16)))
                    )
            features[split] = np.stack(pictures).reshape(len(table), -1) / 255.0, table.first_labels()
        model = LogisticRegression(C=0.1, max_iter=300).fit(*features["train"])
        assert model.score(*features["val"]) < 1 / 8 + 0.10
