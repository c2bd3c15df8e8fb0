"""A killed run, resumed, is the uninterrupted run: the same losses and weights to the last bit, on 1 and 2 ranks."""

from __future__ import annotations

import csv
import random
import re
import time
from pathlib import Path

import pytest
import torch

from openmvit import checkpoint

# Everything random is on: order, augmentation, mixing, dropout, drop path; the epochs end with a partial update.
OPTIONS = {"accumulate": 2, "ema": 0.9, "workers": 2, "epochs": 3, "mixup": 0.8, "cutmix": 1.0, "save_every": 1}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(run)[0]


def scores_of(run: Path) -> list[list[str]]:
    with (run / "results.csv").open() as file:
        return [[row[k] for k in ("epoch", "loss", "val_loss", "top1", "lr")] for row in csv.DictReader(file)]


def state_of(run: Path, name: str = "state.pt") -> dict:
    return torch.load(run / "weights" / "last" / name, weights_only=True)


STEPS = 15
TWO = [pytest.param(2, strategy, marks=pytest.mark.slow) for strategy in ("ddp", "fsdp")]


@pytest.mark.parametrize(("ranks", "strategy"), [(1, "auto"), *TWO])
def test_killed_run_continues_exactly(start, ranks: int, strategy: str) -> None:
    options = {**OPTIONS, "batch": 14 // ranks, "strategy": strategy}
    whole = start("whole", ranks=ranks, **options)
    assert whole.end() == 0, whole.text()
    assert len(whole.losses()) == STEPS
    rows = [line.split("\t")[1:] for line in whole.losses()]
    assert all(len(set(row)) == ranks for row in rows), "ranks see different samples"

    if ranks == 1:
        killed = start("killed", **options)
        killed.wait_for(random.randrange(3, STEPS - 4))
        killed.kill()
    else:
        killed = start("killed", ranks=ranks, damage="kill,1,8", **options)
        killed.wait_for(7)
        begin = time.monotonic()
        assert killed.end() != 0
        assert time.monotonic() - begin < 60
        found = re.search(r"error: Rank 1: it died \(its last step was (\d+)\)", killed.text())
        # Steps are published twice a second, so the last one known may be a little earlier.
        assert found and int(found[1]) <= 8, killed.text()
    step = state_of_survivor(killed.folder)["progress"]["step"]
    assert 0 < step <= len(killed.losses()) < STEPS

    resumed = start(ranks=ranks, resume=killed.folder)
    assert resumed.end() == 0, resumed.text()
    assert f"Resuming {killed.folder}" in resumed.text()

    assert resumed.losses() == whole.losses(), f"resumed at step {step}"
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
