"""All comparisons of one kind of machine in one run and one table."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from statistics import median
from typing import Any

import torch

from openmvit.benchmark.case import Case, make_case
from openmvit.benchmark.measure import Result, measure
from openmvit.errors import UserError
from openmvit.measuring import processor

CUDA_NETWORKS = {
    ("mvitv2_small", "timm"): 256,
    ("mvitv2_small_16x4", "torchvision"): 16,
    ("mvitv2_base", "timm"): 128,
    ("mvitv2_base", "timm:swin_base_patch4_window7_224"): 128,
    ("mvitv2_base", "timm:vit_base_patch16_224"): 128,
    ("mvitv2_base", "timm:hiera_base_224"): 128,
}
"""Network and peer -> inputs per step, for a card of 80 GB; `--batch` gives another number."""

HEAD = (
    "network",
    "peer",
    "precision",
    "mode",
    "step",
    "batch",
    "ratio",
    "spread",
    "ours, per second",
    "peer, per second",
    "ours, share of matrix rate",
    "peer, share",
    "ours, GiB",
    "peer, GiB",
    "ours ran",
    "peer ran",
)


def cuda_cases(pairs: int = 15, batch: int | None = None, without: str = "") -> Iterator[Case]:
    """Every network in both precisions, modes and steps.

    Args:
        batch: inputs per step; without it as `CUDA_NETWORKS` says.
        without: as of a `Case`.
    Raises:
        UserError: if there is no CUDA device.
    """
    for (name, against), own_batch in CUDA_NETWORKS.items():
        for mode, precision, step in product(("eager", "best"), ("bf16", "fp32"), ("infer", "train")):
            options = {
                "precision": precision,
                "step": step,
                "mode": mode,
                "batch": own_batch if batch is None else batch,
            }
            yield make_case(name, against=against, device="cuda", pairs=pairs, without=without, **options)


SUITES = {"cuda": cuda_cases}


def choose(cases: Iterable[Case], wanted: Mapping[str, Any]) -> list[Case]:
    """Those that have the wanted values of their fields.

    Raises:
        UserError: if there is none.
    """
    cases = list(cases)
    chosen = [case for case in cases if all(getattr(case, key) == value for key, value in wanted.items())]
    if not chosen:
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
        found = ", ".join(sorted({f"{case.name} --against {case.against}" for case in cases}))
        raise UserError(f"The suite has no comparison with {asked}", f"It has {found}")
    return chosen


def run_suite(cases: Iterable[Case]) -> None:
    """Print a table that grows by a row per comparison; one that cannot run here says why."""
    cases = list(cases)
    rate = "best of 8192 x 8192 x 8192" if cases[0].on.type == "cuda" else "better linear of 1568 x 384 x 1536"
    print(f"{processor(cases[0].on)}, torch {torch.__version__}, {cases[0].pairs} pairs; matrix rate: {rate}.\n")
    print(_line(HEAD), _line(["---"] * len(HEAD)), sep="\n", flush=True)
    rates: dict[str, float] = {}
    for case in cases:
        try:
            result = measure(case)
            rates[case.precision] = max(result.matrix_rate, rates.get(case.precision, 0.0))
            cells = suite_cells(case, result)
        except (UserError, RuntimeError) as error:  # out of memory is a RuntimeError
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            cells = [*_names(case), f"did not run: {reason}", *[""] * (len(HEAD) - 7)]
        print(_line(cells), flush=True)
        torch._dynamo.reset()
        gc.collect()
        if case.on.type == "cuda":
            torch.cuda.empty_cache()
    found = ", ".join(f"{precision} {rate / 1e12:.1f}" for precision, rate in rates.items())
    print(f"\nMatrix rate, TFLOP/s: {found or 'not measured'}.")


def suite_cells(case: Case, result: Result) -> list[str]:
    """The row of one comparison."""
    low, high = result.spread
    sides = (result.ours, result.peer)
    return [
        *_names(case),
        f"{median(result.ratios):.2f}",
        f"{low:.2f}-{high:.2f}",
        *(f"{case.batch / side.seconds:.1f}" for side in sides),
        *(f"{side.operations / side.seconds / result.matrix_rate:.0%}" for side in sides),
        *("-" if side.memory != side.memory else f"{side.memory / 2**30:.2f}" for side in sides),
        *(side.variant for side in sides),
    ]


def _names(case: Case) -> list[str]:
    return [case.name, case.peer.name, case.precision, case.mode, case.step, str(case.batch)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
