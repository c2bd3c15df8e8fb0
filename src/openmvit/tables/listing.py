"""Cells of the paper's tables as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from openmvit.info import table
from openmvit.tables.compare import Cell, summary

_QUANTITIES = {"flops_g": "GFLOPs", "params_m": "M params"}


def tables_text(cells: Sequence[Cell]) -> str:
    """One line per cell, the reasons of those that differ, and as the last line the numbers of verdicts."""
    heads = ("table", "row", "quantity", "paper", "ours", "difference", "", "verdict")
    rows = [heads, *(_line(cell) for cell in cells)]
    lines = [f"{line}  {cell.note}".rstrip() for line, cell in zip(table(rows)[1:], cells, strict=True)]
    return "\n".join([table(rows)[0], *lines, "", summary_line(cells)])


def summary_line(cells: Sequence[Cell]) -> str:
    """`tables cells=... exact=... unit=... explained=... wrong=... not_computable=...`."""
    return " ".join(["tables", *(f"{key}={value}" for key, value in summary(cells).items())])


def tables_data(cells: Sequence[Cell]) -> dict[str, Any]:
    """Cells and summary as plain data for JSON."""
    rows = [{**asdict(cell), "difference": cell.difference} for cell in cells]
    return {"cells": rows, "summary": summary(cells)}


def _line(cell: Cell) -> tuple[str, ...]:
    start = (cell.table, cell.row, _QUANTITIES[cell.quantity], cell.printed)
    verdict = cell.verdict.replace("_", " ")
    if cell.ours is None or cell.difference is None:
        return (*start, "-", "-", "-", verdict)
    share = cell.difference / float(cell.printed)
    return (*start, f"{cell.ours:.3f}", f"{cell.difference:+.3f}", f"{share:+.2%}", verdict)
