"""The resumable state of a run: `weights/last/`, complete at every instant, readable with `weights_only=True`.

`last.tmp/` is filled by all ranks; when all have finished, rank 0 renames: `last` to `last.old`, `last.tmp` to
`last`; then it deletes `last.old`. So whatever instant the run is killed at, either `last` is complete, or `last` is
missing and `last.old` is complete. `last.tmp` is never read.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openmvit import processes
from openmvit.errors import UserError
from openmvit.training.ema import Ema

FORMAT = 1


@dataclass
class Progress:
    """Where a run stands. Only plain numbers, strings and lists of them."""

    epoch: int = 0
    """Epoch being trained, from 0."""
    step_in_epoch: int = 0
    """Batches of this epoch that every process has trained on."""
    step: int = 0
    """Batches of the whole run that every process has trained on."""
    update: int = 0
    """Optimiser updates."""
    best: float | None = None
    """Best value of the watched metric so far."""
    best_epoch: int = 0
    """Epoch of the best weights, from 1; 0 before the first."""
    best_loss: float = math.inf
    """Validation loss of the best weights: of equal values the one with the lower loss is kept."""
    improved: int = 0
    """Epoch in which the watched metric last rose, from 1; what patience counts from."""
    seconds: float = 0.0
    """Training time so far, over all parts of the run."""
    loss_sum: float = 0.0
    """Sum of this epoch's losses, mean over the processes."""
    motion: float = 0.0
    """Sum of the learning rates of all updates."""
    diagnosed: bool = False
    """The run has been asked whether it learns."""
    finished: bool = False
    """No epoch is left, or patience has run out."""
    results: list[dict[str, float]] = field(default_factory=list)
    """Rows of results.csv."""


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, put together from its shards. Every process must call it."""
    full = getattr(tensor.detach(), "full_tensor", None)
    return (full() if full is not None else tensor.detach()).cpu().clone()


def place_(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter or into this process's shard of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.detach().copy_(value)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """State of the optimiser by parameter name, whole and on the CPU."""
    state = {name: optimizer.state[p] for name, p in model.named_parameters() if p in optimizer.state}
    return {name: {k: whole(v) for k, v in entry.items() if isinstance(v, Tensor)} for name, entry in state.items()}


@torch.no_grad()
def set_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put back what `optimizer_state` took, sharded like the parameters."""
    parameters = dict(model.named_parameters())
    for name, entry in state.items():
        target = parameters[name]
        for key, value in entry.items():
            if value.shape == target.shape:
                optimizer.state[target][key] = torch.zeros_like(target, requires_grad=False)
                place_(optimizer.state[target][key], value)
            else:
                optimizer.state[target][key] = value.clone()


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Random state of this process: CPU, and the device if it is another."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Put back what `rng_state` took; on a device of another kind only the part of the CPU."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    ema: Ema | None,
    progress: Progress,
) -> dict[str, Any]:
    """Everything that the ranks share, as tensors and plain values. Every process must call it."""
    return {
        "format": FORMAT,
        "world_size": processes.world_size(),
        "model": {name: whole(value) for name, value in model.state_dict().items()},
        "optimizer": optimizer_state(model, optimizer),
        "scaler": scaler.state_dict() if scaler is not None else {},
        "ema": {name: whole(value) for name, value in ema.weights.items()} if ema else {},
        "progress": asdict(progress),
    }


@torch.no_grad()
def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: Any | None,
    ema: Ema | None,
) -> None:
    """Put back what `capture` took, bit for bit."""
    for name, value in model.state_dict().items():
        place_(value, state["model"][name])
    set_optimizer_state(model, optimizer, state["optimizer"])
    if scaler is not None and state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    if ema is not None:
        for name, value in ema.weights.items():
            place_(value, state["ema"][name])


def write(weights: Path, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Replace `weights/last` by the new state, or leave it as it is. Every process must call it.

    Args:
        weights: folder of the run's weights.
        shared: what `capture` gave; rank 0 writes it.
        own: what belongs to this rank alone.
    Raises:
        UserError: if a process could not write, or the weights are not finite; the previous state stays.
    """
    rank, tmp = processes.rank(), weights / "last.tmp"
    _together(weights, lambda: _fresh(tmp) if rank == 0 else None)
    _together(weights, lambda: _write_files(tmp, rank, shared, own))
    _together(weights, lambda: _swap(weights) if rank == 0 else None)


def read(weights: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shared state and this rank's own.

    Raises:
        UserError: if there is no state, it is damaged, or was written by another number of processes.
    """
    folder = weights / "last"
    if processes.rank() == 0 and not folder.exists() and (weights / "last.old").exists():
        (weights / "last.old").rename(folder)
    processes.barrier()
    if not (folder / "state.pt").exists():
        best = (weights / "best.safetensors").exists()
        again = "Start it again by the command it was started with; its folder is used again where --name gave it"
        raise UserError(
            f"{weights.parent} holds no state to resume from (weights/last)",
            f"Start a new run from its best weights: --weights {weights.parent}" if best else again,
        )
    shared = _load(folder / "state.pt")
    if shared["world_size"] != processes.world_size():
        raise UserError(
            f"{weights.parent} was trained by {shared['world_size']} process(es), not {processes.world_size()}",
            f"Resume it with torchrun --nproc-per-node so that there are {shared['world_size']}",
        )
    return shared, _load(folder / f"rank{processes.rank()}.pt")


def check_finite(state: Mapping[str, Any]) -> None:
    """Raise a UserError if a weight is not finite: such a state must never replace a good one."""
    for name, value in state["model"].items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"The weights {name} are no longer finite", "Lower --lr or lengthen --warmup-epochs")


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space: full disk, quota, or file-size limit."""
    chain: Iterator[BaseException] = _causes(error)
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
        or (isinstance(e, RuntimeError) and ("PytorchStreamWriter" in str(e) or "inline_container" in str(e)))
        for e in chain
    )


def disk_full(folder: Path) -> UserError:
    """The message for a full disk."""
    free = shutil.disk_usage(folder).free / 1e6
    return UserError(
        f"The disk of {folder} takes no more data ({free:.0f} MB free, or a quota or file-size limit); "
        "the previous state is kept",
        f"Free some space, then continue with: openmvit train --resume {folder.parent}",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _together(weights: Path, action: Any) -> None:
    """Run an action on every process and go on only if all succeeded: a barrier that carries the errors."""
    problem: UserError | None = None
    try:
        action()
    except UserError as error:
        problem = error
    except (OSError, RuntimeError) as error:
        cause = disk_full(weights) if is_disk_full(error) else None
        problem = cause or UserError(f"Cannot write {weights / 'last'}: {error}", "Check the folder and its rights")
    found = [p for p in processes.gather((problem.cause, problem.fix) if problem else None) if p]
    if found:
        if processes.rank() == 0:
            shutil.rmtree(weights / "last.tmp", ignore_errors=True)
        raise UserError(*found[0])


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_files(tmp: Path, rank: int, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if rank == 0:
        check_finite(shared)
        _save(dict(shared), tmp / "state.pt")
    _save(dict(own), tmp / f"rank{rank}.pt")


def _save(value: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"The state {path} cannot be read: {error}", "Start a new run from weights/best") from error


def _swap(weights: Path) -> None:
    last, old, tmp = weights / "last", weights / "last.old", weights / "last.tmp"
    _sync_folder(tmp)
    if last.exists():
        shutil.rmtree(old, ignore_errors=True)
        last.rename(old)
    tmp.rename(last)
    _sync_folder(weights)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
