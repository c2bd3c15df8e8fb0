"""Classification of images and clips as a task: loss, scores, card."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openmvit import processes, report
from openmvit.config import MViTConfig
from openmvit.data.badfiles import BadFiles
from openmvit.data.counter import mix
from openmvit.data.mixing import Mixing
from openmvit.data.sampler import PassSampler, ResumableSampler
from openmvit.data.samples import LabelledData
from openmvit.errors import UserError
from openmvit.evaluation.classification import ClassificationScores, MultiLabelScores
from openmvit.model import MViT
from openmvit.training.diagnosis import ONE_CLASS, Guessing
from openmvit.training.folder import RunFolder, library_versions
from openmvit.training.inputs import TaskInput
from openmvit.training.loading import Batch, EpochLoader
from openmvit.training.network import Start, build
from openmvit.training.optim import soft_cross_entropy
from openmvit.training.presets import Facts, updates_per_epoch
from openmvit.training.recipe import Recipe

DEFAULT_SCORED = 2000
"""Classes up to which the confusion matrix is drawn."""


class ClassificationTask:
    """Classification with one label (cross entropy, top-1) or several (binary cross entropy, mAP).

    Args:
        recipe: with its data, model, input and augmentation fields.
        data: the opened data.
        start: the network, with as many outputs as there are classes, and where it comes from.
        source: what samples are: images or clips.
    """

    def __init__(self, recipe: Recipe, data: LabelledData, start: Start[MViT], source: TaskInput) -> None:
        self.recipe, self.data, self.source = recipe, data, source
        self.model = start.model
        self.model_name, self.licence = start.name, start.licence
        self.name, self.noun = source.name, source.noun
        self.metric = "mAP" if data.multilabel else "top1"
        self.shown: tuple[str, ...] = ("val_loss", "top1", "top5", "mAP")
        self.use(recipe)

    def samples(self) -> int:
        """Training samples."""
        return len(self.data.splits["train"])

    def facts(self) -> Facts:
        """What options are derived from."""
        return Facts(
            task=self.name,
            samples=self.samples(),
            validation=len(self.data.splits["val"]),
            width=self.model.config.num_features,
            pretrained=self.recipe.weights != "none",
            processes=processes.world_size(),
        )

    def use(self, recipe: Recipe) -> None:
        """Take derived options: augmentation and mixing."""
        self.recipe = self.source.recipe = r = recipe
        self.mixing = Mixing(r.mixup, r.cutmix, r.mix_prob, r.mix_switch, r.label_smoothing, len(self.data.classes))

    def train_loader(self, batch: int, pin: bool) -> EpochLoader:
        """Shuffled, augmented training batches of this rank."""
        r, length = self.recipe, len(self.data.splits["train"])
        place = {"seed": r.seed, "rank": processes.rank(), "world_size": processes.world_size(), "repeats": r.repeats}
        if r.passes:
            total = batch * r.accumulate * processes.world_size()
            steps = updates_per_epoch(length * r.repeats, r.passes, total) * r.accumulate
            sampler: ResumableSampler = PassSampler(length, steps=steps, batch=batch, **place)
        else:
            sampler = ResumableSampler(length, shuffle=True, **place)
        dataset = self.source.train_dataset(self.data)
        return EpochLoader(dataset, sampler, batch=batch, workers=r.workers, drop_last=True, pin=pin)

    def val_loader(self, batch: int, pin: bool) -> EpochLoader:
        """Validation batches of this rank, in order, every sample once: its centre, the same in every epoch."""
        dataset, place = self.source.val_dataset(self.data), (processes.rank(), processes.world_size())
        sampler = ResumableSampler(
            len(self.data.splits["val"]), seed=self.recipe.seed, shuffle=False, rank=place[0], world_size=place[1]
        )
        # Nothing is kept for a backward pass, so that larger batches fit.
        return EpochLoader(dataset, sampler, batch=4 * batch, workers=self.recipe.workers, drop_last=False, pin=pin)

    def probe(self, samples: int) -> Tensor:
        """Logits of zeros of the training size."""
        device = next(self.model.parameters()).device
        blank = torch.zeros(1, self.model.config.in_chans, *self.source.size, device=device)
        return self.model(blank.expand(samples, *blank.shape[1:]))

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:
        """Mean loss of a mixed batch, float32 `[]`."""
        generator = torch.Generator().manual_seed(mix(self.recipe.seed, step, processes.rank()))
        images, targets = self.mixing(batch["image"], batch["label"], generator)
        logits = network(images)
        if self.data.multilabel:
            return F.binary_cross_entropy_with_logits(logits.float(), targets)
        return soft_cross_entropy(logits, targets)

    def outputs(self, network: nn.Module, batch: Batch) -> Tensor:
        """Logits `[B, num_classes]`."""
        return network(batch["image"])

    def validation(self, device: torch.device) -> ClassificationValidation:
        """A fresh collection."""
        return ClassificationValidation(self.data.classes, self.data.multilabel, device)

    def freeze(self) -> list[nn.Module]:
        """As the recipe says; see `freeze`."""
        return freeze(self.model, self.recipe)

    def bad_files(self, path: Path) -> BadFiles:
        """The list of unreadable files for training and validation."""
        total = len(self.data.splits["train"]) + len(self.data.splits["val"])
        return BadFiles(self.recipe.max_bad, total, path, lambda table, i: self.source.read(table.path(i)))

    def note_bad(self, bad_files: BadFiles, index: Tensor, bad: Tensor, split: str = "train") -> None:
        """Count the unreadable files of some samples."""
        bad_files.add(self.data.splits[split], index, bad)

    def paths(self, index: list[int]) -> list[str]:
        """Training files by their index."""
        return [str(self.data.splits["train"].path(i)) for i in index]

    def guessing(self) -> Guessing:
        """Scores of the answer that is the same for all samples: the most frequent class, or how frequent each is."""
        count = len(self.data.classes)
        train, val = (self.data.splits[name].class_counts(count) for name in ("train", "val"))
        samples, scored = (max(len(self.data.splits[name]), 1) for name in ("train", "val"))
        share = torch.from_numpy(train / samples).clamp(1e-9, 1 - 1e-9)
        if self.data.multilabel:
            entropy = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
            return Guessing(float((val / scored).mean()), float(entropy), scored)
        return Guessing(float(val[train.argmax()] / scored), float(-(share * share.log()).sum()), scored)

    def card(self, score: Mapping[str, Any]) -> dict[str, Any]:
        """Header of a checkpoint of this run."""
        return {
            "architecture": self.model.config.to_dict(),
            "model": self.model_name,
            "task": self.name,
            "classes": list(self.data.classes),
            "multilabel": self.data.multilabel,
            "preprocessing": self.source.preprocessing(),
            "data": str(Path(str(self.recipe.data)).absolute()),
            "recipe": dataclasses.asdict(self.recipe),
            "versions": library_versions(),
            "licence": self.licence,
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
            "preprocessing": self.source.preprocessing(),
        }

    def describe(self) -> list[str]:
        """Lines about the data, for the user."""
        sizes = ", ".join(f"{name} {len(table)}" for name, table in self.data.splits.items())
        kind = f" (several labels per {self.noun[:-1]})" if self.data.multilabel else ""
        return [
            f"Data {self.data.root}: {len(self.data.classes)} classes of {self.noun}{kind}, {sizes}",
            *self.data.notes,
        ]

    def write_split(self, folder: RunFolder) -> None:
        """Write val.txt, or compare with it; see `RunFolder.keep_split`."""
        folder.keep_split(self.data.splits["val"])


class ClassificationValidation:
    """Scores of one validation over all processes; samples with unreadable files are left out."""

    def __init__(self, classes: Sequence[str], multilabel: bool, device: torch.device) -> None:
        self._device, self._classes, count = device, classes, len(classes)
        self._scores = MultiLabelScores(count) if multilabel else ClassificationScores(count, device=device)
        self._sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add logits `[B, num_classes]`."""
        keep, labels = batch["bad"] == 0, batch["label"]
        if isinstance(self._scores, MultiLabelScores):
            loss = F.binary_cross_entropy_with_logits(output.float(), labels, reduction="none").mean(dim=1)
        else:
            loss = F.cross_entropy(output.float(), labels, reduction="none")
        self._scores.update(output, labels, keep)
        self._sums += torch.stack([loss[keep].sum(), keep.sum()]).to(self._sums.dtype)

    def result(self) -> dict[str, float]:
        """`val_loss` and the scores."""
        processes.total(self._sums)
        if isinstance(self._scores, MultiLabelScores):
            parts = processes.gather(self._scores.tensors())
            self._scores = MultiLabelScores(self._scores.num_classes)
            for scores, targets in parts:
                self._scores.update(scores, targets)
        else:
            for value in self._scores.sums.values():
                processes.total(value)
        loss, count = self._sums.tolist()
        return {"val_loss": loss / max(count, 1.0), **self._scores.compute()}

    def one_class(self) -> str:
        """See `Validation`."""
        confusion = None if isinstance(self._scores, MultiLabelScores) else self._scores.confusion
        if confusion is None or not confusion.sum():
            return ""
        guessed, true = (confusion.sum(dim=d) / confusion.sum() for d in (0, 1))
        one = float(guessed.max()) >= ONE_CLASS > float(true.max())
        return self._classes[int(guessed.argmax())] if one else ""

    def draw(self, folder: Path) -> None:
        """The confusion matrix, unless there are several labels or too many classes."""
        confusion = None if isinstance(self._scores, MultiLabelScores) else self._scores.confusion
        if confusion is not None and len(self._classes) <= DEFAULT_SCORED:
            report.plot_confusion(confusion, self._classes, folder / "confusion.png")


def open_classification(
    recipe: Recipe, kind: type[TaskInput], about: Mapping[str, Any] | None = None
) -> ClassificationTask:
    """The task of a recipe whose samples are of this kind; `about` as in `open_task`.

    Raises:
        UserError: if the data or the weights cannot be had or do not fit each other.
    """
    data = kind.open(recipe)
    torch.manual_seed(recipe.seed)
    if about is not None:
        if about["classes"] != list(data.classes):
            raise UserError(f"The classes of {recipe.data} or their order changed", "Restore them, or start a new run")
        model = MViT(MViTConfig.from_dict(about["architecture"]))
        start = Start(model, about["model"], about["licence"], about["preprocessing"])
    else:
        start = build(recipe, kind.smallest, data.classes)
    if start.model.config.ndim != kind.ndim:
        takes = "clips" if start.model.config.ndim == 3 else "images"
        raise UserError(
            f"{start.name} takes {takes} and {recipe.data} holds {kind.noun}", f"Choose a model for {kind.noun}"
        )
    return ClassificationTask(recipe, data, start, kind(recipe, start.model.config, start))


def freeze(model: MViT, recipe: Recipe) -> list[nn.Module]:
    """Switch off the gradients of what the recipe freezes; returns the frozen modules, which stay in eval mode.

    Raises:
        UserError: if `freeze` is neither `backbone` nor a number of blocks, or contradicts `tune`.
    """
    if recipe.freeze is None and recipe.tune == "all":
        return []
    if recipe.tune == "head" or recipe.freeze == "backbone":
        if recipe.freeze not in (None, "backbone"):
            raise UserError(f"tune head and freeze {recipe.freeze} are both given", "Give one of them")
        trained = {id(p) for p in model.classifier_parameters()}
        frozen = [module for name, module in model.named_children() if name != "head"]
    else:
        count = int(recipe.freeze) if recipe.freeze is not None and recipe.freeze.isdigit() else -1
        if not 0 <= count <= len(model.blocks):
            raise UserError(f"freeze is {recipe.freeze!r}", f"Accepted: backbone, or a number 0..{len(model.blocks)}")
        trained = {id(p) for n, p in model.named_parameters() if model.layer_id(n) > count}
        frozen = [m for n, m in model.named_children() if n in ("patch_embed", "norm_stem")]
        frozen += list(model.blocks[:count])
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return frozen
