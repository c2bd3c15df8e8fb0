"""What the backward passes of our own nodes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def differentiable(
    out: Tensor, inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> Iterator[Tensor | None]:
    """Gradients of `out` by the library, so that each has a gradient itself; None for inputs that need none.

    Args:
        out: made from the inputs by operators that have gradients of any order.
        needed: which of the inputs; what follows after them does not count.
    """
    wanted = [t for t, one in zip(inputs, needed, strict=False) if one]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True) if wanted else ())
    return (next(found) if one else None for _, one in zip(inputs, needed, strict=False))
