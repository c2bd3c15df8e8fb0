"""Where a step spends its time: every operator as it runs inside the step, and the new pages of memory it touched.

    python benchmarks/operators.py mvitv2_small --precision bf16 --step train
    python benchmarks/operators.py mvitv2_small_16x4 --against torchvision --step infer --peer

Unlike products timed by themselves, these read what the operator before left, wherever that lies, and write to memory
that may be new. The two sides are those of `openmvit bench`; with the peer's step between ours, as there.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from openmvit.architectures import model_config
from openmvit.benchmark.case import BATCHES, Case
from openmvit.benchmark.peers import default_package
from openmvit.benchmark.steps import build, make_batch, make_step
from openmvit.errors import UserError
from openmvit.measuring import Step, processor, seconds_of

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear", "_linear_pointwise")
"""Matrix products, oneDNN's with the GELU in it; fused attention, which has products inside, is counted with them."""
FUSED = "_scaled_dot_product"
ROWS = 14


@dataclass
class Seen:
    """Of one operator in one step, once averaged: calls, seconds, pages touched for the first time."""

    calls: int = 0
    seconds: float = 0.0
    pages: int = 0


class Watch(TorchDispatchMode):
    """Times every operator that is called, by name; those of the backward pass too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Seen] = defaultdict(Seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pages, begin = fresh_pages(), time.perf_counter()
        out = func(*args, **(kwargs or {}))
        one = self.seen[str(func).split(".")[1]]
        one.seconds += time.perf_counter() - begin
        one.pages += fresh_pages() - pages
        one.calls += 1
        return out


def fresh_pages() -> int:
    """Pages of memory that this process was given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def watched(step: Step, other: Step, rounds: int) -> tuple[dict[str, Seen], float, float]:
    """Operators of one step, the median of its seconds unwatched, and of those of the other step between."""
    cpu, watch, plain, others = torch.device("cpu"), Watch(), [], []
    for count in range(2 * rounds + 2):
        others.append(seconds_of(cpu, other))
        if count < 2:  # the first calls of a process take longer
            step()
        elif count % 2:
            plain.append(seconds_of(cpu, step))
        else:
            with watch:
                step()
    for one in watch.seen.values():
        one.calls, one.seconds, one.pages = one.calls // rounds, one.seconds / rounds, one.pages // rounds
    return watch.seen, median(plain), median(others[2:])


def main() -> int:
    """Print the table of one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="network of ours")
    parser.add_argument("--against", help="timm or torchvision; by default the one that has the network")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--step", default="infer")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="the operators of the other side")
    options = parser.parse_args()
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}", "Give at least 1")
    case = Case(
        options.name,
        options.against or default_package(options.name),
        BATCHES[model_config(options.name).ndim] if options.batch is None else options.batch,
        options.precision,
        step=options.step,
        device="cpu",
    )
    batch = make_batch(case)
    steps = [make_step(case, model, *batch) for model in build(case)]
    first, second = reversed(steps) if options.peer else steps
    seen, seconds, others = watched(first, second, options.rounds)
    print(f"{options.name}, {case.precision}, {case.step}, batch {case.batch}, {processor(case.on)}\n")
    print("| operator | calls | ms | fresh pages |\n|---|---|---|---|")
    for name, one in sorted(seen.items(), key=lambda item: -item[1].seconds)[:ROWS]:
        print(f"| {name} | {one.calls} | {1e3 * one.seconds:.1f} | {one.pages} |")
    products = sum(one.seconds for name, one in seen.items() if name in PRODUCTS or FUSED in name)
    total, pages = sum(one.seconds for one in seen.values()), sum(one.pages for one in seen.values())
    print(
        f"\noperators {options.name} side={'peer' if options.peer else 'ours'} step={1e3 * seconds:.0f} "
        f"in_operators={1e3 * total:.0f} products={1e3 * products:.0f} pages={pages} other_side={1e3 * others:.0f}"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
