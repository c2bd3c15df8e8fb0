"""The verb `train` for a table of the paper: one row, all rows in small, or the list of rows."""

from __future__ import annotations

from typing import Any

from openmvit.errors import UserError


def find_table(name: str | None, flags: dict[str, Any]) -> str | None:
    """The word behind `train` where it is a table of rows and no recipe.

    Raises:
        UserError: if it is none, and options of tables were given.
    """
    from openmvit.training.ablation import is_ablation

    found = name if name is not None and is_ablation(name) else None
    given = next((key for key in ("row", "quick") if key in flags), None)
    if given and found is None:
        raise UserError(f"--{given} belongs to a table of the paper", "Name one, such as ablation/attention")
    return found


def train_table(name: str, flags: dict[str, Any], config: str | None) -> int:
    """Train a row as the flags say, the table in small, or print its rows.

    Args:
        config: recipe file whose values win over the table's.
    Raises:
        UserError: if there is no such row, or an option does not fit.
    """
    from openmvit.training.ablation import listing, load_ablation, row_recipe
    from openmvit.training.recipe_file import read_fields

    table = load_ablation(name)
    row, quick = flags.pop("row", None), flags.pop("quick", False)
    values = (read_fields(config) if config is not None else {}) | flags
    if quick:
        from openmvit.training.quick import run_quick

        print(run_quick(table, [table.row(row)] if row else table.rows, values))
        return 0
    if row is None:
        print(listing(table))
        if flags:
            raise UserError("No row is named", f"Give --row {table.default}, or another of those above")
        return 0
    recipe = row_recipe(table, table.row(row), values)
    if recipe.data is None:
        raise UserError("train has no data", "Give --data DIR, or --quick for data that the package brings")
    from openmvit.training.run import train

    train(recipe)
    return 0
