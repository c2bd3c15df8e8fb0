"""Which file a user means by `pretrained`."""

from __future__ import annotations

from pathlib import Path

from openmvit.checkpoint import find
from openmvit.weights import WeightCard, card_meant, card_of_file, fetch, find_card, locate


def find_file(name: str, weights: bool | str | Path) -> tuple[Path, WeightCard | None]:
    """The file that `pretrained` means for a network, and its card if it is a released one.

    Args:
        name: of the network.
        weights: True, a tag, a file or run folder, an address, a hub id, or `architecture.tag` of any network.
    Raises:
        UserError: if there is none, or it cannot be had.
    """
    text = str(weights)
    card = find_card(name) if isinstance(weights, bool) else card_meant(name, text)
    if card is not None:
        return fetch(card), card
    if Path(text).exists():
        return find(text), card_of_file(Path(text).name)
    return locate(text) or find(text), None
