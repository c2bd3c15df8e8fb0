"""How fast the machine could be: the rate of its best linear layer, and a network's matrix products alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from openmvit.benchmark.case import Case
from openmvit.measuring import Step, seconds_of
from openmvit.nn.fast.linear import one_dnn_linear
from openmvit.nn.fast.precision import BF16_IS_FAST

_REPEATS = 5

Linear = Callable[[Tensor, Tensor], Tensor]
"""`x [rows, inner], w [cols, inner] -> [rows, cols]`."""


def onednn_linear(dtype: torch.dtype) -> Linear | None:
    """oneDNN's linear layer; None where this version of torch has none, or the processor none of this type."""
    try:
        one_dnn_linear(torch.ones(2, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype), None)
    except (AttributeError, RuntimeError):
        return None
    return lambda x, w: one_dnn_linear(x, w, None)


def computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that products of a type are fastest in: float32 for bf16 where a CPU is slower in that."""
    slower = dtype == torch.bfloat16 and device.type == "cpu" and not BF16_IS_FAST
    return torch.float32 if slower else dtype


def linear_layers(case: Case) -> tuple[list[Step], float]:
    """The linear layers that the machine has to offer, and the operations of one call.

    On a CPU 1568 x 384 x 1536 by the ordinary and, where there is one, the oneDNN linear; on CUDA 8192 cubed, since a
    small product measures the launch.
    """
    dtype = computed_in(torch.bfloat16 if case.precision == "bf16" else torch.float32, case.on)
    rows, inner, cols = (1568, 384, 1536) if case.on.type == "cpu" else (8192, 8192, 8192)
    x, w = torch.randn(rows, inner, device=case.on, dtype=dtype), torch.randn(cols, inner, device=case.on, dtype=dtype)
    layers: list[Step] = [lambda: F.linear(x, w)]
    onednn = onednn_linear(dtype)
    if case.on.type == "cpu" and onednn is not None:
        layers.append(lambda: onednn(x, w))
    return layers, 2.0 * rows * inner * cols


@dataclass(frozen=True)
class Product:
    """A matrix product by the sizes and strides of its two factors, each of 2 or 3 axes."""

    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    strides: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype

    @property
    def operations(self) -> float:
        """At 2 per multiply-add."""
        first, second = self.sizes
        return 2.0 * torch.Size(first).numel() * second[-1]

    def ways(self, device: torch.device) -> list[Step]:
        """The same product of random numbers as it was called and, on a CPU, by oneDNN's linear layer."""
        dtype = computed_in(self.dtype, device)
        a, b = (
            # Where a factor is repeated along an axis (stride 0), it stands there in full.
            torch.empty_strided(size, stride, dtype=dtype, device=device).normal_()
            if all(stride)
            else torch.randn(size, dtype=dtype, device=device)
            for size, stride in zip(self.sizes, self.strides, strict=True)
        )
        steps: list[Step] = [lambda: torch.matmul(a, b)]
        onednn = onednn_linear(dtype)
        if device.type == "cpu" and onednn is not None:
            turned = b.mT.contiguous()  # as a layer holds its weights
            if a.ndim == 2:
                steps.append(lambda: onednn(a, turned))
            else:
                steps.append(lambda: [onednn(x, w) for x, w in zip(a, turned, strict=True)][-1])
        return steps


_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
"""Which arguments of an operator are multiplied."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = _FACTORS.get(func.overloadpacket.__name__)
        if factors is not None:
            a, b = (args[i] for i in factors)
            self.found[Product((tuple(a.shape), tuple(b.shape)), (a.stride(), b.stride()), a.dtype)] += 1
        return func(*args, **(kwargs or {}))


def record_products(step: Step) -> Counter[Product]:
    """Every matrix product of one call of an eager step, backward included; attention is written out for it."""
    with sdpa_kernel(SDPBackend.MATH), _Recorder() as recorder:
        step()
    return recorder.found


def seconds_of_products(case: Case, products: Counter[Product]) -> float:
    """Time of the products alone, each by the faster way, the best of five calls.

    Less arithmetic apart, nothing that calls one product after the other on this machine is faster.
    """
    seconds = 0.0
    for product, count in products.items():
        ways = product.ways(case.on)
        for way in ways:
            way()
        seconds += count * min(seconds_of(case.on, way, case.clock) for way in ways for _ in range(_REPEATS))
    return seconds
