"""The one exception for bad input, and the search for the word that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What the user gave cannot be used; says why and what to do, in one line.

    Args:
        cause: what is wrong, with the offending value. No full stop.
        fix: what to do about it. No full stop.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        self.cause, self.fix = " ".join(cause.split()), " ".join(fix.split())
        super().__init__(f"{self.cause}. {self.fix}." if self.fix else f"{self.cause}.")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The fix for a misspelt word: `Did you mean 'x'`, or the accepted words when none is near."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}" if near else f"Accepted: {', '.join(choices)}"
