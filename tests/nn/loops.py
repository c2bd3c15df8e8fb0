"""Attention over pairs of a query and a key, one at a time: any axes, windows and position terms, and a class row."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from nn.reference import resized


def heads_of(module, x: Tensor, cls: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Grid `[B, *grid, h, c]` and class row of q, k and v, made layer by layer."""
    found = {}
    for number, name in enumerate("qkv"):
        parts = []
        for place, t in enumerate((x, cls)):
            if t is None:
                parts.append(None)
                continue
            t = module.qkv(t).chunk(3, dim=-1)[number]
            pool, norm = getattr(module, f"pool_{name}"), getattr(module, f"norm_{name}")
            t = pool(t) if pool is not None and place == 0 else t
            t = t.unflatten(-1, (module.config.num_heads, -1))
            parts.append(t if norm is None else norm(t))
        found[name] = tuple(parts)
    return found


def table_row(module, term: str, group, q_place, k_place, sides) -> Tensor:
    """The row of a relative table for one query and one key.

    Args:
        group: axes that share the table.
        sides: per axis the number of queries and of keys.
    """
    letters = "thw"[-len(q_place) :]
    name = "rel_pos_" + ("" if term == "q" else f"{term}_") + "".join(letters[a] for a in group)
    table, places = getattr(module, name), []
    for axis in group:
        q_size, k_size = sides[axis]
        q_ratio, k_ratio = max(k_size / q_size, 1), max(q_size / k_size, 1)
        places.append(int(q_place[axis] * q_ratio - k_place[axis] * k_ratio + (k_size - 1) * k_ratio))
    if len(group) == 1:
        return resized(table, *sides[group[0]])[places[0]]
    assert table.shape[:-1] == tuple(2 * max(sides[axis]) - 1 for axis in group), "loops do not resize joint tables"
    return table[tuple(places)]


def home(place, counts, sides, shifted: bool) -> list[tuple[int, int, bool]]:
    """Per axis the window of a token, its place in there, and whether the shift wrapped it round the end."""
    found = []
    for p, n, w in zip(place, counts, sides, strict=True):
        step = w // 2 if shifted and n > 1 else 0
        moved = (p - step) % (n * w)
        found.append((moved // w, moved % w, p < step))
    return found


def attention_by_loops(module, x: Tensor, cls: Tensor | None = None) -> Tensor:
    """`[B, *grid, dim]` -> `[B, *q_grid, dim_attn]`; keys that pad a window are zeros, and keys like all others."""
    heads, c = heads_of(module, x, cls), module.config
    (q, _), (k, k_cls), (v, v_cls) = (heads[name] for name in "qkv")
    q_sides, k_sides = (c.q_window, c.kv_window) if c.window else (tuple(q.shape[1:-2]), tuple(k.shape[1:-2]))
    counts = [-(-n // w) for n, w in zip(q.shape[1:-2], q_sides, strict=True)]
    assert counts == [-(-n // w) for n, w in zip(k.shape[1:-2], k_sides, strict=True)]
    sides = list(zip(q_sides, k_sides, strict=True))
    k_places = list(itertools.product(*(range(n * w) for n, w in zip(counts, k_sides, strict=True))))
    out, scale = torch.zeros_like(q), c.head_dim**-0.5

    def at(t, place, b, h):
        inside = all(p < n for p, n in zip(place, t.shape[1:-2], strict=True))
        return t[(b, *place, h)] if inside else torch.zeros_like(t.flatten(0, -2)[0])

    for i in itertools.product(*map(range, q.shape[1:-2])):
        own, pairs = home(i, counts, q_sides, c.shifted), []
        for j in k_places:
            other = home(j, counts, k_sides, c.shifted)
            if all(a[0] == z[0] and a[2] == z[2] for a, z in zip(own, other, strict=True)):
                place = ([a[1] for a in own], [z[1] for z in other], sides)
                pairs.append((j, {t: rows_of(module, t, place) for t in c.relative_terms if c.relative_groups}))
        for b, h in itertools.product(range(len(q)), range(c.num_heads)):
            query, logits, values = q[(b, *i, h)], [], []
            if k_cls is not None:
                logits.append(query @ k_cls[b, 0, h] * scale)
                values.append(v_cls[b, 0, h])
            for j, rows in pairs:
                key, value = at(k, j, b, h), at(v, j, b, h)
                bias = query @ rows["q"] if "q" in rows else query.new_zeros(())
                bias = bias + key @ rows["k"] if "k" in rows else bias
                logits.append(query @ key * scale + bias * (scale if c.relative_scaled else 1.0))
                values.append(value + rows["v"] if "v" in rows else value)
            out[(b, *i, h)] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return module.proj((out + q if c.residual_pooling else out).flatten(-2))


def rows_of(module, term: str, place) -> Tensor:
    """Sum of a term's rows over the groups of axes."""
    return sum(table_row(module, term, group, *place) for group in module.config.relative_groups)


def agree(module, x: Tensor, cls: Tensor | None = None) -> None:
    """Assert that the module and the loops have the same output and gradients, of the input and of every table."""
    tables = [p for name, p in module.named_parameters() if name.startswith("rel_pos")]
    x = x.clone().requires_grad_()
    expected, found = attention_by_loops(module, x, cls), module(x, cls)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    theirs = torch.autograd.grad(expected, [x, *tables], weights)
    for ours, loops in zip(torch.autograd.grad(found, [x, *tables], weights), theirs, strict=True):
        torch.testing.assert_close(ours, loops, rtol=1e-9, atol=1e-9)
