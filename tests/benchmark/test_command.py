"""The benchmark runs by itself, in an environment with few libraries, and ends with a line that scripts can read."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import openmvit
from openmvit.benchmark import main, make_case
from openmvit.errors import UserError

TINY = ["mvitv2_tiny", "--batch", "1", "--pairs", "3", "--device", "cpu", "--clock", "processor"]
NUMBER = r"\d+\.\d+"
SUMMARY = rf"bench mvitv2_tiny ratio={NUMBER} low={NUMBER} high={NUMBER} ours={NUMBER} peer={NUMBER}"


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


def test_the_module_runs_by_itself_and_ends_with_the_summary():
    done = python("-m", "openmvit.benchmark", *TINY, "--switch")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(SUMMARY, lines[-1]), lines[-1]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert [row[0] for row in table] == ["side", "---", "ours", "timm", "matrix products alone"]
    assert [row[1] for row in table[2:4]] == ["eager", "eager"]
    assert all(float(cell.rstrip("%")) > 0 for row in table[2:4] for cell in row[2:]), table
    assert "outputs differ by" in lines[0]
    assert "fp32, eager, infer, batch 1, 3 pairs, processor time" in lines[0]
    room = re.search(rf"leave room for: ({NUMBER})", done.stdout)
    assert room is not None and float(room[1]) > float(re.findall(NUMBER, lines[-1])[0])
    assert len(re.findall(rf"With the oneDNN switch (?:ours|timm) gains {NUMBER} \[", done.stdout)) == 2


def site_of(folder: Path, *names: str) -> Path:
    """A folder of packages that holds this one, the named ones and what those require, and nothing else."""
    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        package = distribution(wanted.name)
        for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        for one in map(Requirement, package.requires or ()):
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(one)
    (folder / "openmvit").symlink_to(Path(openmvit.__file__).parent)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "peer", "absent"),
    [
        ("mvitv2_tiny", "timm", "lightning jsonargparse av matplotlib faster_coco_eval onnx"),
        ("mvitv2_small_16x4", "torchvision", "timm yaml rich huggingface_hub lightning jsonargparse av"),
    ],
)
def test_it_needs_torch_torchvision_safetensors_and_the_peer_alone(tmp_path, name, peer, absent):
    path = {"PYTHONPATH": str(site_of(tmp_path, "torch", "torchvision", "safetensors", peer))}
    # -S: no other folder of packages. -P: nor the folder that the tests run in.
    code = f"import importlib.util; print([n for n in {absent.split()} if importlib.util.find_spec(n)])"
    assert python("-S", "-P", "-c", code, **path).stdout.strip() == "[]"
    arguments = [name, "--against", peer, *TINY[1:]]
    done = python("-S", "-P", "-m", "openmvit.benchmark", *arguments, **path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SUMMARY.replace("mvitv2_tiny", name), done.stdout.splitlines()[-1])
    assert f"| {peer} | eager |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["mvitv2_smal"], "Unknown model 'mvitv2_smal'. Did you mean 'mvitv2_small'."),
        (["mvitv2_small_cls"], "timm has no network 'mvitv2_small_cls'. Did you mean 'mvitv2_small'."),
        (["mvitv2_small", "--against", "torchvision"], "torchvision has no network 'mvitv2_small'."),
        (["mvitv2_small", "--against", "tim"], "--against is 'tim'. Did you mean 'timm'."),
        (["mvitv2_small", "--against", "torchvision:swin_b"], "--against is 'torchvision:swin_b'."),
        (["mvitv2_small", "--precision", "fp16"], "--precision is 'fp16'."),
        (["mvitv2_small", "--batch", "0"], "--batch is 0"),
        (["mvitv2_small", "--clock", "cpu"], "--clock is 'cpu'. Accepted: wall, processor."),
        (["mvitv2_small", "--switch", "--mode", "best"], "--switch is for --mode eager"),
        (["mvitv2_small", "--batch", "many"], "invalid int value: 'many'"),
        (["mvitv2_small", "--prec", "fp32"], "nrecognized arguments: --prec fp32"),
        (["--suite", "cuda", "--pairs", "0"], "--pairs is 0"),
        (["--suite", "tpu"], "invalid choice: 'tpu'"),
        ([], "The name of a network is missing"),
    ],
)
def test_bad_options_are_one_sentence(arguments, fragment):
    with pytest.raises(UserError) as error:
        main(arguments)
    assert fragment in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_cuda_suite_needs_cuda():
    with pytest.raises(UserError, match="no CUDA device"):
        main(["--suite", "cuda"])


def test_defaults_follow_the_axes_of_the_network():
    image, clip = make_case("mvitv2_small"), make_case("mvitv2_small_16x4")
    assert (image.against, image.batch, image.unit) == ("timm", 8, "images")
    assert (clip.against, clip.batch, clip.unit) == ("torchvision", 1, "clips")
    assert image.pairs == clip.pairs == 15


def test_processor_time_is_for_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(UserError, match="one CPU thread"):
            make_case("mvitv2_small", clock="processor", device="cpu")
    finally:
        torch.set_num_threads(threads)


def test_a_missing_peer_gives_the_install_line():
    hide = "import sys, runpy; sys.modules['timm'] = None; sys.argv = ['bench', 'mvitv2_tiny', '--device', 'cpu']; "
    done = python("-c", hide + "runpy.run_module('openmvit.benchmark', run_name='__main__')")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: timm is not installed. Run: pip install timm."
