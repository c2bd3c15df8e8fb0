"""Scores of a run on its own and on other data, by both protocols."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colours import CLASSES, picture, train_run, write_data
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.config import MViTConfig
from openmvit.data.images import ImageDataset, open_images, read_image
from openmvit.data.transforms import test_transform_from as transform_from
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.validate import evaluate, results_text, validate


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    train_run(folder, write_data(folder / "data"), name="run")
    (folder / "runs" / "image" / "run").rename(folder / "run")
    return folder


def plain(scores):
    return {key: scores[key] for key in ("top1", "top5", "samples")}


def test_the_score_is_the_one_of_the_training(place):
    found = validate(place / "run", workers=0, device="cpu")
    card = checkpoint.read(place / "run")[1]
    assert found["top1"] == pytest.approx(card["score"]["value"], abs=1e-9) and found["samples"] == 6
    assert [row["name"] for row in found["classes"]] == list(CLASSES)
    assert sum(row["count"] * row["accuracy"] for row in found["classes"]) == pytest.approx(found["top1"] * 6)
    assert found["protocol"]["crop_ratio"] == 0.875


def by_hand(run, root, **changes):
    """Top-1 from the network itself, image by image."""
    model, card = checkpoint.read_model(run)
    transform = transform_from(card["preprocessing"] | changes)
    files = sorted(root.glob("*/*.png"))
    with torch.inference_mode():
        guesses = [int(model(transform(read_image(path))[None]).argmax()) for path in files]
    return sum(CLASSES[g] == path.parent.name for g, path in zip(guesses, files, strict=True)) / len(files)


@pytest.mark.parametrize("crop_ratio", [0.875, 0.5, 0.0])
def test_both_protocols(place, tmp_path, crop_ratio):
    """Wide pictures with a coloured middle and other colours at the sides: the view decides the score."""
    for split, seeds in (("train", range(1)), ("val", range(6))):
        for number, name in enumerate(CLASSES):
            for i in seeds:
                path = tmp_path / "wide" / split / name / f"{i}.png"
                picture(path, 600 + 3 * i + number)
                middle = Image.open(path).resize((24, 48))
                picture(path, 900 + 3 * i + number + 1, size=96)
                wide = Image.open(path).resize((24 * (2 + i), 48))
                wide.paste(middle, (wide.width // 2 - 12, 0))
                wide.save(path)
    root = tmp_path / "wide"
    found = validate(place / "run", root, crop_ratio=crop_ratio, workers=0, device="cpu")
    assert found["top1"] == pytest.approx(by_hand(place / "run", root / "val", crop_ratio=crop_ratio))
    assert found["protocol"]["crop_ratio"] == crop_ratio and found["samples"] == 18


def test_every_split_and_all_of_them(place):
    samples = [
        validate(place / "run", place / "data", split=split, workers=0, device="cpu")["samples"]
        for split in ("val", "train", "all")
    ]
    assert samples == [6, 24, 30]


def test_a_held_out_split_is_the_one_of_the_run(tmp_path):
    """One folder without splits: validation finds the same held-out files as the run, which wrote them down."""
    write_data(tmp_path / "two", train=10)
    (tmp_path / "two" / "train").rename(tmp_path / "data")
    run = train_run(tmp_path, tmp_path / "data", epochs=1, warmup_epochs=0, val_fraction=0.3, seed=5)
    for path in (run / "val.txt").read_text().splitlines():
        # Empty files are unreadable: all samples of the split must now be.
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="None of the 9 images"):
        validate(run, workers=0, device="cpu")


def files_scored(monkeypatch, run, **options):
    """Paths that `validate` reads, and what it finds."""
    read: list[str] = []
    real = ImageDataset._read
    monkeypatch.setattr(ImageDataset, "_read", lambda self, i: (read.append(str(self.table.path(i))), real(self, i))[1])
    found = validate(run, workers=0, device="cpu", **options)
    monkeypatch.undo()
    return sorted(read), found


@pytest.mark.parametrize("relative", [False, True])
def test_samples_added_since_the_run_do_not_change_what_is_held_out(tmp_path, monkeypatch, relative):
    write_data(tmp_path / "two", train=10)
    (tmp_path / "two" / "train").rename(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    run = train_run(tmp_path, "data" if relative else tmp_path / "data", epochs=1, warmup_epochs=0, val_fraction=0.3)
    monkeypatch.undo()
    assert checkpoint.read(run)[1]["data"] == str(tmp_path / "data")
    held = sorted(str(tmp_path / line) for line in (run / "val.txt").read_text().splitlines())
    before = validate(run, workers=0, device="cpu")
    picture(tmp_path / "data" / "ant" / "new.png", 999)
    changed = open_images(tmp_path / "data", seed=0, val_fraction=0.3).splits["val"]
    assert sorted(str(changed.path(i)) for i in range(len(changed))) != held, "the seed alone would not do"

    for target, options in ((run, {}), (run / "weights" / "best.safetensors", {}), (run, {"data": tmp_path / "data"})):
        read, found = files_scored(monkeypatch, target, **options)
        assert read == held and found["classes"] == before["classes"]
    read, _ = files_scored(monkeypatch, run, split="train")
    assert len(read) == 31 - 9 and not set(read) & set(held)

    Path(held[0]).unlink()
    with pytest.raises(UserError, match=r"lists 9 validation samples and .*data holds 8 of them"):
        validate(run, workers=0, device="cpu")
    (run / "val.txt").rename(tmp_path / "elsewhere.txt")
    with pytest.raises(UserError, match=r"\(val.txt\) is not beside it"):
        validate(run, workers=0, device="cpu")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"The data that the run recorded, .*data, cannot be opened.* Give --data"):
        validate(run, workers=0, device="cpu")


def test_unreadable_files_are_left_out_and_named(place, tmp_path):
    write_data(tmp_path / "data")
    bad = tmp_path / "data" / "val" / "bee" / "1.png"
    bad.write_bytes(b"no picture")
    found = validate(place / "run", tmp_path / "data", workers=0, device="cpu")
    assert found["samples"] == 5 and found["unreadable"] == [str(bad)]
    assert f"unreadable, left out: {bad}" in results_text(found)


def test_data_with_fewer_classes_is_matched_by_name(place, tmp_path):
    """Labels count in the model's order, not in the data's."""
    write_data(tmp_path / "data")
    for split in ("train", "val"):
        for path in (tmp_path / "data" / split / "ant").iterdir():
            path.unlink()
        (tmp_path / "data" / split / "ant").rmdir()
    found = validate(place / "run", tmp_path / "data", workers=0, device="cpu")
    rows = {row["name"]: row for row in found["classes"]}
    assert rows["ant"]["count"] == 0 and rows["ant"]["accuracy"] is None
    whole = {row["name"]: row for row in validate(place / "run", workers=0, device="cpu")["classes"]}
    assert all(rows[name] == whole[name] for name in ("bee", "cat"))


def nameless(folder, outputs):
    """A file of a network with so many outputs and no class names, whose later outputs are the largest."""
    torch.manual_seed(0)
    model = MViT(MViTConfig(input_size=(32, 32), depths=(1,), embed_dim=8, num_classes=outputs))
    with torch.no_grad():
        model.head.projection.bias[1000:] = 100.0
    preprocessing = {"imgsz": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "crop_ratio": 0, "interpolation": "bilinear"}
    card = {"architecture": model.config.to_dict(), "classes": [], "preprocessing": preprocessing}
    checkpoint.save(folder / "nameless.safetensors", model.state_dict(), card)
    return folder / "nameless.safetensors", model.eval()


def thousand(root):
    """A data set of 1,000 classes with one image each, in train/ and in val/."""
    picture(root / "one.png", 0, size=8)
    content = (root / "one.png").read_bytes()
    for split in ("train", "val"):
        for i in range(1000):
            path = root / "data" / split / f"{i:04d}" / "x.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    return root / "data"


def test_the_joined_list_is_scored_by_its_first_thousand_columns(tmp_path):
    path, model = nameless(tmp_path, 19168)
    data = thousand(tmp_path)
    found = validate(path, data, batch=100, workers=0, device="cpu")
    # All images are equal, so exactly one class, and five, are right: among the first 1,000 outputs.
    assert plain(found) == {"top1": 0.001, "top5": 0.005, "samples": 1000}
    assert any("first 1000 of 19168" in note for note in found["notes"])
    guess = next(row["name"] for row in found["classes"] if row["accuracy"] == 1)
    x = transform_from(checkpoint.read(path)[1]["preprocessing"])(read_image(data / "val" / "0000" / "x.png"))
    assert int(guess) == int(model(x[None])[0, :1000].argmax())
    text = results_text(found)
    assert "the worst 50 of 1000 classes" in text and len(text.splitlines()) < 60


def test_names_decide_before_the_first_thousand_columns(tmp_path):
    """A card with the data's names among 19,168, in another order: matched by name."""
    path, _ = nameless(tmp_path, 19168)
    data = thousand(tmp_path)
    state, card = checkpoint.read(path)
    names = [f"other{i}" for i in range(18168)] + [f"{i:04d}" for i in range(1000)]
    state["head.projection.bias"][names.index("0007")] = 200.0
    checkpoint.save(path, state, {**card, "classes": names})
    found = validate(path, data, batch=100, workers=0, device="cpu")
    rows = {row["name"]: row for row in found["classes"]}
    assert len(rows) == 19168 and found["top1"] == 0.001
    assert [name for name, row in rows.items() if row["accuracy"]] == ["0007"]
    checkpoint.save(path, state, {**card, "classes": [f"other{i}" for i in range(19168)]})
    assert plain(validate(path, data, batch=100, workers=0, device="cpu"))["top1"] == 0.001


def test_classes_without_names_must_agree_in_number(place, tmp_path):
    path, _ = nameless(tmp_path, 3)
    assert validate(path, place / "data", workers=0, device="cpu")["samples"] == 6
    path, _ = nameless(tmp_path, 4)
    with pytest.raises(UserError, match="4 classes without names"):
        validate(path, place / "data", workers=0, device="cpu")
    with pytest.raises(UserError, match="Give --data DIR"):
        validate(path, workers=0, device="cpu")


def test_several_labels_are_scored_by_mean_average_precision(tmp_path, capsys):
    from sklearn.metrics import average_precision_score

    write_data(tmp_path / "data")
    rows = [f"data/train/{name}/{i}.png,{name}" + ";dark" * (i % 2) + ",train" for name in CLASSES for i in range(8)]
    rows += [f"data/val/{name}/{i}.png,{name}" + ";dark" * i + ",val" for name in CLASSES for i in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    run = train_run(tmp_path, tmp_path / "list.csv", epochs=2)
    found = validate(run, workers=0, device="cpu")
    model, card = checkpoint.read_model(run)
    assert card["classes"] == ["ant", "bee", "cat", "dark"]
    transform = transform_from(card["preprocessing"])
    with torch.inference_mode():
        files = [(n, i) for n in CLASSES for i in range(2)]
        x = torch.stack([transform(read_image(tmp_path / f"data/val/{n}/{i}.png")) for n, i in files])
        scores = model(x).numpy()
    targets = np.array([[n == "ant", n == "bee", n == "cat", i == 1] for n, i in files], dtype=int)
    expected = average_precision_score(targets, scores, average=None)
    assert [row["average_precision"] for row in found["classes"]] == pytest.approx(list(expected), abs=1e-9)
    assert found["mAP"] == pytest.approx(expected.mean(), abs=1e-9)
    capsys.readouterr()
    assert main(["val", str(run), "--workers", "0", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"val mAP={found['mAP']:.4f} samples=6"


def test_the_command_prints_the_table_and_one_line_of_totals(place, tmp_path, capsys):
    argv = ["val", str(place / "run"), "--workers", "0", "device=cpu", "--crop-ratio", "0"]
    assert main([*argv, "--json", str(tmp_path / "x.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "x.json").read_text())
    assert lines[-1] == f"val top1={results['top1']:.4f} top5={results['top5']:.4f} samples=6"
    assert "whole image squashed to 32 x 32" in lines[-2]
    assert [line.split()[0] for line in lines[1:4]] == list(CLASSES)


def test_evaluate_leaves_the_mode_of_the_network_alone():
    model = MViT(MViTConfig(input_size=(32, 32), depths=(1,), embed_dim=8, num_classes=3, drop_rate=0.9)).train()
    batch = {
        "image": torch.randn(4, 3, 32, 32),
        "label": torch.tensor([0, 1, 2, 0]),
        "index": torch.arange(4),
        "bad": torch.tensor([0, 0, 1, 0]),
    }
    first, second = (evaluate(model, [batch], 3, torch.device("cpu")) for _ in range(2))
    assert model.training and first.samples == 3 and first.bad == [2]
    assert torch.equal(first.scores.confusion, second.scores.confusion), "dropout was on"
