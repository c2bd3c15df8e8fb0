"""`openmvit.load(target).predict(sources)` for detectors: the objects of pictures, and of videos frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import torch
from PIL import Image

from openmvit import screen
from openmvit.data.images import IMAGES, ImageReadError
from openmvit.data.video import open_video
from openmvit.data.video_reader import VideoDecodeError, is_url
from openmvit.data.videos import VIDEOS
from openmvit.detection.augmentation import View, Views, test_views
from openmvit.detection.config import SoftNms
from openmvit.detection.detections import Detections
from openmvit.detection.detector import Detector
from openmvit.detection.search import Search, run_lengths
from openmvit.device import device_of
from openmvit.errors import UserError
from openmvit.exported.detectors import ExportedDetector
from openmvit.predict.detected import Detection, detections_csv, detections_text
from openmvit.predict.drawing import draw_objects, object_targets
from openmvit.predict.images import check_picture, open_picture
from openmvit.predict.overlay import moments
from openmvit.predict.sources import Look, Source, ahead, expand, names_of
from openmvit.predict.windows import is_live

_LATE = 1e-6
"""Seconds by which a frame may come before its turn."""


class PictureKind:
    """Sources of a detector: pictures, and video files as series of pictures."""

    noun = "image"
    batch = 1

    def check(self, source: Source) -> None:
        """Raise a UserError for cameras, addresses of pictures and arrays that are no images."""
        if not isinstance(source, str | Path):
            check_picture(source)
        elif is_live(source):
            raise UserError(f"{source} is live, and detectors look at pictures and video files", "Record it first")
        elif is_url(source) and IMAGES.accepts(urlsplit(str(source)).path):
            raise UserError(f"{source} is no file, and images are read from files", "Download it first")

    def in_folder(self, folder: Path) -> list[Path]:
        """The images and videos in a folder and below.

        Raises:
            UserError: if there is none.
        """
        files = sorted(f for f in folder.rglob("*") if f.is_file() and (IMAGES.accepts(f.name) or _is_video(f)))
        if not files:
            accepted = " ".join(sorted(IMAGES.suffixes | VIDEOS.suffixes))
            raise UserError(f"The folder {folder} holds no images or videos", f"Accepted: {accepted}")
        return files

    def pictures(self, source: Source, hop: float | None) -> Iterator[tuple[float | None, Image.Image | str]]:
        """Upright pictures with their seconds (None where it is no video), or why there is none.

        Args:
            hop: seconds from one frame of a video to the next; None for every frame.
        """
        if isinstance(source, str | Path) and _is_video(source):
            yield from _frames(source, hop or 0.0)
            return
        try:
            yield None, open_picture(source)
        except ImageReadError as error:
            yield None, error.reason


def _is_video(source: str | Path) -> bool:
    return is_url(source) or VIDEOS.accepts(str(source))


def _frames(source: str | Path, hop: float) -> Iterator[tuple[float, Image.Image | str]]:
    due = moment = 0.0
    try:
        with open_video(source, "pyav") as video:
            for moment, frame in moments(video):
                if moment >= due - _LATE:
                    due = max(due + hop, moment)
                    yield moment, Image.fromarray(frame)
    except VideoDecodeError as error:
        yield moment, error.reason


@dataclass(frozen=True)
class _Picture:
    """A picture to search, or why there is none."""

    name: str
    seconds: float | None
    size: tuple[int, int] = (0, 0)
    views: tuple[View, ...] = ()
    error: str = ""


class DetectionPredictor:
    """A detector with its class names and preprocessing.

    Args:
        model: the detector.
        card: card of its checkpoint: `classes`, `category_ids`, `preprocessing`.
    Raises:
        UserError: if the card does not say how its input is prepared.
    """

    options: ClassVar[frozenset[str]] = frozenset({"batch", "score", "soft_nms", "tta", "hop"})

    def __init__(self, model: Detector | ExportedDetector, card: dict[str, Any]) -> None:
        self.model: Detector | ExportedDetector = model.eval()
        self.card, self.kind = card, PictureKind()
        test_views(card["preprocessing"], model.config)
        count = model.config.num_classes
        names = tuple(str(name) for name in card.get("classes") or ())
        self.classes = names or tuple(f"class {i}" for i in range(count))
        self.category_ids = tuple(card.get("category_ids") or range(1, count + 1))

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return device_of(self.model)

    def predict(
        self,
        sources: Source | Iterable[Source],
        batch: int | None = None,
        *,
        score: float = 0.5,
        soft_nms: SoftNms | None = None,
        tta: bool = False,
        hop: float | None = None,
    ) -> list[Detection]:
        """Find the objects in pictures, in the order given; a folder gives all that it holds, with its subfolders.

        Sources: image files (turned upright by their EXIF entry), folders, patterns such as `photos/*.jpg`, PIL images,
        arrays uint8 `[H, W]` or `[H, W, 3 or 4]`, video files and http(s) addresses of videos. A video gives an answer
        for every frame that is looked at; if it cannot be read to its end, the last answer says why.

        Args:
            batch: pictures per step (of one picture, views per step with `tta`); default 1. Pictures of a batch are
                padded to one size and attention does not leave the padding out, so a larger batch changes what is
                found a little. Published scores are those of batch 1.
            score: only objects with a higher score are given, 0..1.
            soft_nms: `linear` or `gaussian` lowers the scores of boxes that overlap better ones of their class instead
                of dropping them; boxes take part from a score of 0.001 on. `none` drops them. Default: the model's own.
            tta: test-time augmentation: nine sizes, each mirrored too, joined; about 40 times the work.
            hop: seconds from one frame of a video to the next one looked at; default every frame.
        Raises:
            UserError: if a source does not exist or is none of these, or an argument cannot be used.
        """
        files = expand(sources, self.kind)
        found = self.stream(files, batch, score=score, soft_nms=soft_nms, tta=tta, hop=hop)
        return list(screen.counted(found, len(files), "searching images"))

    def stream(
        self,
        sources: Source | Iterable[Source],
        batch: int | None = None,
        *,
        score: float = 0.5,
        soft_nms: SoftNms | None = None,
        tta: bool = False,
        hop: float | None = None,
    ) -> Iterator[Detection]:
        """`predict`, answer by answer: what is not kept takes no memory, however long a video is."""
        search = Search(score, soft_nms, tta, self.kind.batch if batch is None else batch)
        views = test_views(self.card["preprocessing"], self.model.config, tta)
        Look(hop=hop)
        return self._stream(expand(sources, self.kind), search, views, hop)

    def text(self, found: list[Detection], verbose: bool = False) -> str:
        """Answers as a table: counts by class, or with `verbose` every object of a picture."""
        return detections_text(found, verbose)

    def csv(self, found: list[Detection]) -> str:
        """Answers as CSV."""
        return detections_csv(found)

    def targets(self, found: list[Detection], folder: str | Path) -> list[Path | None]:
        """The file that `draw` writes for each answer; None for what is in memory or cannot be read."""
        return object_targets(found, Path(folder))

    def draw(self, found: list[Detection], folder: str | Path) -> list[Path]:
        """Write copies of the files with the objects drawn in, and detections.json; see `draw_objects`."""
        return draw_objects(found, self.classes, self.category_ids, folder)

    def _stream(self, sources: list[Source], search: Search, views: Views, hop: float | None) -> Iterator[Detection]:
        pictures = self._pictures(sources, views, hop)
        # With views of one picture in a step there is nothing to gain from several pictures.
        group = 1 if search.tta else search.batch
        with ThreadPoolExecutor(1) as pool:
            for part in ahead(iter(lambda: tuple(islice(pictures, group)), ()), pool):
                good = [one for one in part if not one.error]
                found = iter(search.find(self.model, [(one.views, one.size) for one in good]))
                for one in part:
                    if one.error:
                        yield Detection.unreadable(one.name, one.error, one.seconds)
                    else:
                        yield self._answer(one, next(found), search)

    def _pictures(self, sources: list[Source], views: Views, hop: float | None) -> Iterator[_Picture]:
        for name, source in zip(names_of(sources, self.kind.noun), sources, strict=True):
            for seconds, picture in self.kind.pictures(source, hop):
                if isinstance(picture, str):
                    yield _Picture(name, seconds, error=picture)
                else:
                    yield _Picture(name, seconds, (picture.height, picture.width), tuple(views(picture)))

    def _best(self, picture: _Picture, search: Search) -> float | None:
        """Highest score of a picture in which nothing was found; a second look, which videos are spared."""
        if picture.seconds is not None or search.tta:
            return None
        scores = replace(search, score=0.0).find(self.model, [(picture.views, picture.size)])[0].scores
        return float(scores.max()) if len(scores) else 0.0

    def _answer(self, picture: _Picture, found: Detections, search: Search) -> Detection:
        numbers = found.labels.numpy()
        return Detection(
            picture.name,
            picture.size,
            found.boxes.numpy(),
            found.scores.numpy(),
            tuple(self.classes[i] for i in numbers.tolist()),
            numbers,
            tuple(run_lengths(found)),
            seconds=picture.seconds,
            threshold=search.score or 0.0,
            best=None if len(numbers) else self._best(picture, search),
        )
