"""The processes of one run: who am I, and how do we agree. Works unchanged with one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from openmvit.errors import UserError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Longest wait of one process for the others; a validation or a save on rank 0 must fit in."""


def rank() -> int:
    """Number of this process among all, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched() -> bool:
    """Whether torchrun (or a scheduler that sets the same variables) started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(device: torch.device) -> None:
    """Meet the other processes that torchrun started; nothing to do when alone."""
    if not launched() or dist.is_initialized():
        return
    missing = [v for v in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if v not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not", "Start several processes with torchrun")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)


def leave() -> None:
    """Take leave of the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Meet the others for a while, unless the caller has done so already."""
    before = dist.is_initialized()
    join(device)
    try:
        yield
    finally:
        if not before:
            leave()


def is_main() -> bool:
    """Whether this process is the one that talks, also before and after the others are met."""
    return int(os.environ.get("RANK", "0")) == 0 if launched() else True


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def broadcast(value: T) -> T:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """The values of all ranks, by rank, on every rank. Small objects only."""
    if not dist.is_initialized():
        return [value]
    box: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box  # pyright: ignore[reportReturnType]


def gather_rows(row: torch.Tensor) -> torch.Tensor:
    """`[n]` on each rank -> `[world, n]` on every rank, on the device of the input."""
    if not dist.is_initialized():
        return row[None]
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row.contiguous())
    return torch.stack(rows)


def total(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
