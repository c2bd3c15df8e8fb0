"""What a run or a verb shows while it works: lines that stay, and one line that changes in place on a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, TypeVar

T = TypeVar("T")

PLAIN_COLUMNS = 80
"""Columns where there is no terminal: in files and notebooks."""
QUIET = 15.0
"""Seconds between two lines of progress where there is no terminal."""
ECHO = 2
"""Columns of the `^C` that a terminal writes behind the cursor."""
_NARROW = 60
"""Columns below which figures stand closer."""
_INTERVAL = 0.5
"""Seconds between two states of the line in place."""


@dataclass(frozen=True)
class Figures:
    """One line of figures that can be made shorter.

    Args:
        texts: what the line shows, in order, by name.
        cuts: (name, shorter text) in the order in which they are made; an empty text leaves the figure out.
    """

    texts: dict[str, str]
    cuts: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        return _joined(self.texts, "  ")

    def fit(self, columns: int) -> str:
        """The line in at most so many columns, with as few cuts as that takes."""
        texts, gap = dict(self.texts), "  " if columns >= _NARROW else " "
        made: list[tuple[str, str]] = []
        for name, shorter in self.cuts:
            if len(_joined(texts, gap)) <= columns:
                break
            if texts.get(name):
                made.append((name, texts[name]))
                texts[name] = shorter
        # A long figure that went last may have made room for a short one that went before.
        for name, longer in reversed(made):
            if len(_joined(texts | {name: longer}, gap)) <= columns:
                texts[name] = longer
        return _joined(texts, gap)[:columns]


def _joined(texts: dict[str, str], gap: str) -> str:
    return gap.join(text for text in texts.values() if text)


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches; a notebook is none, as what it shows is kept."""
    return not stream.closed and stream.isatty()


def columns(stream: TextIO) -> int:
    """Columns that a line can have without a break: the last one of a terminal stays free."""
    try:
        found = os.get_terminal_size(stream.fileno()).columns if is_terminal(stream) else 0
    except (OSError, ValueError):
        found = 0
    return (found or PLAIN_COLUMNS) - 1


def wrapped(sentence: str) -> str:
    """A sentence that breaks between words on a terminal; elsewhere as it is."""
    if not is_terminal(sys.stdout):
        return sentence
    width = max(columns(sys.stdout), 20)
    return textwrap.fill(sentence, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


class _Line:
    """The line in place. There is one terminal, so there is one."""

    stream: TextIO | None = None
    length: int = 0


def show(text: str, stream: TextIO) -> None:
    """Put a line in the place of the one that was shown before. Blanks instead of escapes: notebooks know none."""
    if _Line.stream is not stream:
        wipe()
    room = columns(stream) - ECHO
    text = text[:room].ljust(min(_Line.length, room))
    # Before it is written: the handler of a Ctrl-C that comes in between wipes it.
    _Line.stream, _Line.length = stream, len(text)
    stream.write("\r" + text)
    stream.flush()
    _Line.stream, _Line.length = stream, len(text.rstrip())


def wipe(echo: bool = False) -> None:
    """Take the line in place away, and the `^C` behind it; what is written next starts an empty line.

    Args:
        echo: a `^C` may stand there alone.
    """
    stream, length = _Line.stream, _Line.length
    _Line.stream, _Line.length = None, 0
    if stream is None and echo and is_terminal(sys.stderr):
        stream = sys.stderr
    if stream is not None and not stream.closed:
        stream.write("\r" + " " * (length + ECHO) + "\r")
        stream.flush()


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line that stays; default: on the standard output."""
    wipe()
    print(text, file=stream or sys.stdout, flush=True)


def note(text: str) -> None:
    """Print a line that stays on the standard error: what concerns the user and is no result."""
    say(text, sys.stderr)


class Ticker:
    """Says when the next line of progress is due: often on a terminal, every `quiet` seconds elsewhere.

    Args:
        first: seconds to the first one, at most.
    """

    def __init__(self, stream: TextIO, quiet: float = QUIET, first: float = 2.0) -> None:
        self.interval = _INTERVAL if is_terminal(stream) else quiet
        self._next = time.monotonic() + min(self.interval, first)

    def due(self) -> bool:
        """Whether it is; the next one is then an interval away."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self.interval
        return True


class _Listener:
    on: bool = False


@contextmanager
def listening(on: bool = True) -> Iterator[None]:
    """Inside the block `doing` and `counted` show what they say on the standard error; outside of it nothing.

    Args:
        on: false for the processes that do not talk.
    """
    before, _Listener.on = _Listener.on, on
    try:
        yield
    finally:
        _Listener.on = before
        wipe()


def doing(text: str, long: bool = False) -> None:
    """Show what is being done, until something else is shown.

    Args:
        long: it takes so long that a file gets a line too.
    """
    if not _Listener.on:
        return
    if is_terminal(sys.stderr):
        show(text, sys.stderr)
    elif long:
        note(text)


def counted(items: Iterable[T], total: int, what: str, size: int = 1) -> Iterator[T]:
    """The items, while it is shown how many have been dealt with and how long the rest may take.

    Args:
        total: samples in all items.
        what: such as `scoring images`.
        size: samples of an item, at most.
    """
    verb, _, noun = what.partition(" ")
    doing(what)
    ticker, start, done = Ticker(sys.stderr, first=QUIET), time.monotonic(), 0
    for item in items:
        yield item
        done = min(done + size, total)
        if _Listener.on and ticker.due():
            left = (time.monotonic() - start) * (total - done) / max(done, 1)
            doing(f"{verb} {done}/{total} {noun}  eta {clock(left)}", long=True)


def clock(seconds: float) -> str:
    """`h:mm:ss`, or `m:ss` below an hour."""
    whole = max(int(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
