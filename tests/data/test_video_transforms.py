"""Clip pipelines against the order and arithmetic of the published ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from openmvit.data.clips import ClipSampling
from openmvit.data.randaugment import apply_draw, parse_randaugment
from openmvit.data.transforms import draw_crop
from openmvit.data.video_transforms import (
    ClipTestTransform,
    ClipTrainTransform,
    augment_clip,
    clip_preprocessing,
    clip_sampling_from,
    clip_test_transform_from,
    shrink,
)
from openmvit.errors import UserError

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(frames=4, height=72, width=96, seed=0):
    small = torch.randint(0, 256, (frames, 3, 9, 12), generator=generator(seed), dtype=torch.uint8)
    x = F.interpolate(small.float(), (height, width), mode="bicubic").clamp(0, 255)
    return x.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def normalised(frames, mean=MEAN, std=STD):
    """All of the frames as the published code has them before it crops: [C, T, H, W]."""
    x = frames.permute(3, 0, 1, 2).float() / 255.0
    return (x - torch.tensor(mean).view(3, 1, 1, 1)) / torch.tensor(std).view(3, 1, 1, 1)


def plain(**changes):
    return ClipTrainTransform(**({"imgsz": 48, "auto_augment": None, "flip": 0.0, "erase": 0.0} | changes))


def test_order_of_the_training_pipeline():
    frames = clip()
    transform = ClipTrainTransform(48, flip=1.0, erase=0.0, **IMAGENET)
    found = transform(frames, generator(3))
    same = generator(3)
    draw = parse_randaugment("rand-m7-n4-mstd0.5-inc1").draw(same)
    assert draw
    images = [apply_draw(Image.fromarray(f.numpy()), draw, (128, 128, 128)) for f in frames]
    x = normalised(torch.from_numpy(np.stack([np.asarray(image) for image in images])), **IMAGENET)
    left, top, w, h = draw_crop((96, 72), (0.08, 1.0), (0.75, 4 / 3), same)
    x = x[..., top : top + h, left : left + w].transpose(0, 1)
    x = F.interpolate(x, (48, 48), mode="bilinear", align_corners=False, antialias=False).transpose(0, 1).flip(-1)
    assert found.shape == (3, 4, 48, 48)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert torch.allclose(found, x, atol=1e-6)


def test_randaugment_is_drawn_once_and_sees_each_frame_by_itself():
    frames = clip(3)
    frames[1] = (frames[1].float() * 0.3).to(torch.uint8)  # a dark frame
    found = augment_clip(frames, [("Rotate", 21.0), ("AutoContrast", 0.0)])
    for frame, result in zip(frames, found, strict=True):
        alone = apply_draw(Image.fromarray(frame.numpy()), [("Rotate", 21.0), ("AutoContrast", 0.0)], (128, 128, 128))
        assert np.array_equal(np.asarray(alone), result.numpy())
    assert int(found[1].max()) == 255
    assert augment_clip(frames, []) is frames
    still = frames[:1].repeat(6, 1, 1, 1)
    moved = ClipTrainTransform(48, erase=0.0)(still, generator(1))
    assert all(torch.equal(moved[:, 0], moved[:, t]) for t in range(6))


def test_erasing_has_one_box_and_fresh_noise():
    frames = clip(5)
    base = plain()(frames, generator(4))
    erased = plain(erase=1.0)(frames, generator(4))
    where = (base != erased).any(0)  # [T, H, W]
    assert where.any()
    assert all(torch.equal(where[0], where[t]) for t in range(5))
    rows, columns = torch.nonzero(where[0], as_tuple=True)
    assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    noise = erased[:, :, rows, columns]
    assert not torch.equal(noise[:, 0], noise[:, 1])
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1.0) < 0.1
    sometimes, never, frames = plain(imgsz=24, erase=0.25), plain(imgsz=24), frames[:1]
    share = [not torch.equal(sometimes(frames, generator(s)), never(frames, generator(s))) for s in range(100)]
    assert 0.13 < sum(share) / 100 < 0.37


def test_short_side_jitter_with_random_crop():
    frames = clip(2, 60, 80)
    transform = plain(imgsz=32, jitter=(40, 50))
    sizes = set()
    for seed in range(60):
        found = transform(frames, generator(seed))
        u, v, w = torch.rand(3, dtype=torch.float64, generator=generator(seed)).tolist()
        short = round(1 / (1 / 50 + u * (1 / 40 - 1 / 50)))
        sizes.add(short)
        size = (short, int(short * 80 / 60))
        x = F.interpolate(normalised(frames).transpose(0, 1), size, mode="bilinear", align_corners=False)
        top, left = int(v * (size[0] - 32)), int(w * (size[1] - 32))
        expected = x[..., top : top + 32, left : left + 32].transpose(0, 1)
        assert torch.allclose(found, expected, atol=1e-6)
    assert {40, 50} & sizes
    assert len(sizes) > 7


@pytest.mark.parametrize("crop", [0, 1, 2])
@pytest.mark.parametrize("size", [(72, 97), (97, 72)])
def test_three_crops_at_the_crop_size(size, crop):
    frames = clip(2, *size)
    found = ClipTestTransform(48, crops=3)(frames, crop)
    height, width = (48, int(97 / 72 * 48)) if size[0] < size[1] else (int(97 / 72 * 48), 48)
    x = F.interpolate(normalised(frames).transpose(0, 1), (height, width), mode="bilinear", align_corners=False)
    offset = (0, -(-(64 - 48) // 2), 64 - 48)[crop]
    top, left = (0, offset) if width > height else (offset, 0)
    assert torch.allclose(found, x[..., top : top + 48, left : left + 48].transpose(0, 1), atol=1e-6)


def test_one_crop_from_the_larger_short_side():
    frames = clip(2, 64, 80)
    transform = ClipTestTransform(56)
    assert transform.side == 64
    # already at that size: cut out, nothing resampled
    assert torch.allclose(transform(frames), normalised(frames)[..., 4:60, 12:68], atol=1e-6)
    with pytest.raises(ValueError, match="crop 1 of 1"):
        transform(frames, 1)
    assert ClipTestTransform(224, crops=3).side == 224
    assert ClipTestTransform(224, crops=3, short_side=256).side == 256


def test_ssv2_large_channel_order():
    """Statistics in RGB order on BGR frames, reversed afterwards, are swapped statistics on RGB frames."""
    frames = clip(2)
    bgr = normalised(frames.flip(-1), **IMAGENET).flip(0)
    swapped = {"mean": (0.406, 0.456, 0.485), "std": (0.225, 0.224, 0.229)}
    found = ClipTestTransform(72, crops=3, **swapped)(frames, 0)
    assert torch.allclose(found, bgr[..., :72, :72], atol=1e-6)


def test_resizing_in_8_bits_is_within_one_grey_step():
    frames = clip(4)
    for transform in (plain(), ClipTestTransform(48, crops=3)):
        fields = {k: getattr(transform, k) for k in transform.__dataclass_fields__ if k != "randaugment"}
        fast = type(transform)(**{**fields, "resize_uint8": True})
        last = generator(2) if isinstance(transform, ClipTrainTransform) else 1
        slow = transform(frames, last)
        last = generator(2) if isinstance(transform, ClipTrainTransform) else 1
        steps = (slow - fast(frames, last)).abs() * 0.225 * 255
        assert 0.0 < float(steps.mean()) < 0.5
        assert float(steps.max()) < 1.5


def test_stored_side():
    frames = clip(2, 300, 400)
    assert shrink(frames, 256).shape == (2, 256, 341, 3)
    assert shrink(frames, 300) is frames
    assert shrink(frames, 0) is frames
    whole, shrunk = (plain(imgsz=32, stored_side=side)(frames, generator(1)) for side in (0, 64))
    assert float((whole - shrunk).abs().mean()) > 1e-3
    kept = plain(imgsz=300, stored_side=64, crop_scale=(1.0, 1.0))(frames, generator(0))
    assert torch.allclose(kept, plain(imgsz=300, stored_side=0, crop_scale=(1.0, 1.0))(frames, generator(0)))


def test_equal_generators_give_equal_clips():
    frames = clip()
    before = frames.clone()
    transform = ClipTrainTransform(48)
    assert torch.equal(transform(frames, generator(9)), transform(frames, generator(9)))
    assert not torch.equal(transform(frames, generator(9)), transform(frames, generator(10)))
    assert torch.equal(frames, before)


def test_card_round_trip():
    transform = ClipTestTransform(312, crops=3, **IMAGENET)
    sampling = ClipSampling(40, 3)
    card = clip_preprocessing(sampling, transform, 5)
    assert card["clips"] == 5
    again = clip_test_transform_from({**card, "mean": list(card["mean"]), "std": list(card["std"])})
    assert (again.imgsz, again.crops, again.side, again.mean) == (312, 3, 312, transform.mean)
    assert clip_sampling_from(card) == sampling
    assert clip_test_transform_from(card, crops=1).side == 356
    assert clip_sampling_from(clip_preprocessing(ClipSampling(16, 4, "segments"), transform, 1)).rule == "segments"
    for name in ("imgsz", "crops", "mean", "std"):
        with pytest.raises(UserError, match=f"lacks '{name}'"):
            clip_test_transform_from({key: value for key, value in card.items() if key != name})
    with pytest.raises(UserError, match="lacks 'stride'"):
        clip_sampling_from({"num_frames": 16})


@pytest.mark.parametrize(
    "bad",
    [{"imgsz": 0}, {"flip": 1.5}, {"erase": -0.1}, {"crop_scale": (0.0, 1.0)}, {"std": (0.0, 1.0, 1.0)},
     {"jitter": (40, 50)}, {"jitter": (60, 50)}, {"auto_augment": "rand-x9"}, {"stored_side": -1}],
)  # fmt: skip
def test_bad_training_values(bad):
    with pytest.raises(UserError):
        ClipTrainTransform(**({"imgsz": 48} | bad))


@pytest.mark.parametrize("bad", [{"crops": 2}, {"short_side": 40}, {"imgsz": -1}])
def test_bad_test_values(bad):
    with pytest.raises(UserError):
        ClipTestTransform(**({"imgsz": 48} | bad))
