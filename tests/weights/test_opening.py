"""What a name, a tag or a file becomes: the network the weights were made for, with names of its classes."""

import pickle
from collections import OrderedDict

import pytest
import torch
import torchvision

from openmvit import UserError, create_model, zoo
from openmvit.architectures import ARCHITECTURES, DETECTORS
from openmvit.checkpoint import read_content, save
from openmvit.convert import from_native
from openmvit.detection import Detector, DetectorConfig, released
from openmvit.zoo.classes import class_names

NARROW = {"embed_dim": 16, "drop_path_rate": 0.0}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that stands for all servers; `place(card, content)` puts a file there."""
    from openmvit import weights

    monkeypatch.setenv("OPENMVIT_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))

    def place(name, content):
        card = weights.find_card(*name.split("."))
        file = tmp_path / "mirror" / card.url.removeprefix("https://")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
        return file

    return place


def narrow(monkeypatch, *names):
    """Make published names mean narrow networks, so that files of theirs take no time."""
    for name in names:
        monkeypatch.setitem(ARCHITECTURES, name, ARCHITECTURES[name] | NARROW | {"input_size": (16, 64, 64)})


def test_a_card_with_other_classes_than_the_name(mirror, monkeypatch):
    narrow(monkeypatch, "mvitv2_small_16x4")
    theirs = create_model("mvitv2_small_16x4", num_classes=174)
    mirror("mvitv2_small_16x4.fb_ssv2", {"model_state": theirs.state_dict()})
    model = create_model("mvitv2_small_16x4.fb_ssv2")
    assert model.config.num_classes == 174
    assert model.load_report.reinitialised == []
    assert torch.equal(model.head.projection.weight, theirs.head.projection.weight)
    other = create_model("mvitv2_small_16x4", pretrained="ssv2", num_classes=400)
    assert other.load_report.reinitialised == ["head.projection.weight", "head.projection.bias"]
    loaded, card = zoo.load_model("mvitv2_small_16x4.ssv2")
    assert loaded.config.num_classes == 174
    assert (card["released"], card["classes"]) == ("mvitv2_small_16x4.fb_ssv2", [])
    assert card["preprocessing"]["sampling"] == "segments"


def test_pre_trained_weights_load_into_the_form_for_fine_tuning(mirror, monkeypatch):
    name = "maskfeat_mvitv2_small_16x4"
    narrow(monkeypatch, name)
    theirs = create_model(name)
    state = {k: v + 1 for k, v in theirs.state_dict().items() if not k.startswith(("norm.", "head."))}
    # The last stage was not pooled: its tables are longer.
    length = state["blocks.14.attn.rel_pos_h"].shape[0]
    for axis in "hw":
        table = state[f"blocks.15.attn.rel_pos_{axis}"]
        state[f"blocks.15.attn.rel_pos_{axis}"] = torch.ones(length, table.shape[1])
    state |= {"mask_token": torch.zeros(1, 1, 16), "pred_head.projections.0.weight": torch.zeros(108, 128)}
    mirror(f"{name}.fb_k400_pt", {"model_state": state})
    model = create_model(f"{name}.fb_k400_pt")
    report = model.load_report
    assert model.config.num_classes == 400
    assert report.reinitialised == ["norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"]
    assert set(report.ignored) == {"mask_token", "pred_head.projections.0.weight"}
    assert sorted(row.split()[0] for row in report.resized) == [f"blocks.15.attn.rel_pos_{a}" for a in "hw"]
    assert torch.equal(model.patch_embed.proj.weight, state["patch_embed.proj.weight"])


def test_a_fine_tune_whose_head_reads_the_class_token(mirror, monkeypatch):
    name = "maskfeat_mvitv2_small_16x4"
    narrow(monkeypatch, name)
    theirs = create_model(name, norm_after_pool=False)
    mirror(f"{name}.mmself_k400", b"")  # its published hash cannot be met: read as a file of the user's
    file = mirror(f"{name}.mm_k400", {"state_dict": from_native("mmaction2", theirs.config, theirs.state_dict())})
    with pytest.raises(UserError, match="another file than was published"):
        create_model(name, pretrained=True)
    model = create_model(name, pretrained=file).eval()
    assert not model.config.norm_after_pool
    x = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), theirs.eval()(x))


@pytest.fixture
def lvis(monkeypatch):
    """A small detector under a published name, with the classes of LVIS, as its project writes it."""
    name = "cascade_mask_rcnn_mvitv2_base_ln"
    fields = DETECTORS[name] | {
        "backbone": DETECTORS[name]["backbone"] | {"embed_dim": 16, "depths": (1, 1, 1, 1)},
        "channels": 32, "box_convs": (32,), "box_fcs": (32,), "mask_convs": (32,), "square_pad": 64,
    }  # fmt: skip
    monkeypatch.setitem(DETECTORS, name, fields)
    model = Detector(DetectorConfig.from_dict(fields).replace(num_classes=1203, scores="sigmoid"))
    theirs = released.from_native(model.state_dict(), model.config)
    return pickle.dumps({"model": OrderedDict((k, v.numpy()) for k, v in theirs.items())}, protocol=2)


def test_a_detector_is_built_as_its_card_says(mirror, lvis):
    content = lvis
    name = "cascade_mask_rcnn_mvitv2_base_ln"
    mirror(f"{name}.fb_in21k_lvis", content)
    model = create_model(f"{name}.fb_in21k_lvis")
    config = model.config
    assert (config.num_classes, config.scores, config.score_threshold, config.max_detections) == (
        1203, "sigmoid", 0.02, 300,
    )  # fmt: skip
    assert model.load_report.reinitialised == []
    assert model.load_report.source == f"{name}.fb_in21k_lvis"
    other = create_model(f"{name}.fb_in21k_lvis", num_classes=5)
    assert (other.config.num_classes, other.config.scores) == (5, "softmax")
    assert create_model(name).config.num_classes == 80
    loaded, card = zoo.load_model(f"{name}.lvis")
    assert loaded.config.scores == "sigmoid"
    assert card["released"] == f"{name}.fb_in21k_lvis"
    assert card["classes"] == []


def card_of(name):
    from openmvit import weights

    return weights.find_card(*name.split("."))


def test_names_of_classes_come_from_torchvision_where_it_has_them(tmp_path):
    path = tmp_path / "w.pyth"
    kinetics = torchvision.models.get_weight("MViT_V2_S_Weights.KINETICS400_V1").meta["categories"]
    assert class_names(400, path, card_of("mvitv2_small_16x4.fb_k400")) == (kinetics, [])
    images, _ = class_names(1000, path, card_of("mvitv2_tiny.fb_in1k"))
    assert images[:2] == ["tench", "goldfish"]
    things, numbers = class_names(80, path, card_of("mask_rcnn_mvitv2_tiny.fb_in1k_coco"))
    assert (things[0], things[-1], numbers[0], numbers[-1]) == ("person", "toothbrush", 1, 90)
    assert len(things) == len(numbers) == 80
    # Nobody has compared the order of this project.
    assert class_names(400, path, card_of("mvitv2_small_16x4.mm_200e_k400")) == ([], [])
    assert class_names(600, path, card_of("mvitv1_base24_32x3.fb_k600")) == ([], [])
    assert class_names(7, path, card_of("mvitv2_tiny.fb_in1k")) == ([], [])


def test_names_of_classes_come_from_the_users_files(tmp_path, monkeypatch):
    path = tmp_path / "w.pyth"
    torch.manual_seed(0)
    model = create_model("mvitv2_tiny", embed_dim=16, num_classes=3)
    torch.save({"model_state": model.state_dict()}, path)
    (tmp_path / "names.txt").write_text("cat\ndog\nfish\n")
    assert zoo.load_model(path)[1]["classes"] == []
    assert zoo.load_model(path, classes=tmp_path / "names.txt")[1]["classes"] == ["cat", "dog", "fish"]
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    assert zoo.load_model(path)[1]["classes"] == ["a", "b", "c"]
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    assert zoo.load_model(path)[1]["classes"] == ["x", "y", "z"]
    (tmp_path / "w.classes.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"w\.classes\.txt names 2 classes and the weights have 3"):
        zoo.load_model(path)
    said = zoo.convert_file(path, tmp_path / "ours.safetensors", classes=tmp_path / "names.txt")
    assert "3 classes" in said
    card = read_content(tmp_path / "ours.safetensors").card
    assert card is not None and card["classes"] == ["cat", "dog", "fish"]


def test_a_file_of_ours_brings_its_classes(tmp_path):
    model = create_model("mvitv2_micro", num_classes=4)
    card = {"architecture": model.config.to_dict(), "model": "mvitv2_micro", "task": "image", "classes": list("abcd")}
    save(tmp_path / "w.safetensors", model.state_dict(), card)
    assert create_model("mvitv2_micro", pretrained=tmp_path / "w.safetensors").config.num_classes == 4
