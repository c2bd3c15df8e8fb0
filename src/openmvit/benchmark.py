"""Speed and memory against the package a user would pick instead: same weights, one process, taking turns.

Runs without the command line's libraries as `python -m openmvit.benchmark NAME --against timm`.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from statistics import median
from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.architectures import model_config
from openmvit.convert import to_native
from openmvit.counting import count_classifier
from openmvit.errors import UserError, did_you_mean
from openmvit.measuring import (
    Step,
    in_own_process,
    knows_memory,
    outer_deciles,
    peak_above_idle,
    processor,
    seconds_of,
)
from openmvit.zoo import create_model

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest accepted difference of outputs, as a share of the largest output."""


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Args:
        names: our names of the networks that it has too.
        build: makes its network with random weights and without stochastic depth.
        install: the line that installs it.
    """

    names: tuple[str, ...]
    build: Callable[[str], nn.Module]
    install: str


def _timm(name: str) -> nn.Module:
    return importlib.import_module("timm").create_model(name, pretrained=False, drop_path_rate=0.0)


PEERS = {"timm": Peer(("mvitv2_tiny", "mvitv2_small", "mvitv2_base", "mvitv2_large"), _timm, "pip install timm")}
"""Package -> what to compare; its name is also that of the key table in `openmvit.convert`."""

CHOICES = {
    "against": tuple(PEERS),
    "precision": ("fp32", "bf16"),
    "mode": ("eager", "best"),
    "step": ("infer", "train"),
    "device": ("auto", "cpu", "cuda"),
    "clock": ("wall", "processor"),
}


@dataclass(frozen=True)
class Case:
    """What is compared. `best` lets each side take the faster of eager and compiled (inference: frozen weights)."""

    name: str
    against: str = "timm"
    precision: str = "fp32"
    mode: str = "eager"
    step: str = "infer"
    batch: int = 8
    pairs: int = 15
    device: str = "auto"
    clock: str = "wall"

    def __post_init__(self) -> None:
        for field, accepted in CHOICES.items():
            if getattr(self, field) not in accepted:
                raise UserError(
                    f"--{field} is {getattr(self, field)!r}", did_you_mean(str(getattr(self, field)), accepted)
                )
        if self.name not in PEERS[self.against].names:
            fix = did_you_mean(self.name, PEERS[self.against].names)
            raise UserError(f"{self.against} has no network {self.name!r}", fix)
        if self.batch < 1 or self.pairs < 3:
            raise UserError(f"--batch is {self.batch}, --pairs is {self.pairs}", "Give at least 1 and at least 3")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is 'cuda' and there is no CUDA device", "Leave --device out")
        if self.clock == "processor" and (self.on.type != "cpu" or torch.get_num_threads() > 1):
            # The waiting of one thread for another counts as work.
            raise UserError("--clock is 'processor', which is for one CPU thread", "Set OMP_NUM_THREADS=1")

    @property
    def on(self) -> torch.device:
        """The device of the run; `auto` is CUDA where there is one."""
        cuda = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if cuda else "cpu")

    @property
    def operations(self) -> float:
        """Arithmetic of one step at 2 per multiply-add; a training step counts as three forwards."""
        forward = count_classifier(model_config(self.name)).total.operations
        return 2.0 * forward * self.batch * (3 if self.step == "train" else 1)


@dataclass(frozen=True)
class Result:
    """What was measured.

    Args:
        seconds: median time of one step, (ours, peer).
        ratios: time of the peer by ours in each pair, sorted; above 1 we are faster.
        difference: largest difference of the outputs as a share of the largest output.
        memory: bytes above the idle process with network and batch in memory, (ours, peer); nan in mode `best`.
        matrix_rate: operations per second of the machine's better linear layer.
    """

    seconds: tuple[float, float]
    ratios: list[float]
    difference: float
    memory: tuple[float, float]
    matrix_rate: float

    @property
    def spread(self) -> tuple[float, float]:
        """10th and 90th percentile of the ratios."""
        return outer_deciles(self.ratios)


def build(case: Case) -> tuple[nn.Module, nn.Module]:
    """Our network and the peer's, same random weights, on the device, in the mode of the step.

    Raises:
        UserError: if the peer is not installed.
    """
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            peer = PEERS[case.against].build(case.name)
    except ModuleNotFoundError as error:
        raise UserError(f"{case.against} is not installed", f"Run: {PEERS[case.against].install}") from error
    with torch.device("meta"):
        ours = create_model(case.name, drop_path_rate=0.0)
    state = to_native(case.against, ours.config, peer.state_dict())
    ours.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, assign=True)
    training = case.step == "train"
    return ours.to(case.on).train(training), peer.to(case.on).train(training)


def make_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Random input `[B, 3, *size]` of the nominal size and labels `[B]`, the same at every call."""
    config, generator = model_config(case.name), torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, config.in_chans, *config.input_size, generator=generator)
    labels = torch.randint(config.num_classes, (case.batch,), generator=generator)
    return images.to(case.on), labels.to(case.on)


def make_step(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """One call: forward; or forward, cross entropy, backward and a fused AdamW update. Returns logits or loss."""
    autocast = torch.autocast(case.on.type, torch.bfloat16, enabled=case.precision == "bf16")

    def infer() -> Tensor:
        with torch.no_grad(), autocast:
            return model(images)

    if case.step == "infer":
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def train() -> Tensor:
        with autocast:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return train


def output_difference(case: Case, ours: nn.Module, peer: nn.Module, images: Tensor) -> float:
    """Largest difference of the two outputs as a share of the largest output of the peer.

    Raises:
        UserError: if it is beyond `TOLERANCE`: then a comparison of speed means nothing.
    """
    forward = Case(case.name, case.against, case.precision, step="infer", batch=case.batch, device=case.device)
    first, second = (make_step(forward, m, images, images)().float() for m in (ours, peer))
    difference = float((first - second).abs().max() / second.abs().max())
    if not difference <= TOLERANCE[case.precision]:
        raise UserError(
            f"Outputs differ by {difference:.1e} of their scale, more than {TOLERANCE[case.precision]:.0e}",
            "The two networks are not the same; report this with the versions above",
        )
    return difference


def best_step(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """A warm step; in mode `best` the faster of eager and compiled, by the better of two calls each."""
    steps = [make_step(case, model, images, labels)]
    if case.mode == "best":
        options: dict[str, str | int | bool] = {"freezing": True} if case.step == "infer" else {}
        compiled: nn.Module = torch.compile(model, options=options)  # type: ignore[assignment]
        steps.append(make_step(case, compiled, images, labels))
    for step in steps:
        step()
    times = [min(seconds_of(case.on, s, case.clock) for _ in range(2)) for s in steps]
    return steps[times.index(min(times))]


def linear_layers(case: Case) -> tuple[list[Step], float]:
    """The linear layers that the machine has to offer, and the operations of one call.

    On a CPU 1568 x 384 x 1536 by the ordinary and, where this version has it, the oneDNN linear; on CUDA 8192 cubed,
    since a small product measures the launch.
    """
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    rows, inner, cols = (1568, 384, 1536) if case.on.type == "cpu" else (8192, 8192, 8192)
    x, w = torch.randn(rows, inner, device=case.on, dtype=dtype), torch.randn(cols, inner, device=case.on, dtype=dtype)
    layers: list[Step] = [lambda: F.linear(x, w)]
    one_dnn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    if case.on.type == "cpu" and one_dnn is not None:
        layers.append(lambda: one_dnn(x, w, None, "none", [], ""))
    return layers, 2.0 * rows * inner * cols


def _peak_memory(case: Case, side: int) -> float:
    # One side is built alone: what the other one leaves in the heap would hide a part of the peak.
    model = PEERS[case.against].build(case.name) if side else create_model(case.name, drop_path_rate=0.0)
    step = make_step(case, model.to(case.on).train(case.step == "train"), *make_batch(case))
    return peak_above_idle(case.on, step)


def peak_memory(case: Case, side: int) -> float:
    """Bytes that two steps take above the idle process with network and batch in memory; nan where unknown.

    Measured in a process of its own, so that neither side finds memory that the other one left behind.

    Args:
        side: 0 ours, 1 the peer.
    """
    if case.mode == "best" or not knows_memory(case.on):
        return nan
    return in_own_process(_peak_memory, case, side)


def measure(case: Case) -> Result:
    """Compare outputs, then time the two sides in turn; every second pair begins with the peer."""
    ours, peer = build(case)
    images, labels = make_batch(case)
    difference = output_difference(case, ours, peer, images)
    steps = [best_step(case, model, images, labels) for model in (ours, peer)]
    layers, operations = linear_layers(case)
    times: list[list[float]] = [[], []]
    linear_seconds = float("inf")
    for pair in range(case.pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            times[side].append(seconds_of(case.on, steps[side], case.clock))
        linear_seconds = min(linear_seconds, *(seconds_of(case.on, s, case.clock) for s in layers * 3))
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    rate = operations / linear_seconds
    del steps, ours, peer
    gc.collect()
    memory = peak_memory(case, 0), peak_memory(case, 1)
    return Result((median(times[0]), median(times[1])), ratios, difference, memory, rate)


def report(case: Case, result: Result) -> str:
    """The table and, as the last line, the summary."""
    version = getattr(importlib.import_module(case.against), "__version__", "")
    lines = [
        f"{case.name}, {case.precision}, {case.mode}, {case.step}, batch {case.batch}, {len(result.ratios)} pairs, "
        f"{case.clock} time, {processor(case.on)}, torch {torch.__version__}, {case.against} {version}; outputs "
        f"differ by {result.difference:.1e} of their scale; matrix rate {result.matrix_rate / 1e9:.0f} GFLOP/s.",
        "",
        "| side | ms per step | images/s | GFLOP/s | share of matrix rate | peak memory above idle, MiB |",
        "|---|---|---|---|---|---|",
    ]
    speeds = [case.batch / seconds for seconds in result.seconds]
    for side, seconds, speed, memory in zip(("ours", case.against), result.seconds, speeds, result.memory, strict=True):
        rate = case.operations / seconds
        share, mib = f"{rate / result.matrix_rate:.0%}", "-" if memory != memory else f"{memory / 2**20:.0f}"
        lines.append(f"| {side} | {seconds * 1e3:.1f} | {speed:.1f} | {rate / 1e9:.0f} | {share} | {mib} |")
    low, high = result.spread
    summary = f"bench {case.name} ratio={median(result.ratios):.2f} low={low:.2f} high={high:.2f}"
    return "\n".join([*lines, "", f"{summary} ours={speeds[0]:.1f} peer={speeds[1]:.1f}"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message[:1].upper() + message[1:], "See openmvit bench --help")


def main(argv: Sequence[str]) -> int:
    """`openmvit bench NAME --against timm ...`; prints the table, returns 0.

    Raises:
        UserError: for a bad option, a missing peer, or outputs that differ.
    """
    parser = _Parser(prog="openmvit bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", help="model name")
    helps = {
        "against": "package to compare with",
        "precision": "fp32, or bf16 by autocast on both sides",
        "mode": "eager, or best: each side takes the faster of eager and compiled",
        "step": "forward, or forward with backward and update",
        "batch": "images per step",
        "pairs": "how often each side is timed, in turn",
        "device": "auto is CUDA where there is one",
        "clock": "processor time, on one thread, is for a machine that does other work",
    }
    for field, text in helps.items():
        default = getattr(Case, field)
        choices = f" ({', '.join(CHOICES[field])})" if field in CHOICES else ""
        parser.add_argument(
            f"--{field}", type=type(default), default=default, help=f"{text}{choices}; default {default}"
        )
    case = Case(**vars(parser.parse_args(argv)))
    print(report(case, measure(case)), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
