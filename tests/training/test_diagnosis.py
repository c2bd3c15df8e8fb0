"""A run that does not learn says so: each kind of trouble is made, in a real run or from its signs."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch

from openmvit import create_model
from openmvit.training import run
from openmvit.training.diagnosis import Guessing, Signs, diagnose
from openmvit.training.optim import largest_gradient
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe


@pytest.fixture
def recipe(tmp_path: Path, digits: Path, tiny: Path) -> Recipe:
    given = {"data": str(digits), "model": str(tiny), "weights": "none", "out_dir": str(tmp_path), "device": "cpu"}
    return load_recipe("image/small", {**given, "workers": 0, "plots": False, "epochs": 6, "drop_path": 0.0})


def warnings(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> list[str]:
    run.train(recipe)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]


def given(recipe: Recipe, **values: object) -> Recipe:
    return dataclasses.replace(recipe, derive=tuple(k for k in recipe.derive if k not in values), **values)


def test_a_rate_that_moves_no_weight(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    found = warnings(given(recipe, lr=1e-7), capsys)
    assert len(found) >= 2, "early and at the end"
    assert all("learning rates of all updates sum up to" in line or "is called" in line for line in found)
    assert "Raise --lr" in "".join(found)


def test_gradients_that_are_all_zero_are_told_from_small_ones() -> None:
    network = create_model("mvitv2_micro", num_classes=2)
    assert largest_gradient(network) == 0.0
    (network(torch.randn(1, 3, 32, 32)).sum() * 0.0).backward()
    assert largest_gradient(network) == 0.0
    (network(torch.randn(1, 3, 32, 32)).sum() * 1e-20).backward()
    assert largest_gradient(network) > 0.0


def test_labels_that_do_not_belong_to_the_pictures(
    recipe: Recipe, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = shutil.copytree(digits, tmp_path / "mixed")
    folders = sorted(p for p in (mixed / "train").iterdir())
    files = [sorted(folder.iterdir()) for folder in folders]
    for i, row in enumerate(files):
        for j, path in enumerate(row):
            path.rename(folders[(i + j) % len(folders)] / f"x{i}_{j}.png")
    plain = {"auto_augment": None, "crop_scale": (1.0, 1.0), "lr": 3e-3, "label_smoothing": 0.0, "dropout": 0.0}
    found = warnings(given(recipe, data=str(mixed), epochs=120, **plain), capsys)
    assert any("labels of one part may be mixed up" in line or "by heart" in line for line in found), found


def test_a_run_that_learns_gets_no_warning(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert not warnings(given(recipe, epochs=40, lr=3e-3), capsys)


GUESSING = Guessing(score=0.2, loss=math.log(5), samples=100)
GOOD = Signs(0.5, 0.6, 0.9, "top1", 0.5, 0.01, "", GUESSING)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"train_loss": 1.6, "score": 0.22}, "Nothing is learnt yet"),
        ({"train_loss": math.nan, "score": 0.22}, "Nothing is learnt yet"),
        ({"train_loss": 1.6, "score": 0.22, "motion": 1e-4}, "hardly moves a weight"),
        ({"one_class": "cat", "score": 0.2, "train_loss": 1.6}, "is called 'cat'"),
        ({"train_loss": 0.3, "score": 0.25, "val_loss": 3.0}, "labels of one part may be mixed up"),
        ({"train_loss": 0.1, "score": 0.5, "val_loss": 2.5}, "learnt by heart"),
        ({"gradient": 0.0}, "All gradients are 0"),
    ],
)
def test_every_sign_has_its_sentence(changes: dict, said: str | None) -> None:
    found = diagnose(dataclasses.replace(GOOD, **changes))
    assert (found == []) if said is None else (len(found) == 1 and said in found[0]), found


def test_a_detector_that_finds_nothing_is_told_without_a_loss() -> None:
    signs = Signs(2.0, math.nan, 0.0, "AP", 0.5, 0.1, "", Guessing(0.0, math.nan, 50))
    (sentence,) = diagnose(signs)
    assert sentence.startswith("Nothing is learnt yet: AP is 0.00 (guessing 0.00). ") and "nan" not in sentence
    assert not diagnose(dataclasses.replace(signs, score=0.02))
