"""A table of the paper in small: the same fields changed on a small network, trained on data that the package brings.

It says what a change does on that task alone; whether rows differ at all is judged by the spread over seeds.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import itertools
import multiprocessing
import os
import statistics
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmvit.architectures import PLAIN
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.training.ablation import Ablation, AblationRow, write_network
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import check_fields, read_fields

SEEDS = 3
_PROCESSES = 2

_MVIT: dict[str, Any] = {
    "input_size": (32, 32),
    "depths": (1, 3, 2),
    "embed_dim": 24,
    "patch_kernel": (3, 3),
    "patch_stride": (2, 2),
    "patch_padding": (1, 1),
    "drop_path_rate": 0.0,
}
SMALL: dict[str, dict[str, Any]] = {
    "mvitv2_small": _MVIT,
    "vit_base": PLAIN["vit_base"]
    | {
        "input_size": (32, 32),
        "depths": (6,),
        "embed_dim": 64,
        "num_heads": 4,
        "patch_kernel": (4, 4),
        "patch_stride": (4, 4),
        "drop_path_rate": 0.0,
    },
    "mvitv2_small_16x4": _MVIT
    | {
        "input_size": (8, 32, 32),
        "depths": (1, 2, 2),
        "patch_kernel": (3, 7, 7),
        "patch_stride": (2, 4, 4),
        "patch_padding": (1, 3, 3),
        "kernel_qkv": (3, 3, 3),
        "stride_q": (1, 2, 2),
        "adaptive_kv_stride": (1, 4, 4),
        "cls_token": True,
        "init": "slowfast",
    },
}
"""What stands for a table's network: maps of 16, 8 and 4 tokens a side with one head of 24 channels, keys of 4 a side;
8 tokens a side with six blocks of ViT; 4 x 8, 8 and 4, 4 and 2 for clips."""
# The demos' recipes, cut short; the last epoch is the only one that is scored.
_IMAGES: dict[str, Any] = {"epochs": 3, "warmup_epochs": 1.0}
_CLIPS: dict[str, Any] = {"epochs": 10, "lr": 2.0e-3, "workers": 0}
_TRAIN_CLIPS = 960
# A plain ViT has no pooling that looks at neighbours and learns more slowly from little: 29 to 40 % after three epochs.
_EPOCHS = {"vit_base": 8}
_DATA = {
    "digits": "the scans of handwritten digits that come with the package",
    "moving_digits": "clips of moving digits that the package draws",
}

Trained = tuple[float, float]
"""Held-out top-1 of a run's last epoch, 0..1, and its seconds of processor time."""


@dataclass(frozen=True)
class QuickRow:
    """What came out for a row.

    Args:
        parameters, operations: of the small network, operations for one input.
        scores: held-out top-1 of every seed, 0..1.
        seconds: processor time of all seeds together.
    """

    row: AblationRow
    parameters: int
    operations: int
    scores: tuple[float, ...]
    seconds: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.scores)

    def overlaps(self, other: QuickRow) -> bool:
        """Whether the ranges of the seeds have a point in common."""
        return min(self.scores) <= max(other.scores) and min(other.scores) <= max(self.scores)


def run_quick(table: Ablation, rows: Sequence[AblationRow], values: Mapping[str, Any]) -> str:
    """Train rows of a table in small, two runs at a time with a thread each, and give the page that says what came out.

    Data, runs and the page (`quick.md`) are written below `out_dir`.

    Args:
        values: options of the recipe that win over those of the quick table; `seed` is the first of three.
    Raises:
        UserError: if the table has no quick form, or an option does not fit it.
    """
    if not table.quick:
        raise UserError(
            f"{table.name} has no quick table: its rows are detectors, which small data would not tell apart",
            f"Train a row: openmvit train {table.name} --row {table.default} --data DIR",
        )
    for key in ("model", "data", "name", "resume"):
        if values.get(key) is not None:
            raise UserError(f"--quick brings its own {key}, and --{key} is given", f"Leave --{key} out")
    folder = _free(Path(values.get("out_dir") or Recipe.out_dir) / "quick", table.short)
    networks = {row.name: small_config(row) for row in rows}
    base = _recipe(next(iter(networks.values())), values)
    base = dataclasses.replace(base, data=str(_write_data(folder, networks)), out_dir=str(folder), plots=False)
    print(f"{len(rows)} rows x {SEEDS} seeds of {table.name} on {base.data}, into {folder}", flush=True)
    epochs = {row.name: values.get("epochs") or _EPOCHS.get(row.base, base.epochs) for row in rows}
    runs = _train_all(folder, base, networks, epochs)
    done = [_result(row, networks[row.name], runs[row.name]) for row in rows]
    page = quick_page(table, done, base, values)
    (folder / "quick.md").write_text(page + "\n", encoding="utf-8")
    return page


def small_config(row: AblationRow) -> MViTConfig:
    """The small network with a row's changes."""
    return MViTConfig(**SMALL[row.base]).replace(**(row.changes if row.small is None else row.small))


def _recipe(config: MViTConfig, values: Mapping[str, Any]) -> Recipe:
    clips = config.ndim == 3
    own = read_fields("demo/moving_digits" if clips else "demo/digits") | (_CLIPS if clips else _IMAGES)
    return check_fields(own | {"device": "cpu"} | dict(values))


def _write_data(folder: Path, networks: Mapping[str, MViTConfig]) -> Path:
    if next(iter(networks.values())).ndim == 2:
        from openmvit.data.generated import write_digits

        return write_digits(folder / "digits")
    from openmvit.data.generated_clips import write_moving_digits

    return write_moving_digits(folder / "moving_digits", train=_TRAIN_CLIPS)


def _train_all(
    folder: Path, base: Recipe, networks: Mapping[str, MViTConfig], epochs: Mapping[str, int]
) -> dict[str, list[Trained]]:
    """What came out of every row, in the order of the seeds."""
    for name, config in networks.items():
        write_network(config, folder / "networks" / f"{name}.json")
    # Seed by seed, so that whatever slows the machine for a while meets all rows.
    jobs = list(itertools.product(range(base.seed, base.seed + SEEDS), networks))
    found: dict[tuple[str, int], Trained] = {}
    pool = ProcessPoolExecutor(min(_PROCESSES, os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting: dict[Future[Trained], tuple[str, int]] = {}
        for seed, name in jobs:
            own = {"seed": seed, "name": f"{name}-{seed}", "model": str(folder / "networks" / f"{name}.json")}
            own |= {"epochs": epochs[name], "val_every": epochs[name]}
            log = folder / f"{name}-{seed}.txt"
            waiting[pool.submit(_train_one, dataclasses.replace(base, **own), log)] = name, seed
        for number, future in enumerate(as_completed(waiting), 1):
            name, seed = waiting[future]
            found[name, seed] = _outcome(future, folder / f"{name}-{seed}.txt")
            print(f"{number}/{len(jobs)}  {name}, seed {seed}: top-1 {found[name, seed][0]:.4f}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return {name: [found[name, seed] for seed in range(base.seed, base.seed + SEEDS)] for name in networks}


def _outcome(future: Future[Trained], log: Path) -> Trained:
    try:
        return future.result()
    except UserError as error:
        raise UserError(f"The run {log.stem} failed: {error.cause.rstrip('.')}", f"See {log}") from error


def _train_one(recipe: Recipe, log: Path) -> Trained:
    """Train in this process with one thread; what the run says goes to a file."""
    import torch

    from openmvit.training.run import train

    # The layers are so small that several threads would mostly wait for each other.
    torch.set_num_threads(1)
    start = time.process_time()
    with log.open("w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        run = train(recipe)
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["top1"]), time.process_time() - start


def _result(row: AblationRow, config: MViTConfig, runs: list[Trained]) -> QuickRow:
    from openmvit.counting import count_classifier

    cost = count_classifier(config).total
    scores, seconds = zip(*runs, strict=True)
    return QuickRow(row, cost.parameters, cost.operations, scores, sum(seconds))


def quick_page(table: Ablation, rows: Sequence[QuickRow], recipe: Recipe, values: Mapping[str, Any]) -> str:
    """The page of a quick table in Markdown: command, setting, numbers, and which differences mean nothing."""
    which = f" --row {rows[0].row.name}" if len(rows) == 1 < len(table.rows) else ""
    given = "".join(f" --{key.replace('_', '-')} {_typed(value)}" for key, value in values.items())
    data = Path(str(recipe.data))
    train, val = (sum(len(files) for _, _, files in os.walk(data / split)) for split in ("train", "val"))
    minutes = sum(own.seconds for own in rows) / 60
    longer = [f"{base} {_EPOCHS[base]}" for base in _bases(rows) if base in _EPOCHS and "epochs" not in values]
    setting = (
        f"The paper asks: {table.question} Here each row is trained on {_DATA[data.name]} ({train} to train on, {val} "
        f"held out) for {recipe.epochs} epochs{f' ({longer[0]})' if longer else ''} with {SEEDS} seeds, {_PROCESSES} "
        f"runs at a time with one thread each, {minutes:.0f} minutes of processor time in all. "
        f"{' '.join(_small_words(base) for base in _bases(rows))} {table.quick}"
    )
    caution = (
        f"Top-1 in percent, of the last epoch; one held-out sample is {100 / val:.2f}. The task is another one and far "
        "easier than the paper's: what holds here need not hold there."
    )
    lines = [
        f"# Table {table.table} in small: {table.short.replace('_', ' ')}",
        "",
        f"`openmvit train {table.name} --quick{which}{given}`",
        "",
        textwrap.fill(setting, 120),
        "",
        textwrap.fill(caution, 120),
        "",
        "| row | paper: top-1 | here: parameters | M operations | top-1, mean | lowest .. highest seed |",
        "|---|---|---|---|---|---|",
        *(_cells(row, star=row.row.name == table.default) for row in rows),
        "",
        *(textwrap.fill(line, 120, break_on_hyphens=False) for line in verdicts(table, rows)),
    ]
    return "\n".join(lines).rstrip()


def _typed(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _small_words(base: str) -> str:
    """A sentence on the network that stands for another."""
    config = MViTConfig(**SMALL[base])
    grids = dict.fromkeys("x".join(map(str, block.q_grid)) for block in config.blocks())
    return (
        f"In place of {base} stands a network of {'-'.join(map(str, config.depths))} blocks from {config.embed_dim} "
        f"channels on, on {' and '.join(grids)} tokens."
    )


def _bases(rows: Iterable[QuickRow]) -> list[str]:
    return list(dict.fromkeys(own.row.base for own in rows))


def _cells(own: QuickRow, *, star: bool) -> str:
    printed = own.row.printed.get("top1")
    low, high = 100 * min(own.scores), 100 * max(own.scores)
    return (
        f"| {own.row.name}{' (default)' * star} | {'-' if printed is None else printed} | {own.parameters:,} | "
        f"{own.operations / 1e6:.2f} | {100 * own.mean:.1f} | {low:.1f} .. {high:.1f} |"
    )


def verdicts(table: Ablation, rows: Sequence[QuickRow]) -> list[str]:
    """Sentences: which rows differ from the default, or the first row of another network, by more than the seeds do."""
    lines = []
    for base in _bases(rows):
        group = [own for own in rows if own.row.base == base]
        reference = next((own for own in group if own.row.name == table.default), group[0])
        others = [own for own in group if own is not reference]
        inside = [own for own in others if own.overlaps(reference)]
        outside = [own for own in others if not own.overlaps(reference)]
        if inside:
            lines.append(
                f"Inside the spread of the seeds, so no difference was found here: {_against(inside, reference)}."
            )
        if outside:
            lines.append(f"Outside the spread of the seeds: {_against(outside, reference)}.")
    return lines


def _against(rows: Iterable[QuickRow], reference: QuickRow) -> str:
    parts = (f"`{own.row.name}` ({100 * (own.mean - reference.mean):+.1f})" for own in rows)
    return f"{', '.join(parts)} against `{reference.row.name}`"


def _free(parent: Path, name: str) -> Path:
    """A folder that does not exist yet.

    Raises:
        UserError: if it cannot be made.
    """
    for number in itertools.count(1):
        path = parent / (name if number == 1 else f"{name}{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"Cannot make {path} ({error.strerror})", "Choose another --out-dir") from error
    raise AssertionError("count ends never")
