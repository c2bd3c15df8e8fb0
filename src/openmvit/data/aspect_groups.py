"""The order of pictures for detection: batches are all wide or all tall, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from openmvit.data.counter import mix
from openmvit.data.sampler import Key, ResumableSampler
from openmvit.errors import UserError


class AspectGroups(ResumableSampler):
    """This rank's keys `(epoch, index, lap)`, every `batch` of which are wide pictures (w > h) or none are.

    A pure function of (seed, epoch, rank, world size). Each orientation is an endless stream of laps over its pictures,
    shuffled anew in every lap. Global batches take from the two streams in proportion to their sizes, and an epoch is a
    fixed number of them in shuffled order: `length // (batch * world_size)` per rank, at least one. What does not fill
    an epoch comes first in the next one, so over many epochs every picture is seen equally often. The lap in the key
    makes the second use of a picture within an epoch another augmented copy.

    Args:
        sizes: `[N, 2]`, height and width of every picture.
        batch: pictures per batch and process; the data loader must be given the same.
        seed: the run's seed.
        rank, world_size: this process and how many there are.
        steps: batches of an epoch per rank; None is one pass, rounded down, at least one.
    Raises:
        UserError: fewer pictures than processes, or a batch below 1.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
    ) -> None:
        if not len(sizes) or batch < 1:
            raise UserError(f"{len(sizes)} training pictures in batches of {batch}", "Give at least one of both")
        super().__init__(len(sizes), seed=seed, shuffle=True, rank=rank, world_size=world_size)
        self.batch = batch
        wide = sizes[:, 1] > sizes[:, 0]
        self._members = (np.flatnonzero(~wide), np.flatnonzero(wide))
        self.steps = steps or max(self.length // (batch * world_size), 1)
        """Batches of this rank, and of every other, in an epoch."""

    def __len__(self) -> int:
        """Keys of this rank in a whole epoch, wherever it stands."""
        return self.steps * self.batch

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        indices, laps = self._epoch_keys()
        for place in range(self.position, len(self)):
            yield epoch, int(indices[place]), int(laps[place])

    def _epoch_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture and lap of all of this rank's keys in this epoch, int64 `[steps * batch]` each."""
        total = self.steps * self.world_size
        number = np.arange(self.epoch * total, (self.epoch + 1) * total)
        # Of the first g global batches since the beginning, floor(g * wide / all) are wide.
        wide_before, wide_after = (n * len(self._members[1]) // self.length for n in (number, number + 1))
        is_wide = wide_after > wide_before
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(total, generator=generator).numpy()[self.rank :: self.world_size]
        keys = np.empty((2, len(order), self.batch), dtype=np.int64)
        for group, chosen in enumerate((~is_wide[order], is_wide[order])):
            before = wide_before if group else number - wide_before
            keys[:, chosen] = self._stream(group, before[order[chosen]])
        return keys[0].reshape(-1), keys[1].reshape(-1)

    def _stream(self, group: int, batches: np.ndarray) -> np.ndarray:
        """Pictures and laps of some batches of one orientation's stream, int64 `[2, n, batch]`."""
        members = self._members[group]
        places = batches[:, None] * self.batch + np.arange(self.batch)
        if not places.size:
            return np.empty((2, 0, self.batch), dtype=np.int64)
        laps, rests = np.divmod(places, len(members))
        pictures = np.empty_like(places)
        for lap in np.unique(laps):
            generator = torch.Generator().manual_seed(mix(self.seed, group, int(lap)))
            shuffled = members[torch.randperm(len(members), generator=generator).numpy()]
            pictures[laps == lap] = shuffled[rests[laps == lap]]
        return np.stack([pictures, laps])

    def state_dict(self) -> dict[str, int]:
        """Epoch and position, with the numbers that must not change before they are used again."""
        return {**super().state_dict(), "batch": self.batch, "wide": len(self._members[1])}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: if the data, the batch or the number of processes have changed since.
        """
        for name, now, what in (
            ("batch", self.batch, "pictures per batch"),
            ("wide", len(self._members[1]), "pictures that are wider than tall"),
        ):
            if state[name] != now:
                raise UserError(
                    f"the run was started with {state[name]} {what} and there are {now} now",
                    f"Resume with {state[name]} {what}, or start a new run from its weights",
                )
        super().load_state_dict(state)
