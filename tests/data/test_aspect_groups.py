"""Batches are all wide or all tall, shared without overlap, fair in the long run, and resume at any batch."""

import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from openmvit.data.aspect_groups import AspectGroups
from openmvit.errors import UserError
from openmvit.training.loading import EpochLoader

SIZES = np.array(
    [(48, 64), (64, 48), (64, 64), (30, 90), (90, 30), (40, 50), (40, 50), (40, 50), (50, 40), (9, 10)] * 7
)
WIDE = SIZES[:, 1] > SIZES[:, 0]


class Keys(Dataset):
    """Returns the key it is asked for."""

    def __getitem__(self, key):
        return torch.tensor(key)


def groups(rank=0, world_size=1, batch=4, seed=3, sizes=SIZES):
    return AspectGroups(sizes, batch=batch, seed=seed, rank=rank, world_size=world_size)


def epoch_keys(sampler, epoch):
    sampler.set_epoch(epoch)
    return np.array(list(sampler))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_batch_mixes_orientations(world_size):
    for epoch in range(5):
        seen = []
        for rank in range(world_size):
            sampler = groups(rank, world_size)
            keys = epoch_keys(sampler, epoch)
            assert len(keys) == len(sampler) == len(SIZES) // (4 * world_size) * 4
            wide = WIDE[keys[:, 1]].reshape(-1, 4)
            assert (wide == wide[:, :1]).all()
            assert (keys[:, 0] == epoch).all()
            seen += keys.tolist()
        assert len({tuple(key) for key in seen}) == len(seen)  # no two ranks get the same copy


def test_every_picture_is_seen_equally_often():
    epochs = 60
    counts = np.zeros(len(SIZES), dtype=int)
    for epoch in range(epochs):
        counts += np.bincount(epoch_keys(groups(), epoch)[:, 1], minlength=len(SIZES))
    assert counts.sum() == epochs * 68
    assert counts.max() - counts.min() <= 2


def test_a_handful_of_tall_pictures_waits_for_a_full_batch_and_is_not_lost():
    sizes = np.array([(10, 20)] * 97 + [(20, 10)] * 3)
    counts = np.zeros(100, dtype=int)
    for epoch in range(64):
        counts += np.bincount(epoch_keys(groups(batch=16, sizes=sizes), epoch)[:, 1], minlength=100)
    assert counts.sum() == 64 * 96
    assert counts[:97].min() >= 58
    assert 48 <= counts[97:].sum() <= 192
    assert set(counts[97:]) <= set(range(16, 65))


def test_few_pictures_fill_a_batch_with_copies():
    keys = epoch_keys(groups(batch=16, sizes=SIZES[:3]), 0)
    assert len(keys) == 16
    assert len(np.unique(keys, axis=0)) == 16


def test_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(epoch_keys(groups(), 2), epoch_keys(groups(), 2))
    assert not np.array_equal(epoch_keys(groups(), 2)[:, 1], epoch_keys(groups(), 3)[:, 1])
    assert not np.array_equal(epoch_keys(groups(), 2)[:, 1], epoch_keys(groups(seed=4), 2)[:, 1])


def test_orientations_come_in_no_fixed_order():
    patterns = {tuple(WIDE[epoch_keys(groups(), epoch)[::4, 1]]) for epoch in range(6)}
    assert len(patterns) == 6


def _train(sampler, epochs, workers=0, stop_after=None):
    """Keys of every delivered batch, counted as the training loop does."""
    seen, loader = [], EpochLoader(Keys(), sampler, batch=4, workers=workers, drop_last=True, pin=False)
    for epoch in range(sampler.epoch, epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            sampler.advance(len(batch))
            seen.append(batch.tolist())
            if len(seen) == stop_after:
                loader.close()
                return seen
        assert sampler.position == loader.steps * 4
    loader.close()
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_after", [1, 7, 8, 9])
def test_resume_continues_at_the_next_undelivered_batch(workers, stop_after):
    whole = _train(groups(1, 2), 3)
    assert len(whole) == 24
    stopped = groups(1, 2)
    first = _train(stopped, 3, workers, stop_after)
    resumed = groups(1, 2)
    resumed.load_state_dict(stopped.state_dict())
    assert first + _train(resumed, 3, workers) == whole
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (groups(batch=5), "4 pictures per batch and there are 5"),
        (groups(world_size=2), "1 processes and there are 2"),
        (groups(sizes=SIZES[:60]), "pictures that are wider than tall"),
    ],
)
def test_resume_refuses_other_data(other, words):
    with pytest.raises(UserError) as caught:
        other.load_state_dict(groups().state_dict())
    assert words in str(caught.value)


def test_nothing_to_share():
    with pytest.raises(UserError):
        groups(sizes=SIZES[:0])
    with pytest.raises(UserError):
        groups(batch=0)
