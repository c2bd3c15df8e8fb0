"""The paper's ablation tables as rows over recipes: what each row changes in a network, and what it reached in print.

Imports no torch, so that rows are listed at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmvit.architectures import ARCHITECTURES, DETECTORS, PLAIN, classifier_config, is_detector
from openmvit.config import MViTConfig
from openmvit.errors import UserError, did_you_mean
from openmvit.records import from_fields
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import check_fields, find_recipe, list_ablations, read_fields, read_yaml

if TYPE_CHECKING:
    from openmvit.detection.config import DetectorConfig

SCORES = {"top1": "top-1", "box_ap": "box AP", "mask_ap": "mask AP", "gflops": "G", "params_m": "M"}
"""What a row may have in print, and what the listing calls it."""


@dataclass(frozen=True)
class AblationRow:
    """One row of a table.

    Args:
        name: what `--row` takes.
        base: the network that the row changes: an architecture, a detector, or a name of `PLAIN`.
        changes: its fields that differ; of a detector or of its backbone.
        options: of the recipe, where the row is trained otherwise than the table.
        paper: what the paper calls the row; empty for a row that the paper has not.
        printed: the paper's digits, with the keys of `SCORES`.
        counted: ours of `gflops` and `params_m`, for one nominal input or a picture of 800 x 1280; digits as well.
        pretrain: `ablation/TABLE ROW` whose run the row starts from; empty where the recipe's weights fit.
        small: `changes` on the network of the quick table, where they differ.
        note: what is not stated in the paper, or differs from it.
    """

    name: str
    base: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    paper: str = ""
    printed: dict[str, str] = field(default_factory=dict)
    counted: dict[str, str] = field(default_factory=dict)
    pretrain: str = ""
    small: dict[str, Any] | None = None
    note: str = ""

    @cached_property
    def config(self) -> MViTConfig | DetectorConfig:
        """The network, with as many classes as its base has."""
        if not is_detector(self.base):
            return classifier_config(self.base, **self.changes)
        from openmvit.detection.config import DetectorConfig

        return DetectorConfig.named(self.base, **self.changes)


@dataclass(frozen=True)
class Ablation:
    """A table of the paper.

    Args:
        name: such as `ablation/attention`.
        table: the paper's number of it.
        question: what it asks.
        recipe: that its rows are trained with.
        default: the row that is the paper's own network.
        rows: in the order of the paper.
        quick: how fields are scaled to the small networks of the quick table; empty where there is none.
    """

    name: str
    table: str
    question: str
    recipe: str
    default: str
    rows: tuple[AblationRow, ...]
    quick: str = ""

    @property
    def short(self) -> str:
        """Name without its folder."""
        return self.name.rpartition("/")[2]

    def row(self, name: str) -> AblationRow:
        """A row by name.

        Raises:
            UserError: if there is none of that name, naming the nearest.
        """
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise UserError(f"{self.name} has no row {name!r}", did_you_mean(name, [row.name for row in self.rows]))
        return found


def is_ablation(name_or_path: str | Path) -> bool:
    """Whether a name or file is a table of rows rather than a recipe.

    Raises:
        UserError: if there is neither.
    """
    return "rows" in read_yaml(find_recipe(name_or_path))


def load_ablation(name_or_path: str | Path) -> Ablation:
    """A shipped table by name, or a YAML file of the same form; every row's network is checked.

    Raises:
        UserError: naming the key, row or field that is wrong.
    """
    path = find_recipe(name_or_path)
    values = read_yaml(path)
    shipped = f"ablation/{path.stem}"
    name = shipped if shipped in list_ablations() else path.stem
    rows, base = values.pop("rows", None), values.pop("base", "")
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path} has no rows", "Write them below `rows:`, by name")
    made = tuple(_row(path, key, own, base) for key, own in rows.items())
    missing = [f.name for f in fields(Ablation) if f.name not in {*values, "name", "rows", "quick"}]
    if missing:
        raise UserError(f"{path} has no {missing[0]}", "Write it above `rows:`")
    table = from_fields(Ablation, {**values, "table": str(values["table"]), "name": name, "rows": made}, str(path))
    table.row(table.default)
    return table


def _row(path: Path, name: str, own: Any, base: str) -> AblationRow:
    if not isinstance(own, dict):
        raise UserError(f"Row {name} of {path} is {own!r}", "Write the fields of a row below it")
    row = from_fields(AblationRow, {"base": base, **own, "name": name}, f"Row {name} of {path}")
    for key in ("changes", "options", "printed", "counted", "small"):
        if not isinstance(getattr(row, key) or {}, dict):
            raise UserError(f"Row {name} of {path} has {key} {getattr(row, key)!r}", "Write {field: value, ...}")
    bases = [*ARCHITECTURES, *DETECTORS, *PLAIN]
    if row.base not in bases:
        raise UserError(f"Row {name} of {path} changes {row.base!r}", did_you_mean(row.base, bases))
    for key, digits in (*row.printed.items(), *row.counted.items()):
        if key not in SCORES:
            raise UserError(f"Row {name} of {path} has the number {key!r}", did_you_mean(key, SCORES))
        if not isinstance(digits, str):
            # A number would lose its last zeros: 82.0 is more than 82.
            raise UserError(f"Row {name} of {path} has {key} {digits}", "Write its digits in quotes")
    try:
        _ = row.config
    except UserError as error:
        raise UserError(f"Row {name} of {path}: {error.cause}", error.fix) from None
    return row


def row_recipe(table: Ablation, row: AblationRow, values: Mapping[str, Any]) -> Recipe:
    """The recipe that trains a row.

    Its network is written below `out_dir`, and the recipe names that file, so that the run folder repeats the run.

    Args:
        values: options that win over those of the table and the row.
    Raises:
        UserError: if an option is wrong, names a network, or the row needs the weights of another one.
    """
    if values.get("model") is not None:
        raise UserError(f"The row {row.name} is a network, and --model names another", "Leave --model out")
    if row.pretrain and "weights" not in values:
        other, _, name = row.pretrain.partition(" ")
        raise UserError(
            f"The row {row.name} starts from a classifier of its own, which nobody published",
            f"Train it: openmvit train {other} --row {name}; then give --weights RUN, or --weights none",
        )
    recipe = check_fields(read_fields(table.recipe) | row.options | dict(values))
    path = Path(recipe.out_dir) / "ablation" / f"{table.short}_{row.name}.json"
    write_network(row.config, path)
    return check_fields({**vars(recipe), "model": str(path)})


def write_network(config: MViTConfig | DetectorConfig, path: Path) -> None:
    """Write a configuration as the JSON file that a recipe's `model` may name.

    Raises:
        UserError: if the place cannot be written.
    """
    # Every process of a run writes the same, each to a name of its own.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror})", "Choose another --out-dir") from error


def listing(table: Ablation) -> str:
    """The rows of a table with their numbers, as text."""
    shown = [key for key in SCORES if any(key in row.printed for row in table.rows)]
    ours = [key for key in ("gflops", "params_m") if any(key in row.counted for row in table.rows)]
    head = ["row", "in the paper", *(SCORES[key] for key in shown), *(f"{SCORES[key]} counted" for key in ours)]
    cells = [head]
    for row in table.rows:
        values = [row.printed.get(key, "-") for key in shown] + [row.counted.get(key, "-") for key in ours]
        cells.append([row.name + "*" * (row.name == table.default), row.paper or "-", *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    notes = [f"{row.name}: {row.note}" for row in table.rows if row.note]
    first = f"{table.name}, Table {table.table}: {table.question}"
    last = f"Train one with openmvit train {table.name} --row ROW --data DIR"
    small = f", or all in small with openmvit train {table.name} --quick" if table.quick else ""
    return "\n".join(
        [first, "", *lines, "", *notes, f"*: the paper's own network. Recipe {table.recipe}.", last + small]
    )
