"""One layer at a time: each faster form of `openmvit.nn.fast` beside another, on the shapes of MViTv2-S.

python benchmarks/layers.py          writes benchmarks/layers.md
python benchmarks/layers.py linear   prints one table of it: attention, filters or linear

Images: batch 8 of 224 x 224. Clips: batch 1 of 16 x 224 x 224 with class token. The ways take turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.config import Size
from openmvit.measuring import Step, processor, seconds_of
from openmvit.nn.fast.attention import by_kernel, by_products
from openmvit.nn.fast.linear import product
from openmvit.nn.grid import conv
from openmvit.nn.ops import depthwise
from openmvit.nn.relative import Position, relative_rows

CPU = torch.device("cpu")
ROUNDS = 7
ATTENTION: dict[str, tuple[int, int, Size, Size]] = {
    "image, stage 1": (8, 1, (56, 56), (14, 14)),
    "image, stage 2, first": (8, 2, (28, 28), (28, 28)),
    "image, stage 2": (8, 2, (28, 28), (14, 14)),
    "image, stage 3": (8, 4, (14, 14), (14, 14)),
    "image, stage 4": (8, 8, (7, 7), (7, 7)),
    "clip, stage 1": (1, 1, (8, 56, 56), (8, 7, 7)),
    "clip, stage 2": (1, 2, (8, 28, 28), (8, 7, 7)),
    "clip, stage 3": (1, 4, (8, 14, 14), (8, 7, 7)),
    "clip, stage 4": (1, 8, (8, 7, 7), (8, 7, 7)),
}
"""Layer -> batch, heads, grids of queries and keys; 96 channels a head."""
FILTERS: dict[str, tuple[Size, int, Size]] = {
    "clip, stage 1": ((1, 8, 56, 56), 96, (1, 1, 1)),
    "clip, stage 1, K and V": ((1, 8, 56, 56), 96, (1, 8, 8)),
    "clip, stage 2": ((1, 8, 28, 28), 192, (1, 1, 1)),
    "clip, stage 2, K and V": ((1, 8, 28, 28), 192, (1, 4, 4)),
    "clip, stage 3": ((1, 8, 14, 14), 384, (1, 1, 1)),
    "clip, stage 3, K and V": ((1, 8, 14, 14), 384, (1, 2, 2)),
    "image, stage 1": ((8, 56, 56), 96, (1, 1)),
    "image, stage 1, K and V": ((8, 56, 56), 96, (4, 4)),
    "image, stage 3": ((8, 14, 14), 384, (1, 1)),
}
LINEAR = [(25088, 96, 384), (25088, 384, 96), (6272, 192, 768), (1568, 384, 384), (1568, 384, 1536), (392, 768, 3072)]
"""Rows, channels in, channels out."""
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def times(*ways: Step) -> list[float]:
    """Median milliseconds of each, taking turns after one call to warm up."""
    found: list[list[float]] = [[] for _ in ways]
    for turn in range(ROUNDS + 1):
        for way, own in zip(ways, found, strict=True):
            seconds = seconds_of(CPU, way)
            if turn:
                own.append(seconds * 1e3)
    return [median(own) for own in found]


def _backward(forward: Step, inputs: list[Tensor]) -> Step:
    """Forward and backward of a layer."""
    grad = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), inputs, grad)[0]


def _quietly(forward: Step) -> Step:
    def step() -> Tensor:
        with torch.no_grad():
            return forward()

    return step


def _attend(
    form: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: list[Tensor],
    cls: tuple[Tensor, Tensor] | None,
) -> Tensor:
    groups = tuple((axis,) for axis in range(len(tables)))
    rows = [relative_rows(t, q.shape[1:-2], k.shape[1:-2], g) for t, g in zip(tables, groups, strict=True)]
    return form(q, k, v, Position(groups, 1.0, rows, [], [], 1), cls, None)


def attention() -> Iterator[list[str]]:
    """Written out for the library's kernel, and by products."""
    for name, (batch, heads, q_grid, k_grid) in ATTENTION.items():
        for precision, dtype in TYPES.items():
            q = torch.randn(batch, *q_grid, heads, 96).to(dtype).requires_grad_()
            k, v = (torch.randn(batch, *k_grid, heads, 96).to(dtype).requires_grad_() for _ in "kv")
            cls = None if len(q_grid) == 2 else (torch.randn(batch, 1, heads, 96).to(dtype),) * 2
            lengths = [2 * max(n, m) - 1 for n, m in zip(q_grid, k_grid, strict=True)]
            tables = [torch.randn(n, 96).requires_grad_() for n in lengths]
            inputs = [q, k, v, *tables]
            kernel, ours = (partial(_attend, form, q, k, v, tables, cls) for form in (by_kernel, by_products))
            forward = times(_quietly(kernel), _quietly(ours))
            step = times(_backward(kernel, inputs), _backward(ours, inputs))
            yield [name, precision, *(f"{t:.1f}" for t in (*forward, *step))]


def filters() -> Iterator[list[str]]:
    """Forward and backward of a depthwise filter with three taps per axis, the plain call and ours."""
    for name, (shape, channels, stride) in FILTERS.items():
        for precision, dtype in TYPES.items():
            x = torch.randn(*shape, channels).to(dtype).requires_grad_()
            weight = torch.randn(channels, 1, *(3,) * len(stride)).to(dtype).requires_grad_()
            ones, inputs = (1,) * len(stride), [x, weight]
            plain = _backward(lambda x=x, w=weight, s=stride, p=ones, c=channels: conv(x, w, None, s, p, c), inputs)
            ours = _backward(lambda x=x, w=weight, s=stride, p=ones: depthwise(x, w, s, p), [x, weight])
            yield [name, precision, *(f"{t:.1f}" for t in times(plain, ours))]


def linear() -> Iterator[list[str]]:
    """A linear layer with the GELU behind it, and the gradient of its input: the public way and oneDNN's."""
    for rows, inner, outer in LINEAR:
        for precision, dtype in TYPES.items():
            x, grad = torch.randn(rows, inner).to(dtype), torch.randn(rows, outer).to(dtype)
            weight, bias = torch.randn(outer, inner).to(dtype), torch.randn(outer).to(dtype)
            found = times(
                lambda x=x, w=weight, b=bias: F.gelu(F.linear(x, w, b)),
                lambda x=x, w=weight, b=bias: product(x, w, b, gelu=True),
                lambda g=grad, w=weight: g @ w,
                lambda g=grad, w=weight: product(g, w.T, None),
            )
            yield [f"{rows} x {inner} -> {outer}", precision, *(f"{t:.2f}" for t in found)]


TABLES: dict[str, tuple[Callable[[], Iterator[list[str]]], str]] = {
    "Attention with decomposed position": (
        attention,
        "layer | precision | forward: kernel, term written out | products | forward and backward: kernel | products",
    ),
    "Depthwise filters, forward and backward": (filters, "layer | precision | plain | ours"),
    "Linear layers": (
        linear,
        "shape | precision | with GELU: public | oneDNN | gradient of the input: public | oneDNN",
    ),
}


def main() -> None:
    """Write all tables, or print the named ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [rows.__name__ for rows, _ in TABLES.values()]
    parser.add_argument("names", nargs="*", metavar="TABLE", help=f"of {', '.join(known)}; all by default")
    names = parser.parse_args().names
    if unknown := set(names) - set(known):
        parser.error(f"no table named {', '.join(sorted(unknown))}")
    lines = [
        "# Layers, plain and fast",
        "",
        "`python benchmarks/layers.py`: median milliseconds of a call, the ways taking",
    ]
    lines += [f"turns; shapes of MViTv2-S. {processor(CPU)}, torch {torch.__version__}."]
    for title, (rows, columns) in TABLES.items():
        if names and rows.__name__ not in names:
            continue
        lines += ["", f"## {title}", "", f"| {columns} |", "|---" * len(columns.split("|")) + "|"]
        for row in rows():
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    if not names:
        (Path(__file__).parent / "layers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with mock.patch.dict("os.environ", OPENMVIT_ONEDNN="1"):
        main()
