"""Test-time augmentation against the recorded detector, and what it does with sizes and mirrors."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openmvit.data.scenes import short_side_size
from openmvit.detection import released
from openmvit.detection.augmentation import Views, detect_augmented, selecting
from openmvit.detection.augmentation import test_views as views_of
from openmvit.detection.settings import from_settings
from openmvit.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "detection" / "mask_rcnn_plain"


@pytest.fixture(scope="module")
def recorded():
    """The recorded detector, its pictures and its answers."""
    torch.set_num_threads(1)
    settings = json.loads((GOLDEN / "config.json").read_text())
    model = from_settings(settings).eval()
    model.load_state_dict(released.to_native(load_file(GOLDEN / "model.safetensors"), model.config))
    return model, settings["tta"], load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "eval.safetensors")


def picture(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def unpacked(answers, prefix):
    shape = answers[f"{prefix}.masks_shape"].tolist()
    bits = np.unpackbits(answers[f"{prefix}.masks_packed"].numpy(), axis=1)[:, : shape[1] * shape[2]]
    return torch.from_numpy(bits.reshape(shape)).bool()


@pytest.mark.parametrize("number", [0, 1])
def test_the_recording_is_reproduced(recorded, number):
    model, settings, inputs, answers = recorded
    image = picture(inputs[f"image.{number}"])
    views = Views(tuple(settings["short_edges"]), settings["max_size"], settings["flip"])(image)
    found = detect_augmented(model, views, (image.height, image.width), settings["batch_size"])
    prefix = f"tta.{number}"
    assert torch.equal(found.labels, answers[f"{prefix}.classes"])
    assert (found.boxes - answers[f"{prefix}.boxes"]).abs().max() < 0.02
    assert (found.scores - answers[f"{prefix}.scores"]).abs().max() < 2e-4
    same = (found.masks() == unpacked(answers, prefix)).float().mean(dim=(1, 2))
    assert same.min() >= 0.999


def test_a_mirrored_picture_has_the_mirrored_objects(recorded):
    model, _, inputs, _ = recorded
    image = picture(inputs["image.1"])
    size = image.height, image.width
    views = Views((160, 200), 400, mirror=True)
    here = detect_augmented(model, views(image), size)
    there = detect_augmented(model, views(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), size)
    assert len(here) > 3 and torch.equal(here.labels, there.labels)
    assert (here.boxes[:, [0, 2]] - (size[1] - there.boxes[:, [2, 0]])).abs().max() < 0.02
    assert here.mask_probs is not None and there.mask_probs is not None
    assert (here.mask_probs - there.mask_probs.flip(2)).abs().max() < 2e-3
    assert here.size == size and here.masks().shape == (len(here), *size)


def test_soft_suppression_works_where_the_views_are_joined(recorded):
    """One view joined with itself: hard suppression drops the copy, soft suppression lowers it."""
    model, _, inputs, _ = recorded
    image = picture(inputs["image.0"])
    size = image.height, image.width
    (view,) = Views((size[0],), 4 * size[0])(image)
    with selecting(model, score_threshold=0.2, max_detections=200):
        once, twice = (detect_augmented(model, [view] * n, size) for n in (1, 2))
        with selecting(model, soft_nms="gaussian"):
            soft = detect_augmented(model, [view] * 2, size)
    assert torch.equal(once.boxes, twice.boxes) and torch.equal(once.scores, twice.scores)
    assert len(soft) == 2 * len(once)
    best, copy = soft.scores[(soft.boxes == once.boxes[0]).all(dim=1)].tolist()
    assert best == once.scores[0].item() and 0.001 < copy <= best * math.exp(-2) + 1e-6
    assert model.roi_heads.config == model.config, "the rules of before are back"


def test_nothing_found_is_an_answer(recorded):
    model, _, inputs, _ = recorded
    image = picture(inputs["image.0"])
    with selecting(model, score_threshold=1.0):
        found = detect_augmented(model, Views((128,), 200, mirror=True)(image), (image.height, image.width))
    assert len(found) == 0 and found.masks().shape == (0, image.height, image.width)


def test_training_mode_is_left_as_it_was(recorded):
    model, _, inputs, _ = recorded
    image = picture(inputs["image.0"])
    size = image.height, image.width
    views = Views((128,), 200)(image)
    before = detect_augmented(model, views, size)
    model.train()
    after = detect_augmented(model, views, size)
    assert model.training and torch.equal(before.boxes, after.boxes)
    model.eval()


def test_the_views_of_a_picture():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8))
    views = Views((45, 60, 90, 120), 220, mirror=True)(image)
    sizes = [tuple(view.image.shape[1:]) for view in views[::2]]
    assert sizes == [(45, 100), (60, 133), (90, 200), (99, 220)]
    assert [view.mirrored for view in views] == [False, True] * 4
    for plain, mirrored in zip(views[::2], views[1::2], strict=True):
        assert torch.equal(plain.image, mirrored.image.flip(2)) and plain.image.dtype == torch.uint8
    assert torch.equal(views[4].image, torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
    assert len(Views((120, 150, 200), 220)(image)) == 1, "three short sides that the long side makes one"


def test_the_default_views_are_those_of_the_published_augmentation(recorded):
    config = recorded[0].config
    card = {"short_side": 800, "long_side": 1333}
    assert views_of(card, config) == Views((800,), 1333)
    assert views_of(card, config, augmented=True) == Views(tuple(range(400, 1201, 100)), 4000, mirror=True)
    square = views_of({"short_side": 1024, "long_side": 1024}, config.replace(square_pad=1024), augmented=True)
    assert square.long_side == 1024
    for height, width in ((480, 640), (1000, 300)):
        assert all(max(short_side_size(height, width, s, square.long_side)) <= 1024 for s in square.short_sides)
    with pytest.raises(UserError, match="lacks 'long_side'"):
        views_of({"short_side": 800}, config)
