"""What is compared: the options of one comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from openmvit.architectures import model_config
from openmvit.benchmark.peers import Peer, default_package, find_peer
from openmvit.counting import count_classifier
from openmvit.errors import UserError, did_you_mean

CHOICES = {
    "precision": ("fp32", "bf16"),
    "mode": ("eager", "best"),
    "step": ("infer", "train"),
    "device": ("auto", "cpu", "cuda"),
    "clock": ("wall", "processor"),
}
BATCHES = {2: 8, 3: 1}
"""Axes of a network -> inputs per step where none are given: 8 images, 1 clip."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: our network.
        against: a package that has the same network, or `timm:NETWORK` for another one.
        batch: inputs per step.
        precision: bf16 is autocast on both sides; in mode `best` a side may hold its weights in bf16 instead.
        mode: `best` lets each side take its fastest variant (`steps.variants`).
        step: `train` is forward, cross entropy, backward and update.
        pairs: how often each side is timed.
        clock: wall time, or time of the processor.
        without: start of the name of variants that are not tried in mode `best`, such as `max-autotune`, which takes
            minutes to compile.
        switch: also time both sides with oneDNN for the fp32 products of the whole process.
    """

    name: str
    against: str
    batch: int
    precision: str = "fp32"
    mode: str = "eager"
    step: str = "infer"
    pairs: int = 15
    device: str = "auto"
    clock: str = "wall"
    without: str = ""
    switch: bool = False

    def __post_init__(self) -> None:
        for field, accepted in CHOICES.items():
            if (value := getattr(self, field)) not in accepted:
                raise UserError(f"--{field} is {value!r}", did_you_mean(str(value), accepted))
        _ = self.peer
        if self.batch < 1 or self.pairs < 3:
            raise UserError(f"--batch is {self.batch}, --pairs is {self.pairs}", "Give at least 1 and at least 3")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is 'cuda' and there is no CUDA device", "Leave --device out")
        if self.without and "eager".startswith(self.without[:5]):
            raise UserError(f"--without is {self.without!r}", "The eager variants are always tried; name another")
        if self.clock == "processor" and (self.on.type != "cpu" or torch.get_num_threads() > 1):
            # The waiting of one thread for another counts as work.
            raise UserError("--clock is 'processor', which is for one CPU thread", "Set OMP_NUM_THREADS=1")
        if self.switch and (self.on.type != "cpu" or self.mode != "eager"):
            raise UserError("--switch is for --mode eager on a CPU", "Leave one of the two out")

    @property
    def peer(self) -> Peer:
        """The other side."""
        return find_peer(self.name, self.against)

    @property
    def on(self) -> torch.device:
        """The device of the run; `auto` is CUDA where there is one."""
        cuda = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if cuda else "cpu")

    @property
    def unit(self) -> str:
        """What a batch consists of."""
        return "images" if model_config(self.name).ndim == 2 else "clips"

    @property
    def forwards(self) -> int:
        """A training step costs as many forwards per input, by convention 3."""
        return self.batch * (3 if self.step == "train" else 1)

    @property
    def operations(self) -> float:
        """Arithmetic of one step of ours at 2 per multiply-add, counted as the papers do."""
        return 2.0 * count_classifier(model_config(self.name)).total.operations * self.forwards


def make_case(name: str, **options: Any) -> Case:
    """A comparison where options that are not given (or None) have their defaults.

    Raises:
        UserError: if the network is unknown or an option cannot be used.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if "against" in given:
        find_peer(name, given["against"])
    config = model_config(name)
    return Case(name, **{"against": default_package(name), "batch": BATCHES[config.ndim], **given})
