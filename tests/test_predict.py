"""Predictions from files, folders, patterns and pictures in memory, with what the checkpoint knows."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openmvit
from colours import CLASSES, picture, train_run, write_data
from openmvit import checkpoint
from openmvit.architectures import model_config
from openmvit.cli import main
from openmvit.data.images import read_image
from openmvit.data.transforms import test_transform_from as transform_from
from openmvit.model import MViT
from openmvit.predict import Predictor, predictions_csv


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train_run(folder, write_data(folder / "data"), name="run")
    torch.set_num_threads(threads)
    (folder / "runs" / "image" / "run").rename(folder / "run")
    return folder


@pytest.fixture
def predictor(place):
    return openmvit.load(place / "run", device="cpu")


def test_names_and_preprocessing_come_from_the_checkpoint(place, predictor):
    assert predictor.classes == CLASSES
    path = place / "data" / "val" / "bee" / "0.png"
    x = transform_from(predictor.card["preprocessing"])(read_image(path))
    expected = predictor.model(x[None]).softmax(1)[0]
    (found,) = predictor.predict(path, top=3)
    assert found.labels[0] == "bee" and found.path == str(path)
    by_name = dict(zip(found.labels, found.probabilities, strict=True))
    assert [by_name[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)


def test_every_kind_of_source_in_order(place, predictor, monkeypatch):
    val = place / "data" / "val"
    monkeypatch.chdir(val)
    array = np.asarray(Image.open(val / "cat" / "0.png"))
    rgba = Image.open(val / "ant" / "0.png").convert("RGBA")
    found = predictor.predict(["bee/1.png", val / "ant", "c*/*.png", array, rgba], top=1, batch=2)
    names = [one.path for one in found]
    assert names == [
        *("bee/1.png", str(val / "ant/0.png"), str(val / "ant/1.png")),
        *("cat/0.png", "cat/1.png", "image 5", "image 6"),
    ]
    assert [one.labels for one in found] == [("bee",), ("ant",), ("ant",), ("cat",), ("cat",), ("cat",), ("ant",)]


def test_batch_size_changes_nothing(place, predictor):
    one, many = (predictor.predict(place / "data" / "val", top=3, batch=size) for size in (1, 64))
    for a, b in zip(one, many, strict=True):
        assert a.labels == b.labels and a.probabilities == pytest.approx(b.probabilities, abs=1e-6)


def test_top_is_cut_at_the_number_of_classes(place, predictor):
    assert len(predictor.predict(place / "data" / "val" / "ant" / "0.png", top=99)[0].labels) == 3
    with pytest.raises(openmvit.UserError, match="top is 0"):
        predictor.predict("x.png", top=0)


def test_an_unreadable_file_does_not_stop_the_others(place, predictor, tmp_path):
    picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "c.jpg").touch()
    picture(tmp_path / "d.png", 2)
    found = predictor.predict(tmp_path, top=1, batch=3)
    assert [one.labels for one in found] == [("bee",), (), (), ("cat",)]
    assert found[1].error and found[2].error and not found[0].error
    rows = list(csv.DictReader(io.StringIO(predictions_csv(found))))
    assert [row["label"] for row in rows] == ["bee", "", "", "cat"] and rows[2]["error"] == found[2].error


def test_several_labels_are_independent(predictor):
    both = Predictor(predictor.model, predictor.card | {"multilabel": True})
    pixels = np.full((24, 24, 3), 200, np.uint8)
    (found,) = both.predict(pixels, top=3)
    x = both.kind.transform(Image.fromarray(pixels))
    expected = both.model(x[None]).sigmoid()[0]
    by_name = dict(zip(found.labels, found.probabilities, strict=True))
    assert [by_name[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)


def test_classes_without_names_are_numbered(predictor):
    bare = Predictor(predictor.model, predictor.card | {"classes": []})
    assert bare.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((2, 3, 4, 4), np.uint8), np.zeros((4, 4, 7), "u1")]
)
def test_an_array_that_is_no_image(predictor, array):
    with pytest.raises(openmvit.UserError, match="is no image"):
        predictor.predict(array)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("a.mp4", "a.mp4 is a video and this network takes images"),
        ("camera:0", "camera:0 is a video and this network takes images"),
        ("http://localhost/a.jpg", "images are read from files"),
        ("videos", "holds no images"),
    ],
)
def test_videos_and_addresses_are_refused(predictor, tmp_path, monkeypatch, source, cause):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "videos/b.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(openmvit.UserError, match=cause):
        predictor.predict(source)


@pytest.mark.parametrize("option", [{"timeline": True}, {"hop": 1.0}, {"seconds": 2.0}])
def test_options_of_videos_are_refused(place, predictor, option):
    with pytest.raises(openmvit.UserError, match="are for videos and this network takes images"):
        predictor.predict(place / "data" / "val", **option)


def test_the_command_writes_table_json_csv_and_pictures(place, tmp_path, capsys):
    import json

    picture(tmp_path / "in" / "a.png", 0)
    (tmp_path / "in" / "b.png").write_text("no picture")
    picture(tmp_path / "in" / "sub" / "a.png", 1)
    out = {name: str(tmp_path / "out" / name) for name in ("x.json", "x.csv", "pictures")}
    argv = ["predict", str(place / "run"), str(tmp_path / "in"), "--top", "2", "--device", "cpu"]
    argv += ["--json", out["x.json"], "--csv", out["x.csv"], "--out", out["pictures"]]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "ant" in lines[0] and "unreadable: " in lines[1] and "bee" in lines[2]
    folder = Path(out["pictures"])
    assert lines[3] == f"3 files, 1 unreadable (listed in {folder / 'unreadable.txt'}), saved to {folder}"
    assert (folder / "unreadable.txt").read_text().startswith(f"{tmp_path / 'in' / 'b.png'}\t")
    rows = json.loads((tmp_path / "out" / "x.json").read_text())
    assert [row["labels"][:1] for row in rows] == [["ant"], [], ["bee"]] and rows[1]["error"]
    assert len((tmp_path / "out" / "x.csv").read_text().splitlines()) == 1 + 2 + 1 + 2
    written = sorted(folder.rglob("*.png"))
    assert written == [folder / "a.png", folder / "sub" / "a.png"], "folders are those of the sources"
    assert [row.get("output", "") for row in rows] == [str(written[0]), "", str(written[1])]
    drawn = np.asarray(Image.open(written[0]).convert("RGB"))
    scale = drawn.shape[1] // 24
    original = np.asarray(Image.open(tmp_path / "in" / "a.png")).repeat(scale, 0).repeat(scale, 1)
    assert scale >= 6 and np.array_equal(drawn[: 24 * scale], original)
    strip = drawn[24 * scale :]
    assert strip.shape[0] >= 14 and strip.min() < 60, "no text under the picture"


def test_no_source_and_no_other_answer_is_replaced(place, tmp_path, predictor):
    for name in ("one/a.png", "one/a.bmp", "two/A.png", "two/a.png"):
        picture(tmp_path / name, 0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    found = predictor.predict(tmp_path)
    written = predictor.draw(found, tmp_path)
    assert len({str(path).casefold() for path in written}) == 4
    assert written == predictor.targets(found, tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_answer_is_drawn_saved_and_told_as_json(place, tmp_path, predictor):
    import json

    picture(tmp_path / "a.png", 0)
    (one,) = predictor.predict(tmp_path / "a.png")
    assert json.loads(one.to_json())["labels"] == list(one.labels)
    assert one.plot().width >= 160
    assert Image.open(one.save(tmp_path / "new" / "drawn.jpg")).size == one.plot().size
    with pytest.raises(openmvit.UserError, match="ends like no picture"):
        one.save(tmp_path / "drawn.xyz")
    (memory,) = predictor.predict(Image.open(tmp_path / "a.png"))
    with pytest.raises(openmvit.UserError, match="given in memory"):
        memory.plot()


def test_class_names_come_from_a_file(tmp_path, capsys):
    model = MViT(model_config("mvitv2_micro", num_classes=3))
    preprocessing = {"imgsz": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_ratio": 1.0, "interpolation": "bicubic"}
    card = {"architecture": model.config.to_dict(), "model": "mvitv2_micro", "task": "image", "classes": []}
    checkpoint.save(tmp_path / "w.safetensors", model.state_dict(), card | {"preprocessing": preprocessing})
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("ash\nbeech\ncedar\n")
    words = ["predict", str(tmp_path / "w.safetensors"), str(tmp_path / "a.png"), "--classes"]
    assert main([*words, str(tmp_path / "names.txt")]) == 0
    assert {"ash", "beech", "cedar"} <= set(re.findall(r"\w+", capsys.readouterr().out))
    (tmp_path / "names.txt").write_text("ash\n")
    assert main([*words, str(tmp_path / "names.txt")]) == 2
    assert "the weights have 3" in capsys.readouterr().err
