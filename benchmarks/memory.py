"""Peak memory of detection backbones at 1024 x 1024: windows or none, all scores written out or never held.

python benchmarks/memory.py [--out benchmarks/memory_detection.md]
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from openmvit.architectures import DETECTORS
from openmvit.config import MViTConfig
from openmvit.model import FeatureMaps, MViT
from openmvit.nn import attention

NO_WINDOWS = {"window": None, "window_pattern": "all", "global_kv_stride_factor": 1}


@dataclass(frozen=True)
class Row:
    """One measurement: a picture of `side` x `side`, fp32, batch 1."""

    size: str
    windows: bool
    side: int
    train: bool
    channels: bool
    """Position term in channels where a head has many scores (the library's way); else all scores are written out."""


def status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def peak(row: Row) -> float:
    """Bytes above the process that holds network and picture."""
    torch.set_num_threads(1)
    if not row.channels:
        attention.MOST_SCORES = 2**62
    config = MViTConfig.from_dict(DETECTORS[f"cascade_mask_rcnn_mvitv2_{row.size}"]["backbone"])
    backbone = FeatureMaps(MViT(config if row.windows else config.replace(**NO_WINDOWS)), stage_norms=True)
    picture = torch.randn(1, 3, row.side, row.side)
    Path("/proc/self/clear_refs").write_text("5")  # makes the peak start anew
    idle = status_bytes("VmRSS")
    with torch.set_grad_enabled(row.train):
        maps = backbone.train(row.train)(picture)
        if row.train:
            torch.stack([x.square().mean() for x in maps]).sum().backward()
    return status_bytes("VmHWM") - idle


def in_own_process(row: Row) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, row).result()


def rows() -> list[Row]:
    windows = [Row(size, True, 1024, train, True) for size in ("tiny", "base") for train in (False, True)]
    whole = [Row("tiny", False, side, False, form) for side in (512, 1024) for form in (False, True)]
    written_out = [Row("tiny", True, 1024, train, False) for train in (False, True)]
    return [*windows, *written_out, *whole, Row("tiny", False, 1024, True, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines = ["| backbone | attention | position term | side | step | GB |", "|---|---|---|---|---|---|"]
    for row in rows():
        gigabytes = in_own_process(row) / 1e9
        form = "in channels" if row.channels else "all scores written out"
        step = "training step" if row.train else "forward"
        pattern = "hybrid windows" if row.windows else "pooling, no windows"
        lines.append(f"| {row.size} | {pattern} | {form} | {row.side} | {step} | {gigabytes:.2f} |")
        print(lines[-1], flush=True)
    if out is not None:
        title = (
            "# Peak memory of detection backbones\n\nfp32 on a CPU, batch 1, above the process that holds network and "
        )
        out.write_text(f"{title}picture.\n`python benchmarks/memory.py --out {out}`\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
