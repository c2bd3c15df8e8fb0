"""The one reading of `--device`."""

from __future__ import annotations

import torch
from torch import nn

from openmvit.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device that a name means; `auto` is the first GPU, then Apple's, then the CPU.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.
    Raises:
        UserError: if the name is unknown or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "mps", "cuda") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UserError(f"device is {name!r}", "Accepted: auto, cpu, mps, cuda, cuda:N")
    count = {"cpu": 1, "mps": int(torch.mps.is_available()), "cuda": torch.cuda.device_count()}[kind]
    if int(number or 0) >= count:
        raise UserError(f"device is {name!r} and this machine has {count} {kind} devices", "Use --device auto or cpu")
    return torch.device(name)


def device_of(model: nn.Module) -> torch.device:
    """Where a network lies; one without parameters, such as an exported graph, lies on the CPU."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
