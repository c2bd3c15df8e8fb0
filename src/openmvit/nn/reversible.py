"""Blocks on two streams that can be computed backwards, so that training keeps no activation of them (Rev-MViT)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openmvit.block_config import BlockConfig
from openmvit.errors import UserError
from openmvit.nn import ops
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.block import DropPath, Mlp
from openmvit.nn.fast.precision import has_autocast
from openmvit.nn.fast.tracing import is_exporting
from openmvit.nn.grid import Tokens


class _Branches(nn.Module):
    """Attention and MLP, each behind its norm; what is added to what is up to the kinds of block."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = MultiscaleAttention(config)
        self.norm2 = nn.LayerNorm(config.dim_out, eps=config.norm_eps)
        self.mlp = Mlp(config.dim_out, int(config.dim_out * config.mlp_ratio), config.dim_out)
        self.drop_path = DropPath(config.drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """`[B, *grid, dim] -> [B, *q_grid, dim_out]`."""
        return self.attn(self.norm1(x))[0]

    def mix(self, x: Tensor) -> Tensor:
        """`[..., dim_out] -> [..., dim_out]`."""
        return self.mlp(self.norm2(x))[0]


class ReversibleBlock(_Branches):
    """y1 = x1 + attend(x2), y2 = x2 + mix(y1): the inputs follow from the outputs. Grid and width stay.

    Source: Reversible Vision Transformers (Mangalam et al., 2022), section 3; facebookresearch/SlowFast.
    """

    def draw(self, x: Tensor) -> Tensor | None:
        """Factor `[B, 1, ...]` of this block's branches by stochastic depth; it is all that is random here."""
        if not self.training or self.drop_path.rate == 0:
            return None
        return self.drop_path(x.new_ones(x.shape[0], *(1,) * (x.dim() - 1)), None)[0]

    def forward(self, x1: Tensor, x2: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Two streams `[B, *grid, dim]`; both branches of a sample are dropped together."""
        y1 = x1 + _times(self.attend(x2), keep)
        return y1, x2 + _times(self.mix(y1), keep)

    def backward(
        self, streams: tuple[Tensor, Tensor], gradients: tuple[Tensor, Tensor], keep: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[nn.Parameter, Tensor]]:
        """Inputs and their gradients from the outputs and theirs, and the gradients of the parameters."""
        (y1, y2), (g1, g2) = streams, gradients
        found: dict[nn.Parameter, Tensor] = {}
        sides = ((self.mix, [self.norm2, self.mlp]), (self.attend, [self.norm1, self.attn]))
        # The second stream's step is undone first; the two change places after each step.
        for branch, parts in sides:
            own = [p for part in parts for p in part.parameters() if p.requires_grad]
            with torch.enable_grad():
                y1 = y1.detach().requires_grad_()
                added = _times(branch(y1), keep).to(y2.dtype)
            first, *rest = torch.autograd.grad(added, [y1, *own], g2)
            found |= zip(own, rest, strict=True)
            y1, y2, g1, g2 = y2 - added.detach(), y1.detach(), g2, g1 + first
        return (y1, y2), (g1, g2), found


class StageTransition(_Branches):
    """First block of a stage: joins the streams, pools the grid and doubles the width. It is not reversible.

    The skip path goes through the pool and the norm of the queries; stochastic depth drops the whole sample.

    Source: facebookresearch/SlowFast, reversible network.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.fuse = Mlp(config.dim, 2 * config.dim, config.dim) if config.fusion == "mlp" else None
        self.proj = nn.Linear(config.dim, config.dim_out) if config.dim != config.dim_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Both streams side by side -> one: `[B, *grid, 2 * C] -> [B, *q_grid, dim_out]`."""
        x = x + self.fuse(x)[0] if self.fuse is not None else x.unflatten(-1, (2, -1)).mean(-2)
        skip = x if self.proj is None else ops.linear(self.proj, x)[0]
        x = self.attn.pool("q", (skip, None))[0].flatten(-2) + self.attend(x)
        return self.drop_path(x + self.mix(x), None)[0]


def two_stream_block(config: BlockConfig) -> ReversibleBlock | StageTransition:
    """A block of a reversible network."""
    return ReversibleBlock(config) if config.fusion == "none" else StageTransition(config)


class TwoStreams(nn.ModuleList):
    """The blocks of a reversible network."""

    def stages(self, x: Tensor, *, recompute: bool = True) -> list[Tokens]:
        """Both streams side by side after each stage: `[B, *grid, C] -> [B, *grid, 2 * C]`."""
        return [(tokens, None) for tokens in run_stages(self, x, recompute=recompute)]


def run_stages(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool = True) -> list[Tensor]:
    """Both streams side by side after each stage: `[B, *grid, C] -> [B, *grid, 2 * C]`.

    Args:
        recompute: let the backward pass compute activations anew; false keeps them, which is faster.
    Raises:
        UserError: if they are to be computed anew from parameters that processes have split among them.
    """
    outputs: list[Tensor] = []
    for _, stage in groupby(cast(Iterable[_Branches], blocks), key=lambda block: block.config.stage):
        members = list(stage)
        for block in members:
            x = block(x) if isinstance(block, StageTransition) else x
        run = [block for block in members if isinstance(block, ReversibleBlock)]
        if x.dtype != torch.float32 and _autocast(x.device.type) is not None:
            x = x.float()  # rounding of half-precision streams would add up on the way back
        keeps = [block.draw(x) for block in run]
        if recompute and torch.is_grad_enabled() and not is_exporting():
            x = _recomputed(run, keeps, x)
        else:
            x = torch.cat(_forward(run, keeps, x), dim=-1)
        outputs.append(x)
    return outputs


def _forward(run: Sequence[ReversibleBlock], keeps: Sequence[Tensor | None], x: Tensor) -> tuple[Tensor, Tensor]:
    streams = (x, x)
    for block, keep in zip(run, keeps, strict=True):
        streams = block(*streams, keep)
    return streams


def _recomputed(run: Sequence[ReversibleBlock], keeps: Sequence[Tensor | None], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # No compiler looks inside. As a decorator this would load the compiler with the package.
        return torch.compiler.disable(_apply)(run, keeps, x)  # pyright: ignore[reportCallIssue]
    return _apply(run, keeps, x)


def _apply(run: Sequence[ReversibleBlock], keeps: Sequence[Tensor | None], x: Tensor) -> Tensor:
    parameters = [p for block in run for p in block.parameters() if p.requires_grad]
    if any(hasattr(p, "full_tensor") for p in parameters):
        raise UserError(
            "Shards of parameters cannot be computed backwards", "Train with ddp, or set recompute_streams to False"
        )
    return _Recomputed.apply(run, keeps, x, *parameters)


class _Recomputed(torch.autograd.Function):
    """A run of reversible blocks that keeps its outputs only."""

    @staticmethod
    def forward(ctx: Any, run: Sequence[Any], keeps: Sequence[Tensor | None], x: Tensor, *own: nn.Parameter) -> Tensor:
        ctx.run, ctx.keeps, ctx.own, ctx.autocast = run, keeps, own, _autocast(x.device.type)
        with _same_precision(ctx, x):
            out = torch.cat(_forward(run, keeps, x), dim=-1)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        streams, gradients = out.chunk(2, dim=-1), gradient.chunk(2, dim=-1)
        found: dict[nn.Parameter, Tensor] = {}
        with _same_precision(ctx, out):
            for block, keep in zip(reversed(ctx.run), reversed(ctx.keeps), strict=True):
                streams, gradients, own = block.backward(streams, gradients, keep)
                found |= own
        return None, None, gradients[0] + gradients[1], *(found[p] for p in ctx.own)


def _autocast(device_type: str) -> torch.dtype | None:
    if not has_autocast(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _same_precision(ctx: Any, x: Tensor) -> AbstractContextManager[Any]:
    """The precision of the forward pass; cast weights are not cached, as those made without gradient have none."""
    if not has_autocast(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, dtype=ctx.autocast, enabled=ctx.autocast is not None, cache_enabled=False)


def _times(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep
