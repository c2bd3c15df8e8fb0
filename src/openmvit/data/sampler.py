"""The order of samples: a pure function of (seed, epoch), shared by ranks and resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from openmvit.data.counter import mix
from openmvit.errors import UserError

Key = tuple[int, int] | tuple[int, int, int]
_CHUNK = 4096


class ResumableSampler(Sampler[Key]):
    """This rank's keys `(epoch, index)`, or `(epoch, index, copy)` with repeats, from `position` to the epoch's end.

    Shuffled (training): every rank gets the same number of samples; up to `world_size - 1` samples of the epoch's own
    order are left out. In order (validation): every sample exactly once, so ranks may differ by one.
    Copies of a sample follow each other (a1 a2 b1 b2); the batch size has to be a multiple of `repeats`.

    Workers fetch ahead, so the position is what the consumer reports by `advance`, not what was handed out; a new
    iterator begins there.

    Args:
        length: samples in the table.
        seed: the run's seed.
        shuffle: a new order in every epoch, or the table's own.
        rank, world_size: this process and how many there are.
        repeats: augmented copies of every sample.
    Raises:
        UserError: fewer samples than processes.
    """

    def __init__(
        self, length: int, *, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1, repeats: int = 1
    ) -> None:
        if shuffle and length < world_size:
            raise UserError(f"{length} training samples cannot feed {world_size} processes", "Use fewer processes")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        """Keys of this rank in a whole epoch, wherever it stands."""
        left_over = 0 if self.shuffle else int(self.rank < self.length % self.world_size)
        return (self.length // self.world_size + left_over) * self.repeats

    def __iter__(self) -> Iterator[Key]:
        epoch, order = self.epoch, self._order()
        for start in range(self.position, len(self), _CHUNK):
            places = torch.arange(start, min(start + _CHUNK, len(self)))
            indices = order[places // self.repeats].tolist()
            if self.repeats == 1:
                yield from ((epoch, index) for index in indices)
            else:
                copies = (places % self.repeats).tolist()
                yield from ((epoch, index, copy) for index, copy in zip(indices, copies, strict=True))

    def _order(self) -> Tensor:
        """Sample numbers of this rank in this epoch, int64."""
        if not self.shuffle:
            return torch.arange(self.length)[self.rank :: self.world_size]
        generator = torch.Generator()
        generator.manual_seed(mix(self.seed, self.epoch))
        return torch.randperm(self.length, generator=generator)[self.rank :: self.world_size]

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of another epoch; the epoch it is in already keeps its position."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def advance(self, samples: int) -> None:
        """Count the keys of one batch as consumed."""
        self.position += samples

    def state_dict(self) -> dict[str, int]:
        """Epoch and position, with the numbers that must not change before they are used again."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "length": self.length,
            "world_size": self.world_size,
            "repeats": self.repeats,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: if the data or the number of processes have changed since.
        """
        for name, what in (("length", "samples"), ("world_size", "processes"), ("repeats", "repeats")):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the run was started with {state[name]} {what} and there are {getattr(self, name)} now",
                    f"Resume with {state[name]} {what}, or start a new run from its weights",
                )
        self.epoch, self.position = state["epoch"], state["position"]


class PassSampler(ResumableSampler):
    """This rank's keys `(pass, index)`, or `(pass, index, copy)` with repeats, in epochs of any length.

    The passes over the samples, each shuffled anew, follow each other in one endless stream, and an epoch is the next
    `steps` batches of it. So every batch is full, no sample is left out, and tiny data can have several passes in an
    epoch. All ranks take turns in the same stream. The pass in the key makes each use of a sample another augmentation.

    Args:
        length: samples in the table.
        steps: batches of an epoch, the same on every rank.
        batch: samples per batch and process; the data loader must be given the same.
        seed: the run's seed.
        rank, world_size: this process and how many there are.
        repeats: augmented copies of every sample.
    Raises:
        UserError: fewer samples than processes.
    """

    def __init__(
        self,
        length: int,
        *,
        steps: int,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        super().__init__(length, seed=seed, shuffle=True, rank=rank, world_size=world_size, repeats=repeats)
        self.steps, self.batch = steps, batch

    def __len__(self) -> int:
        """Keys of this rank in a whole epoch, wherever it stands."""
        return self.steps * self.batch

    def __iter__(self) -> Iterator[Key]:
        epoch, current, order = self.epoch, -1, torch.empty(0)
        for place in range(self.position, len(self)):
            number, copy = divmod(epoch * len(self) + place, self.repeats)
            lap, rest = divmod(number * self.world_size + self.rank, self.length)
            if lap != current:
                generator = torch.Generator().manual_seed(mix(self.seed, lap))
                current, order = lap, torch.randperm(self.length, generator=generator)
            index = int(order[rest])
            yield (lap, index) if self.repeats == 1 else (lap, index, copy)

    def state_dict(self) -> dict[str, int]:
        """As for any sampler, with the length of an epoch."""
        return {**super().state_dict(), "steps": self.steps, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: if the data, the batch or the number of processes have changed since.
        """
        super().load_state_dict(state)
        for name, what in (("steps", "steps per epoch"), ("batch", "samples per batch")):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the run was started with {state[name]} {what} and there are {getattr(self, name)} now",
                    f"Resume with {state[name]} {what}, or start a new run from its weights",
                )
