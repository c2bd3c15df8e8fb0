"""What is wrong with the words of a recipe: found in a fraction of a second, as nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from openmvit.architectures import ARCHITECTURES, DETECTORS, check_name
from openmvit.errors import UserError
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe
from openmvit.weights import card_meant, cards, find_card, is_address


def resumed_folder(text: str) -> Path:
    """The run folder that `--resume` names.

    Raises:
        UserError: if it is none.
    """
    run = Path(text)
    if not (run / "args.yaml").is_file():
        raise UserError(f"{text} is no run folder (it has no args.yaml)", "Give a folder such as runs/image/exp")
    return run


def check_words(recipe: Recipe) -> None:
    """Look whether the run to resume, or the data, model and weights of a new one are there by their names.

    Raises:
        UserError: if they are not.
    """
    if recipe.resume is not None:
        load_recipe(resumed_folder(recipe.resume) / "args.yaml")
        return
    if recipe.data is None:
        raise UserError("train has no data", "Give --data DIR: a folder of class folders, or a list of files")
    if not Path(recipe.data).exists():
        raise UserError(f"{recipe.data} does not exist", "Name a folder of class folders, or a list of files")
    words = recipe.weights
    if recipe.model is None:
        # Words without a dot would be a tag of the default model.
        if "." in words and not Path(words).exists() and not is_address(words):
            card_meant("", words)
        return
    check_released(words, recipe.model)
    if Path(recipe.model).suffix == ".json":
        return
    name, _, tag = recipe.model.partition(".")
    check_name(name)
    if tag or words == "default":
        find_card(name, tag or None)
    elif words != "none":
        card_meant(name, words)


def check_released(words: str, name: str) -> None:
    """Raise a UserError if a recipe's weights are left to the network `name`, and it has none."""
    known = name in ARCHITECTURES or name in DETECTORS
    own = Path(name).suffix == ".json" or (known and not any(card.model == name for card in cards()))
    if words == "default" and own:
        raise UserError(
            f"No weights of {name} were released", "Give --weights none to start from random ones, or --weights FILE"
        )
