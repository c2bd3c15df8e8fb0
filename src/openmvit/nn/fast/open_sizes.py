"""Relative positions for compilers and exporters: without a decision where sizes are symbols."""

from __future__ import annotations

import torch
from torch import Tensor

from openmvit.block_config import Size
from openmvit.nn.fast.tracing import is_symbolic
from openmvit.nn.position import resize_grid, resize_table
from openmvit.nn.relative import gather_rows, kept_index, relative_index


def relative_rows(table: Tensor, q_grid: Size, k_grid: Size, axes: tuple[int, ...]) -> Tensor:
    """`relative.relative_rows` in a graph."""
    lengths = tuple(2 * larger(q_grid[a], k_grid[a]) - 1 for a in axes)
    index = [_index(q_grid[a], k_grid[a], table.device) for a in axes]
    if len(axes) > 1:
        return gather_rows(resize_grid(table[None], lengths)[0], index)
    resize = symbolic_resize if is_symbolic(*lengths) else resize_table
    return gather_rows(resize(table, lengths[0]), index)


def _index(q_size: int, k_size: int, device: torch.device) -> Tensor:
    if is_symbolic(q_size, k_size):
        return symbolic_index(q_size, k_size, device)
    if not torch.compiler.is_compiling():
        return kept_index(q_size, k_size, device)
    # Sizes may be symbols there, and what is kept would pin tensors to a graph.
    if k_size % q_size == 0 or q_size % k_size == 0:
        return symbolic_index(q_size, k_size, device)  # made on the device: a copy has no place in a CUDA graph
    return relative_index(q_size, k_size).to(device)


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
