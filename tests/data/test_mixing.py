"""MixUp and CutMix equal timm's for the same draws, and work on clips and odd batches."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup

from openmvit.data.mixing import Mix, Mixing, cut_box
from openmvit.errors import UserError

K = 7


def mixing(**changes):
    settings = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1}
    return Mixing(**{**settings, **changes}, num_classes=K)


def batch(n, *size):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, *size, generator=generator), torch.randint(K, (n,), generator=generator)


def timm_result(monkeypatch, images, labels, share, cut, centre=(0, 0)):
    """timm's Mixup with its random numbers replaced by the given ones."""
    centre = iter(centre)
    monkeypatch.setattr(np.random, "rand", lambda *_: 0.0)
    monkeypatch.setattr(np.random, "beta", lambda *_, **__: share)
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(centre))
    theirs = Mixup(0.0 if cut else 0.8, 1.0 if cut else 0.0, label_smoothing=0.1, num_classes=K)
    return theirs(images.clone(), labels)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77, 0.999])
def test_mixup_equals_timm(monkeypatch, share):
    images, labels = batch(6, 16, 20)
    expected, soft = timm_result(monkeypatch, images, labels, share, cut=False)
    ours = mixing()
    torch.testing.assert_close(ours.mix_images(images, Mix(share, None)), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.mix_targets(labels, Mix(share, None)), soft, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.19, 0.51, 0.75])  # sides of 0.9, 0.7, 0.5: even numbers of 20 x 40 pixels
@pytest.mark.parametrize("centre", [(0, 0), (10, 20), (19, 39), (3, 30)])
def test_cutmix_equals_timm(monkeypatch, share, centre):
    images, labels = batch(6, 20, 40)
    expected, soft = timm_result(monkeypatch, images, labels, share, cut=True, centre=centre)
    top, bottom, left, right = cut_box((20, 40), share, centre)
    mix = Mix(1 - (bottom - top) * (right - left) / 800, (top, bottom, left, right))
    assert torch.equal(mixing().mix_images(images, mix), expected)
    torch.testing.assert_close(mixing().mix_targets(labels, mix), soft, rtol=0, atol=1e-6)


def test_odd_sides_lose_a_pixel_as_in_the_released_code():
    assert cut_box((10, 10), 1 - 0.25, (5, 5)) == (3, 7, 3, 7)
    assert cut_box((10, 10), 0.0, (0, 9)) == (0, 5, 4, 10)


@pytest.mark.parametrize("size", [(16, 12), (4, 16, 12), (2, 3, 16, 12)])
@pytest.mark.parametrize("n", [1, 5, 8])
def test_any_number_of_axes_and_batch_size(size, n):
    images, labels = batch(n, *size)
    keep = images.clone()
    modes = set()
    for seed in range(12):
        mix = mixing().draw(size[-2:], torch.Generator().manual_seed(seed))
        mixed, soft = mixing()(images, labels, torch.Generator().manual_seed(seed))
        assert torch.equal(images, keep)
        assert mixed.shape == images.shape
        torch.testing.assert_close(soft.sum(1), torch.ones(n))
        partner = images.flip(0)
        modes.add(mix.box is not None)
        if mix.box is None:
            torch.testing.assert_close(mixed, images * mix.share + partner * (1 - mix.share))
        else:
            top, bottom, left, right = mix.box
            inside = torch.zeros(size[-2:], dtype=torch.bool)
            inside[top:bottom, left:right] = True
            assert torch.equal(mixed, torch.where(inside, partner, images))
            assert mix.share == pytest.approx(1 - inside.float().mean().item(), abs=1e-6)
    assert modes == {True, False}


def test_distribution():
    generator = torch.Generator().manual_seed(0)
    draws = [mixing(prob=0.8, switch_prob=0.3).draw((64, 64), generator) for _ in range(3000)]
    none = np.mean([draw.share == 1.0 and draw.box is None for draw in draws])
    cut = np.mean([draw.box is not None for draw in draws])
    assert abs(none - 0.2) < 0.03
    assert abs(cut - 0.24) < 0.03
    shares = np.array([draw.share for draw in draws if draw.box is None and draw.share != 1.0])
    assert abs(shares.mean() - 0.5) < 0.03
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.08)


def test_one_mode_alone_and_none():
    generator = torch.Generator().manual_seed(0)
    assert all(mixing(cutmix_alpha=0.0, switch_prob=1.0).draw((8, 8), generator).box is None for _ in range(20))
    assert all(mixing(mixup_alpha=0.0, switch_prob=0.0).draw((8, 8), generator).box for _ in range(20))
    images, labels = batch(4, 8, 8)
    for off in (mixing(prob=0.0), mixing(mixup_alpha=0.0, cutmix_alpha=0.0)):
        same, soft = off(images, labels, generator)
        assert torch.equal(same, images)
        assert soft[0, labels[0]].item() == pytest.approx(1 - 0.1 + 0.1 / K)
        assert soft.min().item() == pytest.approx(0.1 / K)


def test_smoothing_gives_the_loss_of_cross_entropy_with_smoothing():
    logits, labels = torch.randn(5, K), torch.arange(5)
    soft = mixing(prob=0.0)(torch.zeros(5, 3, 4, 4), labels, torch.Generator())[1]
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(torch.nn.functional.cross_entropy(logits, soft), expected)


def test_multilabel_targets(monkeypatch):
    images = batch(4, 8, 8)[0]
    targets = (torch.rand(4, K) > 0.5).float()
    monkeypatch.setattr(np.random, "rand", lambda *_: 0.0)
    monkeypatch.setattr(np.random, "beta", lambda *_, **__: 0.3)
    soft = mixing().mix_targets(targets, Mix(0.3, None))
    expected = Mixup(0.8, 0.0, label_smoothing=0.1, num_classes=K, multi_label=True)(images.clone(), targets)[1]
    torch.testing.assert_close(soft, expected)


def test_unusable_values():
    with pytest.raises(UserError, match="mixup_alpha is -1"):
        mixing(mixup_alpha=-1)
    with pytest.raises(UserError, match="label_smoothing is 2"):
        mixing(label_smoothing=2)
