"""Pickles of arrays, as detectron2 writes them: read without running anything that is in the file."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openmvit.errors import UserError


def _storage(content: bytes) -> Any:
    """What a tensor in a plain pickle keeps its numbers in; its own reader would run code."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How old pickles spell bytes."""
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.multiarray", name): getattr(np._core.multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("_codecs", "encode"): _encode,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        found = _ALLOWED.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")
        return found


def read_array_pickle(path: Path) -> dict[str, Any]:
    """Content of a pickle of arrays, tensors and plain data; arrays come as tensors.

    Raises:
        UserError: if the file is damaged, or names any class or function beyond those that rebuild arrays and
            tensors; none of it is run then.
    """
    try:
        with path.open("rb") as file:
            content = _Reader(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(f"Refused to read {path}: {error}", "Give a file of weights; nothing in it was run") from error
    except Exception as error:
        raise UserError(f"Cannot read {path} ({type(error).__name__}: {error})", "The file is damaged") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of weights", "Give a file of weights")
    return _tensors(content)


def _tensors(content: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors with memory of their own, at any depth of dictionaries."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found[key] = _tensors(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[key] = torch.from_numpy(np.array(value))
        else:
            found[key] = value
    return found
