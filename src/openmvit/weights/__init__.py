"""Released weights: cards that say what there is, fetching, and reading of files of any known project."""

from openmvit.weights.card import WeightCard, card_of_file, cards, find_card
from openmvit.weights.fetching import fetch, fetch_hub, fetch_url, locate
from openmvit.weights.reading import Weights, find_architecture, read_weights

__all__ = [
    "WeightCard",
    "Weights",
    "card_of_file",
    "cards",
    "fetch",
    "fetch_hub",
    "fetch_url",
    "find_architecture",
    "find_card",
    "locate",
    "read_weights",
]
