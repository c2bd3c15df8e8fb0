"""Operations of any module, from the shapes of its calls on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from openmvit.counting.cost import Cost

_Counter = Callable[[tuple[Any, ...], Any], tuple[str, int]]


def count_calls(module: nn.Module, *inputs: Any) -> Cost:
    """Parameters of a module and operations of one call; the module and its inputs are on the meta device.

    Attention written out as matrix products counts as `attention`, whatever they are for.
    """
    mode = _Calls()
    training = module.training
    with torch.no_grad(), mode:
        module.eval()(*inputs)
    module.train(training)
    return Cost(parameters(module), mode.found)


def parameters(module: nn.Module) -> int:
    """Number of parameters, the head's and the tables' included."""
    return sum(p.numel() for p in module.parameters())


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        counter = _COUNTERS.get(func.overloadpacket.__name__)
        if counter is not None:
            kind, count = counter(args, out)
            self.found[kind] = self.found.get(kind, 0) + count
        return out


def _linear(args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    """Of `mm(x, w)` and `addmm(b, x, w)`, the inner length is that of the last operand."""
    return "linear", out.numel() * args[-1].shape[0]


def _products(args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    return "attention", out.numel() * args[0].shape[2]


def _convolution(args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    x, weight, transposed = args[0], args[1], args[6]
    cells = x if transposed else out
    return "conv", cells.shape[0] * prod(cells.shape[2:]) * weight.numel()


def _layer_norm(args: tuple[Any, ...], out: Any) -> tuple[str, int]:
    return "norm", args[0].numel() * (4 if args[2] is None else 5)


def _group_norm(args: tuple[Any, ...], out: Any) -> tuple[str, int]:
    return "norm", args[0].numel() * (4 if args[1] is None else 5)


def _batch_norm(args: tuple[Any, ...], out: Any) -> tuple[str, int]:
    return "norm", args[0].numel() * 2


def _resampling(each: int) -> _Counter:
    return lambda args, out: ("resample", out.numel() * each)


_COUNTERS: dict[str, _Counter] = {
    "mm": _linear,
    "addmm": _linear,
    "bmm": _products,
    "convolution": _convolution,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "upsample_nearest2d": _resampling(1),
    "upsample_bilinear2d": _resampling(4),
    "grid_sampler_2d": _resampling(4),
}
"""Operator that modules come down to -> its kind and operations."""
