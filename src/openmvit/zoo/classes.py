"""Names of classes: from the user's file, from beside the weights, or from torchvision, which ships some lists.

No list ships with this package: those of ImageNet-21K, Kinetics-600, Something-Something v2 and LVIS come with their
data sets, under their terms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from openmvit.errors import UserError
from openmvit.weights import WeightCard

# Data set, by the end of a tag -> torchvision weights whose meta data names its classes.
_LISTS = {
    "in1k": "ResNet50_Weights.IMAGENET1K_V2",
    "k400": "MViT_V2_S_Weights.KINETICS400_V1",
    "coco": "MaskRCNN_ResNet50_FPN_Weights.COCO_V1",
}
# Projects whose order of the classes is torchvision's; of the others nobody looked.
_SAME_ORDER = ("mvit", "slowfast", "pytorchvideo", "torchvision", "timm", "mmpretrain", "huggingface", "detectron2")


def class_names(
    count: int, path: Path, card: WeightCard | None = None, file: str | Path | None = None
) -> tuple[list[str], list[int]]:
    """Names of a network's classes, and the numbers that the data set gives them; both empty where nobody knows.

    The first of these that is there: `file`, `NAME.classes.txt` beside the weights, `classes.txt` or `config.json`
    (`id2label`) in the weights' own folder, the list of torchvision for the card's data set.

    Args:
        count: classes of the network.
        path: of the weights.
        card: of the weights.
        file: text file with one name per line.
    Raises:
        UserError: if a file of names has another number of them.
    """
    if file is not None:
        return _read_names(Path(file), count), []
    # The download cache is everybody's folder.
    general = [] if path.parent.name == "checkpoints" else [path.with_name("classes.txt")]
    for beside in (path.with_name(f"{path.stem}.classes.txt"), *general):
        if beside.is_file():
            return _read_names(beside, count), []
    labels = _labels_of_folder(path.with_name("config.json"), count) if general else []
    if labels:
        return labels, []
    data = "" if card is None or card.source not in _SAME_ORDER else card.tag.rpartition("_")[2]
    if data not in _LISTS:
        return [], []
    from torchvision.models import get_weight

    names: Sequence[str] = get_weight(_LISTS[data]).meta["categories"]
    # COCO's list has gaps and the background at its own numbers.
    numbers = [i for i, name in enumerate(names) if name not in ("N/A", "__background__")]
    if len(numbers) != count:
        return [], []
    return [names[i] for i in numbers], numbers if data == "coco" else []


def _read_names(file: Path, count: int) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the class names of {file} ({error})", "Give a text file, a name per line"
        ) from error
    if len(names) != count:
        raise UserError(f"{file} names {len(names)} classes and the weights have {count}", "Give one name per class")
    return names


def _labels_of_folder(file: Path, count: int) -> list[str]:
    """Labels of a folder in the form of the Hugging Face hub."""
    try:
        labels = json.loads(file.read_text(encoding="utf-8")).get("id2label", {})
        return [str(labels[str(i)]) for i in range(count)] if len(labels) == count else []
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
