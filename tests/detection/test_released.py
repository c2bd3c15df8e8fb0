"""Released detectors by their keys: counts, names and shapes of all configurations, families, both directions."""

import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from detection.small import CASCADE, config, detector, pictures
from openmvit import zoo
from openmvit.architectures import DETECTORS
from openmvit.checkpoint import read, save
from openmvit.detection import Detector, DetectorConfig, from_settings, released
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.zoo import detectors
from parity.golden_detection import FOLDER

RECORDED = json.loads((FOLDER / "state_dict_keys.json").read_text())
SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge"}


def our_name(theirs: str) -> str:
    """Name of the detector that a released configuration is."""
    kind, _, rest = theirs.removeprefix("vitdet_").partition("_mvitv2_")
    return f"{kind}_mvitv2_{SIZES[rest[0]]}{'_ln' if theirs.startswith('vitdet') else ''}"


def empty(name: str) -> Detector:
    with torch.device("meta"):
        return Detector(DetectorConfig.from_dict(DETECTORS[name]))


@pytest.mark.parametrize("theirs", RECORDED["counts"])
def test_parameter_counts(theirs):
    model, expected = empty(our_name(theirs)), RECORDED["counts"][theirs]
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]
    assert sum(p.numel() for p in model.backbone.parameters()) == expected["backbone_parameters"]
    assert len(released.from_native(model.state_dict(), model.config)) == expected["entries"]


@pytest.mark.parametrize("theirs", RECORDED["keys"])
def test_keys_and_shapes(theirs):
    model = empty(our_name(theirs))
    state = released.from_native(model.state_dict(), model.config)
    assert {key: list(value.shape) for key, value in state.items()} == RECORDED["keys"][theirs]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_file_tells_which_detector_it_holds(name):
    model = empty(name)
    theirs = released.from_native(model.state_dict(), model.config)
    assert released.is_released(theirs)
    assert released.find_detector(theirs, "file") == (name, model.config)
    back = released.to_native(theirs | {"pixel_mean": torch.zeros(3)}, model.config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_large_vocabulary_family_has_its_own_scores():
    with torch.device("meta"):
        fields = DetectorConfig.from_dict(DETECTORS["cascade_mask_rcnn_mvitv2_base_ln"]).replace(num_classes=1203)
        model = Detector(fields)
    name, found = released.find_detector(released.from_native(model.state_dict(), fields), "file")
    assert name == "cascade_mask_rcnn_mvitv2_base_ln"
    assert (found.num_classes, found.scores, found.score_threshold, found.max_detections) == (
        1203,
        "sigmoid",
        0.02,
        300,
    )


@pytest.mark.parametrize(
    "fields", [{}, CASCADE | {"head_norm": "bn"}, CASCADE | {"head_norm": "ln", "neck_norm": "ln"}]
)
def test_both_directions_are_bit_equal(fields):
    model = detector(**fields)
    theirs = released.from_native(model.state_dict(), model.config)
    back = released.to_native(theirs, model.config)
    own = model.state_dict()
    assert list(back) == list(own)
    assert all(torch.equal(back[k], own[k]) for k in own)


def test_a_key_without_a_place_is_named():
    model = detector()
    theirs = released.from_native(model.state_dict(), model.config)
    with pytest.raises(UserError, match=r"roi_heads\.keypoint_head"):
        released.to_native(theirs | {"roi_heads.keypoint_head.weight": torch.zeros(1)}, model.config)


def test_settings_build_what_was_recorded_and_refuse_the_rest():
    settings = json.loads((FOLDER / "mask_rcnn_plain" / "config.json").read_text())
    assert from_settings(settings).config.num_classes == 3
    wrong = json.loads(json.dumps(settings))
    wrong["backbone"]["blocks"][2]["window"] = 14
    with pytest.raises(UserError, match="Block 2 has window 14"):
        from_settings(wrong)
    with pytest.raises(UserError, match="lack rpn"):
        from_settings({key: value for key, value in settings.items() if key != "rpn"})
    wrong = json.loads(json.dumps(settings))
    wrong["input"]["channel_order"] = "BGR"
    with pytest.raises(UserError, match="BGR"):
        from_settings(wrong)


@pytest.fixture
def tiny_release(tmp_path, monkeypatch):
    """A file in the shape of the released ones, of a small detector that this test lets the package know."""
    fields = config(**CASCADE, head_norm="bn")
    monkeypatch.setitem(DETECTORS, "cascade_test", fields.to_dict())
    model = detector(**CASCADE, head_norm="bn")
    theirs = released.from_native(model.state_dict(), fields)
    path = tmp_path / "model_final_0123ab.pkl"
    content = {"model": OrderedDict((k, v.numpy()) for k, v in theirs.items()), "__author__": "Test"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return model, path


def test_a_released_file_is_read_converted_and_read_again(tiny_release, tmp_path, monkeypatch):
    model, path = tiny_release
    like = detectors.cards()[-1]
    monkeypatch.setattr(zoo.detectors, "cards", lambda: [type(like)(**vars(like) | {"model": "cascade_test"})])
    loaded, card = zoo.load_model(path)
    assert (card["task"], card["model"]) == ("detection", "cascade_test")
    images = pictures((50, 70))
    expected = model(images)[0]
    assert torch.equal(loaded(images)[0].boxes, expected.boxes)
    said = zoo.convert_file(path, tmp_path / "ours.safetensors")
    assert "cascade_test" in said
    again, own = zoo.load_model(tmp_path / "ours.safetensors")
    assert own["task"] == "detection"
    assert torch.equal(again(images)[0].masks(), expected.masks())


def test_other_classes_keep_everything_but_the_predictors(tiny_release, capfd):
    model, path = tiny_release
    other = zoo.create_model("cascade_test", pretrained=path, num_classes=5)
    assert "reinitialised" in capfd.readouterr().err
    fresh = set(other.load_report.reinitialised)
    assert all(k.startswith(("roi_heads.box_predictors.", "roi_heads.mask_predictor.mask_fcn_logits")) for k in fresh)
    assert len(fresh) == 8  # three times scores and bias, one mask layer and bias: boxes know no classes
    assert torch.equal(other.backbone.norms[0].weight, model.backbone.norms[0].weight)


def test_a_classifier_starts_the_backbone(tmp_path, capfd, monkeypatch):
    fields = config()
    monkeypatch.setitem(DETECTORS, "mask_test", fields.to_dict())
    classifier = MViT(fields.backbone.replace(num_classes=10, window=None, window_pattern="all",
                                                         global_kv_stride_factor=1))  # fmt: skip
    card = {"architecture": classifier.config.to_dict(), "model": "mvitv2_test", "task": "image"}
    save(tmp_path / "image.safetensors", classifier.state_dict(), card)
    model = zoo.create_model("mask_test", pretrained=tmp_path / "image.safetensors")
    assert "the backbone alone" in capfd.readouterr().err
    own, theirs = model.backbone.model.state_dict(), classifier.state_dict()
    trunk = list(own)
    assert trunk
    assert all(torch.equal(own[key], theirs[key]) for key in trunk)
    assert {k.split(".")[0] for k in model.load_report.reinitialised} == {"backbone", "neck", "rpn", "roi_heads"}
    small = classifier.config.replace(embed_dim=16)
    other = MViT(small)
    card = {"architecture": small.to_dict(), "model": "mvitv2_test", "task": "image"}
    save(tmp_path / "wide.safetensors", other.state_dict(), card)
    with pytest.raises(UserError, match="do not fit"):
        zoo.create_model("mask_test", pretrained=tmp_path / "wide.safetensors")


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_any_other_global_is_refused_and_not_run(tmp_path, capfd, protocol):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "x": Evil()}, protocol=protocol))
    with pytest.raises(UserError, match=r"builtin(s|__)\.print"):
        read(path)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["arrays", "tensors", "float64", "scalar"])
def test_a_pickle_of_arrays_or_tensors_is_read(tmp_path, kind):
    values = {
        "arrays": np.arange(6, dtype=np.float32).reshape(2, 3),
        "tensors": torch.arange(6.0).view(2, 3),
        "float64": np.arange(6.0).reshape(3, 2).T.copy(order="F"),
        "scalar": np.array(7),
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"w": values[kind]}, "__author__": "x"}, protocol=2))
    state, card = read(path)
    assert card is None
    assert torch.equal(state["w"], torch.as_tensor(values[kind]))


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q", b"not a pickle at all"])
def test_a_damaged_pickle_is_named(tmp_path, content):
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pkl"):
        read(path)
