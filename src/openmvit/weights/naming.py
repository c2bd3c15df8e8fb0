"""Which released file the user's words mean: by their names alone, nothing is opened or fetched."""

from __future__ import annotations

import re
from pathlib import Path

from openmvit.architectures import ARCHITECTURES, DETECTORS
from openmvit.errors import UserError, did_you_mean
from openmvit.weights.card import WeightCard, find_card


def is_hub_id(text: str) -> bool:
    """Whether a text is an id of the Hugging Face hub, such as `hf:owner/name`."""
    return text.startswith(("hub:", "hf:"))


def is_address(text: str) -> bool:
    """Whether a text is an address of the net, or a hub id."""
    return is_hub_id(text) or re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def card_of_target(target: str | Path) -> WeightCard | None:
    """The card of a model's name, `NAME` or `NAME.TAG`; None where the words are a path or an address.

    Raises:
        UserError: if they can be none of these, or no such weights were released.
    """
    text = str(target)
    if Path(text).exists():
        return None
    name, _, tag = text.partition(".")
    if name in ARCHITECTURES or name in DETECTORS:
        return find_card(name, tag or None)
    if not any(sign in text for sign in "/.:"):
        raise UserError(f"{text} is no model, run folder or file", did_you_mean(text, [*ARCHITECTURES, *DETECTORS]))
    return None


def card_meant(model: str, weights: str) -> WeightCard | None:
    """The card that `pretrained` or `--weights` means for a network; None where it is a path or an address.

    Args:
        weights: a tag, `NAME` or `NAME.TAG` of any network, a path or an address.
    Raises:
        UserError: if no such weights were released.
    """
    if Path(weights).exists() or is_address(weights):
        return None
    name, _, tag = weights.partition(".")
    if name in ARCHITECTURES or name in DETECTORS:
        return find_card(name, tag or None)
    return None if Path(weights).suffix or "/" in weights else find_card(model, weights)
