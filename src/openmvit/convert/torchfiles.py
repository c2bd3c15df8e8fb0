"""Files of torch.save looked through before torch reads them: what they name, and what they claim to hold."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import IO, Any, ClassVar

from openmvit.convert.bounds import PICKLE_BYTES, zip_entries
from openmvit.convert.unpickling import Reader, check_view, damaged, encode, no_bytes
from openmvit.errors import UserError

# How torch.save began its files before they were archives, in any protocol.
_OLD_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_KINDS = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip


class _Storage:
    """Numbers that lie elsewhere in the file."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


class _Kind:
    """A type of storage, of which only the bytes per number matter; it cannot be called."""

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> str:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("it holds a tensor without numbers")
    check_view(storage.numel, offset, size, stride)
    return "a tensor"


class _Look(Reader):
    """A pickle of torch, followed without making a tensor.

    Args:
        size: bytes that it may take.
        room: bytes of every storage by its name, or of all of them together.
    """

    names: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "Counter"): Counter,
        ("_codecs", "encode"): encode,
        ("__builtin__", "bytes"): no_bytes,
        ("torch", "Size"): tuple,
        ("torch", "device"): lambda *names: "a device",
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        **{(place, name): _Kind(size) for name, size in _KINDS.items() for place in ("torch", "torch.cuda")},
        **{("torch", n): n for n in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")},
    }

    def __init__(self, file: IO[bytes], size: int, room: Mapping[str, int] | int) -> None:
        super().__init__(file, size)
        self._room, self._claimed = room, dict[str, int]()

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Kind):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        kind, key, numel = pid[1], str(pid[2]), pid[4]
        if type(numel) is not int or not 0 <= numel < 2**48:
            raise pickle.UnpicklingError("it claims a storage of no possible size")
        claimed = numel * kind.itemsize
        if self._claimed.setdefault(key, claimed) != claimed:
            raise pickle.UnpicklingError("it claims two sizes for one storage")
        room = self._room if isinstance(self._room, int) else self._room.get(key, 0)
        if claimed > room:
            raise pickle.UnpicklingError(f"it claims {claimed} bytes for a tensor and holds {room}")
        return _Storage(numel)

    @property
    def claimed(self) -> int:
        """Bytes of all storages that it names."""
        return sum(self._claimed.values())


def is_torch_file(start: bytes) -> bool:
    """Whether a file that begins like this was written by torch.save."""
    return start.startswith(b"PK") or _OLD_TORCH in start


def check_torch_file(path: object, file: IO[bytes], size: int) -> None:
    """Refuse a file of torch.save, of any age, that names code or claims more than it holds; the file is rewound.

    Raises:
        UserError: saying why.
    """
    file.seek(0)
    archive = file.read(2) == b"PK"
    try:
        _look_into_archive(path, file, size) if archive else _look_into_stream(file, size)
    except pickle.UnpicklingError as error:
        raise UserError(f"Refused to read {path}: {error}", "Give a file of weights; nothing in it was run") from error
    except UserError:
        raise
    except Exception as error:
        raise damaged(path, error) from error
    file.seek(0)


def _look_into_archive(path: object, file: IO[bytes], size: int) -> None:
    entries = zip_entries(path, file, size)
    found = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1 or entries[found[0]].file_size > PICKLE_BYTES:
        raise pickle.UnpicklingError("it is an archive without one short description of its tensors")
    with zipfile.ZipFile(file) as archive, archive.open(found[0]) as inside:
        content = inside.read()
    folder = f"{found[0].partition('/')[0]}/data/"
    room = {name.removeprefix(folder): entry.file_size for name, entry in entries.items()}
    _Look(io.BytesIO(content), len(content), room).load()


def _look_into_stream(file: IO[bytes], size: int) -> None:
    """Three headers, the content and the list of storages; then follow the numbers."""
    file.seek(0)
    for _ in range(5):
        look = _Look(file, min(PICKLE_BYTES, size - file.tell()), size)
        look.load()
        if look.claimed > size:
            raise pickle.UnpicklingError(f"it claims {look.claimed} bytes for its tensors and has {size}")
