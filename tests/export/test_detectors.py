"""Exported detectors: ONNX Runtime against the network, on recorded pictures and random ones of several sizes."""

import json
import re

import numpy as np
import onnx
import pytest
import torch

import openmvit
from detection import small
from detectors import CATEGORY_IDS, CLASSES, detector_file, recorded_finds, recorded_picture
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.errors import UserError
from openmvit.export import export, formats
from openmvit.export.detectors import matched_difference, plan_detector
from openmvit.predict import coco_document
from openmvit.validate import validate
from openmvit.zoo import load_model, load_network

TINY = {"backbone": small.BACKBONE.replace(depths=(1, 1), window=None, window_pattern="all", global_kv_stride_factor=1)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The recorded Mask R-CNN, exported by the command, and a picture."""
    folder = tmp_path_factory.mktemp("export")
    recorded_picture(0, folder / "in" / "a.png")
    assert main(["export", str(detector_file(folder / "d.safetensors")), "--out", str(folder / "d.onnx")]) == 0
    return folder


def tiny_file(path, **changes):
    """A random detector whose scores and boxes differ; its card prepares pictures at 90 to 120 pixels."""
    model = small.detector(**changes, score_threshold=0.05)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("cls_score", "cls_logits", "bbox_pred")):
                parameter.mul_(30)
    about = {"task": "detection", "model": "tiny", "classes": ["a", "b", "c"], "category_ids": [1, 2, 3]}
    sides = {"preprocessing": {"short_side": 90, "long_side": 120}}
    checkpoint.save(path, model.state_dict(), {**about, **sides, "architecture": model.config.to_dict()})
    return path


def agree(file, graph, sizes):
    """The detector and its graph find the same in random pictures; returns how many objects."""
    (model, _), (network, _) = load_model(file), load_network(graph)
    count = 0
    for number, size in enumerate(sizes):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(number)) * 255
        with torch.no_grad():
            (own,), (found,) = model([image]), network([image])
        parts = [(one.boxes, one.scores, one.labels, one.mask_probs) for one in (own, found)]
        assert matched_difference(*parts) < 1e-4
        assert found.size == own.size == size
        count += len(own)
    return count


@torch.no_grad()
def test_random_pictures_of_any_size_agree(place):
    sizes = [(205, 270), (64, 40), (300, 500), (231, 96)]
    assert agree(place / "d.safetensors", place / "d.onnx", sizes) > 0


def test_the_file_says_what_it_takes_and_gives(place):
    model = onnx.load(place / "d.onnx")
    onnx.checker.check_model(model)

    def shapes(values):
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    assert shapes(model.graph.input) == {"image": [1, 3, "height", "width"], "size": [2], "threshold": [1]}
    found = shapes(model.graph.output)
    assert found["boxes"] == ["objects", 4] and found["masks"] == ["objects", 28, 28]
    assert found["scores"] == found["labels"] == ["objects"]
    card = json.loads({p.key: p.value for p in model.metadata_props}["openmvit"])
    assert card["classes"] == list(CLASSES) and card["export"]["multiple"] == 32


def test_predict_with_the_graph_gives_the_recorded_finds(place, capsys):
    (found,) = openmvit.load(place / "d.onnx").predict(place / "in" / "a.png", score=0.0)
    expected = recorded_finds("alone.0")
    assert found.classes.tolist() == expected["classes"].tolist()
    assert np.abs(found.boxes - expected["boxes"].numpy()).max() < 0.02
    assert np.abs(found.scores - expected["scores"].numpy()).max() < 2e-4
    (own,) = openmvit.load(place / "d.safetensors").predict(place / "in" / "a.png", score=0.0)
    assert (own.masks() != found.masks()).mean() < 1e-4 and found.masks().any()
    assert main(["predict", str(place / "d.onnx"), str(place / "in")]) == 0
    assert re.search(r"\d+ (ant|bee|cat)", capsys.readouterr().out)


def test_a_picture_without_objects_gives_none(place):
    (found,) = openmvit.load(place / "d.onnx").predict(np.zeros((90, 120, 3), np.uint8), score=0.999)
    assert len(found) == 0 and found.size == (90, 120)


def test_val_of_the_graph_is_val_of_the_detector(place):
    picture = recorded_picture(0)
    finds = openmvit.load(place / "d.safetensors").predict([picture], score=0.3)
    document = coco_document(finds, CLASSES, CATEGORY_IDS)
    for row in document["annotations"][::2]:
        row["bbox"][0] += row["bbox"][2] * 0.3
    document["images"][0]["file_name"] = "0.png"
    for split in ("train", "val"):
        recorded_picture(0, place / "data" / split / "0.png")
        (place / "data" / split / "_annotations.coco.json").write_text(json.dumps(document))
    scores = [validate(place / name, place / "data", workers=0, device="cpu") for name in ("d.safetensors", "d.onnx")]
    for kind in ("box", "mask"):
        assert list(scores[1][kind].values()) == pytest.approx(list(scores[0][kind].values()), abs=1e-6)
    assert 0.1 < scores[1]["box"]["AP"] < 0.99


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"export": {"precision": "fp32", "multiple": 0}}, "do not say of what the sides are multiples"),
        ({"export": {"precision": "fp32"}}, "do not say of what the sides are multiples"),
        ({"classes": ["one"]}, "names 1 classes of a network with"),
        ({"square_pad": 64}, "takes no squares of 64"),
    ],
)
def test_metadata_that_cannot_be_are_one_sentence(place, tmp_path, changes, reason):
    model = onnx.load(place / "d.onnx")
    card = json.loads({p.key: p.value for p in model.metadata_props}["openmvit"])
    if "square_pad" in changes:
        card["architecture"] |= changes
    formats.write_card(model, card | {key: value for key, value in changes.items() if key != "square_pad"})
    onnx.save(model, str(tmp_path / "d.onnx"))
    with pytest.raises(UserError, match=reason):
        load_network(tmp_path / "d.onnx")


@pytest.mark.parametrize("options", [{"tta": True}, {"soft_nms": "gaussian"}, {"batch": 2}])
def test_what_a_graph_cannot_do_is_refused(place, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is given and the detector is an exported graph"):
        openmvit.load(place / "d.onnx").predict(place / "in" / "a.png", **options)


@pytest.mark.parametrize(("option", "value"), [("int8", True), ("imgsz", 64), ("fixed", True)])
def test_options_of_classifiers_are_refused(place, option, value):
    with pytest.raises(UserError, match=f"{option} is given and .* is a detector"):
        export(place / "d.safetensors", out=place / "other.onnx", **{option: value})
    assert not (place / "other.onnx").exists()


def test_a_detector_that_suppresses_softly_is_refused(place):
    model, card = load_model(place / "d.safetensors")
    model.config = model.config.replace(soft_nms="linear")
    with pytest.raises(UserError, match="soft_nms 'linear'"):
        plan_detector(model, card)


def test_a_difference_is_seen_whatever_the_order():
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [5, 5, 30, 40]]), torch.tensor([0.9, 0.8])
    labels, masks = torch.tensor([1, 2]), torch.rand(2, 28, 28)
    own = (boxes, scores, labels, masks)
    turned = [part.flip(0) for part in own]
    assert matched_difference(own, own) == matched_difference(own, turned) == 0
    assert matched_difference(own, (boxes + 0.02, scores, labels, masks)) == pytest.approx(1e-4, rel=1e-3)
    assert matched_difference(own, (boxes, scores - 0.1, labels, masks)) == pytest.approx(0.1)
    assert matched_difference(own, (boxes, scores, labels, masks + 0.2)) == pytest.approx(0.2)
    assert matched_difference(own, (boxes, scores, labels.flip(0), masks)) > 0.1
    assert matched_difference(own, (boxes, scores, labels + 1, masks)) == float("inf")
    assert matched_difference(own, [part[:1] for part in own]) == float("inf")
    assert matched_difference(own, (boxes[[0, 0]], scores[[0, 0]], labels[[0, 0]], masks)) == float("inf")


@pytest.mark.parametrize("part", [0, 1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_agreement(part, value):
    own = [torch.tensor([[0.0, 0, 9, 9], [5, 5, 30, 40]]), torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), None]
    own[3] = torch.rand(2, 28, 28)
    other = [x.clone() for x in own]
    other[part].view(-1)[-1] = value
    assert matched_difference(own, other) == matched_difference(other, own) == float("inf")
    assert matched_difference(other, other) == float("inf")


def test_a_detector_that_finds_nothing_is_refused(tmp_path):
    model, card = load_model(
        tiny_file(tmp_path / "t.safetensors", **TINY, neck="last", channels=16, anchor_sizes=(16.0,))
    )
    for name, parameter in model.named_parameters():
        if "cls_score" in name:
            parameter.requires_grad_(False).fill_(float("nan"))
    with pytest.raises(UserError, match="finds nothing in random pictures"):
        plan_detector(model, card)


@torch.no_grad()
def test_a_program_of_torch_finds_the_same(tmp_path):
    file = tiny_file(tmp_path / "t.safetensors", **TINY, neck="last", channels=16, anchor_sizes=(16.0, 48.0))
    done = export(file, "torch")
    assert done.path == tmp_path / "t.pt2" and done.sizes == 4 and done.worst < 1e-4
    model, _ = load_model(file)
    image = torch.rand(1, 3, 96, 64) * 255
    boxes, scores, labels, masks = torch.export.load(done.path).module()(
        image, torch.tensor([90.0, 60.0]), torch.tensor([0.05])
    )
    (own,) = model([image[0, :, :90, :60]])
    assert (
        matched_difference((own.boxes, own.scores, own.labels, own.mask_probs), (boxes, scores, labels, masks)) < 1e-4
    )


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("changes", [small.CASCADE, {"square_pad": 128}], ids=["cascade", "square"])
def test_other_detectors_agree(tmp_path, changes):
    file = tiny_file(tmp_path / "t.safetensors", **changes)
    done = export(file)
    assert done.sizes == 4 and done.worst < 1e-4
    sizes = [(90, 120), (64, 64), (120, 33)]
    assert agree(file, done.path, sizes) > 0
