"""The training pipeline and the test protocols against torchvision and timm, and their distributions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torchvision import transforms as v1
from torchvision.transforms import v2

from openmvit.data import transforms
from openmvit.data.transforms import TestTransform, TrainTransform, draw_crop, draw_erase_box, erase_
from openmvit.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def to_input(*steps):
    # the first generation divides by 255 as the authors do; v2 multiplies by 1 / 255, which rounds otherwise
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(MEAN, STD)])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (257, 256), (100, 100), (31, 200), (64, 64)])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("side", "short"), [(56, 64), (48, 54)])
def test_centre_protocol_equals_torchvision(size, name, side, short):
    image = picture(*size)
    expected = to_input(v2.Resize(short, v2.InterpolationMode(name)), v2.CenterCrop(side))(image)
    assert torch.equal(TestTransform(side, 0.875, name)(image), expected)


@pytest.mark.parametrize(("side", "short"), [(224, 256), (384, 438), (512, 585)])
def test_published_short_sides(side, short):
    seen = []

    class Spy(Image.Image):
        def resize(self, size, *args):
            seen.append(size)
            return super().resize(size, *args)

    image = picture(60, 40)
    image.__class__ = Spy
    TestTransform(side, 0.875)(image)
    assert seen == [(int(short * 60 / 40), short)]


def test_squash_protocol_equals_torchvision():
    image = picture(80, 50)
    expected = to_input(v2.Resize((56, 56), v2.InterpolationMode.BICUBIC))(image)
    assert torch.equal(TestTransform(56, 0.0)(image), expected)


def test_transform_from_a_card():
    card = {
        "imgsz": 48,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop_ratio": 1.0,
        "interpolation": "bilinear",
    }
    transform = transforms.test_transform_from({**card, "other": 1})
    assert transform == TestTransform(48, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert transform(picture(60, 50)).abs().max() <= 1.0
    del card["std"]
    with pytest.raises(UserError, match="lacks 'std'"):
        transforms.test_transform_from(card)


def test_crop_boxes_are_distributed_like_torchvisions():
    size, scale, aspect, n = (500, 375), (0.08, 1.0), (0.75, 4 / 3), 4000
    generator = torch.Generator().manual_seed(0)
    ours = np.array([draw_crop(size, scale, aspect, generator) for _ in range(n)], float)
    torch.manual_seed(1)
    theirs = v2.RandomResizedCrop(8, scale, aspect)
    drawn = [theirs.make_params([Image.new("RGB", size)]) for _ in range(n)]
    other = np.array([[p["left"], p["top"], p["width"], p["height"]] for p in drawn], float)
    for a, b in zip(ours.T, other.T, strict=True):
        pooled = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 4.5 * pooled
        assert a.std() == pytest.approx(b.std(), rel=0.06)
        assert np.abs(np.quantile(a, [0.1, 0.5, 0.9]) - np.quantile(b, [0.1, 0.5, 0.9])).max() < 0.04 * max(size)
    assert (ours[:, 0] + ours[:, 2]).max() == 500
    assert (ours[:, 1] + ours[:, 3]).max() == 375
    assert ours[:, :2].min() == 0
    area = ours[:, 2] * ours[:, 3] / (500 * 375)
    assert 0.079 < area.min() < 0.1
    assert area.max() > 0.95


@pytest.mark.parametrize(("size", "box"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13))])
def test_central_fallback(size, box):
    assert draw_crop(size, (1.0, 1.0), (0.75, 4 / 3), torch.Generator()) == box
    assert draw_crop((1, 1), (0.08, 0.08), (1.0, 1.0), torch.Generator()) == (0, 0, 1, 1)


def test_crop_resize_and_flip_equal_torchvision():
    transform = TrainTransform(56, auto_augment=None, erase=0.0, flip=1.0)
    for seed in range(5):
        image = picture(300, 200, seed)
        left, top, width, height = draw_crop(
            image.size, (0.08, 1.0), (0.75, 4 / 3), torch.Generator().manual_seed(seed)
        )
        cropped = v2.functional.resized_crop(image, top, left, height, width, [56, 56], v2.InterpolationMode.BICUBIC)
        expected = to_input(v2.RandomHorizontalFlip(1.0))(cropped)
        assert torch.equal(transform(image, torch.Generator().manual_seed(seed)), expected)


def test_flip_and_erase_rates():
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))
    transform = TrainTransform(64, (1.0, 1.0), (2.0, 2.0), 0.5, None, 0.25)
    results = torch.stack([transform(image, torch.Generator().manual_seed(seed)) for seed in range(800)])
    flipped = (results[:, 0, :, 32:].mean((1, 2)) > results[:, 0, :, :32].mean((1, 2))).float().mean()
    assert abs(flipped - 0.5) < 0.08
    erased = torch.stack([r.flatten().unique().numel() > torch.tensor(100) for r in results]).float().mean()
    assert abs(erased - 0.25) < 0.06


def test_erase_boxes_are_distributed_like_timms():
    n, height, width = 1500, 56, 48
    generator = torch.Generator().manual_seed(0)
    boxes = np.array([draw_erase_box(height, width, 10, generator) for _ in range(n)], float)
    eraser = RandomErasing(1.0, mode="pixel", device="cpu")
    other = []
    for _ in range(n):
        x = eraser(torch.full((1, height, width), 99.0))[0] != 99.0
        rows, columns = x.any(1).nonzero()[:, 0], x.any(0).nonzero()[:, 0]
        other.append([columns[0], rows[0], len(columns), len(rows)])
    for a, b in zip(boxes.T, np.array(other, float).T, strict=True):
        assert abs(a.mean() - b.mean()) < 4.5 * math.sqrt((a.var() + b.var()) / n)
        assert a.std() == pytest.approx(b.std(), rel=0.1)
    share = boxes[:, 2] * boxes[:, 3] / (height * width)
    assert 0.01 < share.min() < 0.04
    assert 0.3 < share.max() < 0.36


def test_erasing_fills_one_box_with_independent_noise():
    x = torch.full((3, 100, 80), 7.0)
    erase_(x, torch.Generator().manual_seed(1))
    hit = x != 7.0
    assert torch.equal(hit[0], hit[1])
    rows, columns = hit[0].any(1).nonzero()[:, 0], hit[0].any(0).nonzero()[:, 0]
    box = x[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert hit[0].sum() == box[0].numel()
    assert abs(box.mean()) < 0.1
    assert box.std() == pytest.approx(1.0, abs=0.1)
    assert not torch.equal(box[0], box[1])
    assert abs(torch.corrcoef(box.flatten(1))[0, 1]) < 0.15


def test_whole_pipeline_depends_on_the_generator_alone():
    transform, image = TrainTransform(64), picture(120, 90)
    first = transform(image, torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what must not matter
    assert torch.equal(transform(image, torch.Generator().manual_seed(3)), first)
    assert not torch.equal(transform(image, torch.Generator().manual_seed(4)), first)
    assert first.dtype == torch.float32
    assert first.shape == (3, 64, 64)
    assert first.is_contiguous()


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: TrainTransform(0), "imgsz is 0"),
        (lambda: TrainTransform(64, crop_scale=(0.5, 0.2)), "crop_scale"),
        (lambda: TrainTransform(64, crop_aspect=(0.0, 1.0)), "crop_aspect"),
        (lambda: TrainTransform(64, flip=1.5), "flip is 1.5"),
        (lambda: TrainTransform(64, erase=-0.1), "erase is -0.1"),
        (lambda: TrainTransform(64, auto_augment="rand-q"), "'q'"),
        (lambda: TrainTransform(64, interpolation="nearest"), "Accepted: bicubic, bilinear"),
        (lambda: TestTransform(64, 1.5), "crop_ratio is 1.5"),
        (lambda: TestTransform(64, std=(0.0, 1.0, 1.0)), "std is"),
    ],
)
def test_unusable_values(make, fragment):
    with pytest.raises(UserError, match=fragment):
        make()
