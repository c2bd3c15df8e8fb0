"""Run lengths of masks as COCO writes them: checked, and compressed where they come as plain numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

_FIVE_BITS, _MORE, _SIGN, _FIRST_CHARACTER = 31, 32, 16, 48


def compressed(mask: dict[str, Any], size: tuple[int, int]) -> bytes:
    """Compressed run lengths of a mask, checked.

    Args:
        mask: `size` [h, w] and `counts`: run lengths in column order, as numbers or compressed.
        size: height and width that the mask must have.
    Raises:
        ValueError: another size, or run lengths that do not fill it.
    """
    given, counts = mask.get("size"), mask.get("counts")
    if given != list(size):
        raise ValueError(f"run lengths of size {given} on a picture of {list(size)}")
    if isinstance(counts, list):
        runs = _numbers(counts)
    elif isinstance(counts, str | bytes):
        runs = lengths(counts)
    else:
        raise ValueError("run lengths without counts")
    if runs.size and runs.min() < 0:
        raise ValueError("run lengths below zero")
    if int(runs.sum()) != size[0] * size[1]:
        raise ValueError(f"run lengths of {int(runs.sum())} pixels in all on a picture of {size[0] * size[1]}")
    return _bytes(counts, size)


def _numbers(counts: list[Any]) -> np.ndarray:
    if not all(isinstance(count, int) and abs(count) < 1 << 40 for count in counts):
        raise ValueError("run lengths that are no whole numbers")
    return np.array(counts, dtype=np.int64)


def lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths behind their compressed form, int64.

    Five bits a character, the lowest first; from the fourth on a length is stored as the difference to the one before
    the last.

    Raises:
        ValueError: characters that no compressed form has.
    """
    text = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if codes.size and (codes.min() < 0 or codes.max() >= 2 * _MORE or codes[-1] & _MORE):
        raise ValueError("run lengths that are damaged")
    lasts = np.flatnonzero(codes & _MORE == 0)
    starts = np.concatenate([[0], lasts[:-1] + 1])[: len(lasts)].astype(np.int64)
    places = np.arange(codes.size) - np.repeat(starts, lasts - starts + 1)
    if places.size and places.max() > 10:
        raise ValueError("run lengths that are damaged")
    values = np.add.reduceat((codes & _FIVE_BITS) << 5 * places, starts) if codes.size else codes
    values = values - np.where(codes[lasts] & _SIGN, np.int64(1) << 5 * (places[lasts] + 1), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _bytes(counts: list[int] | str | bytes, size: tuple[int, int]) -> bytes:
    if isinstance(counts, bytes):
        return counts
    if isinstance(counts, str):
        return counts.encode("ascii")
    from faster_coco_eval.core import mask

    packed = mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    found = packed["counts"] if isinstance(packed, dict) else packed[0]["counts"]
    return found if isinstance(found, bytes) else found.encode("ascii")
