"""Masks as run lengths, the form in which COCO stores and compares them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor


def encode_masks(masks: Iterable[np.ndarray | Tensor]) -> list[dict[str, Any]]:
    """Run lengths of masks in column order, as COCO's results format writes them.

    Only the part of a mask that is set is looked at, so a picture full of small objects costs little; a generator of
    masks keeps one of them in memory at a time.

    Args:
        masks: bool `[D, H, W]`, or any series of bool `[H, W]`.
    Returns:
        `{"size": [H, W], "counts": str}` of each.
    """
    from faster_coco_eval.core import mask as runs

    encoded: list[dict[str, Any]] = []
    for mask in masks:
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        height, width = array.shape
        plain = {"size": [height, width], "counts": _counts(array)}
        encoded.append(as_text(runs.frPyObjects(plain, height, width)))  # pyright: ignore[reportArgumentType]
    return encoded


def as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """The same run lengths with `counts` as a str, which JSON can hold."""
    counts = rle["counts"]
    return {"size": [int(side) for side in rle["size"]], "counts": counts.decode() if type(counts) is bytes else counts}


def _counts(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a bool mask `[H, W]` read down its columns, the first of them (maybe 0) unset."""
    height, width = mask.shape
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return [height * width]
    left, top = int(columns[0]), int(rows[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1].T
    framed = np.zeros((part.shape[0], part.shape[1] + 2), np.int8)
    framed[:, 1:-1] = part
    column, row = np.nonzero(np.diff(framed, axis=1))
    edges = (column + left) * height + row + top
    # A run that ends at the foot of a column and one that begins at the head of the next are one run.
    same = edges[1:] == edges[:-1]
    edges = edges[~(np.append(same, False) | np.append(False, same))]
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    return counts if counts[-1] else counts[:-1]
