"""Detection and instance segmentation as a task: data, losses, what is frozen, card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from openmvit import processes
from openmvit.data.aspect_groups import AspectGroups
from openmvit.data.badfiles import BadFiles
from openmvit.data.detection_layouts import open_detection
from openmvit.data.detection_samples import DetectionDataset, DetectionTestDataset, collate, read_picture, trainable
from openmvit.data.detection_table import DetectionData, DetectionTable
from openmvit.data.detection_transforms import DetectionAugmentation, training_pipeline
from openmvit.data.sampler import PassSampler, ResumableSampler
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.training.detection_scores import DetectionValidation
from openmvit.training.diagnosis import Guessing
from openmvit.training.folder import RunFolder, library_versions
from openmvit.training.loading import Batch, EpochLoader
from openmvit.training.network import Start, build_detector
from openmvit.training.presets import Facts, updates_per_epoch
from openmvit.training.recipe import Recipe
from openmvit.validate.detection import finds_scored

if TYPE_CHECKING:
    from openmvit.detection.detections import Detections
    from openmvit.detection.detector import Detector

SMALLEST = "mask_rcnn_mvitv2_tiny"
"""Detector where none is named."""
_SHORT_SIDE, _SQUARE, _STEP = 800, 1024, 32
_PROBED_OBJECTS = 16


class DetectionTask:
    """Boxes and masks of objects: the detector's own losses, COCO's AP of boxes.

    Training leaves out pictures without an object, as the published runs did. Validation goes picture by picture, since
    the padding of a batch takes part in attention, unless the detector pads to a square of its own.

    Args:
        recipe: with its data, model, input and augmentation fields.
        data: the opened data.
        start: the detector, with as many classes as the data, and where it comes from.
    """

    name, noun, metric = "detection", "images", "AP"
    shown: tuple[str, ...] = ("AP", "AP50", "mask_AP", "mask_AP50")

    def __init__(self, recipe: Recipe, data: DetectionData, start: Start[Detector]) -> None:
        self.recipe, self.data, self.licence, self.model_name = recipe, data, start.licence, start.name
        self.model = start.model
        kept, self.left_out = trainable(data.splits["train"])
        self.train: DetectionTable = data.splits["train"].subset(kept)
        self.val: DetectionTable = data.splits["val"]
        self.short_side = recipe.short_side or start.preprocessing.get("short_side", _SHORT_SIDE)
        self.use(recipe)
        self.norms = _synchronise(start.model, recipe)
        if start.model.config.federated_classes:
            start.model.roi_heads.set_class_frequency(pictures_per_class(self.train, len(data.classes)))
        self._truth: dict[str, Any] | None = None

    def samples(self) -> int:
        """Training pictures."""
        return len(self.train)

    def facts(self) -> Facts:
        """What options are derived from."""
        return Facts(
            task=self.name,
            samples=len(self.train),
            validation=len(self.val),
            width=self.model.backbone.model.config.num_features,
            pretrained=self.recipe.weights != "none",
            processes=processes.world_size(),
        )

    def use(self, recipe: Recipe) -> None:
        """Take derived options: augmentation."""
        self.recipe, self.pipeline = recipe, training_pipeline(augmentation(recipe, self.short_side))

    def train_loader(self, batch: int, pin: bool) -> EpochLoader:
        """Shuffled, augmented training batches of this rank, wide and tall pictures apart where the recipe says so."""
        r, place = self.recipe, {"rank": processes.rank(), "world_size": processes.world_size()}
        steps = None
        if r.passes:
            total = batch * r.accumulate * processes.world_size()
            steps = updates_per_epoch(len(self.train), r.passes, total) * r.accumulate
        if r.aspect_groups:
            order: ResumableSampler = AspectGroups(self.train.sizes, batch=batch, seed=r.seed, steps=steps, **place)
        elif steps is not None:
            order = PassSampler(len(self.train), steps=steps, batch=batch, seed=r.seed, **place)
        else:
            order = ResumableSampler(len(self.train), seed=r.seed, shuffle=True, **place)
        dataset = DetectionDataset(self.train, self.pipeline, seed=r.seed)
        return EpochLoader(dataset, order, batch=batch, workers=r.workers, drop_last=True, pin=pin, collate=collate)

    def val_loader(self, batch: int, pin: bool) -> EpochLoader:
        """Validation pictures of this rank at test size, in order, each once."""
        order = ResumableSampler(
            len(self.val), seed=0, shuffle=False, rank=processes.rank(), world_size=processes.world_size()
        )
        size = {"short_side": self.short_side, "long_side": self.recipe.long_side}
        dataset, workers = DetectionTestDataset(self.val, **size), self.recipe.workers
        batch = batch if self.model.config.square_pad else 1
        return EpochLoader(dataset, order, batch=batch, workers=workers, drop_last=False, pin=pin, collate=collate)

    def probe(self, samples: int) -> Tensor:
        """Sum of the losses of blank pictures of the largest training size with some objects each."""
        device = next(self.model.parameters()).device
        if self.recipe.pipeline == "lsj":
            height = width = self.recipe.imgsz or _SQUARE
        else:
            height, width = _largest(self.recipe, self.short_side), self.recipe.long_side
        image = torch.zeros(3, height, width, dtype=torch.uint8, device=device)
        with _statistics_kept(self.model):
            _, losses = self.model([image] * samples, [_blank_target(height, width)] * samples, detect=False)
        return torch.stack(list(losses.values())).sum()

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:
        """Plain sum of all losses, float32 `[]`; not a number if the network's proposals are none."""
        try:
            _, losses = network(batch["image"], batch["targets"], detect=False)
        except FloatingPointError:
            # On every process the same path: the run then stops with the files of the batch.
            return torch.stack([p.sum() for p in network.parameters() if p.requires_grad]).sum() * torch.nan
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def outputs(self, network: nn.Module, batch: Batch) -> list[Detections]:
        """What is found, in pixels of the files."""
        return network(batch["image"], output_sizes=batch["size"])

    def validation(self, device: torch.device) -> DetectionValidation:
        """A fresh collection."""
        if self._truth is None:
            self._truth = self.val.ground_truth()
        return DetectionValidation(self.val, self._truth, finds_scored(self.model.config))

    def freeze(self) -> list[nn.Module]:
        """As the recipe says; see `freeze`."""
        return freeze(self.model, self.recipe)

    def bad_files(self, path: Path) -> BadFiles:
        """The list of unreadable files for training and validation."""
        return BadFiles(self.recipe.max_bad, len(self.train) + len(self.val), path, read_picture)

    def note_bad(self, bad_files: BadFiles, index: Tensor, bad: Tensor, split: str = "train") -> None:
        """Count the unreadable files of some samples."""
        bad_files.add(self.train if split == "train" else self.val, index, bad)

    def paths(self, index: list[int]) -> list[str]:
        """Training files by their index."""
        return [str(self.train.path(i)) for i in index]

    def write_split(self, folder: RunFolder) -> None:
        """Write val.txt, or compare with it; see `RunFolder.keep_split`."""
        folder.keep_split(self.val)

    def guessing(self) -> Guessing:
        """Boxes at random find nothing."""
        return Guessing(0.0, math.nan, len(self.val))

    def card(self, score: Mapping[str, Any]) -> dict[str, Any]:
        """Header of a checkpoint of this run."""
        return self.about() | {
            "task": self.name,
            "category_ids": list(self.data.category_ids),
            "data": str(Path(str(self.recipe.data)).absolute()),
            "recipe": dataclasses.asdict(self.recipe),
            "versions": library_versions(),
            "score": dict(score),
            "ema": self.recipe.ema > 0,
        }

    def about(self) -> dict[str, Any]:
        """Architecture, classes, name, licence and preprocessing of the network."""
        return {
            "classes": list(self.data.classes),
            "architecture": self.model.config.to_dict(),
            "model": self.model_name,
            "licence": self.licence,
            "preprocessing": {"short_side": self.short_side, "long_side": self.recipe.long_side},
        }

    def describe(self) -> list[str]:
        """Lines about data and norms, for the user."""
        sizes = ", ".join(f"{name} {len(table)}" for name, table in self.data.splits.items())
        objects = int(self.train.class_counts(len(self.data.classes)).sum())
        kind = "boxes and masks" if self.train.has_masks else "boxes and no masks: what it draws as masks means nothing"
        lines = [f"Data {self.data.root}: {len(self.data.classes)} classes, {sizes} images, {objects} objects, {kind}"]
        if self.left_out:
            lines.append(f"{self.left_out} training images hold no object and are left out of training")
        if not len(self.val.annotated()):
            lines.append(
                "No validation image holds an object: every score will be 0, and the first epoch's weights best"
            )
        return [*lines, *self.data.notes, *([self.norms] if self.norms else [])]


def open_detection_task(recipe: Recipe, about: Mapping[str, Any] | None = None) -> DetectionTask:
    """The task of a recipe whose data are annotated pictures; `about` as in `open_task`.

    Raises:
        UserError: if the data or the weights cannot be had or do not fit each other.
    """
    data = open_detection(str(recipe.data), seed=recipe.seed, val_fraction=recipe.val_fraction)
    torch.manual_seed(recipe.seed)
    if about is None:
        return DetectionTask(recipe, data, build_detector(recipe, SMALLEST, data.classes))
    if about["classes"] != list(data.classes):
        raise UserError(f"The classes of {recipe.data} or their order changed", "Restore them, or start a new run")
    from openmvit.detection.config import DetectorConfig
    from openmvit.detection.detector import Detector

    model = Detector(DetectorConfig.from_dict(about["architecture"]))
    return DetectionTask(recipe, data, Start(model, about["model"], about["licence"], about["preprocessing"]))


def augmentation(recipe: Recipe, short_side: int) -> DetectionAugmentation:
    """The training pipeline of a recipe.

    Raises:
        UserError: if imgsz is given, which only the square of `lsj` has.
    """
    r = recipe
    if r.imgsz is not None and r.pipeline != "lsj":
        raise UserError(
            f"imgsz is {r.imgsz} and pipeline is {r.pipeline}", "Give --sides, --short-side and --long-side instead"
        )
    smallest, largest = r.sides if r.pipeline == "multiscale" else (short_side, short_side)
    return DetectionAugmentation(
        kind=r.pipeline,
        short_sides=(*range(smallest, largest, _STEP), largest),
        long_side=r.long_side,
        crop_probability=r.crop_prob,
        crop_short_sides=r.crop_sides,
        crop_range=r.crop_range,
        jitter=r.scales,
        crop_size=r.imgsz or _SQUARE,
        grey_pad=r.grey_pad,
        flip=r.flip,
    )


def pictures_per_class(table: DetectionTable, num_classes: int) -> Tensor:
    """Pictures that show each class, int64 `[num_classes]`; what the federated loss draws classes by."""
    picture = np.repeat(np.arange(len(table)), np.diff(table.rows))[~table.crowd]
    pairs = np.unique(picture * num_classes + table.labels[~table.crowd])
    return torch.from_numpy(np.bincount(pairs % num_classes, minlength=num_classes))


def freeze(model: Detector, recipe: Recipe) -> list[nn.Module]:
    """Switch off the gradients of what the recipe freezes; returns the frozen modules, which stay in eval mode.

    `backbone` is the MViT with its output norms; `tune head` trains the predictors of classes, boxes and masks alone.

    Raises:
        UserError: if `freeze` is neither `backbone` nor a number of blocks, or contradicts `tune`.
    """
    trunk = model.backbone.model
    if recipe.freeze is None and recipe.tune == "all":
        return []
    if recipe.tune == "head":
        if recipe.freeze not in (None, "backbone"):
            raise UserError(f"tune head and freeze {recipe.freeze} are both given", "Give one of them")
        trained = {id(p) for p in model.classifier_parameters()}
        frozen = [model.backbone, model.neck, model.rpn, model.roi_heads.box_heads, model.roi_heads.mask_head]
    elif recipe.freeze == "backbone":
        own = {id(p) for p in model.backbone.parameters()}
        trained, frozen = {id(p) for p in model.parameters()} - own, [model.backbone]
    else:
        count = int(recipe.freeze) if recipe.freeze is not None and recipe.freeze.isdigit() else -1
        if not 0 <= count <= len(trunk.blocks):
            raise UserError(f"freeze is {recipe.freeze!r}", f"Accepted: backbone, or a number 0..{len(trunk.blocks)}")
        trained = {id(p) for n, p in model.named_parameters() if model.layer_id(n) > count}
        frozen = [trunk.patch_embed, *([trunk.norm_stem] if trunk.norm_stem is not None else []), *trunk.blocks[:count]]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return list(frozen)


def _synchronise(model: Detector, recipe: Recipe) -> str:
    """Batch norms of several processes share their statistics where that runs; what the user should know of it."""
    if processes.world_size() == 1 or model.config.head_norm != "bn":
        return ""
    if pick_device(recipe.device).type != "cuda":
        return "The batch norms of the heads are not synchronised between processes, which needs CUDA"
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return f"The batch norms of the heads are synchronised over {processes.world_size()} processes"


def _largest(recipe: Recipe, short_side: int) -> int:
    return recipe.sides[1] if recipe.pipeline == "multiscale" else short_side


def _blank_target(height: int, width: int) -> dict[str, Any]:
    """Objects of one size in a row, with the polygons of their boxes."""
    step, tall = width / _PROBED_OBJECTS, height / 2
    boxes = [(i * step, 0.0, (i + 1) * step, tall) for i in range(_PROBED_OBJECTS)]
    return {
        "boxes": torch.tensor(boxes),
        "labels": torch.zeros(_PROBED_OBJECTS, dtype=torch.int64),
        "masks": [[np.array([x0, y0, x1, y0, x1, y1, x0, y1])] for x0, y0, x1, y1 in boxes],
    }


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Blank pictures leave no trace in the statistics of batch norms."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        for name, value in model.named_buffers():
            value.copy_(before[name])
