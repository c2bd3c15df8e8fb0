"""Measured speed and memory of the paper's tables as Markdown and as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch

from openmvit.device import pick_device
from openmvit.measuring import processor
from openmvit.tables.measure import ROUNDS, Measurement
from openmvit.tables.speeds import Quantity, SpeedTable

NEAR = 0.3
"""A ratio is near the paper's within this share of it: other devices, other batches."""

HEADS: dict[Quantity, tuple[str, ...]] = {
    "train": ("training, inputs/s", "ratio", "10-90 %", "paper"),
    "test": ("inference, inputs/s", "ratio", "10-90 %", "paper"),
    "memory": ("training memory, MiB", "ratio", "paper"),
}
"""Quantity -> the columns of a page that belong to it: value, ratio, its spread if there is one, the paper's ratio."""


def head_text(command: str, device: str) -> str:
    """Title, the command, the machine, and how to read what follows."""
    where = f"{processor(pick_device(device))}, torch {torch.__version__}, fp32, eager"
    return f"""# Speed and memory of the paper's tables, as ratios between rows

`{command}` on {where}.

Rows of a table take turns in one process; a ratio is the median over the rounds of a row's speed by that of the
reference row in the same round, with the 10th and 90th percentile. There are {ROUNDS[0]} to {ROUNDS[1]} rounds, as many
as the time allows; each table names them. A first call of every row is not counted. Training is forward, losses,
backward and a fused AdamW update, without data, stochastic depth and dropout. Memory is what a training step takes
above the process that holds network and batch (gradients, the optimizer's state, activations), each row in a process of
its own, on a CPU with one thread. The paper's columns are from V100 cards and its authors' code: orders and rough
ratios can be compared, no more.
"""


def table_text(table: SpeedTable, found: Sequence[Measurement]) -> str:
    """One table as Markdown: ours and the paper's ratios, how many are near, and remarks."""
    cells = {(one.row, one.quantity): one for one in found}
    heads = ["row", *(head for quantity in table.quantities for head in HEADS[quantity])]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in table.rows:
        parts = [_cell(cells.get((row.name, quantity)), quantity) for quantity in table.quantities]
        lines.append("| " + " | ".join([row.name, *(word for part in parts for word in part)]) + " |")
    size = " x ".join(map(str, table.size))
    inputs = f"Inputs of {size}, batch {table.batch}; ratios to row `{table.reference}`."
    start = f"## Table {table.name}. {table.title}\n\n{inputs}"
    agreements = [_agreement(quantity, found) for quantity in table.quantities]
    told = dict.fromkeys(row.note for row in table.rows if row.note and row.setting is not None)
    notes = [f"{', '.join(row.name for row in table.rows if row.note == note)}: {note}." for note in told]
    remarks = [f"- {remark}" for remark in (*agreements, *table.remarks, *notes)]
    return "\n".join([start, "", *lines, "", *remarks, ""])


def measured_line(found: Sequence[Measurement]) -> str:
    """`measured values=... near=... not_run=...`; the reference rows are values, but not counted as near."""
    run = [one for one in found if one.value is not None]
    near = sum(_is_near(one) for one in run)
    return f"measured values={len(run)} near={near} not_run={len(found) - len(run)}"


def measured_data(tables: Iterable[tuple[SpeedTable, Sequence[Measurement]]], device: str) -> dict[str, Any]:
    """Everything as plain data for JSON."""
    return {
        "processor": processor(pick_device(device)),
        "torch": torch.__version__,
        "tables": [
            {
                "table": table.name,
                "size": table.size,
                "batch": table.batch,
                "reference": table.reference,
                "remarks": table.remarks,
                "rows": [asdict(one) for one in found],
            }
            for table, found in tables
        ],
    }


def _is_near(one: Measurement) -> bool:
    return one.ratio is not None and not one.is_reference and abs(one.ratio / one.paper_ratio - 1) <= NEAR


def _cell(one: Measurement | None, quantity: Quantity) -> list[str]:
    if one is None:
        return ["-"] * len(HEADS[quantity])
    paper = f"{one.paper_ratio:.2f}"
    if one.value is None:
        return [f"not run ({one.reason})", *["-"] * (len(HEADS[quantity]) - 2), paper]
    value = f"{one.value / 2**20:.0f}" if quantity == "memory" else f"{one.value:.2f}"
    ratio = "-" if one.ratio is None else f"{one.ratio:.2f}"
    if quantity == "memory":
        return [value, ratio, paper]
    spread = "-" if one.spread is None else f"{one.spread[0]:.2f}-{one.spread[1]:.2f}"
    return [value, ratio, spread, paper]


def _agreement(quantity: Quantity, found: Sequence[Measurement]) -> str:
    """Ratios near the paper's, and pairs of rows in its order.

    Rows that the paper prints alike are no pair, nor are those whose spreads here overlap.
    """
    run = [one for one in found if one.quantity == quantity and one.ratio is not None]
    printed = [(a, b) for a, b in combinations(run, 2) if float(a.printed) != float(b.printed)]
    pairs = [(a, b) for a, b in printed if not _overlap(a, b)]
    same = sum((a.value > b.value) == (float(a.printed) > float(b.printed)) for a, b in pairs)  # type: ignore[operator]
    others = [one for one in run if not one.is_reference]
    near = f"{sum(map(_is_near, others))} of {len(others)} ratios within {NEAR:.0%} of the paper's"
    name = HEADS[quantity][0].split(",")[0].capitalize()
    rounds = f" ({run[0].rounds} rounds)" if run and run[0].rounds else ""
    left = f"; {len(printed) - len(pairs)} overlap and are left out" if len(pairs) < len(printed) else ""
    return f"{name}{rounds}: {near}, {same} of {len(pairs)} pairs of rows in its order{left}."


def _overlap(a: Measurement, b: Measurement) -> bool:
    """Whether the rounds' ratios of two rows overlap between their 10th and 90th percentiles."""
    if a.spread is None or b.spread is None:
        return False
    return max(a.spread[0], b.spread[0]) <= min(a.spread[1], b.spread[1])
