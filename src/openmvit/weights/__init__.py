"""Released weights: cards that say what there is, and fetching. `weights.reading` reads files of any known project.

The cards are plain data and come without torch.
"""

from openmvit.weights.card import WeightCard, card_of_file, cards, find_card
from openmvit.weights.fetching import fetch, fetch_hub, fetch_url, locate
from openmvit.weights.naming import card_meant, card_of_target, is_address

__all__ = [
    "WeightCard",
    "card_meant",
    "card_of_file",
    "card_of_target",
    "cards",
    "fetch",
    "fetch_hub",
    "fetch_url",
    "find_card",
    "is_address",
    "locate",
]
