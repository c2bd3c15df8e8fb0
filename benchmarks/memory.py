"""Peak memory above the process that holds network and batch, each figure from a process of its own.

python benchmarks/memory.py training     training steps against the peer, by `openmvit bench`
python benchmarks/memory.py detection    backbones at 1024 x 1024: windows or none, scores written out or never held
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openmvit.architectures import DETECTORS
from openmvit.benchmark import make_case, peak_memory
from openmvit.config import MViTConfig
from openmvit.measuring import in_own_process, peak_above_idle, processor
from openmvit.model import FeatureMaps, MViT
from openmvit.nn import attention
from openmvit.nn.fast.precision import BF16_IS_FAST

FOLDER = Path(__file__).parent
CPU = torch.device("cpu")
NO_WINDOWS = {"window": None, "window_pattern": "all", "global_kv_stride_factor": 1}
STEPS = [("mvitv2_small", 16), ("mvitv2_small_16x4", 1)]
"""Networks and the batch of their training step."""


@dataclass(frozen=True)
class Row:
    """One measurement of a backbone: a picture of `side` x `side`, fp32, batch 1."""

    size: str
    windows: bool
    side: int
    train: bool
    channels: bool
    """Position term in channels where a head has many scores (the library's way); else all scores are written out."""


def peak(row: Row) -> float:
    """Bytes of one forward or training step."""
    if not row.channels:
        attention.MOST_SCORES, attention.products_pay = 2**62, lambda *_: False
    config = MViTConfig.from_dict(DETECTORS[f"cascade_mask_rcnn_mvitv2_{row.size}"]["backbone"])
    backbone = FeatureMaps(MViT(config if row.windows else config.replace(**NO_WINDOWS)), stage_norms=True)
    backbone.train(row.train)
    picture = torch.randn(1, 3, row.side, row.side)

    def step() -> Tensor:
        with torch.set_grad_enabled(row.train):
            maps = backbone(picture)
            if row.train:
                torch.stack([x.square().mean() for x in maps]).sum().backward()
        return maps[-1]

    return peak_above_idle(CPU, step, calls=1)


def rows() -> list[Row]:
    windows = [Row(size, True, 1024, train, True) for size in ("tiny", "base") for train in (False, True)]
    written_out = [Row("tiny", True, 1024, train, False) for train in (False, True)]
    whole = [Row("tiny", False, side, False, form) for side in (512, 1024) for form in (False, True)]
    return [*windows, *written_out, *whole, Row("tiny", False, 1024, True, True)]


def detection() -> list[str]:
    lines = ["| backbone | attention | position term | side | step | GB |", "|---|---|---|---|---|---|"]
    for row in rows():
        form = "in channels" if row.channels else "all scores written out"
        step = "training step" if row.train else "forward"
        pattern = "hybrid windows" if row.windows else "pooling, no windows"
        gigabytes = in_own_process(peak, row) / 1e9
        lines.append(f"| {row.size} | {pattern} | {form} | {row.side} | {step} | {gigabytes:.2f} |")
        print(lines[-1], flush=True)
    return lines


def training() -> list[str]:
    lines = ["| network | batch | precision | ours, GB | peer | peer, GB | share |", "|---|---|---|---|---|---|---|"]
    for name, batch in STEPS:
        for precision in ("fp32", "bf16") if BF16_IS_FAST else ("fp32",):  # elsewhere bf16 runs in fp32
            case = make_case(name, batch=batch, precision=precision, step="train", device="cpu")
            ours, peer = (peak_memory(case, side) / 1e9 for side in (0, 1))
            cells = [name, str(batch), precision, f"{ours:.2f}", case.peer.name, f"{peer:.2f}", f"{ours / peer:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


TABLES: dict[str, tuple[str, str, Callable[[], list[str]]]] = {
    "training": (
        "Peak memory of training steps",
        "Forward, cross entropy, backward and AdamW: gradients and the optimizer's state count, weights do not.",
        training,
    ),
    "detection": ("Peak memory of detection backbones", "fp32, batch 1.", detection),
}


def write(name: str) -> None:
    """Measure one table and write its file."""
    title, words, make = TABLES[name]
    where = f"{processor(CPU)}, torch {torch.__version__}"
    head = f"# {title}\n\nAbove the process that holds network and batch. {words} {where}.\n"
    lines = "\n".join(make())
    (FOLDER / f"memory_{name}.md").write_text(f"{head}`python benchmarks/memory.py {name}`\n\n{lines}\n")


if __name__ == "__main__":
    if set(sys.argv[1:]) - set(TABLES):
        sys.exit(f"tables: {', '.join(TABLES)}")
    for table in sys.argv[1:] or TABLES:
        write(table)
