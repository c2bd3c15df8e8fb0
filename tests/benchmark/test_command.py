"""The benchmark runs by itself, in an environment with few libraries, and ends with a line that scripts can read."""

import os
import re
import subprocess
import sys

import pytest
import torch

from openmvit.benchmark import main, make_case
from openmvit.errors import UserError

TINY = ["mvitv2_tiny", "--batch", "1", "--pairs", "3", "--device", "cpu", "--clock", "processor"]
NUMBER = r"\d+\.\d+"
SUMMARY = rf"bench mvitv2_tiny ratio={NUMBER} low={NUMBER} high={NUMBER} ours={NUMBER} peer={NUMBER}"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
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


def test_it_needs_torch_torchvision_safetensors_and_the_peer_alone():
    others = "jsonargparse rich lightning torchmetrics av faster_coco_eval huggingface_hub matplotlib yaml timm"
    code = f"""
import sys
sys.modules |= dict.fromkeys({others.split()})
from openmvit.benchmark import make_case
from openmvit.benchmark.steps import build
print(*(type(side).__module__ for side in build(make_case("mvitv2_small_16x4", device="cpu"))))
"""
    done = python("-c", code)
    assert done.stdout.split() == ["openmvit.model", "torchvision.models.video.mvit"], done.stderr


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
