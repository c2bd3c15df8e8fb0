"""What the metadata of an ONNX file claim, checked before anything believes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmvit.checkpoint import FORMAT
from openmvit.config import MViTConfig
from openmvit.errors import UserError

WRITE = "Write the file with openmvit export"
_MULTIPLE = 2048
"""More than the strides of any network make together."""
_CARD = {
    "format": "a whole number",
    "task": "a text",
    "classes": "a list of texts",
    "category_ids": "a list of whole numbers",
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
_MAY_BE_NULL = ("task", "classes", "category_ids", "recipe", "data")


def check_card(path: Path, card: Any) -> dict[str, Any]:
    """The card, if its values are of their kinds and this version can read it.

    Raises:
        UserError: naming the first value that is not.
    """
    if not isinstance(card, dict) or not isinstance(card.get("preprocessing"), dict):
        raise UserError(f"The metadata of {path} is no card", "The file is damaged; export it again")
    known = {key: value for key, value in card.items() if value is not None or key not in _MAY_BE_NULL}
    _check_kinds(path, known, _CARD)
    _check_kinds(path, card["preprocessing"], _PREPROCESSING)
    if card.get("format", 0) > FORMAT:
        raise UserError(f"{path} was written by a newer version (format {card['format']})", "Update openmvit")
    multiple = card.get("export", {}).get("multiple", 0)
    if not _is(multiple, "a whole number") or not 0 <= multiple <= _MULTIPLE:
        raise _wrong(path, "multiple", multiple, f"0 to {_MULTIPLE}")
    return card


def check_classes(path: Path, card: Mapping[str, Any], count: int) -> None:
    """Refuse a card whose names of classes are not as many as its network has.

    Raises:
        UserError: if so.
    """
    names = card.get("classes") or ()
    if names and len(names) != count:
        raise UserError(f"The metadata of {path} names {len(names)} classes of a network with {count}", WRITE)


def check_classifier(path: Path, session: Any, config: MViTConfig) -> None:
    """Refuse a graph that is not of the network that its card describes: images or clips, and classes.

    Raises:
        UserError: if so.
    """
    check_graph(path, session, (config.ndim + 2,), (2,))
    channels, count = session.get_inputs()[0].shape[1], session.get_outputs()[0].shape[1]
    for what, own, claimed in (("channels", channels, config.in_chans), ("classes", count, config.num_classes)):
        if claimed and isinstance(own, int) and own != claimed:
            raise UserError(f"The graph of {path} has {own} {what} and its metadata {claimed}", WRITE)


def check_graph(path: Path, session: Any, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """Refuse a graph with other inputs and outputs.

    Args:
        inputs: how many axes each has; all are fp32.
        outputs: how many axes each has.
    Raises:
        UserError: if so.
    """
    for what, values, axes in (("takes", session.get_inputs(), inputs), ("gives", session.get_outputs(), outputs)):
        found = tuple(len(value.shape) for value in values)
        kinds = {value.type for value in values} - {"tensor(float)", "tensor(int64)"}
        if found != axes or kinds:
            shown = " and ".join(f"{n} axes" for n in found) if not kinds else ", ".join(sorted(kinds))
            wanted = " and ".join(f"{n} axes" for n in axes)
            raise UserError(f"The graph of {path} {what} {shown}, and by its metadata {wanted}", WRITE)


def _check_kinds(path: Path, values: Mapping[str, Any], kinds: Mapping[str, str]) -> None:
    for key, kind in kinds.items():
        if key in values and not _is(values[key], kind):
            raise _wrong(path, key, values[key], kind)


def _is(value: Any, kind: str) -> bool:
    """Whether a value of JSON is of a kind; yes and no are no numbers."""
    if isinstance(value, list):
        one = {"a list of texts": "a text", "a list of whole numbers": "a whole number", "three numbers": "a number"}
        return kind in one and all(_is(v, one[kind]) for v in value) and (kind != "three numbers" or len(value) == 3)
    if isinstance(value, bool):
        return False
    accepted = {"a text": str, "a record": dict, "a whole number": int, "a number": int | float}.get(kind)
    return accepted is not None and isinstance(value, accepted)


def _wrong(path: Path, key: str, value: Any, accepted: str) -> UserError:
    return UserError(f"In the metadata of {path} {key} is {str(value)[:40]!r}", f"Accepted: {accepted}. {WRITE}")
