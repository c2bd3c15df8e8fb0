"""Run the published comparisons and write one table per file, each with its command.

python benchmarks/tables.py                            all of them
python benchmarks/tables.py bench_mvitv2_small --clock processor --note "Machine shared with other work during the run."
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TABLES: dict[str, list[str]] = {
    "bench_mvitv2_small": [
        "mvitv2_small --against timm --precision fp32 --mode eager --step infer --batch 8",
        "mvitv2_small --against timm --precision bf16 --mode eager --step infer --batch 8",
        "mvitv2_small --against timm --precision fp32 --mode eager --step train --batch 4",
        "mvitv2_small --against timm --precision bf16 --mode eager --step train --batch 4",
    ],
}
"""File -> arguments of `openmvit bench`, one comparison each."""

HEAD = """# {name}

Each comparison alternates both sides in one process, on the same weights, after their outputs were found equal. Ratio:
time of the peer by our time, median of the pairs, with the 10th and 90th percentile; above 1 we are faster. {note}
"""


def write(name: str, note: str, clock: str) -> None:
    """Run the comparisons of one table; the file appears when all have succeeded."""
    parts = [HEAD.format(name=name, note=note).rstrip()]
    for arguments in TABLES[name]:
        arguments += f" --clock {clock}" if clock != "wall" else ""
        command = [sys.executable, "-m", "openmvit.benchmark", *arguments.split()]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        *table, summary = text.splitlines()
        print(summary, flush=True)
        body = "\n".join(table).strip()
        parts.append(f"## `openmvit bench {arguments}`\n\n{body}\n\n`{summary}`")
    (FOLDER / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def main() -> None:
    """Write the named tables, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--note", default="", help="what a reader must know about the run")
    parser.add_argument("--clock", default="wall", help="wall or processor, as `openmvit bench` takes it")
    options = parser.parse_args()
    if unknown := set(options.names) - set(TABLES):
        parser.error(f"no table named {', '.join(sorted(unknown))}")
    for name in options.names or TABLES:
        write(name, options.note, options.clock)


if __name__ == "__main__":
    main()
