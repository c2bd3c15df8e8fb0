"""Hold the tables of this folder against the targets: writes targets.md, and README.md between its markers.

python benchmarks/targets.py

Nothing is timed. A table that was not made yet leaves its rows without a figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
MARKED = re.compile(r"(<!-- bench:begin -->\n).*?(<!-- bench:end -->)", re.DOTALL)
AUTHORS_GB = {"forward": 0.82, "training step": 3.55}
"""Detection backbone T at 1024 x 1024 by the authors' code on the machine that the targets were set on."""


@dataclass(frozen=True)
class Bench:
    """One comparison as it stands in a table.

    Args:
        arguments: of `openmvit bench`.
        ours, peer: cells of the two rows after the first one.
        room: largest ratio that the matrix products leave room for; empty where it was not measured.
    """

    arguments: str
    heading: str
    ratio: float
    low: float
    high: float
    ours: list[str]
    peer: list[str]
    room: str

    @property
    def share(self) -> float:
        """Of the machine's matrix rate, ours."""
        return float(self.ours[4].rstrip("%")) / 100

    def share_at(self, ratio: float) -> float:
        """Of the machine's matrix rate, that of a network which is so many times as fast as the peer."""
        return ratio * float(self.peer[4].rstrip("%")) / 100


PROCESSORS = {
    "amd_avx512": "of AMD with AVX-512",
    "intel_avx512": "of Intel with AVX-512, without AMX",
    "amd_avx2": "of AMD with AVX2",
}
"""Folder of tables -> what kind of processor they were made on."""


def read_bench(table: str, network: str, mode: str) -> Bench | None:
    """The comparison of a network in a mode, from a table `processor/name` of this folder."""
    path = FOLDER / f"{table}.md"
    sections = path.read_text().split("## `openmvit bench ")[1:] if path.exists() else []
    for section in sections:
        arguments = section.partition("`")[0]
        if arguments.split()[0] == network and f"--mode {mode}" in arguments:
            return parse(arguments, section)
    return None


def parse(arguments: str, section: str) -> Bench:
    """What a section of a table says."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    found = re.search(r"ratio=(\S+) low=(\S+) high=(\S+)", section)
    assert found is not None, section
    room = re.search(r"leave room for: (\d+\.\d+)", section)
    heading = next(line for line in section.splitlines()[1:] if line)
    ratio, low, high = (float(figure) for figure in found.groups())
    return Bench(arguments, heading, ratio, low, high, rows[2][1:], rows[3][1:], room[1] if room else "")


SMALL = {"image": "mvitv2_small", "clip": "mvitv2_small_16x4"}
FLOORS = {
    ("image", "infer", "fp32"): 1.8,
    ("image", "infer", "bf16"): 1.6,
    ("clip", "infer", "fp32"): 2.2,
    ("clip", "infer", "bf16"): 1.6,
    ("image", "train", "fp32"): 1.6,
    ("image", "train", "bf16"): 1.4,
    ("clip", "train", "fp32"): 1.3,
    ("clip", "train", "bf16"): 1.7,
}
"""Least ratio in eager mode."""
STRETCHES = {("image", "fp32"): 1.7, ("image", "bf16"): 1.5, ("clip", "fp32"): 2.3, ("clip", "bf16"): 2.0}
"""Least ratio of inference, best mode against best mode."""
SHARE = 0.75
STEPS = {"infer": "inference", "train": "training step"}


def speed_rows(processor: str) -> list[list[str]]:
    """A row per target of speed."""
    wanted = [("floor", *what, "eager", least) for what, least in FLOORS.items()]
    wanted += [("stretch", kind, "infer", precision, "best", least) for (kind, precision), least in STRETCHES.items()]
    rows = [_ratio_row(processor, *one) for one in wanted]
    for kind, precision in STRETCHES:
        found = read_bench(f"{processor}/{kind}_{precision}_infer", SMALL[kind], "best")
        what = f"{kind} {precision} inference, best mode, share of the matrix rate"
        measured = f"{found.share:.0%}" if found else "not measured"
        rows.append(["stretch", what, f">= {SHARE:.0%}", measured, "", "", _verdict(found and found.share >= SHARE)])
    return rows


def _ratio_row(processor: str, level: str, kind: str, step: str, precision: str, mode: str, least: float) -> list[str]:
    found = read_bench(f"{processor}/{kind}_{precision}_{step}", SMALL[kind], mode)
    what = f"{kind} {precision} {STEPS[step]}, {mode} mode, ratio"
    if found is None:
        return [level, what, f">= {least}", "not measured", "", "", ""]
    measured = f"{found.ratio:.2f} [{found.low:.2f}-{found.high:.2f}]"
    if kind == "image" and (batch := re.search(r"--batch (\d+)", found.arguments)):
        measured += f" at batch {batch[1]}"
    needs = f"{found.share_at(least):.0%}"
    return [level, what, f">= {least}", measured, found.room, needs, _verdict(found.ratio >= least)]


def memory_rows() -> list[list[str]]:
    """A row per target of memory."""
    small = _cells("memory_training", "mvitv2_small", "fp32")
    share = float(small[6].rstrip("%")) / 100 if small else None
    rows = [_share_row("training step of mvitv2_small at batch 16, of timm's", 0.7, share)]
    for step, gigabytes in AUTHORS_GB.items():
        found = _cells("memory_detection", "tiny", "hybrid windows", "in channels", "1024", step)
        share = float(found[5]) / gigabytes if found else None
        rows.append(_share_row(f"detection backbone T at 1024 x 1024, {step}, of {gigabytes} GB", 0.6, share))
    ours, all_scores = (
        _cells("memory_detection", "tiny", "pooling, no windows", form, "1024", "forward")
        for form in ("in channels", "all scores written out")
    )
    share = float(ours[5]) / float(all_scores[5]) if ours and all_scores else None
    return [*rows, _share_row("pooling attention at 1024 x 1024, of all scores written out", 0.25, share)]


def _share_row(what: str, most: float, share: float | None) -> list[str]:
    measured = "not measured" if share is None else f"{share:.0%}"
    return ["floor", f"memory: {what}", f"<= {most:.0%}", measured, "", "", _verdict(share and share <= most)]


def _cells(table: str, *words: str) -> list[str] | None:
    """The first row of a table that has these cells."""
    path = FOLDER / f"{table}.md"
    for line in path.read_text().splitlines() if path.exists() else []:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if set(words) <= set(cells):
            return cells
    return None


def _verdict(met: object) -> str:
    return "" if met is None else "met" if met else "missed"


def page() -> str:
    """targets.md."""
    parts = {f"Speed on a processor {name}": speed_rows(folder) for folder, name in PROCESSORS.items()}
    parts["Memory"] = memory_rows()
    head = ["level", "what", "target", "measured", "room", "needs", "verdict"]
    text = (
        "# Targets\n\nEvery target beside what the tables of this folder say: `python benchmarks/targets.py`.\n"
        "Room is the largest ratio that any network of the same arithmetic could reach in eager mode on the machine\n"
        "of the table: time of the peer by that of its matrix products alone, each by the faster library. Where a\n"
        "processor is slower in bf16 than in fp32, products of bf16 count as made in fp32. *Needs* is the share of\n"
        "the machine's matrix rate at which a whole step would have to run to meet the target.\n"
    )
    for (title, rows), key in zip(parts.items(), [*PROCESSORS, "memory"], strict=True):
        met, judged = sum(row[-1] == "met" for row in rows), sum(row[-1] != "" for row in rows)
        tally = f"`{key} met={met} missed={judged - met} not_measured={len(rows) - judged}`"
        text += f"\n## {title}\n\n{_markdown(head, rows)}\n\n{tally}\n"
    return text


def readme_block() -> str:
    """What stands between the markers of README.md."""
    parts = []
    for folder in PROCESSORS:
        rows, headings = [], []
        for kind, step, precision in FLOORS:
            for mode in ("eager", "best"):
                if found := read_bench(f"{folder}/{kind}_{precision}_{step}", SMALL[kind], mode):
                    speeds = [found.ours[2], found.peer[2]]
                    spread = f"{found.low:.2f}-{found.high:.2f}"
                    rows.append([f"`openmvit bench {found.arguments}`", f"{found.ratio:.2f}", spread, *speeds])
                    headings.append(found.heading)
        if rows:
            head = ["command", "ratio", "spread", "ours, per second", "peer, per second"]
            parts.append(f"{_where(headings)}:\n\n{_markdown(head, rows)}\n")
    return "\n".join(parts) or "No table has been made yet: `make bench`.\n"


def _where(headings: list[str]) -> str:
    """On what machine the tables of some headings were made."""
    found = (re.search(r"\w+ time, .*?torch [^,]+", text) for text in headings)
    return "; ".join(dict.fromkeys(one[0] for one in found if one))


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def refreshed(text: str) -> str:
    """README.md with the figures of the tables."""
    return MARKED.sub(lambda found: f"{found[1]}{readme_block()}{found[2]}", text)


def main() -> None:
    """Write both pages."""
    (FOLDER / "targets.md").write_text(page())
    README.write_text(refreshed(README.read_text()))
    print("\n".join(line.strip("`") for line in page().splitlines() if line.startswith("`")))


if __name__ == "__main__":
    main()
