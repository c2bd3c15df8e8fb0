"""The engine: key rules with tensor changes, both directions, nothing left unmatched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from torch import Tensor

from openmvit.config import BlockConfig, MViTConfig
from openmvit.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """One row of a source's table.

    Patterns are key texts with placeholders: `{n}` block number, `{s}` stage and `{b}` block within it, `{rest}` any.

    Args:
        native: pattern of our key.
        source: pattern of the source's key.
        to_native, from_native: change of the tensor, by default none. Each is the exact inverse of the other.
    """

    native: str
    source: str
    to_native: Callable[[Tensor], Tensor] = lambda t: t
    from_native: Callable[[Tensor], Tensor] = lambda t: t


def same(*patterns: str) -> list[Rule]:
    """Rules for keys that both sides name alike."""
    return [Rule(p, p) for p in patterns]


def map_keys(
    state: Mapping[str, Tensor], rules: Sequence[Rule], depths: Sequence[int], *, to_native: bool, strict: bool = True
) -> dict[str, Tensor]:
    """Rename and change every tensor by the first rule that matches its key.

    Args:
        depths: blocks per stage, which turn stage and block within it into the number of a block.
        strict: false leaves out keys that no rule matches.
    Raises:
        UserError: if a key matches no rule, naming the first few.
    """
    out: dict[str, Tensor] = {}
    unmatched: list[str] = []
    for key, tensor in state.items():
        for rule in rules:
            old, new = (rule.source, rule.native) if to_native else (rule.native, rule.source)
            values = _match(old, key)
            if values is not None:
                change = rule.to_native if to_native else rule.from_native
                out[new.format(**_with_stages(values, depths))] = change(tensor)
                break
        else:
            unmatched.append(key)
    if unmatched and strict:
        raise UserError(
            f"{len(unmatched)} keys have no rule, such as {', '.join(unmatched[:3])}", "Check the source project"
        )
    return out


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    regex = re.escape(pattern)
    for name in ("n", "s", "b", "rest"):
        regex = regex.replace(re.escape(f"{{{name}}}"), rf"(?P<{name}>.+)" if name == "rest" else rf"(?P<{name}>\d+)")
    return re.compile(regex)


def _match(pattern: str, key: str) -> dict[str, str | int] | None:
    found = _regex(pattern).fullmatch(key)
    if found is None:
        return None
    return {name: value if name == "rest" else int(value) for name, value in found.groupdict().items()}


def _with_stages(values: dict[str, str | int], depths: Sequence[int]) -> dict[str, str | int]:
    """Fill in the flat block number from stage and block, or the other way round."""
    if "s" in values:
        return values | {"n": sum(depths[: int(values["s"])]) + int(values["b"])}
    if "n" in values:
        number, stage = int(values["n"]), 0
        while stage < len(depths) - 1 and number >= depths[stage]:
            number, stage = number - depths[stage], stage + 1
        return values | {"s": stage, "b": number}
    return values


def expected_shapes(config: MViTConfig) -> dict[str, Shape]:
    """Key and shape of every tensor of the network that `config` describes."""
    return dict(_model_shapes(config))


def _model_shapes(c: MViTConfig) -> Iterator[tuple[str, Shape]]:
    dim, grid, tokens = c.embed_dim, c.patch_grid, prod(c.patch_grid)
    if c.cls_token:
        yield "cls_token", (1, 1, dim)
    if c.absolute_position == "separable":
        yield "pos_embed_temporal", (1, grid[0], dim)
        yield "pos_embed_spatial", (1, tokens // grid[0], dim)
        if c.cls_token:
            yield "pos_embed_class", (1, 1, dim)
    elif c.absolute_position != "none":
        yield "pos_embed", (1, tokens + c.cls_token, dim)
    yield "patch_embed.proj.weight", (dim, c.in_chans, *c.patch_kernel)
    yield "patch_embed.proj.bias", (dim,)
    if c.norm_stem:
        yield from _norm("norm_stem", dim)
    for block in c.blocks():
        for key, shape in _block_shapes(block):
            yield f"blocks.{block.index}.{key}", shape
    yield from _norm("norm", c.num_features)
    if c.num_classes:
        yield from _linear("head.projection", c.num_features, c.num_classes)


def _block_shapes(b: BlockConfig) -> Iterator[tuple[str, Shape]]:
    yield from _norm("norm1", b.dim)
    for name in "qkv" if b.separate_qkv else ["qkv"]:
        yield from _linear(f"attn.{name}", b.dim, b.dim_attn * len(name), b.qkv_bias)
    pooled = b.dim if b.pool_first else b.dim_attn
    width = pooled if b.pool_mode == "conv_unshared" else pooled // b.num_heads
    for name, kernel in (("q", b.kernel_q), ("k", b.kernel_kv), ("v", b.kernel_kv)):
        if kernel and b.pool_mode in ("conv", "conv_unshared"):
            yield f"attn.pool_{name}.weight", (width, 1, *kernel)
            yield from _norm(f"attn.norm_{name}", width)
    for name, shape in b.relative_tables.items():
        yield f"attn.{name}", shape
    yield from _linear("attn.proj", b.dim_attn, b.dim_attn)
    yield from _norm("norm2", b.dim_attn)
    hidden = int(b.dim_attn * b.mlp_ratio)
    yield from _linear("mlp.fc1", b.dim_attn, hidden)
    yield from _linear("mlp.fc2", hidden, b.dim_out)
    if b.dim != b.dim_out:
        yield from _linear("proj", b.dim, b.dim_out)
    if b.fusion == "mlp":
        yield from _linear("fuse.fc1", b.dim, 2 * b.dim)
        yield from _linear("fuse.fc2", 2 * b.dim, b.dim)
    if b.layer_scale:
        yield "gamma_1", (b.dim_attn,)
        yield "gamma_2", (b.dim_out,)


def _norm(name: str, dim: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)


def _linear(name: str, dim: int, dim_out: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (dim_out, dim)
    if bias:
        yield f"{name}.bias", (dim_out,)
