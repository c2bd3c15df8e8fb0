"""`make parity`: the table of differences to the authors' recorded outputs, as Markdown; exit 1 beyond tolerance."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from parity.golden import NAMES, compare


def shown(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.1e}"


def main() -> int:
    rows = [compare(name) for name in NAMES]
    heads = "recorded network|blocks|largest difference in blocks|norm|logits|share of tolerance|ours to float64|"
    print(f"| {' | '.join((heads + 'recorded to float64').split('|'))} |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        blocks = max((v for k, v in row.outputs.items() if k.startswith("blocks.")), default=None)
        logits = f"{row.outputs['logits']:.1e}" if "logits" in row.outputs else "RoI head"
        norm = shown(row.outputs.get("norm", row.outputs.get("map")))
        cells = [
            row.name,
            row.blocks,
            shown(blocks),
            norm,
            logits,
            f"{row.share:.2f}",
            shown(row.ours),
            shown(row.recorded),
        ]
        print(f"| {' | '.join(map(str, cells))} |")
    blocks, worst = sum(row.blocks for row in rows), max(row.worst for row in rows)
    print(f"parity files={len(rows)} blocks={blocks} worst={worst:.1e}")
    return int(any(row.share > 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
