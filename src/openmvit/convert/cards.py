"""What the card of a file claims, checked before anything believes it: our files have it in the header, ONNX files in
the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openmvit.errors import UserError

FORMAT = 1


@dataclass(frozen=True)
class Place:
    """Where a card stands.

    Args:
        word: for that part of the file.
        damaged: what to do about a text that is no card.
        fix: what to do about a value that cannot be.
    """

    word: str
    damaged: str
    fix: str


HEADER = Place("header", "The file is damaged; fetch or train it again", "Train it again, or convert it again")
METADATA = Place("metadata", "The file is damaged; export it again", "Write the file with openmvit export")

_CARD = {
    "format": "a whole number",
    "task": "a text",
    "model": "a text",
    "licence": "a text",
    "classes": "a list of texts",
    "category_ids": "a list of whole numbers",
    "preprocessing": "a record",
    "recipe": "a record",
    "data": "a text",
    "export": "a record",
}
_PREPROCESSING = {
    **dict.fromkeys(("mean", "std"), "three numbers"),
    **dict.fromkeys(("interpolation", "sampling"), "a text"),
    **dict.fromkeys(("imgsz", "num_frames", "stride", "clips", "crops"), "a whole number"),
    **dict.fromkeys(("short_side", "long_side", "stored_side"), "a whole number"),
    "crop_ratio": "a number",
}
_MAY_BE_NULL = ("task", "model", "licence", "classes", "category_ids", "recipe", "data")


def check_card(path: object, card: Any, place: Place) -> dict[str, Any]:
    """The card, if its values are of their kinds and this version can read it.

    Raises:
        UserError: naming the first value that is not.
    """
    if not isinstance(card, dict):
        raise UserError(f"The {place.word} of {path} is no card", place.damaged)
    known = {key: value for key, value in card.items() if value is not None or key not in _MAY_BE_NULL}
    _check_kinds(path, known, _CARD, place)
    _check_kinds(path, card.get("preprocessing", {}), _PREPROCESSING, place)
    if card.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer version (format {card['format']})", "Update openmvit")
    return card


def check_classes(path: object, card: Mapping[str, Any], count: int, place: Place) -> None:
    """Refuse a card whose names of classes are not as many as its network has.

    Raises:
        UserError: if so.
    """
    names = card.get("classes") or ()
    if names and len(names) != count:
        raise UserError(f"The {place.word} of {path} names {len(names)} classes of a network with {count}", place.fix)


def wrong_value(path: object, key: str, value: Any, accepted: str, place: Place) -> UserError:
    """The error of a value that a card cannot have."""
    return UserError(
        f"In the {place.word} of {path} {key} is {str(value)[:40]!r}", f"Accepted: {accepted}. {place.fix}"
    )


def is_kind(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a kind; yes and no are no numbers."""
    if isinstance(value, list):
        one = {"a list of texts": "a text", "a list of whole numbers": "a whole number", "three numbers": "a number"}
        items = kind in one and all(is_kind(item, one[kind]) for item in value)
        return items and (kind != "three numbers" or len(value) == 3)
    if isinstance(value, bool):
        return False
    accepted = {"a text": str, "a record": dict, "a whole number": int, "a number": int | float}.get(kind)
    return accepted is not None and isinstance(value, accepted)


def _check_kinds(path: object, values: Mapping[str, Any], kinds: Mapping[str, str], place: Place) -> None:
    for key, kind in kinds.items():
        if key in values and not is_kind(values[key], kind):
            raise wrong_value(path, key, values[key], kind, place)
