"""Depthwise filters on three axes in other forms than the library's own call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.block_config import Size
from openmvit.nn.fast.gradients import differentiable
from openmvit.nn.fast.precision import autocast_dtype
from openmvit.nn.grid import conv


def channels_first(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
    """The framework's own kernel of three axes, which wants `[B, C, T, H, W]` contiguous."""
    out = F.conv3d(x.movedim(-1, 1).contiguous(), weight, None, stride, padding, groups=x.shape[-1])
    return out.movedim(1, -1).contiguous()


def by_frames(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
    """Filters on the frames `[B, T, H, W, C]` alone, one per tap of the first axis; results shifted and added.

    The stride in time is 1, and padding gives as many frames as there are.
    """
    channels, frames = x.shape[-1], x.shape[1]

    def one_tap(tap: int, seen: Tensor) -> Tensor:
        out = conv(seen.flatten(0, 1), weight[:, :, tap], None, stride[1:], padding[1:], groups=channels)
        return out.unflatten(0, seen.shape[:2])

    out = one_tap(padding[0], x)
    for shift in range(1, min(padding[0], frames - 1) + 1):
        out[:, shift:] += one_tap(padding[0] - shift, x[:, :-shift])
        out[:, :-shift] += one_tap(padding[0] + shift, x[:, shift:])
    return out


def by_frames_in_one_node(x: Tensor, weight: Tensor, stride: Size, padding: Size) -> Tensor:
    """`by_frames` with a backward pass of its own, which keeps x as it came and takes few frames at a time.

    Left to the library, every slice of frames gets a gradient of the size of the whole, most of it zeros, and all of
    these are added up. Strided filters of bf16 are computed in float32: backward they take 3 to 18 times as long in
    bf16 (benchmarks/NOTES.md).

    Args:
        x: `[B, T, H, W, C]`.
        weight: `[C, 1, taps, *kernel]`.
    Returns:
        `[B, T, *grid_out, C]`.
    """
    if x.dtype == torch.bfloat16 and prod(stride) > 1:
        return _ByFrames.apply(x, weight, stride, padding, torch.float32).to(x.dtype)
    return _ByFrames.apply(x, weight, stride, padding, autocast_dtype(x))


PIECE = 2**22
"""Bytes of frames that the backward pass takes at a time, of one sample or several, chosen by measurement
(benchmarks/NOTES.md)."""


class _ByFrames(torch.autograd.Function):
    # Not in two parts: the library would look the signature up at every call. No transform of `torch.func` comes here.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Size, padding: Size, dtype: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding, dtype
        with torch.autocast(x.device.type, enabled=False):
            return by_frames(_in(dtype, x), _in(dtype, weight), stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Where a gradient of the gradient is to come, every step must have one.
        way = _gradients_of_public if torch.is_grad_enabled() else _gradients
        (x, weight), (stride, padding, dtype) = ctx.saved_tensors, ctx.how
        with torch.autocast(grad.device.type, enabled=False):
            of_x, of_weight = way(x, _in(dtype, weight), grad, stride, padding, ctx.needs_input_grad)
        return of_x, None if of_weight is None else of_weight.to(weight.dtype), None, None, None


def _in(dtype: torch.dtype | None, x: Tensor) -> Tensor:
    """Cast to a dtype; None leaves types as they are, and those that do not fit an error."""
    return x if dtype is None else x.to(dtype)


Gradients = tuple[Tensor | None, Tensor | None]
"""Of x and of the weight, where they are needed."""


def _gradients_of_public(
    x: Tensor, weight: Tensor, grad: Tensor, stride: Size, padding: Size, needed: Sequence[bool]
) -> Iterator[Tensor | None]:
    return differentiable(by_frames(x.to(weight.dtype), weight, stride, padding), (x, weight), needed, grad)


def _gradients(
    x: Tensor, weight: Tensor, grad: Tensor, stride: Size, padding: Size, needed: Sequence[bool]
) -> Gradients:
    of_x = torch.empty_like(x) if needed[0] else None
    # Sums over pieces are kept in at least float32.
    wide = torch.promote_types(weight.dtype, torch.float32)
    of_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
    frames, reach = x.shape[1], padding[0]
    taps = sorted(range(2 * reach + 1), key=lambda tap: abs(tap - reach))  # first the one that reads all frames
    of_frame = max(1, prod(x.shape[2:]) * weight.element_size())
    step, samples = max(1, PIECE // of_frame), max(1, PIECE // max(1, frames * of_frame))
    for sample, first in product(range(0, len(x), samples), range(0, frames, step)):
        some, last = slice(sample, sample + samples), min(first + step, frames)
        piece, total = x[some, first:last].to(weight.dtype), None
        for tap in taps:
            shift = reach - tap  # from a frame of x to the frame that it adds to
            begin, end = max(first, -shift), min(last, frames - shift)
            if begin >= end:
                continue
            seen, made = slice(begin - first, end - first), slice(begin + shift, end + shift)
            inputs = piece[:, seen].flatten(0, 1), weight[:, :, tap], grad[some, made].flatten(0, 1)
            of_seen, of_tap = _of_conv(*inputs, stride[1:], padding[1:], needed)
            if of_weight is not None and of_tap is not None:
                of_weight[:, :, tap] += of_tap
            if of_seen is not None:
                of_seen = of_seen.unflatten(0, (len(piece), end - begin))
                if total is None:
                    total = of_seen
                else:
                    total[:, seen] += of_seen
        if of_x is not None and total is not None:
            of_x[some, first:last] = total
    return of_x, of_weight


def _of_conv(x: Tensor, weight: Tensor, grad: Tensor, stride: Size, padding: Size, needed: Sequence[bool]) -> Gradients:
    """Gradients of a depthwise convolution of frames `[N, H, W, C]`, by the library's operator.

    Two calls, one per gradient: with stride 1 in bf16 together faster than one call for both, otherwise as fast.
    """
    tensors = grad.movedim(-1, 1), x.movedim(-1, 1), weight
    how = None, stride, padding, (1,) * len(stride), False, (0,) * len(stride), x.shape[-1]
    backward, of_x, of_weight = torch.ops.aten.convolution_backward, None, None
    if needed[0]:
        of_x = backward(*tensors, *how, (True, False, False))[0].movedim(1, -1)
    if needed[1]:
        of_weight = backward(*tensors, *how, (False, True, False))[1]
    return of_x, of_weight
