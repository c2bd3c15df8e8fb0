"""The processors give the pixels that `openmvit predict` and `val` give, to the bit."""

import numpy as np
import pytest
import torch
from hubfiles import CLIP_PIXELS, IMAGE_PIXELS
from PIL import Image
from transformers import AutoImageProcessor, AutoVideoProcessor

import openmvit.hub as hub
from openmvit import UserError
from openmvit.data.clips import ClipSampling
from openmvit.data.generated_clips import write_moving_digits
from openmvit.data.transforms import TestTransform
from openmvit.data.video import open_video
from openmvit.data.video_transforms import ClipTestTransform


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(7).integers(0, 256, (45, 61, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    root = write_moving_digits(tmp_path_factory.mktemp("clips"), train=8, val=8, size=48, frames=24)
    return str(next((root / "val").rglob("*.mp4")))


def test_pictures_of_every_form(image_folder, pixels):
    processor = AutoImageProcessor.from_pretrained(image_folder)
    assert type(processor) is hub.MViTV2ImageProcessor
    expected = TestTransform(32, 0.875, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))(Image.fromarray(pixels))
    chw = torch.from_numpy(pixels).permute(2, 0, 1)
    for given in (Image.fromarray(pixels), pixels, chw, [pixels, pixels], np.stack([pixels] * 2)):
        found = processor(given, return_tensors="pt")["pixel_values"]
        assert all(torch.equal(one, expected) for one in found)
    grey = processor(pixels[..., 0])["pixel_values"]
    assert grey.shape == (1, 3, 32, 32)
    assert isinstance(processor(pixels, return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(UserError, match="Pixels are float32"):
        processor(chw / 255)


def test_settings_of_a_call_and_of_the_processor(pixels):
    processor = hub.MViTV2ImageProcessor(crop_size=32)
    squashed = processor(pixels, crop_pct=0)["pixel_values"][0]
    assert torch.equal(squashed, TestTransform(32, crop_ratio=0)(Image.fromarray(pixels)))
    assert processor.size == {"shortest_edge": 36}
    assert hub.MViTV2ImageProcessor(crop_size=224).size == {"shortest_edge": 256}
    with pytest.raises(UserError, match="Did you mean 'crop_pct'"):
        hub.MViTV2ImageProcessor(crop_pc=0.9)
    with pytest.raises(UserError, match="crop_size with crop_pct makes it"):
        hub.MViTV2ImageProcessor(crop_size=224, size={"shortest_edge": 248})
    with pytest.raises(UserError, match="Accepted: 3"):
        hub.MViTV2ImageProcessor(resample=0)


def test_card_to_processor_to_card(tmp_path):
    for kind, card in ((hub.MViTV2ImageProcessor, IMAGE_PIXELS), (hub.MViTV2VideoProcessor, CLIP_PIXELS)):
        kind.from_preprocessing(card).save_pretrained(tmp_path)
        assert kind.from_pretrained(tmp_path).preprocessing() == card


def test_a_video_file_is_sampled_and_prepared(clip_folder, video):
    processor = AutoVideoProcessor.from_pretrained(clip_folder)
    assert type(processor) is hub.MViTV2VideoProcessor
    with open_video(video) as source:
        chosen = ClipSampling(4, 2, "span").test_indices(source.num_frames, source.fps)
        frames = source.frames(chosen)
        every = source.frames(range(source.num_frames))
    # One centre crop of 32 is taken from frames with a short side of 36, also where the card's protocol has three.
    expected = ClipTestTransform(32)(frames).movedim(0, 1)
    found = processor(video, num_frames=4, do_sample_frames=True, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(found[0], expected)
    assert torch.equal(processor(every.numpy(), do_sample_frames=True)["pixel_values_videos"][0], expected)
    pictures = [Image.fromarray(frame.numpy()) for frame in frames]
    for given in (frames.numpy(), frames, frames.permute(0, 3, 1, 2), pictures, [frames.numpy(), frames.numpy()]):
        assert all(torch.equal(one, expected) for one in processor(given)["pixel_values_videos"])
    assert processor(video, num_frames=6)["pixel_values_videos"].shape == (1, 6, 3, 32, 32)
    with pytest.raises(UserError, match="Frames have shape"):
        processor(np.zeros((4, 20, 20, 5), np.uint8)[None])
