"""`make parity-detection`: the table of differences to the recorded detectors, as Markdown; exit 1 beyond tolerance."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))

from detection import golden_ops
from parity.golden_detection import NAMES, Differences, compare

TESTS = Path(__file__).parents[1]
# Where recorded operations are tested.
FILES = [str(TESTS / "detection"), str(TESTS / "data" / "test_detection_transforms.py")]
HEADS = "recorded detector|features|boxes, px|scores|classes and order|mask probabilities|equal pixels|losses|gradients"
HEADS += "|features, ours to float64|features, recorded to float64"
FIGURES = ("features", "boxes", "scores", "mask_probs", "losses", "gradients", "ours", "recorded")


def operations_met() -> str:
    """`all` when the tests of the recorded operations pass and read every one of them, else what is missing."""
    seen: set[str] = set()
    read = golden_ops.operations

    def reading(prefix: str):
        seen.add(prefix)
        return read(prefix)

    golden_ops.operations = reading
    silent = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(1)
    os.dup2(silent, 1)
    try:
        failed = pytest.main(["-q", "-p", "no:cacheprovider", *FILES])
    finally:
        os.dup2(kept, 1)
    with safe_open(str(golden_ops.OPERATIONS), "pt") as file:
        names = list(file.keys())
    left = sorted({name.split(".")[0] for name in names if not any(name.startswith(f"{p}.") for p in seen)})
    return "failed" if failed else "without-" + ",".join(left) if left else "all"


def main() -> int:
    found: dict[str, Differences] = {name: compare(name) for name in NAMES}
    print(f"| {' | '.join(HEADS.split('|'))} |")
    print(f"|{'---|' * len(HEADS.split('|'))}")
    for name, row in found.items():
        f, b, s, m, loss, g, ours, theirs = (f"{getattr(row, key):.1e}" for key in FIGURES)
        equal = "equal" if row.classes_equal else "differ"
        print(
            f"| {name} | {f} | {b} | {s} | {equal} | {m} | {row.pixels_equal:.2%} | {loss} | {g} | {ours} | {theirs} |"
        )
    rows, ops = list(found.values()), operations_met()
    boxes, losses, grads = (max(getattr(row, key) for row in rows) for key in ("boxes", "losses", "gradients"))
    classes = all(row.classes_equal for row in rows)
    print(
        f"parity-detection models={len(rows)} ops={ops} boxes_px={boxes:.0e} classes_equal={int(classes)} "
        f"losses={losses:.0e} grads={grads:.0e}"
    )
    kept = boxes <= 0.02 and losses <= 1e-3 and grads <= 5e-3 and all(row.features <= 1e-4 for row in rows)
    return int(not (classes and kept and ops == "all"))


if __name__ == "__main__":
    sys.exit(main())
