"""The machine that a pickle is a program for, without the instructions that could hurt."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import IO, Any, ClassVar

from openmvit.errors import UserError

_OPS = 600_000
"""Steps of a pickle; the largest network with its optimizer takes half of them."""
_REFUSED = ("ADDITEMS", "FROZENSET", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "INST", "OBJ", "NEWOBJ_EX")
_PLAIN_KEYS = (str, bytes, int, float, type(None))


class _Steps(dict[int, Any]):
    """The steps that a pickle may take, counted."""

    left = _OPS

    def __getitem__(self, op: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it takes more than {_OPS} steps")
        return super().__getitem__(op)


class _Limited:
    """A file that never gives, and never makes room for, more bytes than it has."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file, self._left = file, left

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self._left:
            raise pickle.UnpicklingError("it claims more bytes than it has")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


# The one in Python: its instructions can be replaced, and none of them makes room by a number alone.
_Machine: Any = pickle._Unpickler


class Reader(_Machine):
    """An unpickler that knows only `names`, never makes room by a number in the file, and stops after so many steps."""

    names: ClassVar[dict[tuple[str, str], Any]] = {}
    states: ClassVar[tuple[type, ...]] = (OrderedDict,)
    """Kinds of objects that may be given a state."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(_Limited(file, size), encoding="latin1")
        self.dispatch = _Steps(_Machine.dispatch)
        self.replace_steps(**dict.fromkeys(_REFUSED, self._refuse))
        self.replace_steps(SETITEM=self._setitem, SETITEMS=self._setitems, DICT=self._dict)
        self.replace_steps(BUILD=self._build, BYTEARRAY8=self._bytes8)

    def replace_steps(self, **does: Callable[[], None]) -> None:
        """Do something else at an instruction, by its name in the pickle module."""
        for name, do in does.items():
            self.dispatch[getattr(pickle, name)[0]] = lambda _, do=do: do()

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = self.names.get((module_name, global_name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module_name[:80]}.{global_name[:80]}")
        return found

    @staticmethod
    def _refuse() -> None:
        raise pickle.UnpicklingError("it uses an instruction that no file of weights needs")

    def _key(self, key: Any) -> Any:
        # The hash of nested tuples takes exponential time.
        if not isinstance(key, _PLAIN_KEYS) and not (
            type(key) is tuple and all(isinstance(part, _PLAIN_KEYS) for part in key)
        ):
            raise pickle.UnpicklingError("it has a key that is neither a word nor a number")
        return key

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][self._key(key)] = value

    def _setitems(self) -> None:
        items = self.pop_mark()
        for i in range(0, len(items) - 1, 2):
            self.stack[-1][self._key(items[i])] = items[i + 1]

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({self._key(items[i]): items[i + 1] for i in range(0, len(items) - 1, 2)})

    def _build(self) -> None:
        if not isinstance(self.stack[-2], self.states):
            raise pickle.UnpicklingError("it gives a state to something that has none")
        _Machine.load_build(self)

    def _bytes8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def no_bytes(*content: Any) -> bytes:
    """How old pickles spell no bytes at all."""
    if content:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


def encode(text: str, encoding: str = "latin1") -> bytes:
    """How old pickles spell bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it spells bytes in an unknown way")
    return text.encode(encoding)


def check_view(numel: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that is larger than what it is a view of."""
    whole = [offset, *size, *stride]
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 2**48 for n in whole) or len(size) > 16:
        raise pickle.UnpicklingError("it holds a tensor of no possible shape")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) > numel or (prod(size) and last >= numel):
        raise pickle.UnpicklingError(f"it holds a tensor of shape {list(size)[:6]} and {numel} numbers for it")


def damaged(path: object, error: Exception) -> UserError:
    """The error of a file that cannot be followed to its end."""
    words = f"{type(error).__name__}: {error}"[:160]
    return UserError(f"Cannot read {path} ({words})", "The file is damaged; fetch it again")
