"""Whether an exported file computes what the network computes."""

from __future__ import annotations

from math import inf, isfinite

import torch

from openmvit import screen
from openmvit.errors import UserError
from openmvit.export.formats import Runner
from openmvit.export.plan import Plan

TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest value of the output."""


@torch.no_grad()
def check_agreement(plan: Plan, run: Runner, int8: bool = False) -> float:
    """The worst relative difference over all probes.

    Args:
        int8: the file has 8 bits: any difference is accepted that is a number.
    Raises:
        UserError: if one is beyond the tolerance, or the file refuses a probe.
    """
    tolerance, try_this = (inf, "Leave out --int8") if int8 else (TOLERANCE, "Try --fixed or --format torch")
    worst = 0.0
    screen.doing("comparing the file with the network", long=True)
    for probe in screen.counted(plan.probes, len(plan.probes), "comparing inputs"):
        sizes = " and ".join(" x ".join(map(str, x.shape)) for x in probe)
        try:
            found = run(probe)
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(f"The exported graph fails at {sizes} ({words})", "Try --fixed; no file is left") from error
        difference = plan.difference(plan.expected(probe), found)
        if not (isfinite(difference) and difference <= tolerance):  # nan is no agreement
            raise UserError(
                f"The exported graph differs by {difference:.1e} of the output at {sizes}",
                f"{try_this}; no file is left",
            )
        worst = max(worst, difference)
    return worst
