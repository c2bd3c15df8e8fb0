"""Recorded outputs of the authors' networks against ours: load one file, run it, compare element by element."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from openmvit.convert import config_from, to_native
from openmvit.model import MViT

FOLDER = Path(__file__).parents[1] / "golden" / "classification"
NAMES = (
    "image_v1",
    "image_v2_cls_token_abs_pos",
    "image_v2_expand_in_attention",
    "image_v2_expand_in_mlp",
    "image_v2_max_pool",
    "image_v2_no_relative_no_residual",
    "mmaction2_v2_video",
    "pytorchvideo_v1_video",
    "rev_image",
    "rev_video",
    "video_v1",
    "video_v2",
    "video_v2_action_detection",
)
TOLERANCE = 1e-5  # absolute and relative, per element


@dataclass(frozen=True)
class Comparison:
    """Largest difference of each output, and the largest share of what the tolerance allows.

    `ours` and `recorded` are the largest distances of the two from our network in float64: where they are alike, what
    separates the two is rounding.
    """

    name: str
    blocks: int
    worst: float
    share: float
    outputs: dict[str, float]
    ours: float
    recorded: float


def source_of(settings: dict) -> str:
    """Our name of the project that recorded a file."""
    names = {"SlowFast": "slowfast", "pytorchvideo": "pytorchvideo", "mmaction2": "mmaction2", "mvit": "mvit"}
    return next(ours for theirs, ours in names.items() if theirs in settings["source"])


def load(name: str) -> tuple[MViT, dict[str, Tensor]]:
    """The network with the recorded weights, and the whole recorded file."""
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    file = load_file(FOLDER / f"{name}.safetensors")
    source = source_of(settings)
    config = config_from(source, settings).replace(num_classes=7)
    state = {key.removeprefix("param/"): value for key, value in file.items() if key.startswith("param/")}
    model = MViT(config).eval()
    model.load_state_dict(to_native(source, config, state))
    return model, file


@torch.no_grad()
def outputs(model: MViT, x: Tensor) -> dict[str, Tensor]:
    """What the file records: tokens after each block (first sample, class row first), final norm, logits."""
    found: dict[str, Tensor] = {}
    grid, cls = model.stages(x)[-1] if model.config.reversible != "none" else model.embed(x)
    for i, block in enumerate(model.blocks if model.config.reversible == "none" else []):
        grid, cls = block(grid, cls)
        found[f"blocks.{i}"] = flat(grid, cls)[:1]
    found["norm"] = flat(model.norm(grid), None if cls is None else model.norm(cls))
    if cls is not None:
        found["class_token"], found["map"] = found["norm"][:, 0], model.norm(grid).movedim(-1, 1)
    found["logits"] = model(x)
    return found


def flat(x: Tensor, cls: Tensor | None) -> Tensor:
    """Grid and class token as the rows `[B, N, C]` that the authors keep."""
    rows = x.flatten(1, -2)
    return rows if cls is None else torch.cat([cls, rows], dim=1)


def compare(name: str) -> Comparison:
    """Run one file and compare all recorded outputs that the trunk has."""
    model, file = load(name)
    x = file["input/image"] if "input/image" in file else file["input/video"]
    found = outputs(model, x)
    if name == "video_v2_action_detection":  # its logits come from the RoI head
        found.pop("logits")
    exact = outputs(model.double(), x.double())
    differences, share, ours, recorded = {}, 0.0, 0.0, 0.0
    for key, value in found.items():
        if f"output/{key}" not in file:
            continue
        expected = file[f"output/{key}"]
        assert value.shape == expected.shape, (name, key, value.shape, expected.shape)
        delta = (value - expected).abs()
        differences[key] = float(delta.max())
        ours = max(ours, float((value - exact[key]).abs().max()))
        recorded = max(recorded, float((expected - exact[key]).abs().max()))
        share = max(share, float((delta / (TOLERANCE + TOLERANCE * expected.abs())).max()))
    blocks = sum(key.startswith("blocks.") for key in differences)
    return Comparison(name, blocks, max(differences.values()), share, differences, ours, recorded)
