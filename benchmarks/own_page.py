"""Tables of the bench of own data, from its rows alone; `docs/refresh.py` puts them into docs/own-data.md."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

TABLE = Path(__file__).with_name("own_data.csv")
CHOSEN = ("emoji", "textures", "rollouts")
"""Sets that the rules were chosen on; the others were only scored."""
Row = dict[str, str]
Cell = tuple[str, str, int, int, str]
"""Kind, set, size, batch, start."""


def read_rows() -> list[Row]:
    """Rows of the table, as text."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def cell_of(row: Row) -> Cell:
    return row["kind"], row["set"], int(row["size"]), int(row["batch"]), row["start"]


class Found:
    """What is measured of one cell; scores in per cent, None where rows are missing."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        first = {row["setting"]: 100 * float(row["score"]) for row in self._of("hand") if row["seed"] == "0"}
        second = {row["setting"]: 100 * float(row["score"]) for row in self._of("hand") if row["seed"] == "1"}
        self.setting = max(first, key=lambda name: first[name]) if first else ""
        # The setting is chosen on one seed and scored on the other.
        self.oracle = second.get(self.setting)
        self.tried = len(first)

    def _of(self, who: str) -> list[Row]:
        return [row for row in self.rows if row["who"] == who]

    def score(self, who: str) -> float | None:
        """Mean over the seeds."""
        scores = [100 * float(row["score"]) for row in self._of(who)]
        return statistics.mean(scores) if scores else None

    def seconds(self, who: str) -> float | None:
        times = [float(row["seconds"]) for row in self._of(who)]
        return statistics.median(times) if times else None

    @property
    def updates(self) -> str:
        return next((row["updates"] for row in self._of("default")), "-")

    @property
    def seeds(self) -> int:
        return len(self._of("default"))


def cells(kind: str) -> dict[Cell, Found]:
    """All cells of a kind that have a row of the defaults, in order."""
    rows = [row for row in read_rows() if row["kind"] == kind]
    keys = sorted({cell_of(row) for row in rows})
    found = {key: Found(row for row in rows if cell_of(row) == key) for key in keys}
    return {key: one for key, one in found.items() if one.seeds}


def table(kind: str) -> str:
    """A line per cell: the defaults beside everything else."""
    whose = ["timm", "transformers", "probe"] if kind == "image" else []
    head = ["set", "size", "batch", "start", "updates", "default (seeds)", "oracle", "its options", *whose, "seconds"]
    lines = []
    for (_, name, size, batch, start), one in cells(kind).items():
        scores = [_number(one.score(who)) for who in whose]
        default = f"{_number(one.score('default'))} ({one.seeds})"
        oracle = [_number(one.oracle), one.setting if one.oracle is not None else f"{one.tried} tried"]
        cost = _number(one.seconds("default"), 0)
        where = name + ("" if name in CHOSEN else " (held out)")
        lines.append([where, str(size), str(batch), start, one.updates, default, *oracle, *scores, cost])
    return _markdown(head, lines) if lines else "Not measured yet."


def summary(_: str) -> str:
    """What the tables come to: gaps to the oracle, the probe and the other trainers, chosen and held-out sets apart."""
    lines = []
    for kind in ("image", "clip", "box"):
        known = cells(kind)
        for words, wanted in (("chosen", True), ("held out", False)):
            own = {key: one for key, one in known.items() if (key[1] in CHOSEN) == wanted}
            gaps = _gaps(own, lambda one: one.oracle)
            cell = [kind, words, str(len(own)), _gap(gaps), f"{sum(g <= 8 for g in gaps)} of {len(gaps)}"]
            for who in ("probe", "timm", "transformers"):
                cell.append(_gap(_gaps(own, lambda one, who=who: one.score(who))))
            if own:
                lines.append(cell)
    head = ["kind", "sets", "cells", "oracle - default, mean (cells)", "within 8 points"]
    head += [f"{who} - default, mean (cells)" for who in ("probe", "timm", "transformers")]
    return _markdown(head, lines) if lines else "Not measured yet."


def _gaps(own: dict[Cell, Found], other: Callable[[Found], float | None]) -> list[float]:
    pairs = [(other(one), one.score("default")) for one in own.values()]
    return [a - b for a, b in pairs if a is not None and b is not None]


def _gap(gaps: list[float]) -> str:
    return f"{statistics.mean(gaps):+.1f} ({len(gaps)})" if gaps else "-"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(line) + " |" for line in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


PUBLISHED = (
    # network, task, channels of its last block, samples per update, peak rate, updates of the run, where it is printed
    ("MViTv2-B, 384 px, on ImageNet-1K again", "image", 768, 256, 4e-5, 150_000, "MViTv2, B.2"),
    ("MViTv2-L, ImageNet-21K to 1K", "image", 1152, 64, 7e-5, None, "MViTv2, B.2; the rate is per 64 pictures"),
    ("MViTv2-S, ImageNet-1K to Kinetics-400", "video", 768, 512, 4.8e-4, 47_000, "MViTv2, B.4"),
    ("MViTv2-S, Kinetics-400 from scratch", "video", 768, 512, 1.6e-3, 94_000, "MViTv2, B.4"),
    ("Swin-B, ImageNet-22K to 1K", "image", 1024, 512, 2e-5, 75_000, "its published configuration"),
    ("ViT-L, to iNaturalist 2021", "image", 1024, 1536, 5e-5, None, "its card in timm, layer decay 0.8"),
    ("ViT-B, to beans (1,034 pictures)", "image", 768, 16, 2e-4, 260, "the hub's page on fine-tuning ViT"),
)
"""Fine-tuning as printed. Updates are epochs x samples / batch, rounded; None where no number of epochs is printed."""


def published(_: str) -> str:
    """The derived peak rate at the width and batch of what is printed for full-size networks, and the ratio."""
    from openmvit.training.presets import Facts, derive
    from openmvit.training.recipe_file import load_recipe

    lines = []
    for name, task, width, total, rate, updates, source in PUBLISHED:
        facts = Facts(task, 20_000, 2_000, width=width, pretrained=True)
        ours, _ = derive(load_recipe(f"{task}/small", {"batch": total}), facts)
        # A cosine to 0 is half of its peak in the mean.
        summed = "-" if updates is None else f"{rate * updates / 2:.2g}"
        cells = [name, str(width), str(total), f"{rate:.1e}", f"{ours.lr:.1e}", f"{ours.lr / rate:.1f}"]
        lines.append([*cells, summed, source])
    head = ["network", "channels", "batch", "printed", "derived", "ratio", "printed rates, summed up", "source"]
    return _markdown(head, lines)


def lengths(_: str) -> str:
    """Updates, epochs and rates that the defaults come to, for data of several sizes on a network of 192 and of 768."""
    from openmvit.training.presets import Facts, derive, updates_per_epoch
    from openmvit.training.recipe_file import load_recipe

    lines = []
    for task in ("image", "video", "detection"):
        for samples in (20, 200, 2_000, 20_000):
            both = [
                derive(load_recipe(f"{task}/small"), Facts(task, samples, max(samples // 10, 2), width, True))[0]
                for width in (192, 768)
            ]
            one = both[0]
            total = int(one.batch) * one.accumulate
            updates = one.epochs * updates_per_epoch(samples, one.passes, total)
            counts = [str(samples), str(total), str(updates), str(one.epochs), f"{one.passes:g}"]
            lines.append([task, *counts, *(f"{recipe.lr:.1e}" for recipe in both)])
    head = ["job", "samples", "per update", "updates", "epochs", "passes each", "rate at 192 channels", "at 768"]
    return _markdown(head, lines)


BLOCKS = {"summary": summary, "published": published, "lengths": lengths}


def block(what: str) -> str:
    """What stands behind a marker of docs/own-data.md: a name of BLOCKS, or a kind."""
    return BLOCKS[what](what) if what in BLOCKS else table(what)
