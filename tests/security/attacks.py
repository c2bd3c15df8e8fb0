"""Files that somebody might offer as weights, each made to do one kind of harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

GIB = 1 << 30


class System:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def code_in_zip(path: Path) -> None:
    torch.save({"model_state": {"w": System(path.with_suffix(".ran"))}}, path)


def code_in_old_torch(path: Path) -> None:
    torch.save({"model_state": {"w": System(path.with_suffix(".ran"))}}, path, _use_new_zipfile_serialization=False)


def code_in_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"w": System(path.with_suffix(".ran"))}}, protocol=2))


def code_in_nested_torch(path: Path) -> None:
    """A plain pickle whose tensor keeps its numbers in a file of torch that runs a command."""
    inner = io.BytesIO()
    torch.save(System(path.with_suffix(".ran")), inner)

    class Loads:
        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    path.write_bytes(pickle.dumps({"model": {"w": Loads()}}, protocol=2))


def unsafe_getattr(path: Path) -> None:
    """Names nothing but what is harmless alone."""
    text = b"\x80\x02}q\x00X\x01\x00\x00\x00acbuiltins\ngetattr\ncbuiltins\ndict\nX\x04\x00\x00\x00keys\x86Rs."
    path.write_bytes(text)


def _torch_zip(path: Path, data: bytes, numbers: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        archive.writestr(zipfile.ZipInfo("archive/data/0"), numbers, compress_type=compression)
        archive.writestr("archive/version", "3\n")


def _description(numel: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """data.pkl of one tensor."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(obj, Storage) else None

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"model_state": {"w": Tensor()}})
    return out.getvalue()


def bomb(path: Path) -> None:
    """A packed entry of one gigabyte in a file of one megabyte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _description(GIB // 4, (GIB // 4,), (1,)))
        entry = zipfile.ZipInfo("archive/data/0")
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w", force_zip64=True) as inside:
            for _ in range(GIB >> 22):
                inside.write(bytes(1 << 22))
        archive.writestr("archive/version", "3\n")


def bomb_in_the_description(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * (200 << 20))


def lying_directory(path: Path) -> None:
    """The list of entries says that an entry of four bytes has a terabyte."""
    _torch_zip(path, _description(1, (1,), (1,)), bytes(4))
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\1\2", 0, content.rfind(b"archive/data/0"))
    content[at + 20 : at + 28] = struct.pack("<LL", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(content)


def many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(80_000):
            archive.writestr(f"a/{i}", b"")


def huge_storage(path: Path) -> None:
    """A storage of a terabyte with four bytes behind it."""
    _torch_zip(path, _description(1 << 38, (1 << 38,), (1,)), bytes(4))


def huge_view(path: Path) -> None:
    """A tensor of a terabyte over a storage of one number; making it would grow the storage."""
    _torch_zip(path, _description(1, (1 << 38,), (1,)), bytes(4))


def repeated_view(path: Path) -> None:
    """The same by repeating one number."""
    _torch_zip(path, _description(1, (1 << 20, 1 << 18), (0, 0)), bytes(4))


def huge_old_storage(path: Path) -> None:
    torch.save({"model_state": {"w": torch.zeros(4)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    # numel of the storage and size of the tensor, K\x04, as a long of five bytes
    path.write_bytes(content.replace(b"K\x04", b"\x8a\x05" + (1 << 38).to_bytes(5, "little")))


def bytearray_by_number(path: Path) -> None:
    data = b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85Rs."
    _torch_zip(path, data, b"")


def array_of_no_numbers(path: Path) -> None:
    """numpy would make room for a terabyte before it looks for the numbers."""
    path.write_bytes(
        b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"\x8a\x05\x00\x00\x00\x00\x40\x85c_codecs\nencode\nX\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87Rss."
    )


def memo_by_number(path: Path) -> None:
    """The unpickler in C makes a table as long as the highest number."""
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")


def bytes_by_number(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"abc.")


def bytearray_of_no_bytes(path: Path) -> None:
    path.write_bytes(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"abc.")


def many_steps(path: Path) -> None:
    path.write_bytes(b"\x80\x02" + b"]0" * (3 << 20) + b"}.")


def slow_key(path: Path) -> None:
    """A tuple of tuples of tuples: its hash takes two to the sixtieth steps."""
    path.write_bytes(b"\x80\x02})" + b"2\x86" * 60 + b"Ns.")


def repeated_arrays(path: Path) -> None:
    """Ten thousand arrays of the same megabyte."""
    import numpy as np

    again = pickle.dumps({"model": {"w": np.zeros(1 << 20, np.uint8)}}, protocol=2)
    # The state of the array is remembered and given to another array again and again.
    at = again.rindex(b"tq")
    state = again[at + 1 : at + 3]
    fetch = b"h" + state[1:2]
    more = b"".join(b"X\x04\x00\x00\x00" + f"{i:04d}".encode() + _array_start() + fetch + b"bs" for i in range(2000))
    path.write_bytes(again[:-2] + more + again[-2:])


def _array_start() -> bytes:
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85c_codecs\nencode\n"
        b"X\x01\x00\x00\x00bX\x06\x00\x00\x00latin1\x86R\x87R"
    )


def _safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def header_longer_than_file(path: Path) -> None:
    _safetensors(path, {}, length=1 << 40)


def huge_header(path: Path) -> None:
    _safetensors(path, b"{" + b" " * (90 << 20) + b"}")


def lying_sizes(path: Path) -> None:
    _safetensors(path, {"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 16]}}, bytes(16))


def lying_offsets(path: Path) -> None:
    _safetensors(path, {"w": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}, bytes(16))


def overlapping_offsets(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    _safetensors(path, {"a": entry, "b": entry}, bytes(16))


def overflowing_shape(path: Path) -> None:
    _safetensors(path, {"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}})


def deep_card(path: Path) -> None:
    _safetensors(path, {"__metadata__": {"openmvit": "[" * 40_000}})


def wide_card(path: Path) -> None:
    _safetensors(path, {"__metadata__": {"openmvit": "[" + "[]," * 1_000_000 + "[]]"}})


def sparse_safetensors(path: Path) -> None:
    """A terabyte that takes no room on the disk."""
    size = 1 << 40
    _safetensors(path, {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    os.truncate(path, path.stat().st_size + size)


def _ours(path: Path, architecture: dict[str, Any]) -> None:
    card = {"format": 1, "model": "x", "task": "image", "architecture": architecture}
    _safetensors(path, {"__metadata__": {"openmvit": json.dumps(card)}})


def many_blocks(path: Path) -> None:
    _ours(path, {"depths": [1_000_000_000, 1], "num_classes": 3})


def many_classes(path: Path) -> None:
    _ours(path, {"num_classes": 1 << 40})


def _settings(path: Path, text: str) -> None:
    torch.save({"model_state": {"patch_embed.proj.weight": torch.zeros(96, 3, 7, 7)}, "cfg": text}, path)


def laughs(path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    _settings(path, "\n".join([*rows, "MVIT: {DEPTH: *a9}"]))


def merged_laughs(path: Path) -> None:
    rows = ["a0: &a0 {k0: 1, k1: 2, k2: 3}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)]
    _settings(path, "\n".join([*rows, "MVIT: *a9"]))


def deep_settings(path: Path) -> None:
    _settings(path, "MVIT: " + "[" * 20_000)


def settings_of_themselves(path: Path) -> None:
    _settings(path, "MVIT: &a [*a]")


def long_settings(path: Path) -> None:
    _settings(path, "MVIT: {}\n" + "# x\n" * 500_000)


def deep_network(path: Path) -> None:
    _settings(path, "MVIT: {DEPTH: 1000000000}")


ATTACKS = {
    **dict.fromkeys((code_in_zip, code_in_old_torch, bomb, bomb_in_the_description, lying_directory), ".pth"),
    **dict.fromkeys((many_entries, huge_storage, huge_view, repeated_view, huge_old_storage), ".pyth"),
    **dict.fromkeys((bytearray_by_number, laughs, merged_laughs, deep_settings, settings_of_themselves), ".pyth"),
    **dict.fromkeys((long_settings, deep_network), ".pyth"),
    **dict.fromkeys(
        (code_in_pickle, code_in_nested_torch, unsafe_getattr, array_of_no_numbers, memo_by_number), ".pkl"
    ),
    **dict.fromkeys((bytes_by_number, bytearray_of_no_bytes, many_steps, slow_key, repeated_arrays), ".pkl"),
    **dict.fromkeys((header_longer_than_file, huge_header, lying_sizes, lying_offsets), ".safetensors"),
    **dict.fromkeys((overlapping_offsets, overflowing_shape, deep_card, wide_card, sparse_safetensors), ".safetensors"),
    **dict.fromkeys((many_blocks, many_classes), ".safetensors"),
}
"""Maker -> ending of the file."""
