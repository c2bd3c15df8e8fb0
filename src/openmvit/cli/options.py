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
    row: str | None = None
    """Row of the paper's table that RECIPE is, such as ablation/attention, which lists its rows without this."""
    quick: bool = False
    """Train that table, or its row, in small on data that the package brings: three seeds, minutes on two cores."""


@dataclass(frozen=True)
class ValOptions:
    """Options of val."""

    data: str | None = None
    """Data as for training; default: the run's own."""
    split: Literal["val", "test", "train", "all"] = "val"
    """Part of the data to score; `all` takes every sample."""
    imgsz: int | None = None
    """Side of the test image in pixels, for detectors the shorter one; default: the model's."""
    crop_ratio: float | None = None
    """0.875: resize to int(imgsz / 0.875), centre crop. 0: whole image squashed. Default: the model's."""
    clips: int | None = None
    """Clips per video, spread evenly; default: the model's protocol."""
    crops: int | None = None
    """Crops per clip, 1 (centre) or 3 along the longer side; default: the model's protocol."""
    tta: bool = False
    """Detectors: every picture at nine sizes and mirrored, joined; about 40 times the work."""
    soft_nms: Literal["none", "linear", "gaussian"] | None = None
    """Detectors: lower the scores of overlapping boxes instead of dropping them; default: as the model says."""
    batch: int | None = None
    """Images or clips per step; default: 32 images, 8 clips, 1 for detectors, which see the padding of larger ones."""
    workers: int = 2
    """Processes that load data; 0 loads in the main process."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    out: str | None = None
    """Detectors: folder for COCO results (results.json), precision-recall curves and a sheet of sample pictures."""
    json: str | None = None
    """Print JSON instead of the table; with a name FILE.json, write it there as well as the table here."""


@dataclass(frozen=True)
class PredictOptions:
    """Options of predict."""

    top: int = 5
    """Classes to give for every file and window."""
    batch: int | None = None
    """Images or clips per step; default: 16 images, 4 clips, 1 for detectors, which see the padding of larger ones."""
    score: float = 0.5
    """Detectors: give objects with a higher score only, 0..1."""
    soft_nms: Literal["none", "linear", "gaussian"] | None = None
    """Detectors: lower the scores of overlapping boxes instead of dropping them; default: as the model says."""
    tta: bool = False
    """Detectors: every picture at nine sizes and mirrored, joined; about 40 times the work."""
    timeline: bool = False
    """Follow short videos by sliding windows too; those longer than ten clips, cameras and live streams always are."""
    hop: float | None = None
    """Seconds from one window to the next, or for detectors one frame; default: half a window, every frame."""
    seconds: float | None = None
    """When to stop watching a camera or live stream; default: at Ctrl-C."""
    classes: str | None = None
    """File with the class names, one per line; default: those that are known of the network."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    verbose: bool = False
    """Detectors: list every object with its score, not how many there are of each class."""
    json: str | None = None
    """Print JSON instead of the table; with a name FILE.json, write it there as well as the table here."""
    csv: str | None = None
    """File for the predictions as CSV."""
    out: str | None = None
    """Folder for the images and videos with their labels or objects drawn in, for the timelines of long videos as CSV,
    and for what a detector found as COCO JSON."""


@dataclass(frozen=True)
class ConvertOptions:
    """Options of convert."""

    to: str | None = None
    """File to write; default: the same name with .safetensors."""
    model: str | None = None
    """Architecture; default: found by the tensors in the file."""
    classes: str | None = None
    """File with the class names, one per line; default: those that are known of the file."""


@dataclass(frozen=True)
class JsonOption:
    """Options of models and doctor."""

    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class InfoOptions(JsonOption):
    """Options of info."""

    ops: bool = False
    """Show operations instead: multiply-adds of every block for one input."""
    shapes: bool = False
    """Show the shapes that go through every block for one input: in, pooled queries and keys, out."""
    imgsz: int | None = None
    """With --ops or --shapes: side of the square input, pixels; default: its own, 800 x 1280 for detectors."""
    frames: int | None = None
    """With --ops or --shapes: frames of the clip; default: the network's own."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of data check."""

    task: Literal["auto", "image", "video", "detection"] = "auto"
    """What the data are for; `auto` reads it off the files."""
    val_fraction: float = 0.1
    """Share of each class held out when the data has no validation split."""
    seed: int = 0
    """Seed of that split."""
    workers: int = 2
    """Processes that decode."""
    json: bool = False
    """Print JSON instead of text."""


@dataclass(frozen=True)
class BenchOptions:
    """Options of data bench."""

    model: str | None = None
    """Architecture, run or file that the clips are for; its speed is measured too."""
    frames: int | None = None
    """Frames of a clip; default: the model's, or 16."""
    stride: int | None = None
    """Frames of a 30 fps video from one chosen frame to the next; default: the model's, or 4."""
    imgsz: int | None = None
    """Side of the clip in pixels; default: the model's, or 224."""
    clips: int = 64
    """Clips to read."""
    workers: int = 2
    """Processes that would load data in training."""
    reader: Literal["auto", "pyav", "torchcodec"] = "auto"
    """What decodes."""
    device: str = "auto"
    """auto, cpu, mps, cuda, cuda:N."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision of the model."""
    batch: int | None = None
    """Clips per step of the model; default: 1 on a CPU, else 8."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options of data prepare."""

    out: str | None = None
    """Folder to write, outside of DIR."""
    short_side: int = 256
    """Largest short side in pixels; smaller videos keep their size."""
    workers: int = 2
    """Processes that encode."""
