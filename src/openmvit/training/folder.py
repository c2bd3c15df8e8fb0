"""The folder of a run: its name, its text files and its log."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from openmvit import __version__
from openmvit.errors import UserError
from openmvit.screen import say, wrapped

_TEXTS = ("args.yaml", "env.txt", "log.txt", "losses.txt", "val.txt", "results.csv", "bad_files.txt", "bad_batch.txt")
"""Files that a run may have written before its first weights."""
_UNFINISHED = ("last.tmp", "best.safetensors.tmp")
"""What a run that was killed while it saved leaves beside its weights, and nobody reads."""


class PathTable(Protocol):
    """Samples that lie in files."""

    def __len__(self) -> int: ...

    def path(self, index: int, /) -> Path: ...


def new_folder(out_dir: str, task: str, name: str | None) -> Path:
    """Create `out_dir/task/name`, or the first free of exp, exp2, ...

    The named folder of a run that ended before it saved any weights is used again, without that run's files.

    Raises:
        UserError: if the named folder holds anything else, or is being trained in, or cannot be made.
    """
    parent = Path(out_dir) / task
    number = 1
    while True:
        path = parent / (name or ("exp" if number == 1 else f"exp{number}"))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if name is None:
                number += 1
            elif _has_begun_only(path):
                _empty(path)
                return path
            else:
                raise UserError(f"{path} exists", f"Choose another --name, or --resume {path}") from None
        except OSError as error:
            raise UserError(f"Cannot make the run folder {path}: {error.strerror}", "Choose another out_dir") from error


def _has_begun_only(path: Path) -> bool:
    """Whether a folder is empty or that of a run without weights, saved states and exports."""
    if not path.is_dir():
        return False
    weights = path / "weights"
    kept = [p for p in weights.iterdir() if p.name not in _UNFINISHED] if weights.is_dir() else []
    return not kept and ((path / "args.yaml").is_file() or not any(path.iterdir()))


def _empty(path: Path) -> None:
    """Remove what a run wrote that saved no weights; files of other names stay."""
    lock = Lock(path)
    print(f"{path} has no weights yet: its run is begun anew", flush=True)
    for name in _TEXTS:
        (path / name).unlink(missing_ok=True)
        (path / f"{name}.tmp").unlink(missing_ok=True)
    weights = path / "weights"
    if weights.is_dir():
        shutil.rmtree(weights)
    lock.release()


class Lock:
    """Says that this process trains in a folder; the system takes it back when the process ends, however it ends.

    Raises:
        UserError: if another process trains there.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._file = folder / ".lock", None
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            self._file = self._path.open("w")
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # other errors: a file system without locks
            if error.errno in (errno.EACCES, errno.EAGAIN) and self._file is not None:
                fix = "Wait for it, or choose another --name"
                raise UserError(f"Another process is training in {folder}", fix) from None

    def release(self) -> None:
        """Let others train there."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


class RunFolder:
    """Text files of one run. On every rank but 0 nothing is written.

    Args:
        path: the folder, which exists.
        writes: whether this process writes.
    Raises:
        UserError: if another process trains in it.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path, self.writes = path, writes
        self.weights = path / "weights"
        self._lock = Lock(path) if writes else None

    def leave(self) -> None:
        """Nothing more will be written."""
        if self._lock is not None:
            self._lock.release()

    def say(self, text: str, shown: str | None = None) -> None:
        """Print a line and keep it in log.txt.

        Args:
            shown: what is printed in its place, where the screen has another form of it.
        """
        if self.writes:
            say(text if shown is None else shown)
            self.log(text)

    def tell(self, sentence: str) -> None:
        """`say` a sentence, which breaks between words on a terminal."""
        self.say(sentence, wrapped(sentence))

    def log(self, text: str) -> None:
        """Keep a line in log.txt."""
        self._append("log.txt", text + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a small file, whole or not at all."""
        if self.writes:
            temporary = self.path / f"{name}.tmp"
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            temporary.replace(self.path / name)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Replace a JSON file."""
        self.write_text(name, json.dumps(value, indent=1) + "\n")

    def write_results(self, rows: Iterable[Mapping[str, float]]) -> None:
        """Replace results.csv: one row per epoch, columns in the order in which they first appear."""
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not self.writes:
            return
        temporary = self.path / "results.csv.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
        temporary.replace(self.path / "results.csv")

    def write_losses(self, first_step: int, losses: Iterable[Iterable[float]]) -> None:
        """Append to losses.txt: step, then the loss of every rank as a hex float, exact to the last bit."""
        lines = ["\t".join([str(first_step + i), *(v.hex() for v in row)]) for i, row in enumerate(losses)]
        self._append("losses.txt", "".join(line + "\n" for line in lines))

    def cut_losses(self, steps: int) -> None:
        """Forget the losses after the first `steps` steps: a resumed run writes them again."""
        path = self.path / "losses.txt"
        if self.writes and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            self.write_text("losses.txt", "".join(lines[:steps]))

    def keep_split(self, table: PathTable) -> None:
        """Write val.txt, the validation files; on a resume, compare with it instead.

        Raises:
            UserError: if the files differ from those that the run was started with.
        """
        text = "".join(f"{table.path(i).as_posix()}\n" for i in range(len(table)))
        path = self.path / "val.txt"
        if not path.exists():
            self.write_text("val.txt", text)
        elif self.writes and path.read_text(encoding="utf-8", errors="surrogateescape") != text:
            raise UserError(f"The validation files differ from those in {path}", "Restore the data, or start a new run")

    def write_environment(self) -> None:
        """Write env.txt: versions, machine and command line."""
        versions = [f"{name} {version}" for name, version in library_versions().items()]
        machine = [f"python {platform.python_version()}", f"system {platform.platform()}", f"cpus {os.cpu_count()}"]
        gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
        command = "command " + shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.write_text("env.txt", "\n".join([*versions, *machine, *gpus, command]) + "\n")

    def _append(self, name: str, text: str) -> None:
        if self.writes:
            with (self.path / name).open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers."""
    found = {name: version(name) for name in ("torchvision", "lightning")}
    return {"openmvit": __version__, "torch": torch.__version__} | found
