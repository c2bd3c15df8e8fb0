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

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # An exception is copied with the text it was made of, which here is made of two.
        return type(self), (self.cause, self.fix)


_SHORT = 7
"""Longer lists are not written out."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The fix for a misspelt word: `Did you mean 'x'`; when none is near the accepted words, of many the nearest."""
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}"
    if len(choices) <= _SHORT:
        return f"Accepted: {', '.join(choices)}"
    nearest = difflib.get_close_matches(word, choices, n=3, cutoff=0.0)
    return f"The nearest of {len(choices)} are {', '.join(nearest)}"
