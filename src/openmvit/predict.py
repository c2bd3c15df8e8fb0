"""Classify images with any run, file or released model: `openmvit.load(target).predict(sources)`."""

from __future__ import annotations

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openmvit.data.images import IMAGES, ImageReadError, read_image, to_rgb
from openmvit.data.transforms import test_transform_from
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.zoo import load_model

Source = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Args:
        path: the file; `image 0`, `image 1`, ... for pictures given in memory.
        labels: class names, likeliest first; empty if the file could not be read.
        probabilities: one per label, 0..1; they sum to at most 1, except for models with several labels per image.
        error: why the file could not be read, else empty.
    """

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = {"path": self.path, "labels": list(self.labels), "probabilities": list(self.probabilities)}
        return found | ({"error": self.error} if self.error else {})


def load(target: str | Path, device: str = "auto") -> Predictor:
    """A predictor from a run folder, a weight file or the name of a model with released weights.

    Args:
        device: auto, cpu, mps, cuda or cuda:N.
    Raises:
        UserError: if there is no such target or device.
    """
    place = pick_device(device)
    model, card = load_model(target)
    return Predictor(model.to(place), card)


class Predictor:
    """A network with its class names and preprocessing.

    Args:
        model: image classifier.
        card: card of its checkpoint: `classes`, `preprocessing`, `multilabel`.
    Raises:
        UserError: if the network is no image classifier.
    """

    def __init__(self, model: MViT, card: dict[str, Any]) -> None:
        if model.config.ndim != 2:
            raise UserError("This network takes clips, not images", "Give an image classifier")
        if not model.config.num_classes:
            raise UserError("This network has no classifier", "Give a network that was trained on classes")
        self.model, self.card = model.eval(), card
        self.transform = test_transform_from(card["preprocessing"])
        self.multilabel = bool(card.get("multilabel", False))
        names = tuple(str(name) for name in card.get("classes") or ())
        self.classes = names or tuple(f"class {i}" for i in range(model.config.num_classes))

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    def predict(self, sources: Source | Iterable[Source], top: int = 5, batch: int = 16) -> list[Prediction]:
        """Classify images, in the order given; a folder gives its images, sorted, with those of its subfolders.

        Args:
            sources: files, folders, patterns such as `photos/*.jpg`, PIL images, or arrays: uint8 `[H, W]` or
                `[H, W, 3 or 4]`.
            top: classes to give for every image.
            batch: images per step.
        Raises:
            UserError: if a source does not exist or holds no image.
        """
        for name, value in (("top", top), ("batch", batch)):
            if value < 1:
                raise UserError(f"{name} is {value}", "Accepted: a whole number of at least 1")
        return list(self._stream(_expand(sources), top, batch))

    def _stream(self, sources: list[Source], top: int, batch: int) -> Iterator[Prediction]:
        names = [str(s) if isinstance(s, str | Path) else f"image {i}" for i, s in enumerate(sources)]
        with ThreadPoolExecutor(min(batch, os.cpu_count() or 1, 8)) as pool:
            rest = iter(zip(names, sources, strict=True))
            while chunk := list(islice(rest, batch)):
                read = list(pool.map(self._prepare, [source for _, source in chunk]))
                answers = self._answer([x for x in read if isinstance(x, Tensor)], top)
                for (name, _), x in zip(chunk, read, strict=True):
                    yield Prediction(name, *next(answers)) if isinstance(x, Tensor) else Prediction(name, (), (), x)

    def _prepare(self, source: Source) -> Tensor | str:
        """The network's input `[3, imgsz, imgsz]`, or why there is none."""
        try:
            return self.transform(_image(source))
        except ImageReadError as error:
            return error.reason

    @torch.inference_mode()
    def _answer(self, images: list[Tensor], top: int) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Labels and probabilities of every image."""
        if not images:
            return iter(())
        logits = self.model(torch.stack(images).to(self.device)).float()
        probabilities = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return iter([(tuple(self.classes[i] for i in indices), tuple(values)) for indices, values in rows])


def _expand(sources: Source | Iterable[Source]) -> list[Source]:
    """Single images in order.

    Raises:
        UserError: for a path that does not exist, a folder or pattern without images, or no source at all.
    """
    single = isinstance(sources, str | Path | Image.Image | np.ndarray)
    found: list[Source] = []
    for source in [sources] if single else sources:
        found.extend(_files(source) if isinstance(source, str | Path) else [source])
    if not found:
        raise UserError("There is nothing to predict", "Give files, folders or patterns")
    return found


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and IMAGES.accepts(f.name))
        if not files:
            raise UserError(f"The folder {path} holds no images", f"Accepted: {' '.join(sorted(IMAGES.suffixes))}")
        return files
    matches = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]  # noqa: PTH207 - absolute patterns
    if not matches:
        raise UserError(f"There is no file or folder {source}", "Check the path or the pattern")
    return [file for match in matches for file in ([match] if match.is_file() else _files(match))]


def _image(source: Source) -> Image.Image:
    """An RGB image.

    Raises:
        ImageReadError: if it cannot be decoded.
        UserError: if an array has no image's shape or type.
    """
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, np.ndarray):
        if (
            source.dtype != np.uint8
            or source.ndim not in (2, 3)
            or (source.ndim == 3 and source.shape[2] not in (3, 4))
        ):
            raise UserError(
                f"An array of {source.dtype} with shape {list(source.shape)} is no image",
                "Give uint8 [H, W], [H, W, 3] or [H, W, 4]",
            )
        source = Image.fromarray(source)
    return to_rgb(source)


def predictions_text(predictions: Sequence[Prediction]) -> str:
    """A table: file, likeliest label, its probability, the other labels."""
    width = max(len(one.path) for one in predictions)
    lines = []
    for one in predictions:
        pairs = [f"{label} {p:.4f}" for label, p in zip(one.labels, one.probabilities, strict=True)]
        lines.append(f"{one.path:<{width}}  " + (", ".join(pairs) if pairs else f"unreadable: {one.error}"))
    return "\n".join(lines)


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """CSV `path,rank,label,probability,error`, one row per label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability", "error"])
    for one in predictions:
        if one.error:
            writer.writerow([one.path, "", "", "", one.error])
        for rank, (label, p) in enumerate(zip(one.labels, one.probabilities, strict=True), start=1):
            writer.writerow([one.path, rank, label, f"{p:.6f}", ""])
    return text.getvalue()


def draw_labels(predictions: Sequence[Prediction], folder: str | Path) -> list[Path]:
    """Write each readable file's picture with a strip that shows the likeliest label; returns the files written.

    A file keeps its name with the ending .png; equal names are numbered.

    Raises:
        UserError: if the folder cannot be written.
    """
    folder = Path(folder)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in predictions:
            if one.labels:
                stem, taken = Path(one.path).stem, len(written)
                path = folder / f"{stem}.png"
                path = folder / f"{stem}_{taken}.png" if path in written else path
                _labelled(read_image(one.path), f"{one.labels[0]}  {one.probabilities[0]:.1%}").save(path)
                written.append(path)
    except OSError as error:
        raise UserError(
            f"Cannot write pictures to {folder} ({error.strerror or error})", "Choose another --out"
        ) from error
    return written


def _labelled(image: Image.Image, text: str) -> Image.Image:
    """The picture, enlarged to a width of at least 160 pixels, above a strip with the text."""
    from PIL import ImageDraw, ImageFont

    scale = max(1, -(-160 // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    size = max(14, image.width // 20)
    font = ImageFont.load_default(size)
    while size > 8 and font.getlength(text) > image.width - 8:
        size -= 1
        font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (image.width, image.height + size + 10), "white")
    canvas.paste(image, (0, 0))
    ImageDraw.Draw(canvas).text((4, image.height + 4), text, fill="black", font=font)
    return canvas
