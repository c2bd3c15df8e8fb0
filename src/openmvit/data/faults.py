"""What is wrong with data of one label per file or list row: the end of a training, a line of a check."""

from __future__ import annotations

from openmvit.errors import UserError

_KEPT = 1000


class Faults:
    """Takes the faults of a data set as they are found.

    A training stops at the first one. A check collects them; whoever finds one then goes on without that part of the
    data.

    Args:
        collect: keep faults instead of raising them, the first thousand in words.
    """

    def __init__(self, collect: bool = False) -> None:
        self.collect, self.found, self.count = collect, list[UserError](), 0

    def add(self, cause: str, fix: str) -> None:
        """A fault in words; see `UserError`.

        Raises:
            UserError: unless faults are collected.
        """
        self.note(UserError(cause, fix))

    def note(self, error: UserError) -> None:
        """A fault that was raised already.

        Raises:
            UserError: the same, unless faults are collected.
        """
        if not self.collect:
            raise error
        self.count += 1
        if self.count <= _KEPT:
            self.found.append(error)
