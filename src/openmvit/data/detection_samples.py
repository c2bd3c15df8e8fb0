"""Annotated pictures as training samples that depend on (seed, epoch, index) alone, and as test samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from openmvit.data.counter import sample_generator
from openmvit.data.detection_table import DetectionTable, Segments
from openmvit.data.images import read_image
from openmvit.data.samples import REPLACED, FileReadError, read_or_replace
from openmvit.data.scenes import Scene, Segment, resize_image, short_side_size
from openmvit.errors import UserError

_LOST_SIDE = 32


def trainable(table: DetectionTable) -> tuple[np.ndarray, int]:
    """Indices of the pictures with an instance that is no crowd, int64, and how many pictures are without.

    Raises:
        UserError: if none is left.
    """
    kept = table.annotated()
    if not len(kept):
        raise UserError(
            f"None of the {len(table)} training pictures in {table.root} has an instance that is no crowd",
            "Check the annotations with openmvit data check",
        )
    return kept, len(table) - len(kept)


class DetectionDataset(Dataset[dict[str, Any]]):
    """Augmented pictures with their instances by key: `dataset[(epoch, index)]` or `dataset[(epoch, index, copy)]`.

    A sample is a pure function of (seed, epoch, index, copy). An unreadable file, or one that is not of the size that
    its annotations name, is replaced by another picture chosen by the same numbers; see REPLACED and LOST. Crowds are
    left out.

    Args:
        table: pictures and instances.
        transform: from scene and generator to scene; see `training_pipeline`.
        seed: the run's seed.
    """

    def __init__(
        self, table: DetectionTable, transform: Callable[[Scene, torch.Generator], Scene], *, seed: int
    ) -> None:
        self.table, self.transform, self.seed = table, transform, seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """A sample.

        Returns:
            `image` uint8 `[3, h, w]`; `boxes` float32 `[N, 4]`; `labels` int64 `[N]`; `masks`, polygons of the N
            instances or bool `[N, h, w]`, empty for an instance without annotated mask; `index`; `bad`; `size` (h, w)
            of the file.
        """
        epoch, index = key[:2]
        copy = key[2] if len(key) > 2 else 0
        scene, _, bad = read_or_replace(self._read, len(self), self.seed, epoch, index)
        if scene is None:
            size = (_LOST_SIDE, _LOST_SIDE)
            scene = Scene(Image.new("RGB", size), np.zeros((0, 4)), np.zeros(0, np.int64), [])
        else:
            size = scene.image.height, scene.image.width
            scene = self.transform(scene, sample_generator(self.seed, epoch, index, copy))
        return {
            "image": to_pixels(scene.image),
            "boxes": torch.from_numpy(scene.boxes.astype(np.float32)),
            "labels": torch.from_numpy(scene.labels),
            "masks": to_masks(scene.segments, (scene.image.height, scene.image.width)),
            "index": index,
            "bad": bad,
            "size": size,
        }

    def _read(self, index: int) -> Scene:
        return read_scene(self.table, index)


class DetectionTestDataset(Dataset[dict[str, Any]]):
    """Every picture at test size, without its instances; by the sampler's keys `(epoch, index)` or by index.

    A file that `read_picture` refuses is zeros with `bad` 1 and is not to be scored: no stand-in is.

    Args:
        table: pictures.
        short_side: of the resized picture, pixels.
        long_side: the resized picture is smaller if this would be exceeded.
    """

    def __init__(self, table: DetectionTable, *, short_side: int, long_side: int) -> None:
        self.table, self.short_side, self.long_side = table, short_side, long_side

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, ...] | int) -> dict[str, Any]:
        """`image` uint8 `[3, h, w]`, `index`, `bad`, `size` (h, w) of the file, `image_id`."""
        index = key if isinstance(key, int) else key[1]
        try:
            original, bad = read_picture(self.table, index), 0
            image = test_image(original, self.short_side, self.long_side)
        except FileReadError:
            original = image = Image.new("RGB", (_LOST_SIDE, _LOST_SIDE))
            bad = REPLACED
        return {
            "image": to_pixels(image),
            "index": index,
            "bad": bad,
            "size": (original.height, original.width),
            "image_id": self.table.image_id(index),
        }


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of either kind as a batch of lists, since pictures differ in size.

    Returns:
        `image` list of uint8 `[3, h, w]`; `targets` list of dicts with boxes, labels and masks, for training samples;
        `index` and `bad` int64 `[B]`; `size` list of (h, w); `image_id` int64 `[B]`, for test samples.
    """
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in ("image", "size")}
    for name in ("index", "bad", "image_id"):
        if name in samples[0]:
            batch[name] = torch.tensor([sample[name] for sample in samples])
    if "boxes" in samples[0]:
        batch["targets"] = [{name: sample[name] for name in ("boxes", "labels", "masks")} for sample in samples]
    return batch


def test_image(image: Image.Image, short_side: int, long_side: int) -> Image.Image:
    """A picture at test size."""
    return resize_image(image, short_side_size(image.height, image.width, short_side, long_side))


test_image.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def read_scene(table: DetectionTable, index: int) -> Scene:
    """Picture `index`, upright, with its instances that are no crowds.

    Raises:
        FileReadError: the file is unreadable, or not of the size that its annotations name; height and width may only
            be exchanged where no mask is a bitmap.
    """
    image, found = read_picture(table, index), table.annotations(index)
    kept = np.flatnonzero(~found.crowd)
    segments = [_decoded(found.segments[i]) for i in kept]
    return Scene(image, found.boxes[kept], found.labels[kept].astype(np.int64), segments)


def read_picture(table: DetectionTable, index: int) -> Image.Image:
    """Picture `index`, upright; raises as `read_scene` does."""
    path, (height, width) = table.path(index), table.size(index)
    image = read_image(path)
    # Tools that show a picture upright and write down its size as stored exchange the two; their boxes are upright.
    if image.size not in ((width, height), (height, width)):
        found = f"{image.width}x{image.height}"
        raise FileReadError(path, f"the picture is {found}, and its annotations are for {width}x{height}")
    if image.size != (width, height) and any(isinstance(part, dict) for part in table.annotations(index).segments):
        raise FileReadError(path, "the picture is turned by its EXIF entry, and its masks are not")
    return image


def _decoded(segments: Segments) -> Segment:
    """Run lengths as a bool bitmap `[h, w]`, anything else as it is."""
    if not isinstance(segments, dict):
        return segments
    from faster_coco_eval.core import mask

    return mask.decode(segments).astype(bool)


def to_pixels(image: Image.Image) -> Tensor:
    """RGB as uint8 `[3, h, w]`."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_masks(segments: Sequence[Segment], size: tuple[int, int]) -> list[list[np.ndarray]] | Tensor:
    """Masks of N instances in one form: polygons if none is a bitmap, otherwise bool `[N, h, w]`.

    The mask of an instance that was annotated without one is empty: no polygon, or no pixel.
    """
    if not any(isinstance(segment, np.ndarray) for segment in segments):
        return [segment if isinstance(segment, list) else [] for segment in segments]
    return torch.from_numpy(np.stack([_bitmap(segment, *size) for segment in segments]))


def _bitmap(segment: Segment, height: int, width: int) -> np.ndarray:
    """A mask as bool `[h, w]`; polygons as COCO rasterises them."""
    if isinstance(segment, np.ndarray):
        return segment
    if segment is None:
        return np.zeros((height, width), dtype=bool)
    from faster_coco_eval.core import mask

    runs = mask.frPyObjects([polygon.tolist() for polygon in segment], height, width)
    return mask.decode(mask.merge(runs if isinstance(runs, list) else [runs])).astype(bool)
