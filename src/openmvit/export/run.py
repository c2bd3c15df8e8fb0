"""`export(target)`: load, trace, write, run again and compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openmvit.checkpoint import find
from openmvit.errors import UserError, did_you_mean
from openmvit.export.agreement import check_agreement
from openmvit.export.classifiers import plan_classifier
from openmvit.export.formats import SUFFIXES, open_file, trace, write_onnx, write_program
from openmvit.export.plan import Plan
from openmvit.export.quantise import quantise
from openmvit.model import MViT
from openmvit.zoo import load_model


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        path: the file.
        note: which sizes it takes.
        sizes: inputs at which it was compared with the network.
        worst: largest difference there, relative to the largest output.
    """

    path: Path
    note: str
    sizes: int
    worst: float

    def __str__(self) -> str:
        return f"{self.path}: {self.note}\nexport sizes={self.sizes} worst={self.worst:.0e}"


def export(
    target: str | Path,
    format: Literal["onnx", "torch"] = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    fixed: bool = False,
    int8: bool = False,
) -> Exported:
    """Write a run, file or released model as a graph, and compare that with the network on random inputs.

    Batch, height and width stay open, sides as multiples of 32, unless the network's own size is none.

    Args:
        format: `onnx`, or `torch` for a program of torch.export.
        out: file to write; default: beside the weights, or NAME.onnx for a model's name.
        imgsz: side of the input in pixels; default: that of the preprocessing.
        fixed: no other size than this, tables of positions written as constants.
        int8: matrix products in 8 bits, in a file NAME.int8.onnx; the comparison is that of the graph before.
    Raises:
        UserError: if the target cannot be loaded or traced, the file exists, or it does not agree with the network
            to 1e-4 of the largest output. No file is left then.
    """
    if format not in SUFFIXES:
        raise UserError(f"The format is {format!r}", did_you_mean(format, SUFFIXES))
    if int8 and format != "onnx":
        raise UserError("int8 is given and the format is torch", "Accepted with it: onnx")
    path = file_for(target, (".int8" if int8 else "") + SUFFIXES[format], out)
    network, card = load_model(target)
    if not isinstance(network, MViT):
        from openmvit.export.detectors import plan_detector

        for name, given in (("int8", int8), ("imgsz", imgsz is not None), ("fixed", fixed)):
            if given:
                raise UserError(f"{name} is given and {target} is a detector", "Accepted for classifiers")
        return write(plan_detector(network, card), format, path)
    return write(plan_classifier(network, card, imgsz, fixed), format, path, int8)


def file_for(target: str | Path, ending: str, out: str | Path | None) -> Path:
    """The file to write.

    Raises:
        UserError: if it exists, or `out` has another suffix than the ending.
    """
    suffix = Path(ending).suffix or ending
    if out is not None:
        path = Path(out)
    elif Path(target).exists():
        path = find(target).with_suffix(ending)
    else:
        path = Path(Path(target).name + ending)
    if path.suffix != suffix:
        raise UserError(f"{path} would be a {suffix} file under another name", f"End the name with {suffix}")
    if path.exists():
        raise UserError(f"{path} exists", "Give another file with --out")
    return path


def write(plan: Plan, form: str, path: Path, int8: bool = False) -> Exported:
    """Write the file under another name, compare, and rename it once it agrees.

    Raises:
        UserError: see `export`.
    """
    part, small = (path.with_name(f"{path.stem}.{word}{path.suffix}") for word in ("part", "part8"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (write_program if form == "torch" else write_onnx)(plan, trace(plan), part)
        worst = check_agreement(plan, open_file(part, form))
        if int8:
            card = plan.card | {"export": plan.card["export"] | {"precision": "int8"}}
            quantise(part, small, card)
            small.replace(part)
        part.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror})", "Choose another file with --out") from error
    finally:
        part.unlink(missing_ok=True)
        small.unlink(missing_ok=True)
    return Exported(path, plan.note, len(plan.probes), worst)
