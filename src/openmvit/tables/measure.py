"""Speed and memory of the paper's tables, measured on this machine as ratios between their rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from math import prod
from statistics import median
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.config import MViTConfig, Size
from openmvit.device import pick_device
from openmvit.errors import UserError, did_you_mean
from openmvit.measuring import (
    Step,
    free_memory,
    in_own_process,
    knows_memory,
    outer_deciles,
    peak_above_idle,
    seconds_of,
)
from openmvit.model import MViT
from openmvit.tables.compare import config_of
from openmvit.tables.rows import Setting
from openmvit.tables.speeds import SPEED_TABLES, SWIN_BASE, Quantity, SpeedRow, SpeedTable

if TYPE_CHECKING:
    from openmvit.detection.config import DetectorConfig

P = ParamSpec("P")
R = TypeVar("R")

SECONDS = 8.0
"""Default time of one row for one quantity of speed."""
PATIENCE = 2
"""A row is not run if its first call takes so many times that."""
ROUNDS = (2, 15)
"""Fewest and most rounds of a table; the first call of every row is not counted."""

_OBJECTS = 7  # per picture, about the mean of COCO
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Times = list[float] | str
"""Seconds per call, one per round; or why there are none."""


@dataclass(frozen=True)
class Measurement:
    """A row and a quantity of a table.

    Args:
        printed: the paper's digits.
        paper_ratio: of them to those of the reference row.
        value: calls times batch per second, or bytes above the idle process; None where it was not run.
        ratio: value by that of the reference row, the median of the rounds.
        spread: 10th and 90th percentile of the rounds' ratios; None for memory.
        reason: why it was not run.
        rounds: calls that were counted, one of every row in each round; 0 for memory.
    """

    row: str
    quantity: Quantity
    printed: str
    paper_ratio: float
    is_reference: bool
    value: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    reason: str = ""
    rounds: int = 0


def choose(name: str | None) -> list[SpeedTable]:
    """The table of that name, or all.

    Raises:
        UserError: if no speed or memory of that table is measured.
    """
    if name is None:
        return list(SPEED_TABLES.values())
    if name not in SPEED_TABLES:
        raise UserError(f"No speed or memory of a table {name!r} is measured", did_you_mean(name, SPEED_TABLES))
    return [SPEED_TABLES[name]]


def measure_table(table: SpeedTable, seconds: float = SECONDS, device: str = "auto") -> list[Measurement]:
    """All quantities of all rows: memory of each row in a process of its own, then speeds, where rows take turns.

    Args:
        seconds: for one row and one quantity of speed, on average over the rows. Three calls are made in any case,
            unless the first one takes more than `PATIENCE` times as long.
    Raises:
        UserError: if the device is unknown, or `seconds` not above 0.
    """
    on = pick_device(device)
    if not seconds > 0:
        raise UserError(f"--seconds is {seconds:g}", "Give more than 0")
    found: dict[Quantity, list[Measurement]] = {}
    failed = {row.name: why for row in table.rows if (why := _left_out(row, on))}
    if "memory" in table.quantities:
        # One thread each on a CPU, two rows at a time: half of it is the start of Python and torch.
        with ThreadPoolExecutor(2 if on.type == "cpu" else 1) as pool:
            own = pool.map(lambda row: failed.get(row.name) or _memory_of(table, row, on), table.rows)
            peaks = {row.name: peak for row, peak in zip(table.rows, own, strict=True)}
        # A row that did not fit would take the rows beside it along.
        failed |= {name: peak for name, peak in peaks.items() if isinstance(peak, str) and knows_memory(on)}
        found["memory"] = _by_peaks(table, peaks)
    for quantity in table.quantities:
        if quantity != "memory":
            left = [row for row in table.rows if row.name not in failed]
            times = _in_process(_time_rows, table, left, quantity, seconds, on) if left else {}
            own = {row.name: times if isinstance(times, str) else times[row.name] for row in left}
            found[quantity] = _by_times(table, quantity, failed | own)
    return [one for quantity in table.quantities for one in found[quantity]]


def _left_out(row: SpeedRow, device: torch.device) -> str:
    """Why a row is not tried at all: there is no network, or it would be killed and take the rows beside it along."""
    if row.setting is None:
        return row.note
    if row.setting.base == SWIN_BASE:
        return ""
    held, free = position_rows(config_of(row.setting, {})), free_memory(device)
    # Their gradient, and what gathers it, come on top in the backward pass.
    if free is None or held <= free / 2:
        return ""
    return f"its position rows take {held / 1e9:.1f} GB in training, more than half of the {free / 1e9:.1f} GB free"


def position_rows(config: MViTConfig | DetectorConfig) -> int:
    """Bytes of the rows that a training step gathers from tables of several axes, one per pair of query and key.

    They do not grow with the batch. Those of detectors depend on the picture, are cut by windows, and count as none.
    """
    if not isinstance(config, MViTConfig):
        return 0
    found = 0
    for block in config.blocks():
        for group in block.relative_groups:
            if len(group) > 1:
                pairs = prod(block.q_grid[axis] * block.kv_grid[axis] for axis in group)
                found += pairs * block.head_dim * 4 * len(block.relative_terms)
    return found


def _memory_of(table: SpeedTable, row: SpeedRow, device: torch.device) -> float | str:
    if not knows_memory(device):
        return f"the memory of a process cannot be read here for {device.type}"
    return _in_process(_peak, table, row, device)


def _in_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | str:
    """What it gives in a process of its own, or why it gives nothing."""
    try:
        return in_own_process(function, *args, **kwargs)
    except BrokenProcessPool:
        return "its process was killed, most likely for memory"
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        return reason


def _reason(error: Exception) -> str | None:
    """Why a row cannot run here; None for a bug."""
    if isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY):
        return "out of memory"
    return f"{error.name} is not installed" if isinstance(error, ModuleNotFoundError) else None


def _peak(table: SpeedTable, row: SpeedRow, device: torch.device) -> float:
    """Bytes of a training step above the process with network and batch in memory; the optimizer's state counts."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    model = build(row.setting).to(device).train()
    optimizer = _optimizer(model.parameters())
    step = _training(model, make_inputs(table, model, device), optimizer)

    def steady() -> Tensor:
        # One step on gradients of zero leaves the state behind that every later step finds.
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return step()

    return peak_above_idle(device, steady, calls=1)


def build(setting: Setting | None) -> nn.Module:
    """The network of a row with random weights, without stochastic depth and dropout."""
    assert setting is not None
    if setting.base == SWIN_BASE:
        from torchvision.models import swin_b

        return swin_b()
    config = config_of(setting(drop_path_rate=0.0, drop_rate=0.0), {})
    if isinstance(config, MViTConfig):
        return MViT(config)
    from openmvit.detection.detector import Detector

    return Detector(config)


Inputs = tuple[Tensor, Tensor] | tuple[list[Tensor], list[dict[str, Tensor]]]


def make_inputs(table: SpeedTable, model: nn.Module, device: torch.device) -> Inputs:
    """Random inputs and labels, the same at every call: `[B, 3, *size]` and `[B]`, or pictures and their objects."""
    generator = torch.Generator().manual_seed(1)
    if not hasattr(model, "roi_heads"):
        images = torch.randn(table.batch, 3, *table.size, generator=generator)
        return images.to(device), torch.randint(10, (table.batch,), generator=generator).to(device)
    height, width = table.size
    pictures = [torch.rand(3, height, width, generator=generator) * 255 for _ in range(table.batch)]
    targets = []
    for _ in pictures:
        corner, side = torch.rand(2, _OBJECTS, 2, generator=generator) * 0.5
        boxes = torch.cat([corner, corner + side + 0.05], dim=1).clamp(max=1.0) * torch.tensor(table.size[::-1] * 2)
        masks = torch.zeros(_OBJECTS, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y0 : y1 + 1, x0 : x1 + 1] = True
        labels = torch.randint(10, (_OBJECTS,), generator=generator)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return [picture.to(device) for picture in pictures], targets


def _training(model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer) -> Step:
    """Forward, losses, backward and an update; inputs are in place."""
    images, wanted = inputs

    def step() -> Tensor:
        if isinstance(wanted, Tensor):
            loss = F.cross_entropy(model(images), wanted)
        else:
            loss = torch.stack(list(model(images, wanted, detect=False)[1].values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True)


def _share(model: nn.Module, pool: dict[tuple[str, Size], nn.Parameter]) -> nn.Module:
    """Give a network the parameters of the pool that have the names and shapes of its own; the pool gets the others."""
    for name, own in list(model.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, pool.setdefault((name, tuple(own.shape)), own))
    return model


def _time_rows(
    table: SpeedTable, rows: Sequence[SpeedRow], quantity: Quantity, seconds: float, device: torch.device
) -> dict[str, Times]:
    """Rows take turns, forwards in one round and backwards in the next; a first call of each is not counted.

    They hold the same weights where names and shapes agree, and one optimizer: ten detectors do not fit otherwise.
    """
    found: dict[str, Times] = {}
    steps: dict[str, Step] = {}
    first: dict[str, float] = {}
    pool: dict[tuple[str, Size], nn.Parameter] = {}
    models = {row.name: _share(build(row.setting), pool).to(device).train(quantity == "train") for row in rows}
    optimizer = _optimizer(pool.values())
    for name, model in models.items():
        try:
            inputs = make_inputs(table, model, device)
            step = _training(model, inputs, optimizer) if quantity == "train" else _answering(model, inputs)
            first[name] = seconds_of(device, step)
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            found[name] = reason
            continue
        if first[name] > PATIENCE * seconds:
            found[name] = f"a call takes {first[name]:.1f} s, too long for --seconds {seconds:g}"
        else:
            steps[name] = step
    times = _take_turns(steps, seconds * len(steps) - sum(first[name] for name in steps), device)
    return found | times


def _answering(model: nn.Module, inputs: Inputs) -> Step:
    @torch.no_grad()
    def answer() -> Tensor:
        return model(inputs[0])

    return answer


def _take_turns(steps: dict[str, Step], seconds: float, device: torch.device) -> dict[str, Times]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, begin, least = list(steps), time.perf_counter(), ROUNDS[0]
    for done in range(ROUNDS[1]):
        spent = time.perf_counter() - begin
        if done >= least and spent * (done + 1) / done > seconds:
            break
        for name in names if done % 2 == 0 else reversed(names):
            times[name].append(seconds_of(device, steps[name]))
    return {**times}


def _by_times(table: SpeedTable, quantity: Quantity, times: dict[str, Times]) -> list[Measurement]:
    reference, found = times[table.reference], []
    for one in _unmeasured(table, quantity, times):
        own = times[one.row]
        if isinstance(own, list):
            one = replace(one, value=table.batch / median(own), rounds=len(own))
        if isinstance(own, list) and isinstance(reference, list):
            ratios = [b / a for a, b in zip(own, reference, strict=True)]
            one = replace(one, ratio=median(ratios), spread=outer_deciles(ratios))
        found.append(one)
    return found


def _by_peaks(table: SpeedTable, peaks: dict[str, float | str]) -> list[Measurement]:
    reference, found = peaks[table.reference], []
    for one in _unmeasured(table, "memory", peaks):
        own = peaks[one.row]
        if isinstance(own, float):
            one = replace(one, value=own, ratio=own / reference if isinstance(reference, float) else None)
        found.append(one)
    return found


def _unmeasured(table: SpeedTable, quantity: Quantity, results: Mapping[str, object]) -> Iterator[Measurement]:
    """The rows that the paper prints this quantity for, with its ratios and the reasons of those that were not run."""
    printed = {row.name: row.printed[quantity] for row in table.rows if quantity in row.printed}
    for name, digits in printed.items():
        ratio, reason = float(digits) / float(printed[table.reference]), results[name]
        yield Measurement(
            *(name, quantity, digits, ratio, name == table.reference),
            reason=reason if isinstance(reason, str) else "",
        )
