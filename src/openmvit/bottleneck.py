"""Which side a training waits for: the clips that come off the disk, or the network."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openmvit import screen
from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.data.bench_videos import LoaderSpeed, bench_videos
from openmvit.data.clips import ClipSampling
from openmvit.data.stills import sampling_from
from openmvit.data.video_transforms import ClipTrainTransform
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.zoo import load_model

_SECONDS = 3.0
_DEFAULTS: dict[str, Any] = {"num_frames": 16, "stride": 4, "rule": "span", "imgsz": 224}
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelSpeed:
    """How fast a network takes clips.

    Args:
        name: what was measured.
        device: where.
        infer: clips per second of a forward pass.
        train: clips per second of a forward and backward pass.
    """

    name: str
    device: str
    infer: float
    train: float


@dataclass(frozen=True)
class DataBench:
    """Both sides.

    Args:
        loader: of one worker process.
        workers: worker processes that a training would have.
        model: None if no network was named.
    """

    loader: LoaderSpeed
    workers: int
    model: ModelSpeed | None

    @property
    def supply(self) -> float:
        """Clips per second of all workers, if each has a core to itself."""
        return self.loader.clips_per_second * max(self.workers, 1)

    def lines(self) -> list[str]:
        """The measurement as text; the last line is for programs."""
        lines = self.loader.lines()
        last = [f"clips_per_second={self.loader.clips_per_second:.2f}"]
        last += [f"{name}={share:.3f}" for name, share in self.loader.shares.items()]
        if self.model is not None:
            m = self.model
            slow = "loader" if self.supply < m.train else "model"
            lines.append(f"{m.name} on {m.device}: {m.infer:.2f} clips/s forward, {m.train:.2f} clips/s in training")
            needed = self.loader.workers_for(m.train)
            lines.append(
                f"{self.workers} workers give {self.supply:.1f} clips/s: training waits for the {slow}; "
                f"it needs {needed:.1f} workers (this machine has {os.cpu_count()} cores)"
            )
            last += [f"workers={self.workers}", f"supply={self.supply:.2f}", f"infer={m.infer:.2f}"]
            last += [f"train={m.train:.2f}", f"bottleneck={slow}"]
        return [*lines, "data bench " + " ".join(last)]


def bench_data(
    data: str | Path,
    model: str | None = None,
    *,
    sampling: tuple[int | None, int | None] = (None, None),
    imgsz: int | None = None,
    clips: int = 64,
    workers: int = 2,
    reader: str = "auto",
    compute: tuple[str, str, int | None] = ("auto", "off", None),
) -> DataBench:
    """Read random training clips with the default augmentation, and feed a network with noise of the same shape.

    Args:
        data: folder or list of videos, as for training.
        model: architecture (its weights are not needed), run or file; None measures the data alone.
        sampling: frames of a clip and stride; default: the model's, or 16 and 4.
        imgsz: side of the clip in pixels; default: the model's, or 224.
        clips: clips to read.
        workers: worker processes that a training would have.
        reader: auto, pyav or torchcodec.
        compute: device, precision (off, bf16, fp16) and clips per step (default: 1 on a CPU, else 8).
    Raises:
        UserError: if data, model or a value cannot be used.
    """
    device, amp, batch = compute
    for name, value in (("clips", clips), ("batch", 1 if batch is None else batch)):
        if value < 1:
            raise UserError(f"{name} is {value}", "Accepted: a whole number of at least 1")
    place = pick_device(device)
    network, known = (None, {}) if model is None else _network(model, sampling[0], imgsz)
    asked = {"num_frames": sampling[0], "stride": sampling[1], "imgsz": imgsz}
    how: dict[str, Any] = _DEFAULTS | known | {key: value for key, value in asked.items() if value is not None}
    frames, side = how["num_frames"], how["imgsz"]
    chosen = ClipSampling(frames, how["stride"], how["rule"])
    speed = bench_videos(data, chosen, ClipTrainTransform(side), clips=clips, reader=reader)
    if network is None or model is None:
        return DataBench(speed, workers, None)
    size = batch or (1 if place.type == "cpu" else 8)
    return DataBench(speed, workers, measure_model(network, model, (size, frames, side), place, amp))


def _network(model: str, frames: int | None, imgsz: int | None) -> tuple[MViT, dict[str, Any]]:
    """The network, and how its clips are made.

    Raises:
        UserError: if there is no such model, or it takes images.
    """
    if model in ARCHITECTURES and not Path(model).exists():
        config = model_config(model)
        if config.ndim == 3:
            config = model_config(model, num_frames=frames, img_size=imgsz)
        stride = re.search(r"_\d+x(\d+)$", model)
        network = MViT(config)
        known = {"stride": int(stride[1]) if stride else 4}
    else:
        network, card = load_model(model)
        known = {}
        if not isinstance(network, MViT):
            raise UserError(f"{model} is a detector", "Give a network for clips (see openmvit models '*x*')")
        if network.config.ndim == 3:
            found = sampling_from(card["preprocessing"])
            known = {"num_frames": found.num_frames, "stride": found.stride, "rule": found.rule}
            known["imgsz"] = card["preprocessing"]["imgsz"]
    size = network.config.input_size
    if network.config.ndim != 3:
        raise UserError(f"{model} takes images", "Give a network for clips (see openmvit models '*x*')")
    return network, {"num_frames": size[0], "imgsz": size[-1]} | known


def measure_model(
    network: MViT, name: str, shape: tuple[int, int, int], device: torch.device, amp: str = "off"
) -> ModelSpeed:
    """Time forward passes, and forward with backward passes, for some three seconds each after one of each.

    Args:
        name: what the result calls the network.
        shape: clips per step, frames, side in pixels.
        amp: off, bf16 or fp16.
    """
    batch, frames, side = shape
    network = network.to(device)
    x = torch.randn(batch, network.config.in_chans, frames, side, side, device=device)

    def precision() -> AbstractContextManager[object]:
        return nullcontext() if amp == "off" else torch.autocast(device.type, _HALF[amp])

    def infer() -> None:
        with torch.inference_mode(), precision():
            network(x)

    def train() -> None:
        with precision():
            network(x).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    screen.doing("timing the network")
    network.eval()
    infer_rate = batch / _seconds(infer, device)
    network.train()
    train_rate = batch / _seconds(train, device)
    return ModelSpeed(name, str(device), infer_rate, train_rate)


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Mean time of a step."""
    done, began = -1, 0.0
    while done < 1 or time.perf_counter() - began < _SECONDS:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        done += 1
        began = began or time.perf_counter()
    return (time.perf_counter() - began) / done
