"""Whole runs on a small folder: what they print and write, how they stop, what they refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from openmvit import checkpoint, zoo
from openmvit.errors import UserError
from openmvit.nn.fast import precision
from openmvit.training import memory, run, state
from openmvit.training.classification import ClassificationValidation, freeze
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe
from openmvit.training.start_task import open_task


@pytest.fixture
def recipe(tmp_path: Path, digits: Path, tiny: Path) -> Recipe:
    return Recipe(
        data=str(digits),
        model=str(tiny),
        weights="none",
        out_dir=str(tmp_path / "runs"),
        batch=16,
        epochs=2,
        warmup_epochs=1.0,
        lr=1e-3,
        lr_batch=16,
        workers=0,
        device="cpu",
        auto_augment=None,
    )


def last_state(folder: Path) -> dict:
    return state.read(folder / "weights")[0]


def test_the_wait_for_the_first_batch_counts_for_no_meter(recipe: Recipe, tmp_path: Path) -> None:
    """It is over before the trainer starts: in a run of one step on large pictures it was many times the step."""
    for number in range(24):
        file = tmp_path / "large" / ("train", "val")[number // 20] / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3000, 3000), (number, 0, 0)).save(file)
    changes = {"data": str(tmp_path / "large"), "batch": 20, "epochs": 1, "warmup_epochs": 0.0, "plots": False}
    folder = run.train(dataclasses.replace(recipe, **changes))
    (row,) = csv.DictReader((folder / "results.csv").open())
    assert 0 <= float(row["wait"]) < 0.5


def test_run_writes_its_folder_and_says_what_comes_next(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run.train(dataclasses.replace(recipe, accumulate=2))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert folder == Path(recipe.out_dir) / "image" / "exp"
    assert lines[0] == "New run from random weights"
    assert "1.000e-03 per 16 samples -> 2.000e-03 for 32 samples per update" in out
    assert any(line.startswith("Memory about") for line in lines)
    next_lines = [line.split() for line in lines[lines.index("Next:") + 1 :]]
    held_out = (folder / "val.txt").read_text().splitlines()[0]
    commands = [["openmvit", "val", str(folder)], ["openmvit", "predict", str(folder), held_out]]
    assert next_lines == [*commands, ["openmvit", "export", str(folder)]]
    assert f"Pictures in {folder}: confusion.png, results.png" in lines
    assert re.fullmatch(r"Best top1 [01]\.\d{4} \(epoch [12]\): (.+)", lines[-6])[1] == str(
        folder / "weights" / "best.safetensors"
    )
    # An epoch's line has all its figures in log.txt, and as many as fit into 80 columns on the screen.
    logged = (folder / "log.txt").read_text().splitlines()
    assert len(logged) == len(lines) and max(len(line) for line in lines if line.startswith("epoch")) < 80
    assert [a for a, b in zip(lines, logged, strict=True) if a != b and not a.startswith("epoch ")] == []
    assert all("lr " in line and "wait " in line for line in logged if line.startswith("epoch "))

    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        *("args.yaml", "env.txt", "log.txt", "losses.txt", "model.json", "results.csv", "results.png", "val.txt"),
        *("confusion.png", "weights/best.safetensors", "weights/last/rank0.pt", "weights/last/state.pt"),
    }
    assert load_recipe(folder / "args.yaml") == dataclasses.replace(recipe, accumulate=2)
    assert f"torch {torch.__version__}" in (folder / "env.txt").read_text()
    assert len((folder / "val.txt").read_text().splitlines()) == 30

    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    losses = [float.fromhex(line.split("\t")[1]) for line in (folder / "losses.txt").read_text().splitlines()]
    assert float(rows[1]["loss"]) == pytest.approx(sum(losses[4:]) / 4, rel=1e-5)


def test_best_file_is_self_sufficient_and_scores_as_recorded(recipe: Recipe) -> None:
    folder = run.train(dataclasses.replace(recipe, ema=0.5, epochs=3))
    model, card = zoo.load_model(folder)
    assert json.loads((folder / "model.json").read_text()) == {k: v for k, v in card.items() if k != "format"}
    assert card["classes"] == [str(i) for i in range(10)]
    assert (card["task"], card["model"], card["ema"]) == ("image", "tiny", True)
    results = last_state(folder)["progress"]["results"]
    assert card["score"]["value"] == max(row["top1"] for row in results)

    task = open_task(recipe)
    right = 0
    with torch.no_grad():
        for batch in task.val_loader(16, pin=False):
            right += int((model(batch["image"]).argmax(1) == batch["label"]).sum())
    assert right / 30 == pytest.approx(card["score"]["value"])


def test_best_holds_the_average_and_last_holds_both(recipe: Recipe) -> None:
    folder = run.train(dataclasses.replace(recipe, ema=0.5, epochs=1))
    best, last = checkpoint.read(folder)[0], last_state(folder)
    assert all(torch.equal(best[name], last["ema"][name]) for name in last["ema"])
    assert not torch.equal(best["head.projection.weight"], last["model"]["head.projection.weight"])


def test_names_count_up_and_a_taken_name_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, epochs=1, plots=False)
    assert [run.train(recipe).name for _ in range(2)] == ["exp", "exp2"]
    with pytest.raises(UserError, match=r"exp2 exists. Choose another --name, or --resume"):
        run.train(dataclasses.replace(recipe, name="exp2"))


def test_a_run_that_ended_without_weights_begins_anew_by_the_same_command(start) -> None:
    killed = start(workers=0, damage="kill,0,4")
    assert killed.end() < 0
    assert len(killed.losses()) == 4 and not (killed.folder / "weights").exists()
    (killed.folder / "notes.txt").write_text("mine")
    unfinished = killed.folder / "weights" / "last.tmp" / "state.pt"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    with pytest.raises(UserError, match=r"holds no state .* Start it again by the command it was started with"):
        run.train(Recipe(resume=str(killed.folder)))
    again = start(workers=0, epochs=1)
    assert again.end() == 0, again.text()
    assert f"{again.folder} has no weights yet: its run is begun anew" in again.text()
    assert [line.split("\t")[0] for line in again.losses()] == [str(step) for step in range(len(again.losses()))]
    assert (again.folder / "log.txt").read_text().count("New run from") == 1
    assert (again.folder / "notes.txt").read_text() == "mine"
    assert not unfinished.parent.exists() and not (again.folder / ".lock").exists()
    taken = start(workers=0, epochs=1)
    assert taken.end() == 2
    assert f"{again.folder} exists. Choose another --name, or --resume {again.folder}" in taken.text()


def test_a_folder_that_is_being_trained_in_is_refused(start) -> None:
    running = start(workers=0, damage="hang,0,3")
    running.wait_for(3)
    before = {path.name: path.read_bytes() for path in running.folder.iterdir()}
    second = start(workers=0)
    assert second.end() == 2
    assert f"error: Another process is training in {running.folder}. Wait for it" in second.text()
    assert {path.name: path.read_bytes() for path in running.folder.iterdir()} == before


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_every_file_of_a_run_has_the_rights_that_the_umask_leaves(recipe: Recipe, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = run.train(dataclasses.replace(recipe, epochs=1))
        checkpoint.save(tmp_path / "again.safetensors", *checkpoint.read(folder))
    finally:
        os.umask(before)
    files = [tmp_path / "again.safetensors", *(path for path in folder.rglob("*") if path.is_file())]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~mask) for path in files
    }
    assert "best.safetensors" in {path.name for path in files}


def test_patience_stops_early(recipe: Recipe) -> None:
    still = dataclasses.replace(recipe, lr=1e-12, min_lr=0.0, epochs=9, patience=2, plots=False)
    progress = last_state(run.train(still))["progress"]
    assert progress["finished"] and progress["improved"] == 1 and progress["epoch"] == 3


def test_patience_counts_epochs_and_not_validations(recipe: Recipe) -> None:
    still = dataclasses.replace(recipe, lr=1e-12, min_lr=0.0, epochs=9, patience=3, val_every=2, plots=False)
    progress = last_state(run.train(still))["progress"]
    assert progress["finished"] and progress["improved"] == 2 and progress["epoch"] == 6


def test_of_equal_scores_the_one_with_the_lower_loss_is_kept(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([(0.4, 2.0), (0.5, 1.9), (0.5, 1.8), (0.5, 1.85), (0.4, 1.0)])
    real = ClassificationValidation.result

    def result(self: ClassificationValidation) -> dict[str, float]:
        top1, loss = next(found)
        return {**real(self), "top1": top1, "val_loss": loss}

    monkeypatch.setattr(ClassificationValidation, "result", result)
    folder = run.train(dataclasses.replace(recipe, epochs=5, plots=False))
    progress = last_state(folder)["progress"]
    assert (progress["best"], progress["best_loss"], progress["best_epoch"], progress["improved"]) == (0.5, 1.8, 3, 2)
    card = checkpoint.read(folder)[1]
    assert card is not None and card["score"] == {"name": "top1", "value": 0.5, "epoch": 3}


def test_finished_run_is_not_resumed(recipe: Recipe) -> None:
    folder = run.train(dataclasses.replace(recipe, epochs=1, plots=False))
    with pytest.raises(UserError, match=r"is finished \(1 epochs\). Use it: openmvit predict"):
        run.train(Recipe(resume=str(folder)))


@pytest.mark.parametrize("changes", [{"amp": "bf16"}, {"grad_ckpt": True}, {"optimizer": "sgd"}, {"repeats": 2}])
def test_every_way_of_stepping_learns(recipe: Recipe, changes: dict) -> None:
    calm = {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "crop_scale": (0.9, 1.0), "erase": 0.0, "flip": 0.0}
    rate = 0.05 if "optimizer" in changes else 5e-3
    folder = run.train(dataclasses.replace(recipe, lr=rate, epochs=6, plots=False, **calm, **changes))
    losses = [row["loss"] for row in last_state(folder)["progress"]["results"]]
    assert losses[-1] < losses[0] - 0.1


def test_recomputation_gives_the_same_losses(recipe: Recipe) -> None:
    losses = [
        (run.train(dataclasses.replace(recipe, plots=False, grad_ckpt=flag)) / "losses.txt").read_text()
        for flag in (False, True)
    ]
    assert losses[0] == losses[1]


def test_validation_every_second_epoch_and_in_the_last(recipe: Recipe) -> None:
    folder = run.train(dataclasses.replace(recipe, epochs=5, val_every=2, plots=False))
    rows = last_state(folder)["progress"]["results"]
    assert [int(row["epoch"]) for row in rows if "top1" in row] == [2, 4, 5]


@pytest.mark.parametrize(("option", "value"), [("freeze", "backbone"), ("freeze", "1"), ("tune", "head")])
def test_frozen_parts_do_not_move_and_stay_in_eval_mode(recipe: Recipe, option: str, value: str) -> None:
    recipe = dataclasses.replace(recipe, plots=False, epochs=1, **{option: value})
    before = open_task(recipe).model.state_dict()
    after = last_state(run.train(recipe))["model"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = ("blocks.1.", "blocks.2.", "norm.") if value == "1" else ()
    assert moved == {name for name in before if name.startswith(("head.", *blocks))}

    model = open_task(recipe).model.train()
    for module in freeze(model, recipe):
        module.eval()
    assert model.head.training and not model.patch_embed.training and not model.blocks[0].training
    assert model.blocks[1].training == (value == "1")


def test_several_labels_are_trained_with_bce_and_scored_by_map(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for split in ("train", "val"):
        for path in sorted((digits / split).rglob("*.png")):
            digit = int(path.parent.name)
            lines.append(f"{path},{'even' if digit % 2 == 0 else 'odd'};{'low' if digit < 5 else 'high'},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    folder = run.train(dataclasses.replace(recipe, data=str(tmp_path / "labels.csv"), epochs=1))
    card = checkpoint.read(folder)[1]
    assert card is not None and card["multilabel"] and card["classes"] == ["even", "high", "low", "odd"]
    assert card["score"]["name"] == "mAP" and 0.3 < card["score"]["value"] < 0.9
    first = float.fromhex((folder / "losses.txt").read_text().split()[1])
    assert first == pytest.approx(0.693, abs=0.05)


def test_unreadable_files_are_listed_and_too_many_stop_the_run(recipe: Recipe, digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    broken = sorted((data / "train" / "3").iterdir())[:3]
    for path in broken:
        path.write_bytes(b"no picture")
    folder = run.train(dataclasses.replace(recipe, data=str(data), epochs=2, plots=False))
    listed = {line.split("\t")[0] for line in (folder / "bad_files.txt").read_text().splitlines()}
    assert listed and listed <= {str(path) for path in broken}
    with pytest.raises(UserError, match="of 100 files cannot be read"):
        run.train(dataclasses.replace(recipe, data=str(data), max_bad=0.01, epochs=2))


def test_unreadable_validation_files_are_listed_and_counted(
    recipe: Recipe, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    broken = sorted((data / "val" / "3").iterdir())[:2]
    for path in broken:
        path.write_bytes(b"no picture")
    folder = run.train(dataclasses.replace(recipe, data=str(data), epochs=1, plots=False))
    lines = (folder / "bad_files.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == [str(path) for path in broken]
    assert "2 validation images cannot be read and are left out of the scores" in capsys.readouterr().out


def test_classifier_is_kept_for_the_same_classes_only(
    recipe: Recipe, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.train(dataclasses.replace(recipe, epochs=1, plots=False))
    state_dict, card = checkpoint.read(folder)
    assert card is not None
    checkpoint.save(tmp_path / "turned.safetensors", state_dict, {**card, "classes": card["classes"][::-1]})
    other = tmp_path / "other"
    shutil.copytree(digits, other)
    for split in ("train", "val"):
        (other / split / "9").rename(other / split / "nine")
    words = {"another order": (tmp_path / "turned.safetensors", digits), "such as 'nine'": (folder, other)}
    for said, (weights, data) in {"": (folder, digits), **words}.items():
        for model in (None, recipe.model):
            capsys.readouterr()
            task = open_task(dataclasses.replace(recipe, model=model, weights=str(weights), data=str(data)))
            own = task.model.state_dict()
            kept = torch.equal(own["head.projection.weight"], state_dict["head.projection.weight"])
            assert torch.equal(own["blocks.0.mlp.fc1.weight"], state_dict["blocks.0.mlp.fc1.weight"])
            err = capsys.readouterr().err
            assert kept == (not said) == ("the classifier starts anew" not in err)
            assert said in err


def test_batch_auto_takes_what_fits_and_writes_it_down(recipe: Recipe) -> None:
    folder = run.train(dataclasses.replace(recipe, batch="auto", epochs=1, plots=False))
    assert load_recipe(folder / "args.yaml").batch == 8
    assert memory.largest_batch(64, lambda n: n <= 20) == 16
    assert memory.largest_batch(64, lambda n: n <= 20, multiple=3) == 12
    with pytest.raises(UserError, match="Not even a batch of 1"):
        memory.largest_batch(64, lambda n: False)


@pytest.mark.parametrize("bf16_pays", [True, False])
def test_running_out_of_memory_names_the_options_that_help(monkeypatch: pytest.MonkeyPatch, bf16_pays: bool) -> None:
    monkeypatch.setattr(precision, "BF16_IS_FAST", bf16_pays)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    problem = memory.explain_memory(caught.value, 64)
    assert problem is not None
    for option in ("--batch", "--accumulate", "--grad-ckpt", "--imgsz"):
        assert option in str(problem)
    assert ("--amp bf16" in str(problem)) == bf16_pays
    assert ("--amp bf16" in str(memory.explain_memory(MemoryError(), 64))) == bf16_pays
    for of_card in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")):
        assert "--amp bf16" in str(memory.explain_memory(of_card, 64))
    assert memory.explain_memory(ValueError("shape"), 64) is None


def test_recomputation_lowers_the_memory_estimate(recipe: Recipe) -> None:
    task = open_task(recipe)
    model = task.model.train()
    plain = memory.estimate(model, task.probe, recipe)
    model.set_grad_checkpointing(True)
    less = memory.estimate(model, task.probe, recipe)
    assert plain.fixed == less.fixed == 4 * 4 * sum(p.numel() for p in model.parameters())
    assert 0 < less.per_sample < plain.per_sample / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "No data is named"),
        ({"weights": "default"}, "--weights none"),
        ({"model": "mvitv2_tinny"}, "Did you mean 'mvitv2_tiny'"),
        ({"freeze": "99"}, "Accepted: backbone, or a number 0..3"),
        ({"freeze": "1", "tune": "head"}, "Give one of them"),
        ({"device": "gpu"}, "Accepted: auto, cpu, mps, cuda, cuda:N"),
        ({"device": "cuda:99"}, "0 cuda devices"),
        ({"amp": "fp16"}, "amp fp16 and device cpu do not go together"),
        ({"strategy": "fsdp"}, "there is one process"),
        ({"batch": 5, "repeats": 2}, "batch 5 is no multiple of repeats 2"),
        ({"resume": "nowhere"}, "nowhere is no run folder"),
    ],
)
def test_what_cannot_work_is_refused_before_a_folder_is_made(recipe: Recipe, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        run.train(dataclasses.replace(recipe, **changes))
    assert message in str(caught.value)
    assert not Path(recipe.out_dir).exists()


def test_changed_data_is_refused_on_resume(recipe: Recipe, digits: Path, tmp_path: Path, start) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    training = start(data=data, epochs=50, workers=0, save_every=1)
    training.wait_for(6)
    training.kill()
    path = next((data / "val" / "3").iterdir())
    path.rename(path.with_name("renamed.png"))
    with pytest.raises(UserError, match="The validation files differ"):
        run.train(Recipe(resume=str(training.folder)))
    path.with_name("renamed.png").rename(path)
    (data / "classes.txt").write_text("\n".join(str(i) for i in reversed(range(10))))
    with pytest.raises(UserError, match="or their order changed"):
        run.train(Recipe(resume=str(training.folder)))


def test_ctrl_c_saves_and_says_how_to_resume(start) -> None:
    training = start(epochs=60, workers=2)
    training.wait_for(13)
    training.process.send_signal(signal.SIGINT)
    assert training.end() == 130
    assert f"Stopped. Continue with: openmvit train --resume {training.folder}" in training.text()
    assert "Traceback" not in training.text()
    assert last_state(training.folder)["progress"]["step"] == len(training.losses()) >= 13


def test_sigterm_to_the_whole_group_saves_and_says_how_to_resume(start) -> None:
    training = start(epochs=60, workers=2, accumulate=4)
    training.wait_for(12)
    os.killpg(training.process.pid, signal.SIGTERM)
    assert training.end() == 130
    assert f"Stopped. Continue with: openmvit train --resume {training.folder}" in training.text()
    assert "Traceback" not in training.text() and "unexpectedly" not in training.text()
    assert last_state(training.folder)["progress"]["step"] == len(training.losses()) >= 12
    with pytest.raises(ProcessLookupError):
        os.killpg(training.process.pid, 0)


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(start) -> None:
    training = start(epochs=3, workers=0, save_every=1, damage="nan,11")
    assert training.end() == 2
    assert "The loss is no longer finite at step 11 (epoch 2)" in training.text()
    named = (training.folder / "bad_batch.txt").read_text().splitlines()
    assert len(named) == 8 and all(Path(path).exists() for path in named)
    saved = last_state(training.folder)
    assert saved["progress"]["step"] == 11
    assert all(bool(w.isfinite().all()) for w in saved["model"].values())
    assert len(training.losses()) == 11


def test_full_disk_stops_with_a_sentence_and_keeps_the_state(start) -> None:
    training = start(epochs=3, workers=0, save_every=1, damage="fsize,200000,11")
    assert training.end() == 2
    assert "takes no more data" in training.text() and "Traceback" not in training.text()
    assert last_state(training.folder)["progress"]["step"] == 11
