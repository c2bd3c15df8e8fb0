"""Workers are made before the engine's threads, wait for the first epoch, and stay for every one."""

import os

import pytest
import torch
from torch.utils.data import Dataset

from openmvit.data.sampler import ResumableSampler
from openmvit.errors import UserError
from openmvit.training import run
from openmvit.training.loading import EpochLoader
from openmvit.training.recipe_file import check_fields


class Keys(Dataset):
    """A sample is its key and the process that read it."""

    def __getitem__(self, key):
        return torch.tensor([*key, os.getpid()])


def loader_of(workers):
    sampler = ResumableSampler(20, seed=0, shuffle=True)
    return EpochLoader(Keys(), sampler, batch=4, workers=workers, drop_last=True, pin=False)


def epochs(loader):
    """Samples of two epochs."""
    found = []
    for epoch in range(2):
        loader.order.set_epoch(epoch)
        found += [sample for batch in loader for sample in batch.tolist()]
    loader.close()
    return found


def pids(loader):
    return {worker.pid for worker in loader._loader._iterator._workers}


def test_started_workers_read_every_sample_once():
    loader = loader_of(2)
    loader.start()
    started = pids(loader)
    assert len(started) == 2 and loader.order.position == 0
    found = epochs(loader)
    assert {pid for *_, pid in found} <= started, "others were made later"
    assert [key for *key, _ in found] == [key for *key, _ in epochs(loader_of(0))]


def test_without_workers_there_is_nothing_to_start():
    loader = loader_of(0)
    loader.start()
    assert len(epochs(loader)) == 40


def test_a_run_makes_its_workers_before_anything_of_the_engine(monkeypatch, digits, tiny, tmp_path):
    def job(parts):
        assert len(pids(parts.train)) == len(pids(parts.val)) == 2
        parts.train.close()
        parts.val.close()
        raise UserError("seen", "nothing to do")

    monkeypatch.setattr(run, "Job", job)
    options = {"data": str(digits), "model": str(tiny), "weights": "none", "workers": 2, "batch": 8, "device": "cpu"}
    with pytest.raises(UserError, match="seen"):
        run.train(check_fields(options | {"out_dir": str(tmp_path)}))
