"""A small real folder of images, a tiny network, and processes that train on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.data.generated import write_digits

LAUNCH = Path(__file__).with_name("launch.py")
TINY = MViTConfig(
    input_size=(32, 32), depths=(1, 1, 1), embed_dim=16, adaptive_kv_stride=(2, 2), drop_path_rate=0.3, drop_rate=0.2
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@dataclass
class Training:
    """A running `train` in processes of its own."""

    folder: Path
    process: subprocess.Popen[str]
    output: Path

    def losses(self) -> list[str]:
        """Lines of losses.txt so far."""
        path = self.folder / "losses.txt"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, step: int, seconds: float = 60.0) -> None:
        """Return once this many steps are done."""
        end = time.monotonic() + seconds
        while len(self.losses()) < step:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.002)

    def pid(self, rank: int) -> int:
        """Process of a rank."""
        return int((self.output.parent / f"pid{rank}").read_text())

    def kill(self) -> None:
        """SIGKILL to the launcher and all ranks."""
        pids = [int(path.read_text()) for path in self.output.parent.glob("pid*")]
        for pid in {self.process.pid, *pids}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    def end(self, seconds: float = 90.0) -> int:
        """Exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not ended after {seconds} s\n{self.text()}") from None

    def text(self) -> str:
        """Everything printed so far."""
        return self.output.read_text()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 training and 30 validation images of ten digits, 32 pixels wide."""
    root = write_digits(tmp_path_factory.mktemp("digits"), size=32)
    for split, keep in (("train", 7), ("val", 3)):
        for folder in (root / split).iterdir():
            for path in sorted(folder.iterdir())[keep:]:
                path.unlink()
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture of a network with three blocks."""
    path = tmp_path_factory.mktemp("model") / "tiny.json"
    path.write_text(TINY.to_json())
    return path


@pytest.fixture
def start(tmp_path: Path, digits: Path, tiny: Path):
    """Start a training: `start(name, ranks=1, batch=8, ...)`, or `start(resume=folder)`."""
    running: list[Training] = []

    def begin(name: str = "run", ranks: int = 1, damage: str = "", **options: object) -> Training:
        place = tmp_path / f"{name}-{len(running)}"
        place.mkdir()
        resume = options.get("resume")
        if resume is None:
            base = {"data": digits, "model": tiny, "weights": "none", "out_dir": tmp_path / "runs", "name": name}
            base |= {"batch": 8, "epochs": 3, "warmup_epochs": 1, "lr_batch": 0, "device": "cpu", "plots": "false"}
            options = base | options
        words = [f"{key}={value}" for key, value in options.items()] + [f"@{damage}"] * bool(damage)
        launcher = [*TORCHRUN, str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, str(LAUNCH), str(place), *words]
        output = place / "output.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        folder = Path(str(resume)) if resume else tmp_path / "runs" / str(options.get("task", "image")) / name
        running.append(Training(folder, process, output))
        return running[-1]

    yield begin
    for training in running:
        training.kill()


@pytest.fixture(autouse=True)
def one_thread():
    """Several processes share few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
