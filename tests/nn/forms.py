"""Calls of the forms of attention with tables in place of their rows, as most tests want it."""

from math import prod

from openmvit.nn import ops
from openmvit.nn.fast import attention
from openmvit.nn.relative import Position, relative_rows


def position_of(tables, groups, q_grid, k_grid, scale=1.0):
    """R of the queries alone."""
    rows = [relative_rows(table, q_grid, k_grid, axes) for table, axes in zip(tables, groups, strict=True)]
    return Position(groups, scale, rows, [], [], 1)


def attended(form, q, k, v, tables, groups, k_grid, scale=1.0):
    """`[B, *q_grid, h, c]` on rows `[B, Lk, h, c]`, of which the first may be a class row.

    Args:
        form: a name of `nn/fast/attention`, or plain.
    """
    first = k.shape[1] - prod(k_grid)
    cls = (k[:, :first], v[:, :first]) if first else None
    k, v = (t[:, first:].unflatten(1, k_grid) for t in (k, v))
    position = position_of(tables, groups, q.shape[1:-2], k_grid, scale)
    if form != "plain":
        return getattr(attention, form)(q, k, v, position, cls, None)
    with ops.choose.plain():
        return ops.attend(q, k, v, position, cls)
