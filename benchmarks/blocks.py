"""What a change brought: the blocks of a network in another state of the code and in this one, forward and backward.

    git worktree add ../before HEAD~1
    python benchmarks/blocks.py mvitv2_small_16x4 ../before/src --precision bf16

Both states stand in one process and take turns. Whole steps vary by more than most changes bring; single blocks, one
call of each right after the other, do not. Blocks of equal settings and equal inputs are timed once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

import openmvit
from openmvit.architectures import model_config
from openmvit.benchmark.case import BATCHES
from openmvit.errors import UserError
from openmvit.measuring import processor, seconds_of
from openmvit.nn.fast.precision import BF16_IS_FAST

CPU = torch.device("cpu")


@dataclass
class Kind:
    """Equal blocks: the place of the first, how many there are, and what each reads (grid, and class token if any)."""

    place: int
    count: int
    inputs: list[Tensor]


def model_of(source: Path, name: str) -> Any:
    """A network in training mode by the code of a folder, which the modules it needs stay bound to.

    Raises:
        UserError: if the package is not in the folder.
    """
    if not (source / "openmvit" / "__init__.py").is_file():
        raise UserError(f"{source} has no package openmvit", "Give the src folder of a checkout")
    for module in [module for module in sys.modules if module.split(".")[0] == "openmvit"]:
        del sys.modules[module]
    sys.path.insert(0, str(source))
    try:
        return importlib.import_module("openmvit").create_model(name, drop_path_rate=0.0, drop_rate=0.0).train()
    finally:
        sys.path.pop(0)


def kinds_of(model: Any, batch: int, autocast: Callable[[], Any]) -> list[Kind]:
    """Which different blocks a network has, with the inputs that they get from random images."""
    kinds: dict[str, Kind] = {}

    def note(block: Any, tokens: tuple[Tensor | None, ...]) -> None:
        inputs = [t for t in tokens if t is not None]
        settings = replace(block.config, index=0, stage=0, drop_path=0.0)
        key = str((settings, [(t.shape, t.dtype) for t in inputs]))
        kinds.setdefault(key, Kind(block.config.index, 0, inputs)).count += 1

    hooks = [block.register_forward_pre_hook(note) for block in model.blocks]
    with torch.no_grad(), autocast():
        model(torch.randn(batch, model.config.in_chans, *model.config.input_size))
    for hook in hooks:
        hook.remove()
    return list(kinds.values())


def step_of(block: nn.Module, inputs: list[Tensor], autocast: Callable[[], Any]) -> Callable[[], Tensor]:
    """Forward and backward of one block; all gradients of its outputs are 1."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]

    def step() -> Tensor:
        block.zero_grad()
        for t in inputs:
            t.grad = None
        with autocast():
            found = block(*inputs)
        outputs = [t for t in (found if isinstance(found, tuple) else (found,)) if t is not None]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])
        return outputs[0]

    return step


def in_turns(steps: list[Callable[[], Tensor]], rounds: int) -> list[list[float]]:
    """Milliseconds of every call; each second round begins with the last, and two more at the start do not count."""
    times: list[list[float]] = [[] for _ in steps]
    for count in range(rounds + 2):
        order = range(len(steps)) if count % 2 else reversed(range(len(steps)))
        for side in order:
            times[side].append(1e3 * seconds_of(CPU, steps[side]))
    return [side[2:] for side in times]


def print_blocks(before: Any, now: Any, kinds: list[Kind], autocast: Callable[[], Any], rounds: int) -> list[float]:
    """A row for every kind of block; returns milliseconds of all blocks, before and now."""
    print("| first | blocks | ms before | ms now | ratio |\n|---|---|---|---|---|")
    totals = [0.0, 0.0]
    for kind in kinds:
        times = in_turns([step_of(model.blocks[kind.place], kind.inputs, autocast) for model in (before, now)], rounds)
        ratios = [old / new for old, new in zip(*times, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        medians = [median(side) for side in times]
        totals = [total + kind.count * one for total, one in zip(totals, medians, strict=True)]
        spread = f"{median(ratios):.2f} [{low:.2f}-{high:.2f}]"
        print(f"| {kind.place} | {kind.count} | {medians[0]:.1f} | {medians[1]:.1f} | {spread} |", flush=True)
    return totals


def main() -> int:
    """Print a row for every kind of block, and the sum over all blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="network of ours")
    parser.add_argument("before", type=Path, help="src folder of another checkout")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if options.rounds < 2:
        raise UserError(f"--rounds is {options.rounds}", "Give at least 2")
    config = model_config(options.name)
    batch = BATCHES[config.ndim] if options.batch is None else options.batch
    if batch < 1:
        raise UserError(f"--batch is {batch}", "Give at least 1")
    if config.reversible != "none":
        raise UserError(f"{options.name} is reversible", "Its blocks do not run by themselves: name another network")

    def autocast() -> torch.autocast:  # as the network itself: not where bf16 costs time
        return torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16" and BF16_IS_FAST)

    here = Path(openmvit.__file__).parents[1]
    before, now = (model_of(source.resolve(), options.name) for source in (options.before, here))
    now.load_state_dict(before.state_dict())
    print(f"{options.name}, {options.precision}, batch {batch}, {processor(CPU)}\n")
    totals = print_blocks(before, now, kinds_of(now, batch, autocast), autocast, options.rounds)
    print(f"\nblocks {options.name} ratio={totals[0] / totals[1]:.3f} before={totals[0]:.0f} now={totals[1]:.0f}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
