"""What a recipe asks for reaches the steps of a real run: rates, clipping, mixing, precision, recomputation, drops."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openmvit.nn.block import DropPath
from openmvit.nn.fast import precision, recompute
from openmvit.training import classification, job, run
from openmvit.training.optim import learning_rate
from openmvit.training.recipe import Recipe


@pytest.fixture
def recipe(tmp_path: Path, digits: Path, tiny: Path) -> Recipe:
    """70 images in batches of 16: four steps per epoch."""
    return Recipe(
        data=str(digits),
        model=str(tiny),
        weights="none",
        out_dir=str(tmp_path / "runs"),
        batch=16,
        epochs=1,
        warmup_epochs=0.0,
        lr=1e-3,
        lr_batch=0,
        workers=0,
        device="cpu",
        auto_augment=None,
        plots=False,
    )


class Watched:
    """A run with every update's rate and gradient norm as the optimiser sees them."""

    def __init__(self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []
        self.model: nn.Module | None = None
        step, start = torch.optim.AdamW.step, job.Job.start

        def stepping(optimizer: torch.optim.AdamW, closure: Any = None) -> Any:
            # The engine computes and clips the gradients within the closure.
            loss = closure() if closure is not None else None
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
            self.norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))))
            self.rates.append(optimizer.param_groups[0]["lr"])
            step(optimizer)
            return loss

        def starting(own: job.Job, engine: job.Engine) -> None:
            self.model = engine.network
            start(own, engine)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", stepping)
            patch.setattr(job.Job, "start", starting)
            self.folder = run.train(recipe)


def test_rates_follow_the_scaled_schedule(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(recipe, epochs=3, warmup_epochs=1.0, lr_batch=128, accumulate=2)
    watched = Watched(recipe, monkeypatch)
    scale = 16 * 2 / 128
    peak, start, end = recipe.lr * scale, recipe.warmup_lr * scale, recipe.min_lr * scale

    def expected(epoch: float) -> float:
        return learning_rate(epoch, peak=peak, start=start, end=end, warmup_epochs=1.0, total_epochs=3)

    assert watched.rates == pytest.approx([expected(i / 2) for i in range(6)], rel=1e-12)
    assert watched.rates[2] == pytest.approx(2.5e-4) and watched.rates[0] == pytest.approx(2.5e-9)
    with (watched.folder / "results.csv").open() as file:
        column = [float(row["lr"]) for row in csv.DictReader(file)]
    assert column == pytest.approx([expected(epoch + 0.5) for epoch in range(3)], rel=1e-5)


def test_gradients_are_clipped_by_their_norm(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    free = Watched(dataclasses.replace(recipe, clip_grad=0.0), monkeypatch)
    clipped = Watched(dataclasses.replace(recipe, clip_grad=0.05), monkeypatch)
    assert len(free.norms) == len(clipped.norms) == 4
    assert min(free.norms) > 0.1, "clipping would change nothing"
    assert clipped.norms == pytest.approx([0.05] * 4, rel=1e-3)
    losses = [(w.folder / "losses.txt").read_text().splitlines() for w in (free, clipped)]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]


def targets_in_loss(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Targets of all training samples, `[N, 10]`."""
    seen: list[torch.Tensor] = []
    real = classification.soft_cross_entropy

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets)
        return real(logits, targets)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "soft_cross_entropy", loss)
        run.train(recipe)
    return torch.cat(seen)


def test_mixing_and_smoothing_change_the_targets(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = dataclasses.replace(recipe, mixup=0.0, cutmix=0.0, label_smoothing=0.0)
    hard = targets_in_loss(plain, monkeypatch)
    assert bool(((hard == 0) | (hard == 1)).all()) and bool((hard.sum(1) == 1).all())
    for name in ("mixup", "cutmix"):
        mixed = targets_in_loss(dataclasses.replace(plain, **{name: 1.0}), monkeypatch)
        torch.testing.assert_close(mixed.sum(1), torch.ones(64))
        assert int(((mixed > 0).sum(1) == 2).sum()) > 20, name
        assert int((mixed > 0).sum(1).max()) == 2
    smooth = targets_in_loss(dataclasses.replace(plain, label_smoothing=0.1), monkeypatch)
    torch.testing.assert_close(smooth.max(1).values, torch.full((64,), 0.91))
    torch.testing.assert_close(smooth.min(1).values, torch.full((64,), 0.01))


@pytest.mark.parametrize(("amp", "expected"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision_reaches_the_forward_pass(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, amp: str, expected: torch.dtype
) -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    start = job.Job.start
    monkeypatch.setattr(precision, "BF16_IS_FAST", True)

    def starting(own: job.Job, engine: job.Engine) -> None:
        start(own, engine)
        layer = engine.network.blocks[1].mlp.fc1  # pyright: ignore
        layer.register_forward_hook(lambda module, _, output: seen[module.training].add(output.dtype))

    monkeypatch.setattr(job.Job, "start", starting)
    folder = run.train(dataclasses.replace(recipe, amp=amp))
    assert seen == {True: {expected}, False: {expected}}
    saved = torch.load(folder / "weights" / "last" / "state.pt", weights_only=True)["model"]
    assert {value.dtype for value in saved.values()} == {torch.float32}


@pytest.mark.parametrize("flag", [True, False])
def test_recomputation_is_entered_for_every_block(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, flag: bool) -> None:
    entered: list[int] = []
    real, loss = recompute.checkpoint, job.Job.loss

    def counting(*args: Any, **options: Any) -> Any:
        if training:
            entered.append(1)
        return real(*args, **options)

    training: list[int] = []

    def losing(own: job.Job, batch: Any) -> torch.Tensor:
        # The estimate of memory before the first step is no training.
        training.append(1)
        return loss(own, batch)

    monkeypatch.setattr(recompute, "checkpoint", counting)
    monkeypatch.setattr(job.Job, "loss", losing)
    watched = Watched(dataclasses.replace(recipe, grad_ckpt=flag), monkeypatch)
    assert watched.model.grad_checkpointing is flag  # pyright: ignore
    assert len(entered) == (4 * 3 if flag else 0)


def test_drops_of_the_recipe_reach_the_network(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, last, dropout in (({"drop_path": 0.5, "dropout": 0.7}, 0.5, 0.7), ({}, 0.3, 0.2)):
        watched = Watched(dataclasses.replace(recipe, **changes), monkeypatch)
        assert watched.model is not None
        rates = [m.rate for m in watched.model.modules() if isinstance(m, DropPath)]
        assert max(rates) == last and min(rates) < last
        found = [m.p for m in watched.model.head.modules() if isinstance(m, nn.Dropout)]  # pyright: ignore
        assert found == [dropout]


@pytest.mark.parametrize("option", ["drop_path", "dropout"])
def test_drops_are_random_in_training_and_off_in_validation(recipe: Recipe, option: str) -> None:
    """The first loss differs with the drop, since the weights are equal; nothing else in a batch is random."""
    none = {"drop_path": 0.0, "dropout": 0.0}
    losses = []
    for value in (0.0, 0.5):
        folder = run.train(dataclasses.replace(recipe, lr=1e-12, min_lr=0.0, **{**none, option: value}))
        with (folder / "results.csv").open() as file:
            row = next(csv.DictReader(file))
        losses.append(((folder / "losses.txt").read_text().split()[1], row["val_loss"]))
    assert losses[0][0] != losses[1][0] and losses[0][1] == losses[1][1]
