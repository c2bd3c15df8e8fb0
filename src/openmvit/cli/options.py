"""Options of the verbs as dataclasses: names, types, defaults and help. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openmvit.training.recipe import Recipe


@dataclass(frozen=True)
class NoOptions:
    """This verb has no options."""


@dataclass(frozen=True)
class DemoOptions:
    """Options of demo."""

    out: str = "runs/demo"
    """Folder for the data, the run and the pictures."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class TrainOptions(Recipe):
    """Options of train: every field of a recipe; a flag wins over the recipe."""

    config: str | None = None
    """Recipe file whose values win over RECIPE."""


@dataclass(frozen=True)
class ValOptions:
    """Options of val."""

    data: str | None = None
    """Data as for training; default: the run's own."""
    split: Literal["val", "test", "train", "all"] = "val"
    """Part of the data to score; `all` takes every sample."""
    imgsz: int | None = None
    """Side of the test image in pixels; default: the model's."""
    crop_ratio: float | None = None
    """0.875: resize to int(imgsz / 0.875), centre crop. 0: whole image squashed. Default: the model's."""
    clips: int | None = None
    """Clips per video, spread evenly; default: the model's protocol."""
    crops: int | None = None
    """Crops per clip, 1 (centre) or 3 along the longer side; default: the model's protocol."""
    batch: int | None = None
    """Images or clips per step; default: 32 images, 8 clips."""
    workers: int = 2
    """Processes that load data; 0 loads in the main process."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    json: str | None = None
    """File for all results as JSON."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of predict."""

    top: int = 5
    """Classes to give for every image."""
    batch: int = 16
    """Images per step."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    json: str | None = None
    """File for the predictions as JSON."""
    csv: str | None = None
    """File for the predictions as CSV."""
    out: str | None = None
    """Folder for the images with their label drawn in."""


@dataclass(frozen=True)
class ConvertOptions:
    """Options of convert."""

    to: str | None = None
    """File to write; default: the same name with .safetensors."""
    model: str | None = None
    """Architecture; default: found by the tensors in the file."""


@dataclass(frozen=True)
class JsonOption:
    """Options of models, info and doctor."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class DataOptions:
    """Options of data."""

    val_fraction: float = 0.1
    """Share of each class held out when the data has no validation split."""
    seed: int = 0
    """Seed of that split."""
    workers: int = 2
    """Processes that decode."""
    json: bool = False
    """Print JSON instead of text."""
