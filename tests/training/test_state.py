"""Whatever instant a save is cut off at, one complete state stays readable."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from openmvit.errors import UserError
from openmvit.training import state

WRITER = """
import sys, torch
from pathlib import Path
from openmvit.training import state
weights = Path(sys.argv[1])
for n in range(int(sys.argv[2]), 100000):
    fill = torch.full((200_000,), float(n))
    state.write(weights, {"world_size": 1, "model": {f"w{i}": fill for i in range(3)}, "n": n}, {"n": n})
    print(n, flush=True)
"""


def test_killed_at_random_instants_one_whole_state_remains(tmp_path: Path) -> None:
    weights, last = tmp_path / "weights", -1
    for _ in range(6):
        command = [sys.executable, "-c", WRITER, str(weights), str(last + 1)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        announced = int(writer.stdout.readline())
        time.sleep(random.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        announced = max([announced, *map(int, writer.stdout.read().split())])
        writer.wait()
        shared, own = state.read(weights)
        assert shared["n"] == own["n"]
        assert shared["n"] in (announced, announced + 1)
        assert all(bool((w == shared["n"]).all()) for w in shared["model"].values())
        last = shared["n"]


@pytest.mark.parametrize("found", ["last", "last.old"])
def test_every_stage_of_the_renaming_is_readable(tmp_path: Path, found: str) -> None:
    state.write(tmp_path, {"world_size": 1, "model": {}, "n": 1}, {"n": 1})
    (tmp_path / "last").rename(tmp_path / "keep")
    (tmp_path / "keep").rename(tmp_path / found)
    (tmp_path / "last.tmp").mkdir()
    (tmp_path / "last.tmp" / "state.pt").write_bytes(b"half")
    assert state.read(tmp_path)[0]["n"] == 1
    state.write(tmp_path, {"world_size": 1, "model": {}, "n": 2}, {"n": 2})
    assert state.read(tmp_path)[0]["n"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    state.write(tmp_path, {"world_size": 1, "model": {}, "n": 1}, {"n": 1})
    before = (tmp_path / "last" / "state.pt").read_bytes()
    command = [sys.executable, "-c", WRITER, str(tmp_path), "2"]
    writer = subprocess.run(command, preexec_fn=limit_file_size, capture_output=True, text=True, check=False)
    assert writer.returncode == 1
    assert f"UserError: The disk of {tmp_path} takes no more data" in writer.stderr
    assert (tmp_path / "last" / "state.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    state.write(tmp_path, {"world_size": 1, "model": {}, "n": 1}, {"n": 1})
    broken = {"world_size": 1, "model": {"head.weight": torch.tensor([1.0, float("nan")])}, "n": 2}
    with pytest.raises(UserError, match=r"The weights head.weight are no longer finite"):
        state.write(tmp_path, broken, {"n": 2})
    assert state.read(tmp_path)[0]["n"] == 1


def test_unusable_states_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no state to resume from"):
        state.read(tmp_path / "weights")
    state.write(tmp_path, {"world_size": 2, "model": {}}, {})
    with pytest.raises(UserError, match=r"trained by 2 process\(es\), not 1"):
        state.read(tmp_path)
    (tmp_path / "last" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        state.read(tmp_path)


def test_random_state_of_another_kind_of_device_is_left_out() -> None:
    """The part of the device is missing or of no use when a run moves; neither may stop it."""
    torch.manual_seed(7)
    of_cpu = state.rng_state(torch.device("cpu"))
    of_cuda = {**of_cpu, "cuda": torch.zeros(16, dtype=torch.uint8)}
    expected = torch.rand(3)
    for device, saved in (("cpu", of_cuda), ("cuda", of_cpu), ("cpu", of_cpu)):
        torch.manual_seed(1)
        state.set_rng_state(torch.device(device), saved)
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
def test_random_state_of_the_device_comes_back() -> None:
    device = torch.device("cuda")
    torch.manual_seed(7)
    saved = state.rng_state(device)
    expected = torch.rand(3, device=device)
    state.set_rng_state(device, saved)
    assert torch.equal(torch.rand(3, device=device), expected)


def test_optimiser_state_comes_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    saved = state.capture(model, optimizer, None, None, state.Progress(step=5))
    other = torch.nn.Linear(4, 3)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    state.restore(saved, other, fresh, None, None)
    x = torch.randn(2, 4)
    for network, stepper in ((model, optimizer), (other, fresh)):
        stepper.zero_grad()
        network(x).square().sum().backward()
        stepper.step()
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    assert saved["progress"]["step"] == 5
