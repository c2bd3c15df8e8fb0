"""The verb `export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from openmvit import screen
from openmvit.cli.arguments import Arguments
from openmvit.errors import UserError


@dataclass(frozen=True)
class ExportOptions:
    """Options of export."""

    format: Literal["onnx", "torch"] = "onnx"
    """onnx, or torch: a program for torch.export.load."""
    out: str | None = None
    """File to write; default: beside the weights, or NAME.onnx for a model's name."""
    imgsz: int | None = None
    """Side of the input in pixels; default: the model's. With a side that the strides do not divide (32 for most), the
    graph takes this size only."""
    fixed: bool = False
    """Take this size only; tables of positions are written as constants."""
    int8: bool = False
    """Matrix products in 8 bits; prints what that costs on the data."""
    data: str | None = None
    """With --int8: data to score before and after, as for val; default: the run's own."""
    split: Literal["val", "test", "train", "all"] = "val"
    """With --int8: part of the data to score."""
    workers: int = 2
    """With --int8: processes that load data."""


def export(given: Arguments) -> int:
    """Write a network as a graph; with `int8` score it before and after."""
    from openmvit.export.run import prepare, write

    options = given.options()
    scoring = {key: options.pop(key) for key in ("data", "split", "workers")}
    if not options["int8"] and (alone := next((key for key in scoring if key in given.flags), None)):
        raise UserError(f"--{alone} is for the scores of --int8", "Add --int8, or leave it out")
    target = given.positional["target"]
    with screen.listening():
        plan, path = prepare(target, **options)
        # Before the long part, and before there is a file: the data may be wrong or missing.
        before = _scores(target, scoring) if options["int8"] else {}
        done = write(plan, options["format"], path, options["int8"])
        screen.say(str(done))
        after = _scores(str(done.path), scoring) if options["int8"] else {}
    if options["int8"]:
        metric = "top1" if "top1" in before else "mAP"
        print(f"int8 {metric} fp32={before[metric]:.4f} int8={after[metric]:.4f} samples={after['samples']}")
    return 0


def _scores(target: str, scoring: dict[str, Any]) -> dict[str, Any]:
    """What the data say of a network or file."""
    from openmvit.validate import validate

    return validate(target, device="cpu", **scoring)
