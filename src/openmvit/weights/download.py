"""One file over HTTP: resumed where it broke, checked, and renamed only when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from openmvit import screen
from openmvit.errors import UserError

_CHUNK = 1 << 20
_TRIES = 5
"""In a row without a single new byte."""
_SPARE = 64 << 20
"""Bytes of disk that a download leaves free."""
# What a page of a web server or of a login starts with; no weight file does.
_PAGE = re.compile(rb"\s*<(!doctype|html|\?xml|head|body)", re.IGNORECASE)


def download(url: str, path: Path, *, sha256: str = "", timeout: float = 30.0) -> None:
    """Fetch `url` to `path`; the name exists only once the whole file is there and checked.

    A broken transfer is kept as `path.part` and continued, now or by a later call, if the server still has the same
    file. Two processes that want the same file fetch it once.

    Args:
        sha256: of the file, or its beginning; empty: not checked.
        timeout: seconds without a byte after which a connection counts as broken.
    Raises:
        UserError: if the file cannot be had, is not the wanted one, or the disk has no room for it.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return
        part = path.with_name(f"{path.name}.part")
        _transfer(url, part, timeout)
        try:
            _check(url, part, sha256)
        except UserError:
            _forget(part)
            raise
        part.replace(path)
        _note(part).unlink(missing_ok=True)
    # Others may wait for the lock file; only an untouched one goes. Its rest is harmless.
    with contextlib.suppress(OSError):
        Path(f"{path}.lock").unlink()


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Bring `part` to its whole length, in as many connections as that takes."""
    failures, reason = 0, ""
    while failures < _TRIES:
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _connect(url, part, timeout):
                return
            reason = "the connection broke"
        except HTTPError as error:
            if error.code == 416:  # what is here does not belong to what lies there
                _forget(part)
            elif error.code < 500 and error.code not in (408, 429):
                raise UserError(f"{url} answers {error.code} {error.reason}", "Check the address") from error
            reason = f"it answers {error.code} {error.reason}"
        except (URLError, HTTPException, OSError) as error:
            if part.is_file() and shutil.disk_usage(part.parent).free < _SPARE:
                raise UserError(f"The disk of {part.parent} is full", "Free space and run it again") from error
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        after = part.stat().st_size if part.is_file() else 0
        failures = 0 if after > before else failures + 1
        if failures < _TRIES:
            time.sleep(min(0.1 * 2**failures, 2.0))
    kept = f"; {part.stat().st_size} bytes are kept and will be continued" if part.is_file() else ""
    raise UserError(f"{url} cannot be had ({reason}){kept}", "Check the network and run it again")


def _connect(url: str, part: Path, timeout: float) -> bool:
    """One connection; whether the file is whole after it."""
    have, known = _resumable(url, part)
    request = Request(url, headers={"User-Agent": "openmvit", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known)
    with urlopen(request, timeout=timeout) as answer:
        if not str(answer.url).startswith(("http://", "https://")):
            raise UserError(f"{url} leads to {answer.url}", "Only http and https are followed")
        start, total = _extent(answer)
        if start not in (0, have):
            raise UserError(f"{url} sends byte {start} when asked for byte {have}", "Fetch it with another program")
        mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        # A weak tag promises nothing about bytes.
        mark = "" if mark.startswith("W/") else mark
        _room(part, (total or 0) - start)
        _note(part).write_text(json.dumps({"url": url, "mark": mark, "size": total}), encoding="utf-8")
        with part.open("ab" if start else "wb") as file, _progress(part.stem, start, total) as advance:
            _receive(answer, file, total, advance)
            file.flush()
            os.fsync(file.fileno())
    return total is None or part.stat().st_size == total


def _receive(answer: HTTPResponse, file: IO[bytes], total: int | None, advance: Callable[[int], None]) -> None:
    while block := answer.read1(_CHUNK):
        file.write(block)
        advance(len(block))
        if total is not None and file.tell() > total:
            raise UserError(f"{answer.url} sends more than the {total} bytes it promised", "Fetch it again later")
        if total is None and file.tell() % (64 * _CHUNK) < len(block):
            _room(Path(file.name), 0)


def _resumable(url: str, part: Path) -> tuple[int, str]:
    """Bytes that are here, and the mark by which the server tells whether they are still the beginning of its file."""
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        have = part.stat().st_size
        same = note["url"] == url and note["mark"] and isinstance(note["size"], int) and 0 < have < note["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    return (have, str(note["mark"])) if same else (0, "")


def _extent(answer: HTTPResponse) -> tuple[int, int | None]:
    """First byte of an answer, and the length of the whole file if the server tells."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", "").strip())
        if found is None:
            raise UserError(f"{answer.url} sends a part without saying which", "Fetch it with another program")
        return int(found[1]), int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _room(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted + _SPARE > free:
        raise UserError(
            f"{part.stem} needs {wanted >> 20} MiB more and the disk of {part.parent} has {free >> 20} free",
            "Free space, or set TORCH_HOME to a folder on another disk",
        )


def _check(url: str, part: Path, sha256: str) -> None:
    """Refuse what is no weight file, or not the published one."""
    with part.open("rb") as file:
        head = file.read(256)
        if not head or _PAGE.match(head):
            raise UserError(
                f"{url} sends {'a web page' if head else 'nothing'} instead of weights", "Check the address"
            )
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else ""
    if not found.startswith(sha256):
        raise UserError(
            f"{url} sends another file than was published (SHA-256 {found[: len(sha256)]} instead of {sha256})",
            "Nothing was kept; try another network or mirror",
        )


def check_file(path: Path, sha256: str, url: str = "") -> None:
    """Refuse a file that came from elsewhere, by the same rules as a downloaded one.

    Raises:
        UserError: saying what is wrong with it.
    """
    _check(url or str(path), path, sha256)


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    screen.wipe()
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        print(f"Downloading {name}", file=sys.stderr)
        yield lambda count: None
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)
