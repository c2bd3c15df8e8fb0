"""The verb `tables`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from openmvit import screen
from openmvit.cli.arguments import Arguments
from openmvit.errors import UserError


@dataclass(frozen=True)
class TablesOptions:
    """Options of tables."""

    set: str | None = None
    """What if: NAME.FIELD=VALUE changes an architecture in all its rows; several with ; between them."""
    measure: bool = False
    """Measure speed and memory instead, as ratios between rows, on this machine: tens of minutes on two cores."""
    table: str | None = None
    """With --measure: one table, such as 4a; default: all that print speed or memory."""
    seconds: float | None = None
    """With --measure: time of one row for training and for inference each; default 8. Three calls are always made."""
    device: str | None = None
    """With --measure: auto, cpu, cuda, cuda:N; default auto."""
    json: bool = False
    """Print JSON instead of a table."""


def tables(given: Arguments) -> int:
    """Compare the paper's cells with our counts; exit code 1 if one is wrong."""
    from openmvit.tables import compare, parse_changes, summary, tables_data, tables_text

    options = given.options()
    if options["measure"]:
        return _measure(options)
    if alone := next((key for key in ("table", "seconds", "device") if key in given.flags), None):
        raise UserError(f"--{alone} is for measured tables", "Add --measure")
    with screen.listening():
        cells = compare(parse_changes(options["set"] or ""))
    print(json.dumps(tables_data(cells), indent=1) if options["json"] else tables_text(cells))
    return 1 if summary(cells)["wrong"] else 0


def _measure(options: dict[str, Any]) -> int:
    """Print each table when it is measured; speed is nobody's fault, and the exit code 0."""
    from openmvit.tables.measure import SECONDS, choose, measure_table
    from openmvit.tables.measured import head_text, measured_data, measured_line, table_text

    if options["set"] is not None:
        raise UserError("--set changes counts, and --measure takes the paper's rows as they are", "Leave one out")
    seconds, device = SECONDS if options["seconds"] is None else options["seconds"], options["device"] or "auto"
    chosen, done = choose(options["table"]), []
    if not options["json"]:
        print(head_text(_command(options, seconds), device), flush=True)
    for table in chosen:
        found = measure_table(table, seconds, device)
        done.append((table, found))
        if not options["json"]:
            print(table_text(table, found), flush=True)
    if options["json"]:
        print(json.dumps(measured_data(done, device), indent=1))
    else:
        print(f"`{measured_line([one for _, found in done for one in found])}`")
    return 0


def _command(options: dict[str, Any], seconds: float) -> str:
    """What makes the same page again."""
    threads = os.environ.get("OMP_NUM_THREADS")
    given = {"table": options["table"], "seconds": f"{seconds:g}", "device": options["device"]}
    words = [f"--{key} {value}" for key, value in given.items() if value is not None]
    start = [f"OMP_NUM_THREADS={threads}"] if threads else []
    return " ".join([*start, "openmvit tables --measure", *words])
