"""A comparison as text: what was run, a table, and one line that scripts can read."""

from __future__ import annotations

from statistics import median

import torch

from openmvit.benchmark.case import Case
from openmvit.benchmark.measure import Result, Side
from openmvit.measuring import outer_deciles, processor


def report(case: Case, result: Result) -> str:
    """The table and, as the last line, the summary."""
    sides = [("ours", result.ours), (case.peer.name, result.peer)]
    lines = [
        _heading(case, result),
        "",
        f"| side | variant | ms per step | {case.unit}/s | GFLOP/s | share of matrix rate | memory above idle, MiB |",
        "|---|---|---|---|---|---|---|",
        *(_row(case, result, name, side) for name, side in sides),
    ]
    if result.products == result.products:
        alone = Side(result.products, result.ours.operations, variant="none")
        lines.append(_row(case, result, "matrix products alone", alone))
    lines += ["", *_remarks(result, sides)]
    return "\n".join([*lines, summary(case, result)])


def summary(case: Case, result: Result) -> str:
    """The last line: median ratio of the pairs with its outer deciles, and what each side does per second."""
    low, high = result.spread
    ours, peer = (case.batch / side.seconds for side in (result.ours, result.peer))
    ratio = f"ratio={median(result.ratios):.2f} low={low:.2f} high={high:.2f}"
    return f"bench {case.name} {ratio} ours={_speed(ours)} peer={_speed(peer)}"


def _heading(case: Case, result: Result) -> str:
    package = case.peer.package
    outputs = (
        f"outputs differ by {result.difference:.1e} of their scale"
        if case.peer.same
        else f"{case.peer.network} is another network, its outputs were not compared"
    )
    return (
        f"{case.name}, {case.precision}, {case.mode}, {case.step}, batch {case.batch}, {len(result.ratios)} pairs, "
        f"{case.clock} time, {processor(case.on)}, torch {torch.__version__}, {package} {case.peer.version}; "
        f"{outputs}; matrix rate {result.matrix_rate / 1e9:.0f} GFLOP/s."
    )


def _row(case: Case, result: Result, name: str, side: Side) -> str:
    rate = side.operations / side.seconds
    mib = "-" if side.memory != side.memory else f"{side.memory / 2**20:.0f}"
    cells = [name, side.variant, f"{side.seconds * 1e3:.1f}", _speed(case.batch / side.seconds)]
    cells += [f"{rate / 1e9:.0f}", f"{rate / result.matrix_rate:.0%}", mib]
    return f"| {' | '.join(cells)} |"


def _remarks(result: Result, sides: list[tuple[str, Side]]) -> list[str]:
    """What the table does not hold, a paragraph each."""
    lines: list[str] = []
    if result.products == result.products:
        bound = result.peer.seconds / result.products
        lines += [f"Largest ratio that the matrix products of the step leave room for: {bound:.2f}.", ""]
    for name, side in sides:
        if side.left_out:
            lines += [f"Left out for {name}: {'; '.join(side.left_out)}.", ""]
        if side.gain:
            low, high = outer_deciles(side.gain)
            lines += [f"With the oneDNN switch {name} gains {median(side.gain):.2f} [{low:.2f}-{high:.2f}].", ""]
    return lines


def _speed(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2f}"
