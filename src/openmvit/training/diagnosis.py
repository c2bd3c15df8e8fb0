"""Signs that a run does not learn, and one sentence for each with the likely cause and what to try."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openmvit.training.recipe import Recipe

EARLY = 0.05
"""Share of the updates after which a run is first asked whether it learns."""
LITTLE_MOTION = 5.0e-3
"""Sum of learning rates below which AdamW cannot change a network: no weight moves further than this, and a trained
one is 0.02 or larger."""
AT_CHANCE, LEARNT, BY_HEART = 0.95, 0.8, 0.5
"""Shares of the guessing loss: from which on nothing is learnt, and below which something, or nearly all, is."""
ONE_CLASS = 0.98
"""Share of the validation samples that get one and the same class."""


@dataclass(frozen=True)
class Guessing:
    """What scores would be without looking at the samples.

    Args:
        score: the watched metric of the best constant answer; NaN where there is none.
        loss: mean training loss of the best constant answer; NaN where it is not known.
        samples: validation samples.
    """

    score: float
    loss: float
    samples: int

    def reaches(self, score: float) -> bool:
        """Return True if guessing may well reach `score`: it is within two standard errors."""
        error = math.sqrt(self.score * (1.0 - self.score) / max(self.samples, 1))
        return score <= self.score + 2.0 * error


@dataclass(frozen=True)
class Signs:
    """What is known of a run after a validation.

    Args:
        train_loss: mean training loss of the last epoch.
        val_loss: loss of the validation; NaN where there is none.
        score: the watched metric.
        metric: its name.
        motion: sum of the learning rates of all updates; NaN where the optimiser scales no gradients.
        gradient: largest gradient of the last update, 0 if all are.
        one_class: class that nearly all validation samples get, empty if there is none.
        guessing: what guessing would reach.
    """

    train_loss: float
    val_loss: float
    score: float
    metric: str
    motion: float
    gradient: float
    one_class: str
    guessing: Guessing


def may_have_learnt(recipe: Recipe, updates: int, per_epoch: int) -> bool:
    """Return True after a twentieth of the updates, and half as many again as the warm-up takes."""
    total = recipe.updates or recipe.epochs * per_epoch
    rising = recipe.warmup_updates if recipe.updates else recipe.warmup_epochs * per_epoch
    return updates >= max(EARLY * total, 1.5 * rising)


def diagnose(signs: Signs) -> list[str]:
    """Sentences about what looks wrong; empty if the run learns."""
    chance, loss = signs.guessing.score, signs.guessing.loss
    if signs.gradient == 0.0:
        return [
            "All gradients are 0, so no weight changes: the part that is trained is cut off or its weights are all 0. "
            "Check --freeze, --tune and --weights"
        ]
    guessed = signs.guessing.reaches(signs.score)
    stuck = not signs.train_loss < AT_CHANCE * loss
    found = []
    if guessed and signs.motion < LITTLE_MOTION:
        found.append(
            f"The learning rates of all updates sum up to {signs.motion:.1e}, which hardly moves a weight. "
            "Raise --lr, or train longer with --epochs"
        )
    if signs.one_class:
        found.append(
            f"Nearly every validation sample is called {signs.one_class!r}. Lower --lr if the loss jumped, and look at "
            "the number of samples per class with openmvit data check"
        )
    if guessed and stuck and not found:
        known = f"; the training loss is {signs.train_loss:.2f} (guessing {loss:.2f})" if loss == loss else ""
        found.append(
            f"Nothing is learnt yet: {signs.metric} is {signs.score:.2f} (guessing {chance:.2f}){known}. Try another "
            "--lr and weaker augmentation, and check that the labels belong to the samples: openmvit data check"
        )
    if guessed and signs.train_loss < LEARNT * loss:
        found.append(
            f"Training samples are learnt (loss {signs.train_loss:.2f}, guessing gives {loss:.2f}) and validation "
            f"samples guessed ({signs.metric} {signs.score:.2f}). The labels of one part may be mixed up, or its "
            "samples be of another kind: look at both with openmvit data check"
        )
    elif signs.train_loss < BY_HEART * loss < loss < signs.val_loss:
        found.append(
            f"Training samples are learnt by heart: their loss is {signs.train_loss:.2f}, that of the validation "
            f"{signs.val_loss:.2f}, above guessing ({loss:.2f}). More samples help most; else stronger augmentation, "
            "fewer --epochs, or --freeze N"
        )
    return found
