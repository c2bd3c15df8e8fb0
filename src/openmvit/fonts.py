"""The letters of all drawings: one font for most alphabets, and one of the system where it lacks a letter."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ImageFont

# Fonts of many scripts, by parts of their file names, best first; others are tried after them.
_PREFERRED = (
    "notosanscjk",
    "notosans",
    "wqy",
    "sourcehan",
    "droidsansfallback",
    "pingfang",
    "hiragino",
    "msyh",
    "unifont",
)
_SUFFIXES = (".ttf", ".otf", ".ttc")
_said: set[str] = set()


def font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that has the letters of `drawable(text)`, `size` pixels high."""
    return _font(_path_for(text), size)


def drawable(text: str) -> str:
    r"""The text with what cannot be drawn as an escape such as `\u4e2d`.

    Line breaks and other control characters are escaped too. Where letters are missing in every installed font, one
    sentence on stderr says which to install.
    """
    known = _letters(_path_for(text))
    missing = "".join(c for c in text if c.isprintable() and not c.isspace() and ord(c) not in known)
    if missing:
        _say_missing(missing)
    return "".join(c if c == " " or (c.isprintable() and ord(c) in known) else _escape(c) for c in text)


def families(texts: list[str]) -> list[str]:
    """Names of fonts for matplotlib, which takes each letter from the first that has it."""
    from matplotlib.font_manager import FontProperties, fontManager

    names = []
    for path in dict.fromkeys([_base(), *map(_path_for, texts)]):
        if path != _base():
            fontManager.addfont(path)
        names.append(FontProperties(fname=path).get_name())
    return names


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode() if ord(letter) > 127 else repr(letter)[1:-1]


def _say_missing(letters: str) -> None:
    new = sorted(set(letters) - _said)
    if new:
        _said.update(new)
        shown = "".join(new[:8])
        print(
            f"No installed font has the letters {shown}, which are drawn as escapes. Install one that has them, "
            "such as Noto Sans CJK (Debian: fonts-noto-cjk)",
            file=sys.stderr,
        )


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@cache
def _base() -> str:
    """The font that comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more."""
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _letters(path: str) -> frozenset[int]:
    """Code points that a font has; none if it cannot be read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(path, fontNumber=0, lazy=True) as found:
            table: dict[int, Any] = found.getBestCmap() or {}
            return frozenset(table)
    except Exception:  # a damaged font of the system is no reason to draw nothing
        return frozenset()


def _path_for(text: str) -> str:
    wanted = frozenset(ord(c) for c in text if c.isprintable() and not c.isspace())
    return _base() if wanted <= _letters(_base()) else _system_font(wanted)


@cache
def _system_font(wanted: frozenset[int]) -> str:
    """The first installed font with all of these letters, else the one with most."""
    best, most = _base(), len(wanted & _letters(_base()))
    for path in _installed():
        has = len(wanted & _letters(path))
        if has > most:
            best, most = path, has
        if most == len(wanted):
            break
    return best


@cache
def _installed() -> tuple[str, ...]:
    """Files of the system's fonts, those of many scripts first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple[int, str]:
        name = Path(path).name.lower().replace("-", "")
        return next((i for i, part in enumerate(_PREFERRED) if part in name), len(_PREFERRED)), name

    return tuple(sorted((path for path in findSystemFonts() if path.lower().endswith(_SUFFIXES)), key=rank))
