"""`export(target)`: load, trace, write, run again and compare."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from openmvit import screen
from openmvit.checkpoint import find
from openmvit.errors import UserError, did_you_mean
from openmvit.export.agreement import check_agreement
from openmvit.export.classifiers import plan_classifier
from openmvit.export.formats import SUFFIXES, open_file, require_libraries, trace, write_onnx, write_program
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
        int8: the same of the file with 8 bits; None without.
    """

    path: Path
    note: str
    sizes: int
    worst: float
    int8: float | None = None

    def __str__(self) -> str:
        small = "" if self.int8 is None else f" int8={self.int8:.0e}"
        return f"{self.path}: {self.note}\nexport sizes={self.sizes} worst={self.worst:.0e}{small}"


def export(
    target: str | Path,
    format: Literal["onnx", "torch"] = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    fixed: bool = False,
    int8: bool = False,
) -> Exported:
    """Write a run, file of weights or released model as a graph, and compare that with the network on random inputs.

    Batch, height and width stay open, sides as multiples of 32, unless the network's own size is none.

    Args:
        format: `onnx`, or `torch` for a program of torch.export.
        out: file to write; default: beside the weights, or NAME.onnx for a model's name.
        imgsz: side of the input in pixels; default: that of the preprocessing.
        fixed: no other size than this, tables of positions written as constants.
        int8: matrix products in 8 bits, in a file NAME.int8.onnx; compared too, where any difference that is a
            number is accepted.
    Raises:
        UserError: if the target cannot be loaded or traced, the file exists, or it does not agree with the network
            to 1e-4 of the largest output. No file is left then.
    """
    plan, path = prepare(target, format, out, imgsz=imgsz, fixed=fixed, int8=int8)
    return write(plan, format, path, int8)


def prepare(
    target: str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    imgsz: int | None = None,
    fixed: bool = False,
    int8: bool = False,
) -> tuple[Plan, Path]:
    """All of `export` before the long part: what will be traced, and the file to write.

    Raises:
        UserError: see `export`; or if the file cannot be written there.
    """
    if format not in SUFFIXES:
        raise UserError(f"The format is {format!r}", did_you_mean(format, SUFFIXES))
    if int8 and format != "onnx":
        raise UserError("int8 is given and the format is torch", "Accepted with it: onnx")
    if Path(target).suffix in SUFFIXES.values():
        raise UserError(f"{target} is an exported graph already", "Name the run or the weights that it was made of")
    if format == "onnx":
        require_libraries(int8)
    path = file_for(target, (".int8" if int8 else "") + SUFFIXES[format], out)
    network, card = load_model(target)
    with _unfinished(path):
        pass
    if not isinstance(network, MViT):
        from openmvit.export.detectors import plan_detector

        for name, given in (("int8", int8), ("imgsz", imgsz is not None), ("fixed", fixed)):
            if given:
                raise UserError(f"{name} is given and {target} is a detector", "Accepted for classifiers")
        return plan_detector(network, card), path
    return plan_classifier(network, card, imgsz, fixed, format), path


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
    if os.path.lexists(path):  # of a name that is too long, Path.exists raises
        raise UserError(f"{path} exists", "Give another file with --out")
    return path


def write(plan: Plan, form: str, path: Path, int8: bool = False) -> Exported:
    """Write the file elsewhere in its folder, compare, and move it to its place once it agrees.

    Raises:
        UserError: see `export`.
    """
    with _unfinished(path) as part:
        screen.doing("tracing the network", long=True)
        program = trace(plan)
        screen.doing(f"writing {path}", long=True)
        (write_program if form == "torch" else write_onnx)(plan, program, part)
        worst, lost = check_agreement(plan, open_file(part, form)), None
        if int8:
            screen.doing("writing it again in 8 bits", long=True)
            small = part.with_suffix(".int8")  # of the same length, as a name may be as long as can be
            quantise(part, small, plan.card | {"export": plan.card["export"] | {"precision": "int8"}})
            lost, part = check_agreement(plan, open_file(small, form), int8=True), small
        part.replace(path)
    return Exported(path, plan.note, len(plan.probes), worst, lost)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty file of the same name in a new folder beside it, where nobody has files; the folder goes afterwards.

    Raises:
        UserError: if there can be no such file, or the disk refuses what is written inside the block.
    """
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=path.parent, ignore_cleanup_errors=True) as folder:
            part = Path(folder, path.name)
            part.touch()
            yield part
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror or error})", "Choose another file with --out") from error
