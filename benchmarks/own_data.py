"""`openmvit train --data DIR` on real folders, against hand-set options, other trainers and a linear probe.

    python benchmarks/own_data.py --cache DIR                  everything that is missing or stale
    python benchmarks/own_data.py --cache DIR --kinds image --sets emoji,mnist --who default

A cell is a set, its size, a batch and what training starts from. Every run is a row of `own_data.csv`, written as soon
as it ends, so the bench goes on where it stopped. A row of the defaults carries a digest of the rules and presets they
follow, and is stale when these change; rows of hand-set options and of other trainers have as many updates as the
defaults had, and are stale when that number changes. Real files come from package registries: `own_sets/SOURCES.md`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.own_peers import PEERS  # noqa: E402

from openmvit.training.presets import Facts, derive, updates_per_epoch  # noqa: E402
from openmvit.training.recipe import Recipe  # noqa: E402
from openmvit.training.recipe_file import load_recipe  # noqa: E402

TABLE = HERE / "own_data.csv"
SETS = {"image": ("emoji", "textures", "mnist", "clipart"), "clip": ("rollouts", "films"), "box": ("boxes",)}
SIZES = {"image": (5, 20, 100), "clip": (20, 60), "box": (40, 200)}
BATCHES = {"image": (8, 64), "clip": (8,), "box": (4,)}
MODEL = {"image": "mvitv2_micro", "clip": "mvitv2_micro_8x2", "box": "mask_rcnn_mvitv2_micro"}
SCRATCH = (("emoji", 100), ("textures", 100), ("mnist", 100))
"""Image cells, at both batches, that are also trained from random weights."""
PRETRAIN = {"recipe": "demo/digits", "epochs": 16}
"""How the starting weights are made: by the package, on emoji that are in none of the sets."""

_PLAIN = {"crop_scale": "1,1", "crop_aspect": "1,1", "auto_augment": "none"}
_CROP = {"crop_scale": "0.6,1", "auto_augment": "none"}
_STRONG = {"crop_scale": "0.4,1", "auto_augment": "rand-m5-n2-mstd0.5-inc1"}
_BOXES = {"crop_prob": 0}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "image": {
        "3e-4 plain": {"lr": 3e-4, **_PLAIN},
        "1e-3 crops": {"lr": 1e-3, **_CROP},
        "1e-3 crops, RandAugment": {"lr": 1e-3, **_STRONG},
        "3e-3 crops, RandAugment, flip": {"lr": 3e-3, "flip": 0.5, **_STRONG},
    },
    "clip": {
        "3e-4 plain": {"lr": 3e-4, **_PLAIN},
        "1e-3 plain": {"lr": 1e-3, **_PLAIN},
        "1e-3 crops": {"lr": 1e-3, **_CROP},
    },
    "box": {
        "3e-4": {"lr": 3e-4, **_BOXES},
        "8e-4": {"lr": 8e-4, **_BOXES},
        "2e-3": {"lr": 2e-3, **_BOXES},
    },
}
"""Hand-set options; the best of them on seed 0 is trained again on seed 1, and that score is the oracle's."""
COMMON = {
    "image": {"flip": 0, "mixup": 0, "cutmix": 0, "erase": 0, "crop_ratio": 1.0},
    "clip": {"flip": 0, "mixup": 0, "cutmix": 0, "erase": 0, "dropout": 0, "repeats": 1},
    "box": {"flip": 0},
}
TASK = {"image": "image", "clip": "video", "box": "detection"}
FIXED: dict[str, dict[str, Any]] = {
    "image": {},
    "clip": {"short_side": 32, "stored_side": 64},
    "box": {"accumulate": 1, "sides": (112, 160), "short_side": 128, "long_side": 320},
}
"""Sizes for the micro networks; the same in all rows."""
METRIC = {"image": "top1", "clip": "top1", "box": "AP50"}
SEEDS = (0, 1)


@dataclass(frozen=True)
class Row:
    """One run: what was trained on what, and what came of it. `seconds` is the whole command on one core."""

    kind: str
    set: str
    size: int
    batch: int
    start: str
    who: str
    setting: str
    seed: int
    updates: int = 0
    score: float = 0.0
    seconds: float = 0.0
    digest: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        return (*self.cell, self.who, self.setting, self.seed)

    @property
    def cell(self) -> tuple[str, str, int, int, str]:
        return self.kind, self.set, self.size, self.batch, self.start


def read_rows() -> dict[tuple[Any, ...], Row]:
    """Rows by their keys; the last of each."""
    if not TABLE.exists():
        return {}
    types = {f.name: {"int": int, "float": float, "str": str}[str(f.type)] for f in fields(Row)}
    with TABLE.open(newline="") as file:
        rows = [Row(**{k: types[k](v) for k, v in line.items()}) for line in csv.DictReader(file)]
    return {row.key: row for row in rows}


def write_rows(rows: dict[tuple[Any, ...], Row]) -> None:
    """Replace the table, sorted."""
    temporary = TABLE.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rows[key]) for key in sorted(rows))
    temporary.replace(TABLE)


class Bench:
    """Runs of the bench: one process with one thread each.

    Args:
        cache: folder for sets, weights and runs.
        rows: what is known already; grows.
    """

    def __init__(self, cache: Path, rows: dict[tuple[Any, ...], Row]) -> None:
        self.cache, self.rows, self._lock = cache, rows, Lock()

    def data(self, row: Row) -> Path:
        from benchmarks.own_sets.sets import build

        with self._lock:
            return build(row.set, self.cache, row.size)

    def weights(self, kind: str) -> Path:
        """Starting weights, trained first where they are missing."""
        from benchmarks.own_sets.sets import build

        run = self.cache / "weights" / "image" / "pretrain"
        if not (run / "weights" / "best.safetensors").exists():
            folder = build("pretrain", self.cache, 32)
            self.openmvit(
                ["train", PRETRAIN["recipe"]],
                {"data": folder, "epochs": PRETRAIN["epochs"], "out_dir": self.cache / "weights", "name": "pretrain"},
            )
        return run

    def openmvit(self, words: list[Any], options: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "openmvit", *map(str, words)]
        command += [f"--{key.replace('_', '-')}={words_of(value)}" for key, value in options.items()]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent / "src")}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-3000:]}")

    def train(self, row: Row, options: dict[str, Any]) -> Row:
        """Run `openmvit train` for a row and read its score."""
        name = hashlib.sha256(repr(row.key).encode()).hexdigest()[:12]
        run = self.cache / "runs" / TASK[row.kind] / name
        subprocess.run(["rm", "-rf", str(run)], check=True)
        fixed = {"data": self.data(row), "model": MODEL[row.kind], "batch": row.batch, "seed": row.seed}
        fixed |= {"weights": self.weights(row.kind) if row.start == "pretrained" else "none"}
        fixed |= {"workers": 0, "plots": "false", "out_dir": self.cache / "runs", "name": name}
        start = time.monotonic()
        self.openmvit(["train"], {**fixed, **FIXED[row.kind], **options})
        seconds = time.monotonic() - start
        with (run / "results.csv").open(newline="") as file:
            scores = [float(line[METRIC[row.kind]]) for line in csv.DictReader(file) if line.get(METRIC[row.kind])]
        updates = len((run / "losses.txt").read_text().splitlines())
        return replace(row, score=round(max(scores), 4), seconds=round(seconds, 1), updates=updates)

    def defaults(self, row: Row) -> tuple[Recipe, int]:
        """What the defaults of a cell come to, and the number of updates."""
        data = self.data(row)
        train, val = (count_samples(data, split) for split in ("train", "val"))
        facts = Facts(TASK[row.kind], train, val, width=192, pretrained=row.start == "pretrained")
        recipe, _ = derive(load_recipe(f"{TASK[row.kind]}/small", {"batch": row.batch, **FIXED[row.kind]}), facts)
        return recipe, recipe.epochs * updates_per_epoch(train, recipe.passes, int(recipe.batch))

    def stale(self, row: Row) -> bool:
        """Return True if a row has to be measured: it is missing, or what it stands for has changed."""
        known = self.rows.get(row.key)
        if known is None or row.who == "probe":
            return known is None
        recipe, updates = self.defaults(row)
        return known.digest != digest(recipe) if row.who == "default" else known.updates != updates

    def run(self, row: Row) -> Row:
        """One row, measured."""
        recipe, updates = self.defaults(row)
        if row.who == "default":
            return replace(self.train(row, {}), digest=digest(recipe))
        if row.who == "hand":
            length = {key: getattr(recipe, key) for key in ("epochs", "passes", "val_every")}
            return self.train(row, {**COMMON[row.kind], **length, "ema": 0, **SETTINGS[row.kind][row.setting]})
        start = time.monotonic()
        batch = int(recipe.batch)
        score = PEERS[row.who](self.data(row), self.weights(row.kind), batch=batch, updates=updates, seed=row.seed)
        return replace(row, score=round(score, 4), updates=updates, seconds=round(time.monotonic() - start, 1))


def words_of(value: Any) -> str:
    """An option's value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def digest(recipe: Recipe) -> str:
    """Of all options that are not a plain recipe's, so that a row is stale when its command would do something else."""
    plain = asdict(Recipe())
    own = sorted((name, value) for name, value in asdict(recipe).items() if value != plain[name])
    return hashlib.sha256(repr(own).encode()).hexdigest()[:8]


def count_samples(data: Path, split: str) -> int:
    """Files of a split, or annotated pictures."""
    return sum(1 for path in (data / split).rglob("*") if path.suffix in (".png", ".mp4", ".jpg"))


def wanted(kinds: list[str], sets: list[str], who: list[str]) -> Iterator[Row]:
    """All rows but the oracle's second seed, cell by cell: the defaults first."""
    for kind in kinds:
        for name in (s for s in SETS[kind] if not sets or s in sets):
            for size in SIZES[kind]:
                for batch in BATCHES[kind]:
                    starts = ["pretrained"] + ["scratch"] * ((name, size) in SCRATCH and kind == "image")
                    for start in starts:
                        yield from cell_rows(Row(kind, name, size, batch, start, "", "", 0), who)


def cell_rows(cell: Row, who: list[str]) -> Iterator[Row]:
    """Rows of one cell."""
    found = [replace(cell, who="default", seed=seed) for seed in SEEDS]
    found += [replace(cell, who="hand", setting=name) for name in SETTINGS[cell.kind]]
    if cell.kind == "image" and cell.start == "pretrained":
        found += [replace(cell, who=name) for name in ("timm", "transformers", "probe")]
    yield from (row for row in found if not who or row.who in who)


def best_setting(rows: dict[tuple[Any, ...], Row], cell: Row) -> str | None:
    """The hand-set options with the best score on seed 0, once all of them are measured."""
    tried = [rows.get(replace(cell, who="hand", setting=name, seed=0).key) for name in SETTINGS[cell.kind]]
    done = [row for row in tried if row is not None]
    return max(done, key=lambda row: row.score).setting if len(done) == len(tried) else None


def work(bench: Bench, todo: list[Row], processes: int) -> None:
    """Measure rows, several at a time, and write the table after each."""
    lock, total = Lock(), len(todo)

    def one(numbered: tuple[int, Row]) -> None:
        number, row = numbered
        done = bench.run(row)
        with lock:
            bench.rows[done.key] = done
            write_rows(read_rows() | bench.rows)
        words = f"{row.set} {row.size} batch {row.batch} {row.start} {row.who} {row.setting} seed {row.seed}"
        print(f"{number}/{total} {words}: {done.score:.3f} in {done.seconds:.0f} s, {done.updates} updates", flush=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(one, enumerate(todo, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "openmvit-own-data")
    parser.add_argument("--kinds", default="image,clip,box")
    parser.add_argument("--sets", default="")
    parser.add_argument("--sizes", default="")
    parser.add_argument("--batches", default="")
    parser.add_argument("--who", default="", help="default, hand, timm, transformers, probe")
    parser.add_argument("--every", type=int, default=1, help="only every Nth row, to choose rules on")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    bench = Bench(options.cache, read_rows())
    kinds, sets, who = ([w for w in text.split(",") if w] for text in (options.kinds, options.sets, options.who))
    sizes, batches = ([int(w) for w in text.split(",") if w] for text in (options.sizes, options.batches))
    rows = [row for row in wanted(kinds, sets, who) if not sizes or row.size in sizes]
    rows = [row for row in rows if not batches or row.batch in batches][:: options.every]
    bench.weights("image")
    todo = [row for row in rows if bench.stale(row)]
    print(f"{len(rows)} rows, {len(rows) - len(todo)} measured, {len(todo)} missing or stale", flush=True)
    work(bench, todo, options.processes)
    second = [
        replace(cell, who="hand", setting=setting, seed=1)
        for cell in {row.cell: replace(row, who="", setting="", seed=0) for row in rows}.values()
        if (setting := best_setting(bench.rows, cell)) is not None and (not who or "hand" in who)
    ]
    work(bench, [row for row in second if bench.stale(row)], options.processes)
    print("python docs/refresh.py puts the tables into docs/own-data.md")


if __name__ == "__main__":
    main()
