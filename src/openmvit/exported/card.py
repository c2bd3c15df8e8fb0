"""What the metadata of an ONNX file claim, checked before anything believes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openmvit.config import MViTConfig
from openmvit.convert.cards import METADATA, check_card, is_kind, wrong_value
from openmvit.errors import UserError

_MULTIPLE = 2048
"""More than the strides of any network make together."""


def check_exported_card(path: Path, card: Any) -> dict[str, Any]:
    """The card, if its values are of their kinds, it says how inputs are prepared, and this version can read it.

    Raises:
        UserError: naming the first value that is not.
    """
    if not isinstance(card, dict) or "preprocessing" not in card:
        raise UserError(f"The metadata of {path} is no card", METADATA.damaged)
    multiple = check_card(path, card, METADATA).get("export", {}).get("multiple", 0)
    if not is_kind(multiple, "a whole number") or not 0 <= multiple <= _MULTIPLE:
        raise wrong_value(path, "multiple", multiple, f"0 to {_MULTIPLE}", METADATA)
    return card


def check_classifier(path: Path, session: Any, config: MViTConfig) -> None:
    """Refuse a graph that is not of the network that its card describes: images or clips, and classes.

    Raises:
        UserError: if so.
    """
    check_graph(path, session, (config.ndim + 2,), (2,))
    channels, count = session.get_inputs()[0].shape[1], session.get_outputs()[0].shape[1]
    for what, own, claimed in (("channels", channels, config.in_chans), ("classes", count, config.num_classes)):
        if claimed and isinstance(own, int) and own != claimed:
            raise UserError(f"The graph of {path} has {own} {what} and its metadata {claimed}", METADATA.fix)


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
            raise UserError(f"The graph of {path} {what} {shown}, and by its metadata {wanted}", METADATA.fix)
