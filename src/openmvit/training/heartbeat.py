"""Notices a process that died or hangs, and ends this one with a sentence that names rank and last step.

The training thread only counts the points it passes (`at`). A thread publishes that count twice a second in a small
store of its own, and reads the others'. A rank whose count is published no more is dead or frozen; one that stays
behind a point where another has waited long hangs. A waiting rank sits in a collective and cannot act, so the thread
ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from openmvit import processes

INTERVAL = 0.5
DEAD_AFTER = 20.0
"""Seconds without a sign of life after which a rank counts as dead."""
SUSPECT_AFTER = 4.0
"""The same, once this process has been told to end or has lost a connection."""
HANG_AFTER = 35.0
"""Seconds that one rank may lag behind another, beyond five times the longest step."""
GRACE = 1.5
"""Seconds that a process is given to report its own error before it counts as that of another."""


@dataclass
class Beat:
    """What one rank last published, and when it changed as seen from here."""

    count: int = -1
    point: int = 0
    step: int = 0
    patience: float = HANG_AFTER
    seen: float = 0.0
    moved: float = 0.0
    failed: float = 0.0
    status: str = "alive"


class Heartbeat:
    """Watches the processes of a run.

    Args:
        report: called with the sentence before this process ends.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.rank, self.world = processes.rank(), processes.world_size()
        self._report = report
        self._point, self._step, self._patience, self._status = 0, 0, HANG_AFTER, "alive"
        self._longest, self._last = 0.0, time.monotonic()
        self._stop, self._suspect, self._work = threading.Event(), threading.Event(), threading.Lock()
        self._beats = [Beat(seen=time.monotonic(), moved=time.monotonic()) for _ in range(self.world)]
        self._store = self._connect()
        self._wakeup: tuple[socket.socket, socket.socket] | None = None
        self._previous_fd = -1
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to watch; catches SIGTERM for the thread, since the main thread may sit in a collective."""
        if threading.current_thread() is threading.main_thread():
            self._wakeup = socket.socketpair()
            for end in self._wakeup:
                end.setblocking(False)
            self._previous_fd = signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def at(self, step: int) -> None:
        """Say that training has passed one more point, at this step. Every rank passes the same points."""
        now = time.monotonic()
        # The first point is reached after all the setting up, which says nothing about the length of a step.
        self._longest = max(self._longest, now - self._last) if self._point else 0.0
        self._last = now
        self._point, self._step = self._point + 1, step
        self._patience = HANG_AFTER + 5.0 * self._longest

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Inside the block the other ranks wait up to `seconds`: one rank writes or validates more than another."""
        self._patience = seconds
        try:
            yield
        finally:
            self._last = time.monotonic()
            self.at(self._step)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Inside the block the thread only waits, so that this process may be forked."""
        with self._work:
            yield

    def stop(self) -> None:
        """End the watch; every rank has reached the end of the run."""
        self._status = "done"
        self._leave()

    def fail(self, sentence: str, lost: bool) -> None:
        """Say that this rank ends with an error, and see to it that one process alone speaks.

        Does not return where another process speaks: on ranks other than 0 with a sentence of their own, and where the
        error only followed from the death of another rank.

        Args:
            sentence: what the user is to read; empty if a traceback follows.
            lost: whether the error may come from a lost connection.
        """
        if lost:
            self._suspect.set()
            self._thread.join(timeout=SUSPECT_AFTER + 4.0 * INTERVAL)
        with contextlib.suppress(RuntimeError):
            self._store.set(f"error{self.rank}", sentence or " ")
            self._status = "failed"
            self._publish(-2)
        time.sleep(GRACE + 3.0 * INTERVAL if self.rank and sentence else 2.0 * INTERVAL)
        if self.rank and sentence:
            os._exit(2)
        self._leave()

    def _leave(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._previous_fd)
            for end in self._wakeup:
                end.close()

    def _connect(self) -> TCPStore:
        host = os.environ["MASTER_ADDR"]
        if self.rank == 0:
            store = TCPStore(host, 0, None, True, wait_for_workers=False, timeout=timedelta(seconds=10))
            processes.broadcast(store.port)
            return store
        return TCPStore(host, processes.broadcast(0), None, False, timeout=timedelta(seconds=10))

    def _publish(self, count: int) -> None:
        text = f"{count} {self._point} {self._step} {self._patience} {self._status}"
        self._store.set(f"beat{self.rank}", text)

    def _read(self) -> None:
        now = time.monotonic()
        for rank, beat in enumerate(self._beats):
            if not self._store.check([f"beat{rank}"]):
                continue
            count, point, step, patience, status = self._store.get(f"beat{rank}").decode().split()
            if int(count) != beat.count:
                beat.count, beat.seen = int(count), now
            if int(point) != beat.point:
                beat.point, beat.moved = int(point), now
            if status == "failed" != beat.status:
                beat.failed = now
            beat.step, beat.patience, beat.status = int(step), float(patience), status

    def _watch(self) -> None:
        count = 0
        while not self._stop.wait(INTERVAL):
            count += 1
            with self._work:
                if not self._beat(count):
                    return

    def _beat(self, count: int) -> bool:
        """Publish, read and judge once; whether there is anything left to watch."""
        self._take_signals()
        try:
            self._publish(count)
            self._read()
            if self._status == "alive" and self._store.check(["verdict"]):
                os._exit(3)
        except (RuntimeError, dist.DistError) as error:
            if self._stop.is_set() or self._beats[0].status == "done":
                return False
            self._end(0, f"it died or cannot be reached ({str(error).splitlines()[0][:80]})")
        verdict = self._verdict()
        if verdict is not None:
            self._end(*verdict)
        return True

    def _take_signals(self) -> None:
        if self._wakeup is None:
            return
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in self._wakeup[0].recv(64):
                self._suspect.set()

    def _verdict(self) -> tuple[int, str] | None:
        now = time.monotonic()
        limit = SUSPECT_AFTER if self._suspect.is_set() else DEAD_AFTER
        if self._status != "alive":
            return None
        front = max(self._beats, key=lambda b: b.point)
        for rank, beat in enumerate(self._beats):
            if rank == self.rank or beat.status == "done":
                continue
            if beat.status == "failed":
                if now - beat.failed > GRACE:
                    return rank, self._store.get(f"error{rank}").decode().strip() or "ended with an error"
                continue
            if now - beat.seen > limit:
                return rank, "it died"
        for rank, beat in enumerate(self._beats):
            if beat.point < front.point and now - front.moved > max(beat.patience, front.patience):
                return rank, "it hangs"
        return None

    def _end(self, rank: int, what: str) -> None:
        if self.rank == min(r for r in range(self.world) if r != rank):
            self._report(f"Rank {rank}: {what} (its last step was {self._beats[rank].step})")
            with contextlib.suppress(RuntimeError, dist.DistError):
                self._store.set("verdict", "spoken")
            # The others read the verdict before the store goes with this process.
            time.sleep(3.0 * INTERVAL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(3)
