"""A killed run, resumed, is the uninterrupted run: the same losses to the last bit, the same weights, on 1 and 2 ranks."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from openmvit import checkpoint

# Everything random is on: order, augmentation, mixing, dropout, drop path; the epochs end with a partial update.
OPTIONS = {"accumulate": 2, "ema": 0.9, "workers": 2, "epochs": 4, "mixup": 0.8, "cutmix": 1.0}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(run)[0]


def scores_of(run: Path) -> list[list[str]]:
    with (run / "results.csv").open() as file:
        return [[row[k] for k in ("epoch", "loss", "val_loss", "top1", "lr")] for row in csv.DictReader(file)]


def state_of(run: Path, name: str = "state.pt") -> dict:
    return torch.load(run / "weights" / "last" / name, weights_only=True)


@pytest.mark.parametrize(("ranks", "batch", "kill_at", "save_every"), [(1, 14, 8, 1), (1, 14, 12, 2), (2, 7, 8, 1)])
def test_killed_run_continues_exactly(start, ranks: int, batch: int, kill_at: int, save_every: int) -> None:
    options = {**OPTIONS, "batch": batch, "save_every": save_every}
    whole = start("whole", ranks=ranks, **options)
    assert whole.end() == 0, whole.text()

    killed = start("killed", ranks=ranks, **options)
    killed.wait_for(kill_at)
    killed.kill()
    assert len(killed.losses()) < 20
    step = state_of_survivor(killed.folder)["progress"]["step"]
    assert 0 < step <= len(killed.losses())

    resumed = start(ranks=ranks, resume=killed.folder)
    assert resumed.end() == 0, resumed.text()
    assert f"Resuming {killed.folder}" in resumed.text()

    assert len(whole.losses()) == 20
    assert len(whole.losses()[0].split("\t")) == 1 + ranks
    assert resumed.losses() == whole.losses()
    assert scores_of(resumed.folder) == scores_of(whole.folder)
    assert_equal(weights_of(resumed.folder), weights_of(whole.folder))
    ours, theirs = state_of(resumed.folder), state_of(whole.folder)
    for part in ("model", "ema"):
        assert_equal(ours[part], theirs[part])
    for name, entry in theirs["optimizer"].items():
        assert_equal(ours["optimizer"][name], entry)
    for rank in range(ranks):
        mine, other = state_of(resumed.folder, f"rank{rank}.pt"), state_of(whole.folder, f"rank{rank}.pt")
        assert torch.equal(mine["rng"]["cpu"], other["rng"]["cpu"])
        assert mine["sampler"] == other["sampler"]


def state_of_survivor(run: Path) -> dict:
    folder = run / "weights" / ("last" if (run / "weights" / "last").exists() else "last.old")
    return torch.load(folder / "state.pt", weights_only=True)


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_two_ranks_draw_different_samples_and_dropout(start) -> None:
    training = start(ranks=2, batch=7, epochs=1, workers=0)
    assert training.end() == 0, training.text()
    rows = [line.split("\t")[1:] for line in training.losses()]
    assert all(first != second for first, second in rows)


def test_finished_run_cannot_be_resumed(start) -> None:
    training = start(epochs=1, workers=0)
    assert training.end() == 0, training.text()
    again = start(resume=training.folder)
    assert again.end() == 2
    assert "is finished (1 epochs)" in again.text()
    wrong = start(resume=training.folder.parent)
    assert wrong.end() == 2
    assert "is no run folder" in wrong.text()
