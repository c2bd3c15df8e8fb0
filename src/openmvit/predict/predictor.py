"""`openmvit.load(target).predict(sources)`: one way from sources to answers; here the labels of images and clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from openmvit import screen
from openmvit.data.video_reader import VideoDecodeError
from openmvit.device import device_of, pick_device
from openmvit.errors import UserError
from openmvit.exported import ExportedClassifier, ExportedNetwork
from openmvit.model import MViT
from openmvit.predict.answers import Prediction, predictions_csv, predictions_text
from openmvit.predict.clips import ClipKind
from openmvit.predict.drawing import draw_labels, label_targets
from openmvit.predict.images import ImageKind
from openmvit.predict.sources import ClassifiedKind, Kind, Look, Source, ahead, expand, names_of
from openmvit.predict.timeline import Window
from openmvit.predict.windows import View
from openmvit.zoo import load_network

_THREADS = 8
OnWindow = Callable[[str, Window], None] | None


class AnyPredictor(Protocol):
    """What all predictors offer, whatever their network answers."""

    card: dict[str, Any]
    classes: tuple[str, ...]
    options: ClassVar[frozenset[str]]
    """What `predict` takes beside the sources."""

    @property
    def kind(self) -> Kind:
        """Which sources it takes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        ...

    @property
    def predict(self) -> Callable[..., list[Any]]:
        """See `Predictor.predict` and `DetectionPredictor.predict`."""
        ...

    def text(self, found: list[Any], verbose: bool = False) -> str:
        """Answers as a table; `verbose` for all that a detector found."""
        ...

    def targets(self, found: list[Any], folder: str | Path) -> list[Path | None]:
        """The file that `draw` writes for each answer, None where there is none."""
        ...

    def csv(self, found: list[Any]) -> str:
        """Answers as CSV."""
        ...

    def draw(self, found: list[Any], folder: str | Path) -> list[Path]:
        """Write copies of the files with the answers drawn in; returns the files written."""
        ...


def load(target: str | Path, device: str = "auto", classes: str | Path | None = None) -> AnyPredictor:
    """A predictor from a run folder, a weight file, an exported ONNX file or a model's name with released weights.

    Its `predict(sources)` gives a `Prediction` per source for classifiers, a `Detection` per picture for detectors.

    Args:
        device: auto, cpu, mps, cuda or cuda:N.
        classes: file with the class names, one per line, for weights that do not say them.
    Raises:
        UserError: if there is no such target or device.
    """
    place = pick_device(device)
    model, card = load_network(target, classes)
    model = model.on(device) if isinstance(model, ExportedNetwork) else model.to(place)
    if isinstance(model, MViT | ExportedClassifier):
        return Predictor(model, card)
    from openmvit.predict.detection import DetectionPredictor

    return DetectionPredictor(model, card)


class Predictor:
    """A network with its class names and preprocessing.

    Args:
        model: classifier of images or clips.
        card: card of its checkpoint: `classes`, `preprocessing`, `multilabel`.
    Raises:
        UserError: if the network has no classifier, or the card does not say how its input is prepared.
    """

    options: ClassVar[frozenset[str]] = frozenset({"top", "batch", "timeline", "hop", "seconds", "on_window"})

    def __init__(self, model: MViT | ExportedClassifier, card: dict[str, Any]) -> None:
        if not model.config.num_classes:
            raise UserError("This network has no classifier", "Give a network that was trained on classes")
        self.model: MViT | ExportedClassifier = model.eval()
        self.card = card
        self.kind: ClassifiedKind = ImageKind(card) if model.config.ndim == 2 else ClipKind(card)
        self.multilabel = bool(card.get("multilabel", False))
        names = tuple(str(name) for name in card.get("classes") or ())
        self.classes = names or tuple(f"class {i}" for i in range(model.config.num_classes))

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return device_of(self.model)

    def predict(
        self,
        sources: Source | Iterable[Source],
        top: int = 5,
        batch: int | None = None,
        *,
        timeline: bool = False,
        hop: float | None = None,
        seconds: float | None = None,
        on_window: OnWindow = None,
    ) -> list[Prediction]:
        """Classify sources, in the order given; a folder gives all that it holds, sorted, with its subfolders.

        Images: files, folders, patterns such as `photos/*.jpg`, PIL images, or arrays: uint8 `[H, W]` or
        `[H, W, 3 or 4]`. Videos: files, folders of them, folders of frames (30 per second), patterns, http(s)
        addresses, arrays uint8 `[T, H, W, 3]`; `camera:0`, `camera:FORMAT:DEVICE` in FFmpeg's names, rtsp addresses.
        A video is seen by the views of the checkpoint's protocol, whose probabilities are averaged; one that is longer
        than ten clips, a camera or a live stream by windows that slide over it. Ctrl-C ends a camera or live stream.

        Args:
            top: classes to give for every source and window.
            batch: images or clips per step; default 16 images or 4 clips.
            timeline: sliding windows for short videos too.
            hop: seconds from one window to the next; default half a window.
            seconds: when to stop watching cameras and live streams.
            on_window: called with the source and every window of a camera or live stream as it comes.
        Raises:
            UserError: if a source does not exist, holds nothing of the network's kind, or an argument cannot be used.
        """
        size = self.kind.batch if batch is None else batch
        for name, value in (("top", top), ("batch", size)):
            if value < 1:
                raise UserError(f"{name} is {value}", "Accepted: a whole number of at least 1")
        look = Look(timeline, hop, seconds)
        if look != Look() and self.kind.noun != "video":
            raise UserError("timeline, hop and seconds are for videos and this network takes images", "Leave them out")
        files = expand(sources, self.kind)
        answers = self._stream(files, look, top, size, on_window)
        return list(screen.counted(answers, len(files), f"classifying {self.kind.noun}s"))

    def text(self, found: list[Prediction], verbose: bool = False) -> str:
        """Answers as a table; it has all that there is, `verbose` or not."""
        return predictions_text(found)

    def targets(self, found: list[Prediction], folder: str | Path) -> list[Path | None]:
        """The file that `draw` writes for each answer; None for what could not be read, or is live."""
        return label_targets(found, Path(folder))

    def csv(self, found: list[Prediction]) -> str:
        """Answers as CSV."""
        return predictions_csv(found)

    def draw(self, found: list[Prediction], folder: str | Path) -> list[Path]:
        """Write copies of the files with the labels drawn in; see `draw_labels`."""
        return draw_labels(found, folder)

    def _stream(self, sources: list[Source], look: Look, top: int, batch: int, said: OnWindow) -> Iterator[Prediction]:
        kind = self.kind
        names = names_of(sources, kind.noun)
        with ThreadPoolExecutor(min(batch, os.cpu_count() or 1, _THREADS)) as pool:
            rest = iter(zip(names, sources, strict=True))
            while chunk := list(islice(rest, max(1, batch // kind.views))):
                read = list(pool.map(lambda source: kind.prepare(source, look), [source for _, source in chunk]))
                rows = self._means([x for x in read if isinstance(x, Tensor)], batch)
                for (name, _), x in zip(chunk, read, strict=True):
                    if isinstance(x, Tensor):
                        yield Prediction(name, *self._best(next(rows), top), kind=kind.noun)
                    elif isinstance(x, str):
                        yield Prediction(name, (), (), x, kind=kind.noun)
                    elif x.live:
                        yield self._follow(name, _groups(x.windows(), 1), top, said or (lambda *_: None))
                    else:
                        yield self._follow(name, ahead(_groups(x.windows(), batch), pool), top, None)

    def _follow(self, name: str, groups: Iterator[list[View]], top: int, said: OnWindow) -> Prediction:
        """Answer window by window, until the end or damage; with `said` it is live, and Ctrl-C is an end too."""
        found: list[Window] = []
        total = torch.zeros(len(self.classes), dtype=torch.float64)
        error = ""
        try:
            for group in groups:
                rows = self._probabilities(torch.stack([view for _, _, view in group]))
                for (start, end, _), row in zip(group, rows, strict=True):
                    found.append(Window(start, end, *self._best(row, top)))
                    total += row
                    if said is not None:
                        said(name, found[-1])
        except VideoDecodeError as problem:
            error = problem.reason
        except KeyboardInterrupt:
            if said is None or not found:
                raise
        if not found:
            return Prediction(name, (), (), error or "no frame came", kind=self.kind.noun)
        return Prediction(name, *self._best(total / len(found), top), error, tuple(found), self.kind.noun)

    def _means(self, sources: list[Tensor], batch: int) -> Iterator[Tensor]:
        """Probabilities `[classes]` of every source, from its views `[views, C, *size]`."""
        if not sources:
            return
        rows = [self._probabilities(x) for x in torch.cat(sources).split(batch)]
        for part in torch.cat(rows).split([len(x) for x in sources]):
            yield part.mean(dim=0)

    @torch.inference_mode()
    def _probabilities(self, x: Tensor) -> Tensor:
        """Of every input `[B, C, *size]`: `[B, classes]` on the CPU."""
        logits = self.model(x.to(self.device)).float()
        return (logits.sigmoid() if self.multilabel else logits.softmax(dim=1)).cpu()

    def _best(self, row: Tensor, top: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The likeliest labels and their probabilities."""
        best = row.topk(min(top, len(row)))
        return tuple(self.classes[i] for i in best.indices.tolist()), tuple(best.values.tolist())


def _groups(views: Iterator[View], size: int) -> Iterator[list[View]]:
    """Lists of `size` windows; those that were read before an error come first."""
    group: list[View] = []
    try:
        for view in views:
            group.append(view)
            if len(group) == size:
                yield group
                group = []
    except VideoDecodeError:
        if group:
            yield group
        raise
    if group:
        yield group
