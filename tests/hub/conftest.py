"""Files and folders that the hub tests share."""

import pytest
import torch
from hubfiles import CLIP, IMAGE, clip_card, image_card, network

import openmvit.hub as hub
from openmvit.checkpoint import save

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_file(tmp_path_factory):
    model, path = network(**IMAGE), tmp_path_factory.mktemp("files") / "image.safetensors"
    save(path, model.state_dict(), image_card(model))
    return path


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    model, path = network(**CLIP), tmp_path_factory.mktemp("files") / "clip.safetensors"
    save(path, model.state_dict(), clip_card(model))
    return path


@pytest.fixture(scope="session")
def image_folder(image_file, tmp_path_factory):
    return hub.from_checkpoint(image_file, tmp_path_factory.mktemp("folders") / "image")


@pytest.fixture(scope="session")
def clip_folder(clip_file, tmp_path_factory):
    return hub.from_checkpoint(clip_file, tmp_path_factory.mktemp("folders") / "clip")
