"""Options worked out from the data: what `train --data DIR` does where nobody has said more. Imports no torch.

The presets `image/small`, `video/small` and `detection/small` name in `derive` what is worked out here; an option that
the user gives leaves that list. The figures were chosen and measured with `benchmarks/own_data.py`; `docs/own-data.md`
has the tables, and beside each rule what is published for fine-tuning at full size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openmvit.errors import UserError, did_you_mean
from openmvit.training.recipe import Recipe


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Args:
        task: image, video or detection.
        samples: training samples.
        validation: validation samples.
        width: channels of the network's last block.
        pretrained: whether it starts from weights.
        processes: how many share the work.
    """

    task: str
    samples: int
    validation: int
    width: int
    pretrained: bool
    processes: int = 1


@dataclass(frozen=True)
class Figures:
    """Measured figures of one job.

    Args:
        lr: peak learning rate of a network with `WIDTH` channels at `batch` samples per update.
        batch: samples per update that `lr` and `updates` are stated for.
        updates: fewest updates of a run.
        passes: passes over up to `MANY` samples, where these are more updates.
        batches: smallest and largest number of samples per update that are chosen.
        at_once: largest batch of a step; more samples per update are accumulated.
    """

    lr: float
    batch: int
    updates: int
    passes: float
    batches: tuple[int, int]
    at_once: int


FIGURES = {
    "image": Figures(lr=1.2e-3, batch=16, updates=1500, passes=20, batches=(8, 64), at_once=64),
    "video": Figures(lr=1.0e-3, batch=8, updates=1000, passes=20, batches=(8, 16), at_once=8),
    "detection": Figures(lr=8.0e-4, batch=4, updates=800, passes=24, batches=(4, 16), at_once=4),
}
WIDTH = 192
"""Channels of the last block of the networks that the figures were measured on."""
MANY = 20_000
"""Samples above which a run makes fewer passes, by the fourth root: half as many for sixteen times the samples."""
EPOCHS = 30
"""Most epochs, and with them scores and saved states, of a run whose epochs are not given."""
WARMUP, MOST_WARMUP = 0.05, 5.0
"""Share of the updates in which the learning rate rises, and the most passes that these may be."""
EMA = 0.02
"""Updates that the average of the weights looks back on, as a share of all."""
VALIDATION = 7.0
"""Fewest training samples per validation sample in an epoch: its forward then takes a twentieth of the time."""
_FEW = {"crop_scale": (0.5, 1.0), "auto_augment": "rand-m5-n2-mstd0.5-inc1", "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
_MANY = {
    "crop_scale": (0.25, 1.0),
    "auto_augment": "rand-m7-n2-mstd0.5-inc1",
    "erase": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
}
AUGMENTATION = ((10_000, _MANY), (0, _FEW))
"""Training samples from which on, and what holds there. `_FEW` is measured, `_MANY` is halfway to what is published."""


def derive(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[str]]:
    """Work out the options that `recipe.derive` names; return the complete recipe and lines that say what came out.

    Raises:
        UserError: if an option has no rule.
    """
    if not recipe.derive:
        return recipe, []
    batch, accumulate = _batch(recipe, facts)
    total = batch * accumulate * facts.processes // recipe.repeats
    epochs, passes = _length(recipe, facts, total)
    updates = recipe.updates or epochs * updates_per_epoch(facts.samples, passes, total)
    values: dict[str, Any] = {
        "batch": batch,
        "accumulate": accumulate,
        "epochs": epochs,
        "passes": passes,
        "val_every": max(math.ceil(VALIDATION * facts.validation / ((passes or 1.0) * facts.samples)), 1),
        "warmup_epochs": min(WARMUP * epochs, MOST_WARMUP / (passes or 1.0)),
        "warmup_updates": round(WARMUP * recipe.updates),
        "lr": _peak_rate(facts, recipe.lr_batch or total),
        "ema": max(1.0 - 1.0 / (EMA * updates), 0.0),
        **_augmentation(facts),
    }
    unknown = [name for name in recipe.derive if name not in values]
    if unknown:
        raise UserError(f"derive has no rule for {unknown[0]!r}", did_you_mean(unknown[0], values))
    chosen = {name: values[name] for name in recipe.derive}
    complete = dataclasses.replace(recipe, **{"batch": batch, **chosen, "derive": ()})
    return complete, _lines(complete, chosen, facts, updates)


def updates_per_epoch(samples: int, passes: float, total: int) -> int:
    """Updates of `total` samples that come nearest to so many passes, at least one.

    A single pass is rounded up, so that no sample is left out of it.
    """
    updates = samples * (passes or 1.0) / total
    return max(math.ceil(updates) if passes <= 1.0 else round(updates), 1)


def _batch(recipe: Recipe, facts: Facts) -> tuple[int, int]:
    """Samples per step and process, and steps per update.

    Where nobody says so, an update has a sixteenth of the data, so that small data still make for many updates. A batch
    is never larger than the data.
    """
    figures, most = FIGURES[facts.task], max(facts.samples * recipe.repeats // facts.processes, recipe.repeats)
    low, high = figures.batches
    wanted = min(max(2 ** round(math.log2(max(facts.samples / 16, 1))), low), high)
    batch = int(recipe.batch)
    if "batch" in recipe.derive:
        batch = max(min(wanted // (facts.processes * recipe.accumulate), figures.at_once), 1) * recipe.repeats
    batch = min(batch, most)
    if "accumulate" not in recipe.derive:
        return batch, recipe.accumulate
    return batch, max(wanted * recipe.repeats // (batch * facts.processes), 1) if "batch" in recipe.derive else 1


def _length(recipe: Recipe, facts: Facts, total: int) -> tuple[int, float]:
    """Epochs, and passes that count as one epoch, at `total` samples per update.

    Tiny data need many passes: updates decide, and fewer of them where each has more samples. Given epochs are passes.
    """
    if "epochs" not in recipe.derive:
        return recipe.epochs, 1.0 if "passes" in recipe.derive else recipe.passes
    figures, per_pass = FIGURES[facts.task], facts.samples / total
    passes = figures.passes * min(1.0, (MANY / facts.samples) ** 0.25)
    whole = max(passes, figures.updates * math.sqrt(figures.batch / total) / per_pass)
    per_epoch = max(whole / EPOCHS, VALIDATION * facts.validation / facts.samples, 1.0)
    per_epoch = float(math.ceil(per_epoch)) if "passes" in recipe.derive else recipe.passes or 1.0
    return max(round(whole / per_epoch), 1), per_epoch


def _peak_rate(facts: Facts, total: int) -> float:
    """Peak learning rate for `total` samples per update.

    AdamW divides a gradient by its own size, so what a larger batch gains is less noise: the square root, up to the
    largest batch that was measured. Wide layers take smaller steps, as one over their width (Yang et al. 2022, Tensor
    Programs V).
    """
    figures = FIGURES[facts.task]
    rate = figures.lr * math.sqrt(min(total, figures.batches[1]) / figures.batch) * min(WIDTH / facts.width, 1.0)
    return float(f"{rate:.3g}")


def _augmentation(facts: Facts) -> dict[str, Any]:
    """Stronger where there is more to learn from: a few pictures are learnt by heart, or not at all if distorted."""
    return next(values for least, values in AUGMENTATION if facts.samples >= least)


def _lines(recipe: Recipe, derived: Mapping[str, Any], facts: Facts, updates: int) -> list[str]:
    """What was derived from what, as a user reads it."""
    total = int(recipe.batch) * recipe.accumulate * facts.processes // recipe.repeats
    start = "starting weights" if facts.pretrained else "random weights"
    lines = [
        f"Derived from {facts.samples} training and {facts.validation} validation samples, {total} per update, "
        f"{start} and {facts.width} channels (what you give yourself wins):"
    ]
    length = f"{recipe.epochs} epochs" + (f" of {recipe.passes:g} passes" if recipe.passes > 1 else "")
    rest = {name: value for name, value in derived.items() if name not in ("epochs", "passes")}
    words = [f"{name} {_short(value)}" for name, value in rest.items()]
    return [*lines, f"  {length}, {updates} updates; " + ", ".join(words)]


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
