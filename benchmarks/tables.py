"""Run the published comparisons and write one table per file, each with its command, by kind of processor.

python benchmarks/tables.py                            all of them, for an hour or two
python benchmarks/tables.py image_fp32_infer --mode eager            nothing is compiled: minutes
python benchmarks/tables.py image_fp32_infer --note "Machine shared with other work." --clock processor
python benchmarks/tables.py image_bf16_train --mode eager --first --batch 1        of a table where the peer is slow
python benchmarks/tables.py --targets                  times nothing: targets.md and README.md from the tables there are
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
IMAGE = "mvitv2_small --against timm"
CLIP = "mvitv2_small_16x4 --against torchvision"
OTHERS = ("swin_base_patch4_window7_224", "vit_base_patch16_224", "hiera_base_224")


def comparisons(network: str, precision: str, step: str, more: list[str]) -> list[str]:
    """Both modes of the network, and eager mode of others."""
    common = f"--precision {precision} --step {step}"
    return [
        *(f"{network} {common} --mode {mode}" for mode in ("eager", "best")),
        *(f"{other} {common} --mode eager" for other in more),
    ]


MORE = {
    "image": ["mvitv2_tiny --against timm", "mvitv2_base --against timm --batch 4"],
    "clip": ["mvitv1_base_16x4 --against torchvision"],
}
TABLES: dict[str, list[str]] = {
    **{
        f"{kind}_{precision}_{step}": comparisons(network, precision, step, MORE[kind] if step == "infer" else [])
        for kind, network in (("image", IMAGE), ("clip", CLIP))
        for step in ("infer", "train")
        for precision in ("fp32", "bf16")
    },
    "runtime": [
        f"mvitv2_base --against timm:{other} --precision {precision}"
        for precision in ("fp32", "bf16")
        for other in OTHERS
    ],
    "switch": [f"{network} --switch --step {step}" for network in (IMAGE, CLIP) for step in ("infer", "train")],
}
"""File -> arguments of `openmvit bench`, one comparison each."""
MEMORY = ("memory_training", "memory_detection")

HEAD = """# {name}

Each comparison alternates both sides in one process, with the same number of threads. Ratio: time of the peer by our
time, median of the pairs, with the 10th and 90th percentile; above 1 we are faster. {note}
"""


def run(arguments: str) -> str:
    """What one comparison prints, made in a process of its own."""
    command = [sys.executable, "-m", "openmvit.benchmark", *arguments.split()]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(text.splitlines()[-1], flush=True)
    return text


def section(arguments: str, text: str) -> str:
    """A comparison as a part of a page."""
    *table, summary = text.strip().splitlines()
    body = "\n".join(table).strip()
    return f"## `openmvit bench {arguments}`\n\n{body}\n\n`{summary}`"


def write(name: str, note: str, extra: str, mode: str | None = None, first: bool = False) -> None:
    """Make one table; the file appears when all of its comparisons have succeeded.

    Args:
        mode: leave the comparisons in the other mode out.
        first: leave other networks than the first one out.
    """
    if name in MEMORY:
        command = [sys.executable, str(FOLDER / "memory.py"), name.removeprefix("memory_")]
        subprocess.run(command, check=True)
        return
    chosen = [one + extra for one in TABLES[name] if mode is None or (mode == "best") == ("--mode best" in one)]
    if not chosen:
        return
    chosen = [one for one in chosen if not first or one.split()[0] == chosen[0].split()[0]]
    sections = [section(arguments, run(arguments)) for arguments in chosen]
    page = FOLDER / processor(sections[0]) / f"{name}.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n\n".join([HEAD.format(name=name, note=note).rstrip(), *sections]) + "\n")


def processor(text: str) -> str:
    """The folder of a comparison: maker and instructions of the processor, as the report names them."""
    found = re.search(r" time, (?:\w+ )*?(AMD|Intel)\b.*\(([\w-]+)\), threads: ", text)
    return f"{found[1]}_{found[2]}".lower().replace("-", "_") if found is not None else "other"


def main() -> int:
    """Write the named tables, or all; then the pages that are made from them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*TABLES, *MEMORY]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--targets", action="store_true", help="make no table, only the pages that hold their figures")
    parser.add_argument("--mode", choices=("eager", "best"), help="only the comparisons in this mode")
    parser.add_argument("--note", default="", help="what a reader must know about the run")
    parser.add_argument("--clock", help="wall or processor, as `openmvit bench` takes it")
    parser.add_argument("--pairs", type=int, help="as `openmvit bench` takes it")
    parser.add_argument("--batch", type=int, help="of all comparisons, where the usual one takes too long")
    parser.add_argument("--first", action="store_true", help="only the first network of a table")
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"no table named {', '.join(sorted(unknown))}")
    extra = "".join(
        f" --{key} {value}" for key in ("clock", "pairs", "batch") if (value := getattr(options, key)) is not None
    )
    failed = []
    for name in [] if options.targets else options.names or known:
        try:
            write(name, options.note, extra, options.mode, options.first)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: failed with {error.returncode}", file=sys.stderr)
    subprocess.run([sys.executable, str(FOLDER / "targets.py")], check=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
