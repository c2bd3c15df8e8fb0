"""An exported ONNX file as a network: run by ONNX Runtime, told what it is by the card in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from openmvit.checkpoint import HEADER, architecture_of
from openmvit.config import MViTConfig
from openmvit.convert.bounds import check_card_text, check_length
from openmvit.convert.cards import METADATA, check_classes
from openmvit.errors import UserError
from openmvit.exported.card import check_classifier, check_exported_card

INSTALL = "Install it: pip install 'openmvit[export]'"
SUFFIX = ".onnx"


def open_session(path: str | Path, sparing: bool = False) -> Any:
    """A session of ONNX Runtime on the CPU, with as many threads as torch has.

    Args:
        sparing: give memory back after each operator instead of keeping it: two thirds of it for a little time.
    Raises:
        UserError: if the runtime is not installed, or the file is damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("Running an ONNX file needs onnxruntime", INSTALL) from error
    check_length(Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = not sparing
    options.log_severity_level = 4  # what it reports, it raises too
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        words = " ".join(str(error).split())[:160]
        raise UserError(f"Cannot read {path} ({words})", "The file is damaged; export it again") from error


class ExportedNetwork(nn.Module):
    """A graph that runs on the CPU and takes and gives tensors.

    Args:
        path: of the file.
        session: of ONNX Runtime.
        card: what the file says of itself.
    """

    def __init__(self, path: Path, session: Any, card: dict[str, Any]) -> None:
        super().__init__()
        self.path, self.card, self._session = path, card, session
        self.inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
        """Shape of every input by name; an open axis has a word."""
        self.eval()

    def on(self, device: str) -> Self:
        """Itself, if the user's word for a device is `auto` or `cpu`.

        Raises:
            UserError: if it is another.
        """
        if device not in ("auto", "cpu"):
            raise UserError(f"{self.path} runs on the CPU and the device is {device}", "Leave it out, or name the run")
        return self

    def run(self, *inputs: Tensor) -> list[Tensor]:
        """The graph's outputs.

        Raises:
            UserError: if an input has a size that the graph does not take.
        """
        fed = dict(zip(self.inputs, inputs, strict=True))
        for name, x in fed.items():
            self._check(x, self.inputs[name])
        found = self._session.run(None, {n: x.detach().float().cpu().numpy() for n, x in fed.items()})
        return [torch.from_numpy(value) for value in found]

    def _check(self, x: Tensor, wanted: tuple[Any, ...]) -> None:
        shown = " x ".join(map(str, x.shape))
        fits = x.dim() == len(wanted) and all(
            not isinstance(n, int) or n == own for n, own in zip(wanted, x.shape, strict=True)
        )
        if not fits:
            taken = " x ".join(map(str, wanted))
            raise UserError(f"{self.path} takes {taken} and got {shown}", "Export it for that size: --imgsz")
        step = self.card.get("export", {}).get("multiple", 0)
        if step and x.dim() > 2 and any(n % step for n in x.shape[-2:]):
            raise UserError(
                f"{self.path} takes sides that are multiples of {step} and got {shown}",
                "Choose another --imgsz, or export it for that size: --fixed --imgsz",
            )


class ExportedClassifier(ExportedNetwork):
    """A classifier: `[B, C, *size]` -> logits `[B, num_classes]`.

    Raises:
        UserError: if the card names no architecture, or one that is not that of the graph.
    """

    def __init__(self, path: Path, session: Any, card: dict[str, Any]) -> None:
        super().__init__(path, session, card)
        self.config = MViTConfig.from_dict(architecture_of(card, path))
        check_classifier(path, session, self.config)
        check_classes(path, card, self.config.num_classes, METADATA)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)[0]


def open_exported(path: Path) -> tuple[Any, dict[str, Any]]:
    """Session and card of an ONNX file that `openmvit export` wrote.

    Raises:
        UserError: if it is damaged, has no card, or one with a value that cannot be.
    """
    session = open_session(path)
    text = session.get_modelmeta().custom_metadata_map.get(HEADER)
    if text is None:
        raise UserError(f"{path} does not say which network it holds", "Write it with openmvit export")
    check_card_text(path, text)
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The metadata of {path} is no card", METADATA.damaged) from error
    return session, check_exported_card(path, card)
