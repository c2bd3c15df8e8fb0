"""What a part of a network costs, and the parts of a network together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cost:
    """Parameters of a part, and its operations by kind for one input.

    Kinds are `linear`, `conv`, `attention` (both products), `position` (relative terms), `norm` and `resample`.
    """

    parameters: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def operations(self) -> int:
        """All kinds together."""
        return sum(self.by_kind.values())

    @property
    def without_norms(self) -> int:
        """Operations but those of norms."""
        return self.operations - self.by_kind.get("norm", 0)


@dataclass(frozen=True)
class Count:
    """A network's parts, in the order in which an input meets them, for an input of `size`."""

    size: tuple[int, ...]
    parts: dict[str, Cost]

    @property
    def total(self) -> Cost:
        """All parts together."""
        return total(self.parts.values())


def total(costs: Iterable[Cost]) -> Cost:
    """Sum of costs, kind by kind."""
    costs = list(costs)
    return Cost(sum(c.parameters for c in costs), merge(c.by_kind for c in costs))


def merge(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sum of dictionaries, key by key, in the order of their first use."""
    found: dict[str, int] = {}
    for one in counts:
        for key, value in one.items():
            found[key] = found.get(key, 0) + value
    return found
