"""Which file a user means by `pretrained`."""

from __future__ import annotations

from pathlib import Path

from openmvit.architectures import ARCHITECTURES, DETECTORS
from openmvit.checkpoint import find
from openmvit.weights import WeightCard, card_of_file, fetch, find_card, locate


def find_file(name: str, weights: bool | str | Path) -> tuple[Path, WeightCard | None]:
    """The file that `pretrained` means for a network, and its card if it is a released one.

    Args:
        name: of the network.
        weights: True, a tag, a file or run folder, an address, a hub id, or `architecture.tag` of any network.
    Raises:
        UserError: if there is none, or it cannot be had.
    """
    text = str(weights)
    if isinstance(weights, bool):
        card = find_card(name)
        return fetch(card), card
    if Path(text).exists():
        return find(text), card_of_file(Path(text).name)
    located = locate(text)
    if located is not None:
        return located, None
    base, _, tag = text.partition(".")
    if base in ARCHITECTURES or base in DETECTORS:
        card = find_card(base, tag or None)
        return fetch(card), card
    if Path(text).suffix or "/" in text:
        return find(text), None
    card = find_card(name, text)
    return fetch(card), card
