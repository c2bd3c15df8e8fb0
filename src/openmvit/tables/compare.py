"""Every cell: what the paper prints, what we count, and a verdict."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from openmvit import screen
from openmvit.architectures import classifier_config, is_detector
from openmvit.config import MViTConfig
from openmvit.counting import Cost, count_classifier, count_detector
from openmvit.errors import UserError, did_you_mean
from openmvit.tables.rows import EXPLAINED, NOT_COMPUTABLE, ROWS, Figure, Reason, Setting

if TYPE_CHECKING:
    from openmvit.detection.config import DetectorConfig

Verdict = Literal["exact", "unit", "explained", "wrong", "not_computable"]
Changes = Mapping[str, Mapping[str, Any]]
"""Name of an architecture -> fields of it that are changed wherever the tables use it."""

VERDICTS: tuple[Verdict, ...] = ("exact", "unit", "explained", "wrong", "not_computable")
BASES = sorted({setting.base for row in ROWS.values() for setting in row})
"""Architectures that the tables are built on."""

_NEAR = 1e-3
_FILE = Path(__file__).parents[1] / "paper_tables.csv"


@dataclass(frozen=True)
class Cell:
    """A number of the paper.

    Args:
        quantity: `flops_g`, billions of operations, or `params_m`, millions of parameters.
        printed: the paper's digits.
        ours: the same quantity, not rounded; None where it cannot be computed.
        note: why the two differ, or why ours cannot be computed.
    """

    table: str
    row: str
    quantity: str
    printed: str
    ours: float | None
    verdict: Verdict
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Ours minus printed."""
        return None if self.ours is None else self.ours - float(self.printed)


def compare(changes: Changes | None = None) -> list[Cell]:
    """All cells in the order of the paper's tables; no weight is allocated.

    Args:
        changes: of architectures, which every row that is built on them follows unless it sets the field itself.
    Raises:
        UserError: if a name, a field or a value is unknown, or makes a network that cannot be.
    """
    changes = changes or {}
    for name in changes:
        if name not in BASES:
            raise UserError(f"The tables use no architecture {name!r}", did_you_mean(name, BASES))
    cells = []
    printed = _printed()
    for line in screen.counted(printed, len(printed), "counting cells"):
        setting = ROWS[line["table"], line["row"]][line["quantity"] == "params_m"]
        cells.append(_judge(line, _cost(config_of(setting, changes.get(setting.base, {})))))
    cells += [Cell(*cell[:4], None, "not_computable", cell[4]) for cell in NOT_COMPUTABLE]
    return sorted(cells, key=lambda cell: _place(cell.table))


def _printed() -> list[dict[str, str]]:
    with _FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _place(table: str) -> tuple[bool, int, str]:
    """1, 2, ..., 14 and then A.1, ..."""
    appendix, number, letter = re.fullmatch(r"(A\.)?(\d+)([a-z]?)", table).groups()  # type: ignore[union-attr]
    return appendix is not None, int(number), letter


def config_of(setting: Setting, changed: Mapping[str, Any]) -> MViTConfig | DetectorConfig:
    """What stands in a row; changes of its architecture come before those that the row makes."""
    changes = {**changed, **setting.changes}
    if not is_detector(setting.base):
        return classifier_config(setting.base, **changes)
    from openmvit.detection.config import DetectorConfig

    return DetectorConfig.named(setting.base, **changes)


@cache
def _cost(config: MViTConfig | DetectorConfig) -> Cost:
    # A cell for operations and one for parameters are mostly of one network, and tables repeat each other.
    return (count_classifier(config) if isinstance(config, MViTConfig) else count_detector(config)).total


def _judge(line: dict[str, str], cost: Cost) -> Cell:
    printed, note = line["value"], line["tolerance_note"]
    ours = _figure(cost, "flops_g" if line["quantity"] == "flops_g" else "params_m")
    cell = partial(Cell, line["table"], line["row"], line["quantity"], printed, ours)
    digits = Decimal(printed)
    unit = Decimal(1).scaleb(int(digits.as_tuple().exponent))
    if Decimal(ours).quantize(unit, ROUND_HALF_UP) == digits:
        return cell("exact")
    if abs(Decimal(ours) - digits) <= unit:
        return cell("unit")
    # The file's own count confirms ours here; it never takes part in it.
    calculated, reason = (
        re.search(r"calc ([\d.]+)", note),
        EXPLAINED.get((line["table"], line["row"], line["quantity"])),
    )
    if reason and "differs" in note and calculated and abs(ours / float(calculated[1]) - 1) <= _NEAR:
        return cell("explained", explanation(reason))
    return cell("wrong")


def _figure(cost: Cost, figure: Figure) -> float:
    if figure == "params_m":
        return cost.parameters / 1e6
    return (cost.operations if figure == "flops_g" else cost.without_norms) / 1e9


def counts_of(reason: Reason) -> list[float]:
    """What each form of a reason counts, not rounded; changes of architectures do not reach them."""
    return [_figure(_cost(config_of(setting, {})), figure) for setting, figure in reason.forms]


def explanation(reason: Reason) -> str:
    """A reason with its counts."""
    return reason.text.format(*(f"{count:.3f}" for count in counts_of(reason)))


def summary(cells: Iterable[Cell]) -> dict[str, int]:
    """Number of cells with a verdict that compares, as `cells`, and of each verdict."""
    found = Counter(cell.verdict for cell in cells)
    compared = sum(found[verdict] for verdict in VERDICTS if verdict != "not_computable")
    return {"cells": compared, **{verdict: found[verdict] for verdict in VERDICTS}}


def parse_changes(text: str) -> dict[str, dict[str, Any]]:
    """`NAME.FIELD=VALUE`, several with `;` between them; a value with commas is a list.

    Raises:
        UserError: if a part has another form.
    """
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for part in filter(None, text.split(";")):
        match = re.fullmatch(r"\s*(\w+)\.(\w+)=(.+)", part)
        if match is None:
            raise UserError(
                f"--set is {part.strip()!r}", "Write NAME.FIELD=VALUE, such as mvitv2_small.depths=1,2,10,2"
            )
        name, key, value = match.groups()
        if key == "input_size":
            raise UserError("--set cannot change input_size", "Change img_size or num_frames")
        try:
            found.setdefault(name, {})[key] = yaml.safe_load(f"[{value}]" if "," in value else value)
        except yaml.YAMLError as error:
            raise UserError(f"--set cannot read the value {value!r}", "Write a number, a word or 1,2,3") from error
    return found
