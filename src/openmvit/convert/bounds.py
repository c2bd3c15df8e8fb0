"""What a file of weights claims, checked before anything believes it: sizes, names of code, settings text.

Every reader of weights goes through here first. Nothing is allocated by a number that stands in a file.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from openmvit.errors import UserError

HEADER_BYTES = 4 << 20
"""Longest header of a safetensors file; that of the largest network with 20,000 classes is a sixth of it."""
_DIRECTORY_BYTES = 3 << 20
PICKLE_BYTES = 8 << 20
"""Longest description of tensors beside their numbers."""
_FILE_BYTES = 1 << 36
_BLOCKS = 512
_SIDE = 1 << 14
_NUMBER = 1 << 22
_ITEMS = 1 << 12
_TEXT_BYTES = 1 << 17
_TEXT_DEPTH = 24
_TEXT_NODES = 20_000
_DAMAGED = "The file is damaged or made to do harm; fetch it again from its own project"


def refuse(path: object, reason: str) -> UserError:
    """The error of a file that claims what cannot be."""
    return UserError(f"Refused to read {path}: {reason}", f"{_DAMAGED}; nothing in it was run")


def check_length(path: Path) -> int:
    """Bytes of a file, if they can be held in memory at all (a hole in a file costs its maker nothing).

    Raises:
        UserError: if not.
    """
    size = path.stat().st_size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else _FILE_BYTES
    if size > min(memory, _FILE_BYTES):
        raise refuse(path, f"it is {size / 2**30:.0f} GiB long and this machine has {memory / 2**30:.0f} GiB of memory")
    return size


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose header is longer than the file, or than any network needs.

    What stands in the header (kinds, shapes, places that neither overlap nor leave a gap) is checked by its library.

    Raises:
        UserError: if so.
    """
    size = check_length(path)
    with path.open("rb") as file:
        head = file.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if length + 8 > size:
        raise refuse(path, "its header is longer than the file")
    if length > HEADER_BYTES:
        raise refuse(path, f"its header has {length / 2**20:.1f} MiB, more than {HEADER_BYTES >> 20}")


def check_card_text(path: object, text: str) -> None:
    """Refuse a header's JSON text that would fill the memory: each bracket and comma costs up to a hundred bytes.

    Raises:
        UserError: if so.
    """
    if text.count("[") + text.count("{") > 50_000 or text.count(",") > 300_000:
        raise refuse(path, "its header holds more values than any network has")


def zip_entries(path: object, file: IO[bytes], size: int) -> dict[str, zipfile.ZipInfo]:
    """Entries of a zip archive as torch writes it: stored, not packed, and no longer together than the file.

    Raises:
        UserError: if it is not like that.
    """
    _check_directory(path, file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise UserError(f"Cannot read {path} ({error})", "The file is damaged; fetch it again") from error
    total = 0
    for entry in entries:
        total += entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
            raise refuse(path, f"{entry.filename[:60]!r} in it is packed, to {entry.file_size} bytes")
        if total > size:
            raise refuse(path, f"its entries claim {total} bytes and the file has {size}")
    named = {entry.filename: entry for entry in entries}
    if len(named) != len(entries):
        raise refuse(path, "two entries in it have one name")
    return named


def _check_directory(path: object, file: IO[bytes], size: int) -> None:
    """Bound the list of entries before objects are made of it."""
    file.seek(max(size - 66_000, 0))
    tail = file.read(66_000)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise UserError(
            f"Cannot read {path} (the end of the archive is missing)", "The file is damaged; fetch it again"
        )
    length = struct.unpack("<L", tail[at + 12 : at + 16])[0]
    if tail[max(at - 20, 0) : at].startswith(b"PK\6\7") and at >= 76:
        length = struct.unpack("<Q", tail[at - 36 : at - 28])[0]
    if length > _DIRECTORY_BYTES:
        raise refuse(path, f"its list of entries has {length} bytes, more than {_DIRECTORY_BYTES}")
    file.seek(0)


def check_architecture(path: object, fields: Mapping[str, Any]) -> None:
    """Refuse sizes in settings that no network has, before blocks and tables are made by them.

    Raises:
        UserError: naming the field.
    """
    waiting: list[tuple[str, Any]] = [(str(key), value) for key, value in fields.items()]
    seen = 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        if seen > _ITEMS:
            raise refuse(path, "its settings hold more values than any network has")
        if isinstance(value, Mapping):
            waiting += [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value[: _ITEMS + 1]]
            if name == "depths" and _total(value) > _BLOCKS:
                raise refuse(path, f"its depths claim more than {_BLOCKS} blocks")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            limit = {"input_size": _SIDE, "rpn_convs": 32, "DEPTH": _BLOCKS}.get(name, _NUMBER)
            if not abs(value) <= limit:
                raise refuse(path, f"{name[:40]} in its settings is beyond {limit}")


def _total(values: list[Any] | tuple[Any, ...]) -> int:
    return sum(min(abs(v), _NUMBER) for v in values[:_ITEMS] if isinstance(v, int))


def settings_of_text(path: object, text: str) -> Any:
    """YAML text that a checkpoint carries, as plain data; never a class, never more than the text is long.

    Raises:
        UserError: if the text is too long or too deep, or its aliases stand for more than a network's settings.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if len(text) > _TEXT_BYTES:
        raise refuse(path, f"its settings have {len(text)} characters, more than {_TEXT_BYTES}")
    _check_nodes(path, yaml.parse(text, Loader=loader))
    return yaml.load(text, Loader=loader)


def _check_nodes(path: object, events: Any) -> None:
    """Count what the text would become, every alias as often as it stands there."""
    import yaml

    sizes: dict[str, int] = {}
    trail: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise refuse(path, "its settings contain themselves")
            anchor, count = None, sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            trail.append((event.anchor, 1))
            if len(trail) > _TEXT_DEPTH:
                raise refuse(path, f"its settings are nested more than {_TEXT_DEPTH} deep")
            continue
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, count = trail.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, count = event.anchor, 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = count
        above, total = trail[-1]
        trail[-1] = (above, total + count)
        if total + count > _TEXT_NODES:
            raise refuse(path, f"its settings stand for more than {_TEXT_NODES} values")
