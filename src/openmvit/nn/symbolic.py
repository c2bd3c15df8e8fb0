"""Positions where the sizes of a traced graph are symbols: integer arithmetic, gather and lerp, and no decision."""

from __future__ import annotations

import torch
from torch import Tensor


def is_exporting() -> bool:
    """Whether an exporter looks at the operators, rather than a compiler."""
    # The compiler of torch 2.11 answers the public question with yes; what stands behind it is not public.
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


def is_symbolic(*sizes: int) -> bool:
    """Whether one of the sizes is left open; only an export has such sizes, `torch.compile` shows plain integers."""
    return any(isinstance(n, torch.SymInt) for n in sizes)


def larger(a: int, b: int) -> int:
    """The larger of two sizes, without a decision where they are symbols."""
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return max(a, b)  # its sizes are tensors, and stay as they are in the example
    if torch.compiler.is_dynamo_compiling():
        return max(a, b)  # which it reads by itself, and `sym_max` of plain integers not in every release
    return torch.sym_max(a, b)  # pyright: ignore[reportReturnType]


def symbolic_index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    """`relative_index` for sizes of which one divides the other, whatever they are; `[Q, K]` int64."""
    q_ratio, k_ratio = larger(k_size // q_size, 1), larger(q_size // k_size, 1)
    i = torch.arange(q_size, device=device)[:, None]
    j = torch.arange(k_size, device=device)[None, :]
    return i * q_ratio - j * k_ratio + (k_size - 1) * k_ratio


def symbolic_resize(table: Tensor, length: int) -> Tensor:
    """`resize_table` to a length that is a symbol: `[L, c]` -> `[length, c]`.

    Place (i + 1/2) L / length - 1/2 of the table is counted in parts of 1 / (2 length), so that nothing but the weight
    of the lerp is rounded.
    """
    rows = table.shape[0]
    i = torch.arange(length, device=table.device)
    parts = ((2 * i + 1) * rows - length).clamp(min=0)
    below = torch.div(parts, 2 * length, rounding_mode="floor")
    weight = (parts - below * (2 * length)).to(table.dtype) / (2 * length)
    above = (below + 1).clamp(max=rows - 1)
    return torch.lerp(table[below], table[above], weight[:, None])
