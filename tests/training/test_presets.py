"""Options worked out from the data: they hold what they promise from 20 to 20,000 samples, and what is given wins."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from openmvit.cli.main import main
from openmvit.errors import UserError
from openmvit.training import run
from openmvit.training.presets import Facts, derive, updates_per_epoch
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import list_recipes, load_recipe, merge

PRESETS = {"image": "image/small", "video": "video/small", "detection": "detection/small"}


def derived(task: str = "image", samples: int = 200, validation: int = 20, processes: int = 1, **given) -> Recipe:
    facts = Facts(task, samples, validation, width=192, pretrained=True, processes=processes)
    return derive(load_recipe(PRESETS[task], given), facts)[0]


def updates(recipe: Recipe, samples: int, processes: int = 1) -> int:
    total = int(recipe.batch) * recipe.accumulate * processes
    return recipe.epochs * updates_per_epoch(samples, recipe.passes, total)


@pytest.mark.parametrize("task", PRESETS)
def test_every_size_has_enough_updates_and_none_is_derived_twice(task: str) -> None:
    for samples in (20, 50, 108, 900, 5_000, 20_000):
        for batch in (None, 2, 8, 64, 512):
            recipe = derived(task, samples, max(samples // 10, 1), **({} if batch is None else {"batch": batch}))
            assert recipe.derive == ()
            assert derive(recipe, Facts(task, 7, 7, 7, False))[0] is recipe
            assert recipe.batch == min(batch, samples) if batch else 2 <= recipe.batch <= samples
            total = int(recipe.batch) * recipe.accumulate
            # Fewer updates for larger batches, but never less than 800 batches of four.
            assert updates(recipe, samples) >= 0.8 * 800 * math.sqrt(4 / total)
            assert 1 <= recipe.epochs <= 30
            assert 0 < recipe.warmup_epochs * recipe.passes <= 5.0
            assert recipe.warmup_epochs <= 0.05 * recipe.epochs + 1e-9
            assert 0 <= recipe.ema < 1


def test_validation_takes_a_small_part_of_a_run_on_tiny_data() -> None:
    for samples, validation in ((20, 5), (20, 400), (200, 240), (5_000, 500)):
        recipe = derived(samples=samples, validation=validation)
        # A validation's forward is a third of a training step.
        validations = recipe.epochs / recipe.val_every
        assert validations * validation / 3 <= 0.1 * recipe.epochs * recipe.passes * samples


def test_rate_follows_the_root_of_the_batch_and_the_width() -> None:
    small, large = derived(batch=4, samples=2000), derived(batch=64, samples=2000)
    assert large.lr / small.lr == pytest.approx(4.0, rel=1e-2)
    assert derived(batch=512, samples=2000).lr == large.lr, "no further than measured"
    facts = Facts("image", 2000, 200, width=768, pretrained=True)
    wide, _ = derive(load_recipe("image/small", {"batch": 4}), facts)
    assert wide.lr / small.lr == pytest.approx(0.25, rel=1e-2)
    # Several processes share an update.
    both = derived(batch=8, samples=2000, processes=2)
    assert both.lr == derived(batch=16, samples=2000).lr


def test_what_is_given_wins_and_epochs_that_are_given_are_passes() -> None:
    recipe = derived(samples=108, epochs=10, batch=8, lr=3e-5, auto_augment="rand-m9-n6-mstd0.5-inc1")
    assert (recipe.epochs, recipe.passes, recipe.batch, recipe.lr, recipe.lr_batch) == (10, 1.0, 8, 3e-5, 0)
    assert recipe.auto_augment == "rand-m9-n6-mstd0.5-inc1"
    assert updates(recipe, 108) == 140  # thirteen and a half batches a pass: none is left out
    assert derived(samples=108, batch=8, passes=3).passes == 3.0
    stated = derived(samples=108, batch=8, lr_batch=128)
    assert stated.lr == derived(samples=2000, batch=128).lr and stated.lr_batch == 128


def test_augmentation_grows_with_the_data() -> None:
    few, many = derived(samples=200), derived(samples=20_000)
    assert (few.mixup, few.erase) == (0.0, 0.0) and many.mixup > 0 and many.erase > 0
    assert many.crop_scale[0] < few.crop_scale[0]


def test_published_recipes_derive_nothing() -> None:
    names = [name for name in list_recipes() if name not in PRESETS.values()]
    assert names
    assert all(load_recipe(name).derive == () and load_recipe(name).passes == 0 for name in names)


def test_a_name_without_a_rule_is_refused() -> None:
    with pytest.raises(UserError, match="no rule for 'lrr'"):
        derive(Recipe(derive=("lrr",)), Facts("image", 10, 2, 192, True))
    assert merge({"derive": ["lr", "epochs"], "seed": 1}, {"lr": 1.0}) == {"derive": ["epochs"], "seed": 1, "lr": 1.0}


def test_the_command_writes_down_what_it_derived_and_repeats_it(
    digits: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(digits), "--model", str(tiny), "--weights", "none", "--workers", "0"]
    words += ["--out-dir", str(tmp_path), "--epochs", "2", "--device", "cpu", "--plots", "false"]
    assert main([*words, "--name", "one"]) == 0
    out = capsys.readouterr().out
    assert "Recipe image/small" in out and "Derived from 70 training and 30 validation samples" in out
    args = load_recipe(tmp_path / "image" / "one" / "args.yaml")
    assert args.derive == () and args.passes == 1.0 and args.batch == 8 and args.epochs == 2
    losses = (tmp_path / "image" / "one" / "losses.txt").read_text()
    assert len(losses.splitlines()) == 2 * 9  # 70 / 8, rounded up
    assert run.train(dataclasses.replace(args, name="two")) == tmp_path / "image" / "two"
    assert "Derived" not in capsys.readouterr().out
    assert (tmp_path / "image" / "two" / "losses.txt").read_text() == losses
