"""The recorded single operations of the original detector."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor

OPERATIONS = Path(__file__).parents[1] / "golden" / "detection" / "ops.safetensors"


def operations(prefix: str) -> dict[str, Tensor]:
    """Every recorded tensor whose name begins with `prefix.`, under the rest of its name."""
    with safe_open(str(OPERATIONS), "pt") as file:
        found = {
            name.removeprefix(f"{prefix}."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 - the file is no mapping
            if name.startswith(f"{prefix}.")
        }
    if not found:
        raise KeyError(prefix)
    return found
