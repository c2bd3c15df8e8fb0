"""One comparison: outputs first, then the two sides in turn, then their memory."""

from __future__ import annotations

import gc
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import nan
from statistics import median

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openmvit.benchmark.case import Case
from openmvit.benchmark.ceilings import linear_layers, record_products, seconds_of_products
from openmvit.benchmark.steps import (
    best_step,
    build,
    build_ours,
    build_peer,
    make_batch,
    make_step,
    onednn_switch,
    output_difference,
    step_of,
)
from openmvit.measuring import Step, in_own_process, knows_memory, outer_deciles, peak_above_idle, seconds_of


@dataclass(frozen=True)
class Side:
    """What was measured of one side.

    Args:
        seconds: median time of one step.
        operations: of one step, at 2 per multiply-add.
        memory: bytes of two steps above the process with network and batch in memory; nan where it is not known.
        variant: which of `steps.variants` it ran.
        left_out: variants that could not be used, and why.
        gain: time by that with `steps.onednn_switch`, per pair, sorted; empty where it was not asked for.
    """

    seconds: float
    operations: float
    memory: float = nan
    variant: str = "eager"
    left_out: tuple[str, ...] = ()
    gain: tuple[float, ...] = ()


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        ratios: time of the peer by ours in each pair, sorted; above 1 we are faster.
        difference: largest difference of the outputs as a share of the largest output; nan for different networks.
        matrix_rate: operations per second of the machine's better linear layer.
        products: seconds that the matrix products of a step take by themselves; nan for different networks.
    """

    ours: Side
    peer: Side
    ratios: tuple[float, ...]
    difference: float
    matrix_rate: float
    products: float = nan

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile of the ratios."""
        return outer_deciles(self.ratios)


def _peak_memory(case: Case, side: int, variant: str) -> float:
    # One side is built alone: what the other one leaves in the heap would hide a part of the peak.
    model = build_peer(case) if side else build_ours(case)
    return peak_above_idle(case.on, step_of(case, variant, model))


def peak_memory(case: Case, side: int, variant: str = "eager") -> float:
    """Bytes that two steps take above the idle process with network and batch in memory; nan where unknown.

    On a CPU measured in a process of its own, so that neither side finds memory that the other one left behind; CUDA
    counts tensors, and nothing is known of CUDA graphs, which hold theirs before. Compiling is done before and does not
    count; what it leaves in memory is idle.

    Args:
        side: 0 ours, 1 the peer.
        variant: one of `steps.variants`.
    """
    if not knows_memory(case.on):
        return nan
    try:
        if case.on.type == "cuda":
            return _peak_memory(case, side, variant) if variant.startswith("eager") else nan
        return in_own_process(_peak_memory, case, side, variant)
    except (BrokenProcessPool, torch.OutOfMemoryError):  # where memory ends: the times that there are already stay
        return nan


def peer_operations(case: Case, peer: nn.Module) -> float:
    """Arithmetic of one step of the peer: ours where it is the same network, else its products and convolutions."""
    if case.peer.same:
        return case.operations
    images = make_batch(replace(case, batch=1))[0]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        peer(images)
    return float(counter.get_total_flops()) * case.forwards


def take_turns(case: Case, steps: list[Step], switched: int = 0) -> tuple[list[list[float]], float]:
    """Seconds of every call, per step, and operations per second of the machine's better linear layer between them.

    Args:
        steps: taken in order, in every second round in reverse.
        switched: how many of the last steps run with `onednn_switch`.
    """
    layers, operations = linear_layers(case)
    times: list[list[float]] = [[] for _ in steps]
    order, linear = list(range(len(steps))), float("inf")
    for _ in range(case.pairs):
        for i in order:
            with onednn_switch() if i >= len(steps) - switched else nullcontext():
                times[i].append(seconds_of(case.on, steps[i], case.clock))
        linear = min(linear, *(seconds_of(case.on, layer, case.clock) for layer in layers * 3))
        order.reverse()
    return times, operations / linear


def measure(case: Case) -> Result:
    """Compare outputs, then time the two sides in turn, then what bounds them, then their memory."""
    models = build(case)
    images, labels = make_batch(case)
    difference = output_difference(case, *models, images) if case.peer.same else nan
    operations = case.operations, peer_operations(case, models[1])
    chosen = [best_step(case, model, images, labels) for model in models]
    steps = [step for step, _, _ in chosen] * (2 if case.switch else 1)
    times, rate = take_turns(case, steps, switched=2 if case.switch else 0)
    products = nan
    if case.peer.same:
        products = seconds_of_products(case, record_products(make_step(case, models[1], images, labels)))
    notes = [(variant, tuple(left_out)) for _, variant, left_out in chosen]
    del steps, models, chosen
    gc.collect()
    sides = [
        Side(
            median(times[i]),
            operations[i],
            peak_memory(case, i, notes[i][0]),
            *notes[i],
            gain=_ratios(times[i + 2], times[i]) if case.switch else (),
        )
        for i in (0, 1)
    ]
    return Result(sides[0], sides[1], _ratios(times[0], times[1]), difference, rate, products)


def _ratios(ours: list[float], other: list[float]) -> tuple[float, ...]:
    return tuple(sorted(b / a for a, b in zip(ours, other, strict=True)))
