"""What a kind of job is to the run: data, network, loss, score and card. Knows no engine and no kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openmvit.data.badfiles import BadFiles
from openmvit.training.diagnosis import Guessing
from openmvit.training.folder import RunFolder
from openmvit.training.layers import Network
from openmvit.training.loading import Batch, EpochLoader
from openmvit.training.presets import Facts
from openmvit.training.recipe import Recipe


class Validation(Protocol):
    """Collects the outputs of one validation."""

    def update(self, output: Any, batch: Batch) -> None:
        """Add what `Task.outputs` gave for a batch."""
        ...

    def result(self) -> dict[str, float]:
        """Figures over all processes, the watched metric among them. Every process must call it."""
        ...

    def one_class(self) -> str:
        """The class that nearly all samples get, though they are of several; empty if there is none."""
        ...

    def draw(self, folder: Path) -> None:
        """Write the task's own pictures of this validation into the run folder; one process calls it."""
        ...


class Task(Protocol):
    """One kind of job. Further kinds are further small classes."""

    name: str
    noun: str
    metric: str
    """The figure that decides which weights are best."""
    shown: tuple[str, ...]
    """Figures of a validation that the line of an epoch shows."""
    model_name: str
    recipe: Recipe

    @property
    def model(self) -> Network: ...

    def samples(self) -> int:
        """Training samples."""
        ...

    def facts(self) -> Facts:
        """What options are derived from."""
        ...

    def use(self, recipe: Recipe) -> None:
        """Take options that were derived since the task was opened; data, network and input size stay."""
        ...

    def train_loader(self, batch: int, pin: bool) -> EpochLoader: ...

    def val_loader(self, batch: int, pin: bool) -> EpochLoader: ...

    def probe(self, samples: int) -> Tensor:
        """Forward of so many blank samples of the training size, on the network's device, as training runs it."""
        ...

    def loss(self, network: nn.Module, batch: Batch, step: int) -> Tensor:
        """Mean loss of a batch; everything random outside the network depends on (seed, step, rank) alone."""
        ...

    def outputs(self, network: nn.Module, batch: Batch) -> Any:
        """What the network says of a validation batch, for `Validation.update`."""
        ...

    def validation(self, device: torch.device) -> Validation: ...

    def freeze(self) -> list[nn.Module]:
        """Switch off the gradients of what the recipe freezes; returns the modules that stay in eval mode."""
        ...

    def bad_files(self, path: Path) -> BadFiles: ...

    def note_bad(self, bad_files: BadFiles, index: Tensor, bad: Tensor, split: str = "train") -> None: ...

    def paths(self, index: list[int]) -> list[str]:
        """Training files by their index, for messages."""
        ...

    def write_split(self, folder: RunFolder) -> None:
        """Write val.txt, the validation files; on a resume, compare with it instead."""
        ...

    def guessing(self) -> Guessing:
        """What scores would be without looking at the samples."""
        ...

    def card(self, score: Mapping[str, Any]) -> dict[str, Any]: ...

    def about(self) -> dict[str, Any]:
        """Plain data that a resumed run needs to build the same network."""
        ...

    def describe(self) -> list[str]: ...
