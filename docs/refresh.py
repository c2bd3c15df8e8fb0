"""Write the figures of the pages in docs/ again, between their markers.

python docs/refresh.py

A marker is `<!-- KIND:WHAT:begin -->` with its `:end`. Everything between the two comes from the package:

tables:4a       cells of the paper; `openmvit tables`
verdicts:all    how many of each table have which verdict; the same
networks:NAMES  parameters and operations; `openmvit info NAME --ops`
ablation:NAME   rows that can be trained; `openmvit train ablation/NAME`
speeds:4a       printed speeds and memory as ratios, and ours of benchmarks/measured_tables.md
recipes:NAMES   what the heads of recipes say
models:PATTERN  released files; `openmvit models PATTERN`
sources:all     who released how many files
choices:all     where paper and code differ, and the package has both forms
own_data:WHAT   the bench of own data; benchmarks/own_data.py
measured:NAME   the table of benchmarks/NAME.md, and the verdict of a table in small

tests/test_docs.py fails where a page is not what this writes.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.info import describe, operations
from openmvit.tables import Cell, compare, summary, summary_line
from openmvit.training.ablation import SCORES, Ablation, AblationRow, load_ablation
from openmvit.training.recipe_file import load_recipe, recipe_header
from openmvit.weights import cards
from openmvit.zoo.detectors import detector_config

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(<!-- (\w+):([^>\n]+):begin -->\n).*?(<!-- \2:\3:end -->)", re.DOTALL)
_QUANTITIES = {"flops_g": "GFLOPs", "params_m": "M params"}
_SPEEDS = {"train": "training, per second", "test": "inference, per second", "memory": "memory, GB"}
_NAMES = {"4a": "4", "5a": "5", "5b": "5"}


@cache
def _cells() -> tuple[Cell, ...]:
    return tuple(compare())


def tables(table: str) -> str:
    """Cells of a table, a line per row of the paper, then how many have which verdict."""
    own = [cell for cell in _cells() if cell.table == table]
    quantities = [name for name in _QUANTITIES if any(cell.quantity == name for cell in own)]
    head = [
        "row",
        *(f"{_QUANTITIES[name]}{word}" for name in quantities for word in (", paper", ", ours", ", verdict")),
    ]
    rows = []
    for row in dict.fromkeys(cell.row for cell in own):
        found = {cell.quantity: cell for cell in own if cell.row == row}
        rows.append([row, *(part for name in quantities for part in _parts(found.get(name)))])
    told = [f"- {cell.row}, {_QUANTITIES[cell.quantity]} {cell.printed}: {cell.note}." for cell in own if cell.note]
    return "\n".join([_markdown(head, rows), "", f"`{summary_line(own)}`", *(["", *told] if told else [])])


def _parts(cell: Cell | None) -> tuple[str, str, str]:
    if cell is None:
        return "", "", ""
    ours = "-" if cell.ours is None else f"{cell.ours:.3f}"
    return cell.printed, ours, cell.verdict.replace("_", " ")


def verdicts(_: str) -> str:
    """A line per table with its page and the number of every verdict."""
    head = ["table", "cells", "exact", "unit", "explained", "wrong", "not computable"]
    rows = []
    for table in dict.fromkeys(cell.table for cell in _cells()):
        page = f"table_{_NAMES.get(table, table).replace('.', '').lower()}.md"
        counts = summary(cell for cell in _cells() if cell.table == table)
        rows.append([f"[{table}]({page})", *map(str, counts.values())])
    return f"{_markdown(head, rows)}\n\n`{summary_line(_cells())}`"


def networks(names: str) -> str:
    """Parameters and operations of networks that can be built by name; `NAME@384` at another side."""
    rows = [_network(*name.partition("@")[::2]) for name in names.split(",")]
    return _markdown(["command", "input", "classes", "GFLOPs", "without norms", "M params"], rows)


@cache
def _network(name: str, side: str) -> list[str]:
    found = describe(name)
    counted = operations(found, int(side) if side else None)
    command = f"`openmvit info {name} --ops{f' --imgsz {side}' if side else ''}`"
    figures = [counted["total"]["total"] / 1e9, counted["without_norms"] / 1e9, found["parameters"] / 1e6]
    size = " x ".join(map(str, counted["input"]))
    return [command, size, str(found["config"]["num_classes"]), *(f"{figure:.3f}" for figure in figures)]


def ablation(name: str) -> str:
    """The rows of a table that is trained row by row, and what is to be said about them."""
    table = load_ablation(f"ablation/{name}")
    printed = [key for key in SCORES if any(key in row.printed for row in table.rows)]
    counted = [key for key in ("gflops", "params_m") if any(key in row.counted for row in table.rows)]
    words = SCORES | {"gflops": "GFLOPs", "params_m": "M params"}
    starts = ["starts from"] if any("weights" in row.options for row in table.rows) else []
    head = [
        "`--row`",
        "row",
        *starts,
        *(f"{words[k]}, paper" for k in printed),
        *(f"{words[k]}, ours" for k in counted),
    ]
    rows = [
        [f"`{row.name}`" + ", the default" * (row.name == table.default), row.paper or "not in the paper"]
        + [_start(table, row) for _ in starts]
        + [row.printed.get(key, "-") for key in printed]
        + [row.counted.get(key, "-") for key in counted]
        for row in table.rows
    ]
    notes = [f"- `{row.name}`: {row.note}" for row in table.rows if row.note]
    more = f", with the options that stand in `recipes/{table.name}.yaml`" if starts else ""
    text = f"{_markdown(head, rows)}\n\nEvery row is trained by the recipe `{table.recipe}`{more}."
    return "\n".join([text, *(["", *notes] if notes else [])])


def _start(table: Ablation, row: AblationRow) -> str:
    if row.pretrain:
        return f"a run of `{row.pretrain.partition(' ')[2]}`"
    weights = row.options.get("weights", load_recipe(table.recipe).weights)
    return "nothing" if weights == "none" else f"`{weights}`"


def speeds(name: str) -> str:
    """Printed speeds and memory with their ratios to the reference row, and beside them the ratios measured here."""
    from openmvit.tables.speeds import SPEED_TABLES

    table, ours = SPEED_TABLES[name], _ratios(name)
    reference = next(row for row in table.rows if row.name == table.reference)
    head = ["row", *(part for q in table.quantities for part in (_SPEEDS[q], "ratio", "here"))]
    rows = []
    for row in table.rows:
        cells = [row.name]
        for q in table.quantities:
            ratio = float(row.printed[q]) / float(reference.printed[q])
            cells += [row.printed[q], f"{ratio:.2f}", ours.get((row.name, q), "-")]
        rows.append(cells)
    return f"{_markdown(head, rows)}\n\n{_how_measured(name, table.reference, bool(ours))}"


def _how_measured(name: str, reference: str, done: bool) -> str:
    command = f"`openmvit tables --measure --table {name}`"
    told = f"Numbers and the first ratio are the paper's; ratios are to `{reference}`."
    if not done:
        return f"{told} Nothing was measured here yet: {command} does it."
    inputs = re.search(r"^Inputs of ([^;]+);", _measured_part(name), re.M)
    assert inputs is not None, name
    return (
        f"{told} `here` is the same ratio in [measured_tables](../../benchmarks/measured_tables.md),\n"
        f"with inputs of {inputs[1]}. {command} measures it again."
    )


def _measured_part(name: str) -> str:
    """What the page of measured tables says of one; empty where it has none."""
    text = (DOCS.parent / "benchmarks" / "measured_tables.md").read_text(encoding="utf-8")
    return next((part for part in text.split("\n## Table ") if part.startswith(f"{name}. ")), "")


def _ratios(name: str) -> dict[tuple[str, str], str]:
    """Row and quantity -> the measured ratio, or that it was not run."""
    from openmvit.tables.measured import HEADS

    lines = [line for line in _measured_part(name).splitlines() if line.startswith("|")]
    if not lines:
        return {}
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    found = {}
    for quantity, words in HEADS.items():
        if words[0] in head:
            place = head.index(words[0])
            for cells in rows:
                run = not cells[place].startswith("not run")
                found[cells[0], quantity] = cells[place + 1] if run else "not run"
    return found


def recipes(names: str) -> str:
    """What recipes stand for, what they should reach, and whether that was tried."""
    rows = []
    for name in names.split(","):
        header = recipe_header(name)
        rows.append([f"`{name}`", header.paper_row.removeprefix("MViTv2, "), header.expected, header.status])
    return _markdown(["recipe", "row of the paper", "expected", "here"], rows)


def models(pattern: str) -> str:
    """Released files of the models that match."""
    rows = []
    for card in cards():
        if card.loadable and fnmatch(card.model, pattern):
            score = ", ".join(f"{key.replace('_', ' ')} {_score(value)}" for key, value in card.published.items())
            rows.append([f"`{card.name}`", str(card.num_classes) if card.num_classes else "no head", score or "none"])
    return _markdown(["name", "classes", "published"], rows)


def _score(value: float) -> str:
    """With one digit behind the point, or as many as there are."""
    return max(f"{value:.1f}", f"{value:g}", key=len)


def sources(_: str) -> str:
    """How many files each project released, and how their tags begin."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for card in cards():
        groups.setdefault((card.tag.partition("_")[0], card.source), []).append(card.loadable)
    rows = [[f"`{tag}_`", source, str(len(own)), str(sum(own))] for (tag, source), own in groups.items()]
    rows.append(["", "all", str(len(cards())), str(sum(card.loadable for card in cards()))])
    return _markdown(["tag begins with", "project", "files", "loadable"], rows)


def measured(name: str) -> str:
    """The table of a page in benchmarks/; of a table in small also the sentences below it."""
    text = (DOCS.parent / "benchmarks" / f"{name}.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    return f"{table}\n\n{text.rpartition('|')[2].strip()}" if name.startswith("quick_") else table


# Difference -> where its two forms are chosen: the record, its field, and the value of the form that is no default.
CHOICES: list[tuple[int, str, str, Any]] = [
    (1, "mvitv2_small", "relative_scaled", True),
    (2, "mvitv2_small_16x4", "cls_token", False),
    (3, "mvitv2_small_16x4", "adaptive_kv_stride", (1, 4, 4)),
    (4, "mask_rcnn_mvitv2_small", "global_kv_stride_factor", 1),
    (5, "mvitv2_large", "dim_mul_in_attention", True),
    (6, "kinetics/k400_mvitv2_small_16x4_in1k", "inflation", "copy"),
    (7, "ssv2/mvitv2_small_16x4", "short_side", 256),
    (8, "ssv2/mvitv2_small_16x4", "jitter", None),
    (9, "ssv2/mvitv2_small_16x4", "lr_batch", 128),
    (9, "ssv2/mvitv2_large_40x3_312", "lr_batch", 512),
    (10, "ssv2/mvitv2_large_40x3_312", "drop_path", 0.4),
    (10, "ssv2/mvitv2_large_40x3_312", "clip_grad", 0.0),
    (10, "ssv2/mvitv2_large_40x3_312", "mix_prob", 1.0),
    (11, "imagenet/mvitv2_small", "auto_augment", "rand-m9-mstd0.5-inc1"),
    (11, "kinetics/k400_mvitv2_small_16x4", "auto_augment", "rand-m9-mstd0.5-inc1"),
    (12, "imagenet/mvitv2_small", "decay", "not_norms"),
    (12, "coco/mask_rcnn_mvitv2_tiny", "decay", "matrices"),
    (13, "coco/mask_rcnn_mvitv2_tiny", "drop_path", 0.1),
    (13, "coco/mask_rcnn_mvitv2_small", "drop_path", 0.3),
    (14, "coco/cascade_mask_rcnn_mvitv2_huge_lsj", "updates", 92187),
    (15, "coco/cascade_mask_rcnn_mvitv2_large_lsj", "lr", 1.6e-4),
    (16, "coco/mask_rcnn_mvitv2_tiny", "crop_prob", 0.0),
    (17, "imagenet/mvitv2_large_384", "lr", 5e-4),
    (17, "imagenet/mvitv2_large_384", "lr_batch", 64),
    (21, "kinetics/k400_mvitv2_small_16x4", "mean", (0.485, 0.456, 0.406)),
    (21, "kinetics/k400_mvitv2_large_40x3_312", "mean", (0.45, 0.45, 0.45)),
    (22, "ssv2/mvitv2_large_40x3_312", "mean", (0.406, 0.456, 0.485)),
    (23, "imagenet/mvitv2_small", "dropout", 0.5),
    (23, "kinetics/k400_mvitv2_small_16x4", "dropout", 0.0),
    (24, "mvitv2_small", "init", "slowfast"),
    (24, "mvitv2_small_16x4", "init", "mvit"),
    (25, "imagenet/mvitv2_small", "warmup_epochs", 0.0),
    (25, "kinetics/k400_mvitv2_small_16x4", "warmup_epochs", 0.0),
    (26, "mvitv2_base_cls", "num_classes", 21841),
]


def choices(_: str) -> str:
    """Where each difference between paper and code is chosen, what stands there, and a value of the other form."""
    rows = []
    for number, record, field, other in CHOICES:
        here, made = _chosen(record, field, other)
        assert here != made, (number, record, field)
        place = f"recipe `{record}`" if "/" in record else f"`{record}`"
        rows.append([str(number), place, f"`{field}`", f"`{_value(here)}`", f"`{_value(made)}`"])
    return _markdown(["", "where", "field or option", "here", "for example, the other form"], rows)


def _chosen(record: str, field: str, other: Any) -> tuple[Any, Any]:
    """The value of a field, and that of a record made with the other one."""
    if "/" in record:
        return getattr(load_recipe(record), field), getattr(load_recipe(record, {field: other}), field)
    if record in ARCHITECTURES:
        return getattr(model_config(record), field), getattr(model_config(record, **{field: other}), field)
    backbone = detector_config(record).backbone
    return getattr(backbone, field), getattr(backbone.replace(**{field: other}), field)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return ", ".join(f"{one:g}" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def own_data(what: str) -> str:
    """Tables of the bench of own data; `benchmarks/own_page.py` makes them from its rows."""
    spec = importlib.util.spec_from_file_location("own_page", DOCS.parent / "benchmarks" / "own_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.block(what)


KINDS: dict[str, Callable[[str], str]] = {
    "tables": tables,
    "verdicts": verdicts,
    "networks": networks,
    "ablation": ablation,
    "speeds": speeds,
    "recipes": recipes,
    "models": models,
    "choices": choices,
    "sources": sources,
    "measured": measured,
    "own_data": own_data,
}


def pages() -> list[Path]:
    """Every page of the guide."""
    return sorted(DOCS.rglob("*.md"))


def refreshed(text: str) -> str:
    """A page with the figures between its markers made again."""
    return BLOCK.sub(lambda found: f"{found[1]}{KINDS[found[2]](found[3])}\n{found[4]}", text)


def main() -> None:
    """Write the pages that changed, and name them."""
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = refreshed(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(page.relative_to(DOCS))


if __name__ == "__main__":
    main()
