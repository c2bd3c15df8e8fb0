"""Plain pickles of weights, as detectron2 writes them, read without running anything that is in them."""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
import torch._utils

from openmvit.convert.bounds import check_length
from openmvit.convert.torchfiles import check_torch_file
from openmvit.convert.unpickling import Reader, check_view, damaged, encode, no_bytes
from openmvit.errors import UserError

_CODES = {
    "f8": torch.float64, "f4": torch.float32, "f2": torch.float16, "i8": torch.int64, "i4": torch.int32,
    "i2": torch.int16, "i1": torch.int8, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


class _DType:
    """A kind of numbers; `kind` is None for those that no weights are made of."""

    def __init__(self, code: str, *_: Any) -> None:
        found = re.fullmatch(r"([<>|=]?)([a-zA-Z]\d*)", code)
        self.kind = _CODES.get(found[2]) if found else None
        self.big = bool(found) and found[1] == ">"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.big = state[1] == ">"

    def tensor(self, content: Any, shape: tuple[int, ...], fortran: bool = False) -> torch.Tensor | None:
        if self.kind is None:
            return None
        content = content.encode("latin1") if isinstance(content, str) else content
        if not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 16:
            raise pickle.UnpicklingError("it holds an array of no possible shape")
        if not isinstance(content, bytes | bytearray) or len(content) != prod(shape) * self.kind.itemsize:
            raise pickle.UnpicklingError(f"it holds an array of shape {list(shape)[:6]} and other numbers for it")
        if not content:
            return torch.empty(shape, dtype=self.kind)
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if self.big:
            flat = flat.view(-1, self.kind.itemsize).flip(1).reshape(-1)
        values = flat.view(self.kind)
        if fortran:
            return values.reshape(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
        return values.reshape(shape)


class _Array:
    """An array on its way to a tensor."""

    tensor: torch.Tensor | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("it holds an array of no known kind")
        self.tensor = dtype.tensor(content, tuple(shape), bool(fortran))


_NDARRAY = "numpy.ndarray"


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it makes something else than an array")
    return _Array()


def _frombuffer(content: Any, dtype: _DType, shape: Sequence[int], order: str, *_: Any) -> _Array:
    made = _Array()
    made.tensor = dtype.tensor(content, tuple(shape), order == "F")
    return made


def _scalar(dtype: _DType, content: Any = b"") -> Any:
    value = dtype.tensor(content, ())
    return None if value is None else value.item()


def _storage(content: bytes) -> Any:
    """What a tensor in a plain pickle keeps its numbers in."""
    check_torch_file("a tensor in it", io.BytesIO(content), len(content))
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("it holds a tensor without numbers")
    check_view(storage._size(), offset, size, stride)
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


class _Arrays(Reader):
    names: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): encode,
        ("__builtin__", "bytes"): no_bytes,
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _DType,
        **{
            (f"numpy.{core}.{place}", name): made
            for core in ("core", "_core")
            for place, name, made in (
                ("multiarray", "_reconstruct", _reconstruct),
                ("multiarray", "scalar", _scalar),
                ("numeric", "_frombuffer", _frombuffer),
            )
        },
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch.storage", "_load_from_bytes"): _storage,
    }
    states: ClassVar[tuple[type, ...]] = (OrderedDict, _Array, _DType)

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, size)
        self._left = 2 * size
        self.replace_steps(BUILD=self._build_within, REDUCE=self._reduce_within)

    def _build_within(self) -> None:
        self._build()
        self._count()

    def _reduce_within(self) -> None:
        self.load_reduce()
        self._count()

    def _count(self) -> None:
        """A pickle may use the same bytes again and again; what is made of them is counted each time."""
        made = self.stack[-1].tensor if isinstance(self.stack[-1], _Array) else self.stack[-1]
        if isinstance(made, torch.Tensor | torch.storage.TypedStorage):
            self._left -= made.nbytes if isinstance(made, torch.Tensor) else made._nbytes()
        if self._left < 0:
            raise pickle.UnpicklingError("its arrays take more bytes than it has")


def read_array_pickle(path: Path) -> dict[str, Any]:
    """Content of a pickle of arrays, tensors and plain data; arrays come as tensors.

    Raises:
        UserError: if the file is damaged, claims more than it holds, or names any class or function beyond those that
            rebuild arrays and tensors; none of it is run then.
    """
    size = check_length(path)
    try:
        with path.open("rb") as file:
            content = _Arrays(file, size).load()
    except pickle.UnpicklingError as error:
        raise UserError(f"Refused to read {path}: {error}", "Give a file of weights; nothing in it was run") from error
    except UserError as error:
        raise UserError(f"Refused to read {path}: {error.cause}", error.fix) from error
    except Exception as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no dictionary of weights", "Give a file of weights")
    return dict(_tensors(content))


def _tensors(content: dict[str, Any], inner: bool = False) -> Iterator[tuple[str, Any]]:
    """Arrays as tensors, in the dictionary and in those it holds."""
    for key, value in content.items():
        if isinstance(value, dict) and not inner:
            yield key, dict(_tensors(value, True))
        elif isinstance(value, _Array):
            yield key, value.tensor if value.tensor is not None else []
        else:
            yield key, value
