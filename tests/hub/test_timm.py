"""timm.create_model and torch.hub.load give our networks, under their conventions."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch

import openmvit
import openmvit.hub.timm
from openmvit import UserError
from openmvit.architectures import ARCHITECTURES, DETECTORS, model_config
from openmvit.checkpoint import save

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_every_image_network_is_there():
    images = {f"openmvit_{name}" for name in ARCHITECTURES if model_config(name).ndim == 2}
    assert set(timm.list_models("openmvit_*")) == images
    assert "openmvit_mvitv2_small.fb_in1k" in timm.list_pretrained("openmvit_*")


@pytest.mark.parametrize("name", ["mvitv2_tiny", "mvitv2_small_cls", "mvitv1_base_16"])
def test_outputs_equal_the_networks(name, pictures):
    model = timm.create_model(f"openmvit_{name}", num_classes=5, img_size=64).eval()
    native = openmvit.create_model(name, num_classes=5, img_size=64).eval()
    native.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = native(pictures)
        assert torch.equal(model(pictures), expected)
        features = model.forward_features(pictures)
        assert torch.equal(model.forward_head(features), expected)
        read = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.get_classifier()(read), expected)
        last, maps = model.forward_intermediates(pictures, indices=2)
        assert torch.equal(last, features)
        for own, other in zip(maps, native.forward_features(pictures)[-2:], strict=True):
            assert torch.equal(own, other)


def test_features_only(pictures):
    model = timm.create_model("openmvit_mvitv2_tiny", features_only=True, out_indices=(0, 2)).eval()
    assert model.feature_info.channels() == [96, 384]
    assert model.feature_info.reduction() == [4, 16]
    maps = model(pictures)
    assert [tuple(m.shape) for m in maps] == [(2, 96, 16, 16), (2, 384, 4, 4)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())  # what no map needs is gone
    every = timm.create_model("openmvit_mvitv2_tiny", features_only=True)
    assert every.feature_info.channels() == [96, 192, 384, 768]
    assert every.feature_info.reduction() == [4, 8, 16, 32]
    last = timm.create_model("openmvit_mvitv2_tiny", features_only=True, out_indices=(-1,))
    assert last.feature_info.channels() == [768]
    with pytest.raises(UserError, match="NCHW"):
        model.model.forward_intermediates(pictures, output_fmt="NLC")


def test_classifiers_are_reset(pictures):
    model = timm.create_model("openmvit_mvitv2_tiny", num_classes=4)
    assert (model.num_classes, model.get_classifier().out_features) == (4, 4)
    model.reset_classifier(0)
    assert model(pictures).shape == (2, model.num_features)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(9)
    assert model(pictures).shape == (2, 9)
    assert timm.create_model("openmvit_mvitv2_tiny", num_classes=0)(pictures).shape == (2, 768)


def test_our_preprocessing_is_timms():
    model = timm.create_model("openmvit_mvitv2_tiny")
    assert model.default_cfg["crop_pct"] == 0.875
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(model.default_cfg["first_conv"]) is model.patch_embed.proj
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["interpolation"]) == ((3, 224, 224), "bicubic")
    from PIL import Image

    from openmvit.data.transforms import TestTransform

    picture = Image.effect_noise((300, 280), 90).convert("RGB")
    theirs, ours = timm.data.create_transform(**config)(picture), TestTransform(224)(picture)
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_weights_come_from_a_file_through_our_converters(tmp_path, pictures):
    native = openmvit.create_model("mvitv2_tiny", num_classes=5, img_size=64).eval()
    card = {"architecture": native.config.to_dict(), "model": "mvitv2_tiny", "classes": []}
    save(tmp_path / "own.safetensors", native.state_dict(), card)
    torch.save({"model_state": native.state_dict()}, tmp_path / "authors.pyth")
    for name in ("own.safetensors", "authors.pyth"):
        overlay = {"file": str(tmp_path / name)}
        model = timm.create_model(
            "openmvit_mvitv2_tiny", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, img_size=64
        ).eval()
        assert torch.equal(model(pictures), native(pictures)), name
    maps = timm.create_model(
        "openmvit_mvitv2_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, img_size=64
    ).eval()
    for own, other in zip(maps(pictures), native.forward_features(pictures), strict=True):
        assert torch.equal(own, other)


def test_timms_optimiser_groups_know_the_blocks():
    from timm.optim import param_groups_layer_decay

    model = timm.create_model("openmvit_mvitv2_tiny", num_classes=2)
    groups = param_groups_layer_decay(model, weight_decay=0.1, no_weight_decay_list=model.no_weight_decay())
    assert len({group["lr_scale"] for group in groups}) == 1 + model.config.depth + 1
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not any(id(p) in decayed for name, p in model.named_parameters() if "rel_pos" in name)


def test_torch_hub_loads_from_the_repository(pictures):
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    entries = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entries)
    assert {name for name in dir(entries) if callable(getattr(entries, name))} >= {*ARCHITECTURES, *DETECTORS}
    assert entries.dependencies == ["torch", "torchvision", "safetensors"]
    torch.manual_seed(4)
    model = torch.hub.load(str(ROOT), "mvitv2_micro", source="local", num_classes=6).eval()
    torch.manual_seed(4)
    native = openmvit.create_model("mvitv2_micro", num_classes=6).eval()
    assert torch.equal(model(pictures), native(pictures))
    detector = torch.hub.load(str(ROOT), "mask_rcnn_mvitv2_micro", source="local")
    assert type(detector).__name__ == "Detector"
    with pytest.raises(UserError, match="No weights of mvitv2_micro"):
        torch.hub.load(str(ROOT), "mvitv2_micro", source="local", pretrained=True)
