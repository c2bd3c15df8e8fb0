"""Batches of one rank, epoch after epoch, from any position; counts the time spent waiting for data."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from openmvit.data.sampler import ResumableSampler
from openmvit.errors import UserError

Batch = dict[str, Any]
"""Tensors `[B, ...]`, or lists of B where samples differ in size; `index` and `bad`, int64 `[B]`, always."""


class _Keys(Sampler[Any]):
    """The keys of a sampler, and none while it is shut."""

    def __init__(self, order: ResumableSampler) -> None:
        self._order, self.shut = order, False

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self.shut else iter(self._order)


class EpochLoader:
    """Iterates over the rest of the sampler's epoch each time. It has no length: a resumed epoch is shorter.

    Args:
        batch: samples per batch and process.
        workers: processes that read and augment; they live as long as the loader.
        drop_last: leave out the last, smaller batch of an epoch, unless it is the only one.
        pin: put batches into page-locked memory, for CUDA.
        collate: samples to batch; default: tensors of all samples one on the other.
    Raises:
        UserError: if `batch` is no multiple of the sampler's repeats.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: ResumableSampler,
        *,
        batch: int,
        workers: int,
        drop_last: bool,
        pin: bool,
        collate: Callable[[list[Any]], Batch] | None = None,
    ) -> None:
        if batch % sampler.repeats:
            raise UserError(f"batch {batch} is no multiple of repeats {sampler.repeats}", "Change one of them")
        drop_last = drop_last and len(sampler) >= batch
        self.batch, self.wait = batch, 0.0
        # Not called `sampler`: the engine would set the epoch of such an attribute from its own counter.
        self.order = sampler
        self.steps = len(sampler) // batch if drop_last else -(-len(sampler) // batch)
        """Batches of a whole epoch."""
        self._keys = _Keys(sampler)
        self._loader: DataLoader[Batch] = DataLoader(
            dataset,
            batch_size=batch,
            sampler=self._keys,
            num_workers=workers,
            drop_last=drop_last,
            pin_memory=pin,
            collate_fn=collate,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            # Without a generator of its own, every new iterator would take a number from the global one.
            generator=torch.Generator().manual_seed(0),
        )

    def start(self) -> None:
        """Start the workers, which then wait for the first epoch.

        They are forks of this process, and a fork that is made while one of its threads works can hang for ever: with
        the engine's threads running, one in some thirty runs of two processes did. So they are made before.
        """
        if self._loader.num_workers:
            self._keys.shut = True
            iter(self._loader)
            self._keys.shut = False

    def __iter__(self) -> Iterator[Batch]:
        iterator = iter(self._loader)
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self.wait += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        """End the workers. They ignore SIGTERM, so nothing else would when the program ends."""
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()


def _start_worker(_: int) -> None:
    # Both may be sent to the whole process group; the main process decides what they mean and needs workers meanwhile.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
