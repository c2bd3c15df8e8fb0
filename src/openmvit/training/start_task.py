"""From a recipe to its task: which kind of job it is, and the task of that kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmvit import screen
from openmvit.errors import UserError
from openmvit.training.classification import open_classification
from openmvit.training.inputs import INPUTS, infer_task
from openmvit.training.recipe import Recipe
from openmvit.training.tasks import Task


def open_task(recipe: Recipe, about: Mapping[str, Any] | None = None) -> Task:
    """Open the data and build the network that a recipe names.

    Args:
        about: what a resumed run said of its network, whose weights are put in later; None builds what the recipe says.
    Raises:
        UserError: if the data or the weights cannot be had or do not fit each other.
    """
    if recipe.data is None:
        raise UserError("No data is named", "Give --data FOLDER with one folder per class, or a CSV file")
    screen.doing("reading data, building the network")
    kind = infer_task(recipe)
    if kind == "detection":
        from openmvit.training.detection import open_detection_task

        return open_detection_task(recipe, about)
    return open_classification(recipe, INPUTS[kind], about)
