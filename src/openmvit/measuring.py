"""Time and memory of one call, as every comparison takes them."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from math import nan
from multiprocessing import get_context
from pathlib import Path
from statistics import quantiles
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from openmvit.nn.fast.precision import has_amx
from openmvit.nn.fast.recompute import trim_memory

P = ParamSpec("P")
R = TypeVar("R")

Step = Callable[[], Tensor]

_RESET = Path("/proc/self/clear_refs")


def seconds_of(device: torch.device, step: Step, clock: str = "wall") -> float:
    """Time of one call, by events where there is CUDA.

    Args:
        clock: `wall`, or `processor`: time that this process was at work.
    """
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    now = time.perf_counter if clock == "wall" else time.process_time
    begin = now()
    step()
    return now() - begin


def knows_memory(device: torch.device) -> bool:
    """Whether the peak of this process can be read: on CUDA, and on Linux."""
    return device.type == "cuda" or (device.type == "cpu" and _RESET.exists())


def peak_above_idle(device: torch.device, step: Step, calls: int = 2) -> float:
    """Bytes that calls take above what the process holds before them; nan where it cannot be measured.

    What the process freed earlier stays in its heap and hides a part of the peak: measure in a process of its own.
    """
    if not knows_memory(device):
        return nan
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        idle = torch.cuda.memory_allocated(device)
    else:
        _RESET.write_text("5")  # makes the peak start anew
        idle = _status_bytes("VmRSS")
    for _ in range(calls):
        step()
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status_bytes("VmHWM")
    return max(0.0, peak - idle)  # the system counts pages of threads in lots, and is some of them behind


def give_memory_back() -> None:
    """Hand what this process has freed back to the system: it would hide a part of a peak."""
    gc.collect()
    trim_memory()


def free_memory(device: torch.device) -> float | None:
    """Bytes that a new process could take; None where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    return float(table.read_text().split("MemAvailable:")[1].split()[0]) * 1024


def _status_bytes(field: str) -> float:
    """A field of Linux's memory account of this process."""
    text = Path("/proc/self/status").read_text()
    return float(text.split(f"{field}:")[1].split()[0]) * 1024


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function of a module gives in a fresh process with as many threads as this one.

    Raises:
        concurrent.futures.process.BrokenProcessPool: if the process was killed.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)) as pool:
        return pool.submit(function, *args, **kwargs).result()


def outer_deciles(values: Sequence[float]) -> tuple[float, float]:
    """10th and 90th percentile of at least one value."""
    if len(values) < 2:
        return values[0], values[0]
    deciles = quantiles(values, n=10, method="inclusive")
    return deciles[0], deciles[-1]


def processor(device: torch.device) -> str:
    """Name of the processor or card, and what decides speed beside it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    instructions = torch.backends.cpu.get_cpu_capability() + ("-AMX" if has_amx() else "")
    return f"{name} ({instructions}), threads: {torch.get_num_threads()}"
