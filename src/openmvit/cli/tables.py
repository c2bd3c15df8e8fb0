"""The verb `tables`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from openmvit.cli.arguments import Arguments


@dataclass(frozen=True)
class TablesOptions:
    """Options of tables."""

    set: str | None = None
    """What if: NAME.FIELD=VALUE changes an architecture in all its rows; several with ; between them."""
    json: bool = False
    """Print JSON instead of a table."""


def tables(given: Arguments) -> int:
    """Compare the paper's cells with our counts; exit code 1 if one is wrong."""
    from openmvit.tables import compare, parse_changes, summary, tables_data, tables_text

    options = given.options()
    cells = compare(parse_changes(options["set"] or ""))
    print(json.dumps(tables_data(cells), indent=1) if options["json"] else tables_text(cells))
    return 1 if summary(cells)["wrong"] else 0
