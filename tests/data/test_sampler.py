"""The order is a function of (seed, epoch), shared without overlap, and resumes at any batch with real workers."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from openmvit.data.counter import mix, sample_generator
from openmvit.data.sampler import PassSampler, ResumableSampler
from openmvit.errors import UserError


class Keys(Dataset):
    """Returns the key it is asked for."""

    def __getitem__(self, key):
        return torch.tensor(key)


def loader(sampler, workers):
    return DataLoader(Keys(), batch_size=4, sampler=sampler, num_workers=workers, drop_last=True, prefetch_factor=None)


def train(sampler, epochs, workers=0, stop_after=None):
    """Keys of every delivered batch, counted as a training loop does."""
    seen = []
    for epoch in range(sampler.epoch, epochs):
        sampler.set_epoch(epoch)
        for batch in loader(sampler, workers):
            sampler.advance(len(batch))
            seen.append(batch.tolist())
            if len(seen) == stop_after:
                return seen
    return seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("stop_after", [1, 5, 6, 8])
def test_resume_continues_at_the_next_undelivered_batch(workers, repeats, stop_after):
    def make(rank):
        return ResumableSampler(26 // repeats, seed=7, shuffle=True, rank=rank, world_size=2, repeats=repeats)

    for rank in (0, 1):
        whole = train(make(rank), 3)
        stopped = make(rank)
        first = train(stopped, 3, workers, stop_after)
        resumed = make(rank)
        resumed.load_state_dict(stopped.state_dict())
        assert first + train(resumed, 3, workers) == whole
        assert len(whole) == 9


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = ResumableSampler(1000, seed=seed, shuffle=True)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert sorted(order(0, 0)) == list(range(1000))
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    displacement = sum(abs(place - index) for place, index in enumerate(order(0, 0))) / 1000**2
    assert displacement == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(("length", "world"), [(10, 3), (9, 3), (5, 5), (8193, 2)])
def test_training_ranks_are_equal_and_disjoint(length, world):
    samplers = [ResumableSampler(length, seed=1, shuffle=True, rank=rank, world_size=world) for rank in range(world)]
    parts = [[index for _, index in sampler] for sampler in samplers]
    assert {len(part) for part in parts} == {length // world} == {len(sampler) for sampler in samplers}
    assert len({index for part in parts for index in part}) == length // world * world


@pytest.mark.parametrize(("length", "world"), [(10, 3), (2, 4), (9, 3)])
def test_validation_sees_every_sample_once(length, world):
    samplers = [ResumableSampler(length, seed=1, shuffle=False, rank=rank, world_size=world) for rank in range(world)]
    parts = [[index for _, index in sampler] for sampler in samplers]
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
    assert sorted(index for part in parts for index in part) == list(range(length))


def test_copies_follow_each_other():
    sampler = ResumableSampler(4, seed=0, shuffle=True, repeats=2)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 8
    assert [copy for _, _, copy in keys] == [0, 1] * 4
    assert all(keys[i][1] == keys[i + 1][1] for i in range(0, 8, 2))
    sampler.advance(4)
    assert list(sampler) == keys[4:]


def test_epoch_change_resets_the_position_and_the_same_epoch_keeps_it():
    sampler = ResumableSampler(10, seed=0, shuffle=True)
    sampler.advance(4)
    sampler.set_epoch(0)
    assert sampler.position == 4
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(sampler) == 10


def test_state_is_plain_and_guarded():
    sampler = ResumableSampler(10, seed=0, shuffle=True, world_size=2)
    state = sampler.state_dict()
    assert all(type(value) is int for value in state.values())
    for length, world, fragment in ((12, 2, "10 samples"), (10, 1, "2 processes")):
        other = ResumableSampler(length, seed=0, shuffle=True, world_size=world)
        with pytest.raises(UserError, match=fragment):
            other.load_state_dict(state)
    with pytest.raises(UserError, match="1 training samples cannot feed 2 processes"):
        ResumableSampler(1, seed=0, shuffle=True, world_size=2)


def first_draw(key):
    return torch.rand(3, generator=sample_generator(*key)).tolist()


def test_sample_generator_is_the_same_in_another_process_and_parts_neighbours():
    keys = [(seed, epoch, index, copy) for seed in (0, 1) for epoch in (0, 1) for index in range(50) for copy in (0, 1)]
    here = [first_draw(key) for key in keys]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(first_draw, keys) == here
    assert len({tuple(draw) for draw in here}) == len(keys)
    many = torch.stack([torch.rand(2, generator=sample_generator(0, 0, index)) for index in range(4000)])
    assert (many.mean(0) - 0.5).abs().max() < 0.02
    assert abs(torch.corrcoef(torch.stack([many[:-1, 0], many[1:, 0]]))[0, 1]) < 0.06
    assert abs(torch.corrcoef(many.T)[0, 1]) < 0.06


def test_mix_is_fixed_for_good():
    assert mix() == 0
    assert mix(0) == 0xE220A8397B1DCDAF  # the published first output of SplitMix64 from state 0
    assert mix(1, 2) != mix(2, 1) != mix(-1)
    assert len({mix(i) for i in range(-1000, 100_000)}) == 101_000


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repeats", [1, 2])
def test_passes_follow_each_other_without_a_gap(world, repeats):
    """Every batch is full, and each pass has every sample once, in whatever epoch it begins and ends."""

    def make(rank):
        place = {"rank": rank, "world_size": world, "repeats": repeats}
        return PassSampler(10, steps=3, batch=4, seed=5, **place)

    streams = [[key for batch in train(make(rank), 20) for key in batch] for rank in range(world)]
    assert {len(stream) for stream in streams} == {20 * 3 * 4}
    keys = [key for row in zip(*streams, strict=True) for key in row]
    seen = {}
    for lap, index, *copy in keys:
        seen.setdefault(lap, []).append((index, *copy))
    laps = sorted(seen)
    assert laps == list(range(len(laps)))
    for lap in laps[:-1]:
        assert sorted(seen[lap]) == sorted((i, *c) for i in range(10) for c in ([()] if repeats == 1 else [(0,), (1,)]))
    assert seen[0] != seen[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_resume_in_the_middle_of_an_epoch(workers):
    def make():
        return PassSampler(10, steps=4, batch=4, seed=5)

    whole, stopped = train(make(), 3), make()
    first = train(stopped, 3, workers, stop_after=6)
    resumed = make()
    resumed.load_state_dict(stopped.state_dict())
    assert first + train(resumed, 3, workers) == whole
    with pytest.raises(UserError, match="started with 4 steps per epoch and there are 5 now"):
        PassSampler(10, steps=5, batch=4, seed=5).load_state_dict(stopped.state_dict())
