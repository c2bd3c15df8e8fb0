"""Samples with the same bytes, found without reading more than is needed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

_SAMPLE = 4096
_PIECE = 1 << 20
_CHUNK = 256
_READERS = 8
"""Threads: where a disk or network answers late, they wait together."""
_T = TypeVar("_T")


def find_copies(count: int, path: Callable[[int], Path]) -> list[list[int]]:
    """Groups of samples with the same bytes, two or more each, by the lowest index; a pure function of the files.

    Every sample is asked for its size; of those that share it 4 KB from the middle are read, and all of it where these
    are equal too: from files that the system has at hand, some minute for a million of them. Empty and missing files
    are no copies of each other.

    Args:
        count: number of samples.
        path: of a sample: a file, or a folder of frames.
    """
    left = np.arange(count)
    for key in (_size, _middle):
        values = np.fromiter(_each(left, path, key), np.int64, len(left))
        left = left[(values != 0) & _repeated(values)]
    groups: dict[bytes, list[int]] = {}
    for index, digest in zip(left.tolist(), _each(left, path, _all), strict=True):
        groups.setdefault(digest, []).append(index)
    return [group for digest, group in groups.items() if digest and len(group) > 1]


def _repeated(values: np.ndarray) -> np.ndarray:
    """Which values occur more than once."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[places] > 1


def _each(indices: np.ndarray, path: Callable[[int], Path], key: Callable[[Path], _T]) -> Iterator[_T]:
    """What `key` says of every sample, in order."""

    def of_chunk(chunk: Sequence[int]) -> list[_T]:
        return [key(path(index)) for index in chunk]

    chunks = [indices[i : i + _CHUNK].tolist() for i in range(0, len(indices), _CHUNK)]
    with ThreadPoolExecutor(_READERS) as pool:
        for part in pool.map(of_chunk, chunks):
            yield from part


def _size(path: Path) -> int:
    """Bytes of a file; of a folder its number of files and the bytes of the first and last; 0 for nothing."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a million calls
        if not stat.S_ISDIR(found.st_mode):
            return found.st_size
        files = _files(path)
        return len(files) + files[0].stat().st_size + files[-1].stat().st_size if files else 0
    except OSError:
        return 0


def _middle(path: Path) -> int:
    """Hash of the middle of a file, or of the middle file of a folder; 0 if it cannot be read."""
    try:
        try:
            with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - likewise
                return _middle_bytes(stream)
        except IsADirectoryError:
            files = _files(path)
            with files[len(files) // 2].open("rb", buffering=0) as stream:
                return _middle_bytes(stream)
    except (OSError, IndexError):
        return 0


def _middle_bytes(stream: io.FileIO) -> int:
    size = os.fstat(stream.fileno()).st_size
    stream.seek(max(size - _SAMPLE, 0) // 2)
    digest = hashlib.blake2b(stream.read(_SAMPLE), digest_size=8, salt=size.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little", signed=True)


def _all(path: Path) -> bytes:
    """Hash of everything; empty if it cannot be read."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in _files(path) if path.is_dir() else [path]:
            # Where one frame ends and the next begins counts too.
            digest.update(b"%d " % file.stat().st_size)
            with file.open("rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
    except OSError:
        return b""
    return digest.digest()


def _files(folder: Path) -> list[Path]:
    """Visible files of a folder of frames, in the order of their names."""
    with os.scandir(folder) as entries:
        return [folder / name for name in sorted(e.name for e in entries if e.is_file() and e.name[0] != ".")]


def about_copies(groups: Sequence[Sequence[int]]) -> list[str]:
    """What to say of copies where a split is drawn; nothing where there are none."""
    more = sum(len(group) - 1 for group in groups)
    return [f"{more} samples are copies of others by their bytes, and stay on their side of the split"] * bool(groups)


def keep_together(held_out: np.ndarray, copies: Sequence[Sequence[int]], order: np.ndarray, labels: np.ndarray) -> None:
    """Put copies that were drawn apart into training, and hold out samples without copies in their place.

    These are the next ones of the same class in the order of the draw, as long as there are some.

    Args:
        held_out: bool `[N]`, changed in place.
        copies: groups of indices.
        order: `[N]`, indices in the order of the draw.
        labels: `[N]`, class of every sample.
    """
    alone = np.ones(len(held_out), dtype=bool)
    alone[[index for group in copies for index in group]] = False
    missing = np.bincount(labels[held_out], minlength=int(labels.max(initial=0)) + 1)
    for group in copies:
        if not held_out[group].all():
            held_out[group] = False
    missing -= np.bincount(labels[held_out], minlength=len(missing))
    following = order[alone[order] & ~held_out[order]]
    following = following[np.argsort(labels[following], kind="stable")]
    own = labels[following]
    place_in_class = np.arange(len(own)) - np.searchsorted(own, own)
    held_out[following[place_in_class < missing[own]]] = True
