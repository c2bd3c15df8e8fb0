"""What comes before a verb: wrong names of networks are found, then torch is imported."""

from __future__ import annotations

import os

from openmvit import screen
from openmvit.architectures import ARCHITECTURES, DETECTORS, PLAIN
from openmvit.cli.arguments import Arguments


def check_target(given: Arguments) -> None:
    """Raise a UserError if the words for a network are no path, no address and the name of none."""
    from openmvit.weights import card_of_target

    card_of_target(given.positional["target"])


def check_described(given: Arguments) -> None:
    """The same for `info`, which describes more than can be loaded."""
    from openmvit.weights import cards

    name = given.positional["target"].partition(".")[0]
    if name not in (*ARCHITECTURES, *DETECTORS, *PLAIN) and name not in {card.model for card in cards()}:
        check_target(given)


def load_torch() -> None:
    """The seconds that this takes, under a word that something happens."""
    with screen.listening(os.environ.get("RANK", "0") == "0"):
        screen.doing("starting")
        import torch  # noqa: F401
