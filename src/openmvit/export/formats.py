"""Files of the two formats: how a plan becomes one, and how one is run again."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from openmvit.checkpoint import HEADER
from openmvit.convert.cards import FORMAT
from openmvit.errors import UserError
from openmvit.export.plan import Inputs, Outputs, Plan, as_outputs
from openmvit.exported import INSTALL, open_session

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_LIMIT = 2**31 - 2**24
"""Bytes of the largest message of protobuf, less room for the graph."""
_FOLDED = 2**26
"""Elements of the largest constant that is computed at export."""
_OBLIVIOUS = "backed_size_oblivious"
"""A private switch of torch; a test names the releases that it was tried on."""
Runner = Callable[[Inputs], Outputs]


def require_libraries(int8: bool) -> None:
    """Look for what writing and running ONNX files needs, which would else be missed minutes later.

    Raises:
        UserError: naming what is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401

        if int8:
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(f"Writing ONNX needs {error.name or error}", INSTALL) from error


@torch.no_grad()
def trace(plan: Plan) -> ExportedProgram:
    """The program of a plan.

    Raises:
        UserError: if the network decides something by its input's size, so that no program has it open.
    """
    try:
        with _quiet(), _any_size(plan.any_size):
            return torch.export.export(plan.module, plan.inputs, dynamic_shapes=plan.dynamic, strict=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "Try --fixed" if any(len(axes) > 1 for axes in plan.dynamic) else "It has no export"
        raise UserError(f"This network cannot be traced ({first[:200]})", fix) from error


def write_program(plan: Plan, program: ExportedProgram, path: Path) -> None:
    """A file for `torch.export.load`; the card is its extra file `openmvit`.

    Raises:
        OSError: if the file cannot be written.
    """
    # Into memory first: torch ends the whole process where a file takes no more.
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content, extra_files={HEADER: card_text(plan.card)})
    path.write_bytes(content.getbuffer())


def write_onnx(plan: Plan, program: ExportedProgram, path: Path) -> None:
    """One ONNX file with weights inside; the card is its metadata `openmvit`.

    Raises:
        UserError: if the weights are more than one file can hold.
        OSError: if the file cannot be written.
    """
    import onnx
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > _LIMIT:
        raise UserError(
            f"The weights have {size / 2**30:.1f} GiB and one ONNX file holds 2", "Export with --format torch"
        )
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    options |= {"input_names": list(plan.names[0]), "output_names": list(plan.names[1])}
    if plan.translations is not None:
        options["custom_translation_table"] = plan.translations()
    with _quiet(), _any_size(plan.any_size):
        made = torch.onnx.export(program, (), None, **options)
        assert made is not None
        # The exporter folds small constants only, and a product with a part of a matrix would stay in 32 bits.
        fold_constants(made.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
        remove_unused_nodes(made.model)
    model = made.model_proto
    # What the exporter says of shapes inside the graph is in symbols without meaning, and in the way of quantisation.
    del model.graph.value_info[:]
    for values, axes in ((model.graph.input, plan.axes[0]), (model.graph.output, plan.axes[1])):
        for value, named in zip(values, axes, strict=True):
            for axis, name in named.items():
                value.type.tensor_type.shape.dim[axis].dim_param = name
    write_card(model, plan.card)
    onnx.save(model, str(path))


def write_card(model: Any, card: dict[str, Any]) -> None:
    """Put a card in the metadata of an ONNX model, in place of the one that is there."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != HEADER]
    del model.metadata_props[:]
    for key, value in [*kept, (HEADER, card_text(card))]:
        model.metadata_props.add(key=key, value=value)


def card_text(card: dict[str, Any]) -> str:
    """A card as the text that stands in a file."""
    return json.dumps({"format": FORMAT, **card})


def open_file(path: Path, form: str) -> Runner:
    """The written file as a function of its inputs."""
    if form == "torch":
        with torch.no_grad():
            module = torch.export.load(path).module()
        return lambda inputs: as_outputs(module(*inputs))
    session = open_session(path, sparing=True)  # the network itself is in memory too
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Inputs) -> Outputs:
        found = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
        return [torch.from_numpy(value) for value in found]

    return run


@contextlib.contextmanager
def _any_size(wanted: bool) -> Iterator[None]:
    """Open sizes are never compared with 1. torch has no public name for it: where it goes, sizes are as they were."""
    from torch.fx.experimental import _config

    before = getattr(_config, _OBLIVIOUS, None)
    if not wanted or before is None:
        yield
        return
    setattr(_config, _OBLIVIOUS, True)
    try:
        yield
    finally:
        setattr(_config, _OBLIVIOUS, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's talk of its own progress, which goes to every stream."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)
