"""The list of unreadable files of a run, and the point at which they are too many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from openmvit.data.images import read_image
from openmvit.data.samples import LOST, FileReadError
from openmvit.errors import UserError


class PathTable(Protocol):
    """Samples that lie in files."""

    def path(self, index: int, /) -> Path: ...


def _read_image(table: PathTable, index: int) -> object:
    return read_image(table.path(index))


class BadFiles:
    """Collects unreadable files in the main process and keeps `bad_files.txt`, one `path TAB reason` line each.

    The file appears with the first bad file and grows by whole lines; a resumed run goes on with the lines it holds.

    Args:
        limit_share: share of unreadable files, 0..1, beyond which the run stops.
        total: files that the share is taken of.
        path: where the list is written.
        read: is asked again for the reason, with the table of `add` and an index in it; raises `FileReadError`.
    """

    def __init__(
        self, limit_share: float, total: int, path: Path, read: Callable[[Any, int], object] = _read_image
    ) -> None:
        self.limit_share, self.total, self.path, self._read = limit_share, total, path, read
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").split("\n") if path.exists() else []
        self.files: dict[str, str] = {
            name: reason for name, _, reason in (line.rpartition("\t") for line in lines) if name
        }

    def __len__(self) -> int:
        return len(self.files)

    def add(self, table: PathTable, index: Tensor, bad: Tensor) -> None:
        """Note the bad samples of a batch; call it before the batch is trained on.

        Args:
            table: the table that `index` counts in.
            index: int64 `[B]`, as the data set returned it.
            bad: int64 `[B]`, as the data set returned it.
        Raises:
            UserError: more unreadable files than `limit_share` allows, or so many that none stood in for one.
        """
        if not bool(bad.any()):
            return
        for i in index[bad > 0].tolist():
            self._note(table, i)
        if len(self.files) > self.limit_share * self.total or bool((bad == LOST).any()):
            first, reason = next(iter(self.files.items()))
            raise UserError(
                f"{len(self.files)} of {self.total} files cannot be read, the first is {first} ({reason})",
                f"Repair or remove the files listed in {self.path}, or raise max_bad (now {self.limit_share:g})",
            )

    def _note(self, table: PathTable, index: int) -> None:
        name = str(table.path(index))
        if name in self.files:
            return
        try:
            self._read(table, index)
            reason = "could be read on the second try"
        except FileReadError as error:
            reason = error.reason
        self.files[name] = reason.replace("\t", " ")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(f"{name}\t{self.files[name]}\n")
