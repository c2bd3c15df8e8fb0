"""The benchmark compares the same network, in turn, and says so in one line that scripts can read."""

import os
import re
import subprocess
import sys

import pytest
import torch

from openmvit.benchmark import Case, Result, build, make_batch, make_step, measure, output_difference, report
from openmvit.errors import UserError

TINY = ["mvitv2_tiny", "--batch", "1", "--pairs", "3", "--device", "cpu", "--clock", "processor"]
SUMMARY = r"bench mvitv2_tiny ratio=\d+\.\d\d low=\d+\.\d\d high=\d+\.\d\d ours=\d+\.\d peer=\d+\.\d"


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    case = Case("mvitv2_tiny", batch=2, step="train", device="cpu")
    return case, *build(case)


def test_the_module_runs_by_itself_and_ends_with_the_summary():
    done = python("-m", "openmvit.benchmark", *TINY)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(SUMMARY, lines[-1]), lines[-1]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert [row[0] for row in table] == ["side", "---", "ours", "timm"]
    assert all(float(cell.rstrip("%")) > 0 for row in table[2:] for cell in row[1:]), table
    assert "outputs differ by" in lines[0]
    assert "fp32, eager, infer, batch 1, 3 pairs, processor time" in lines[0]


def test_it_needs_no_library_of_the_command_line():
    code = (
        "import sys, openmvit.benchmark; print(sorted({'jsonargparse', 'rich', 'lightning', 'timm'} & {*sys.modules}))"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_both_sides_hold_equal_weights_and_share_none(tiny):
    case, ours, peer = tiny
    assert output_difference(case, ours, peer, make_batch(case)[0]) < 1e-5
    assert not {p.data_ptr() for p in ours.parameters()} & {p.data_ptr() for p in peer.parameters()}
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())


def test_another_network_is_not_timed(tiny):
    case, ours, peer = tiny
    x, table = make_batch(case)[0], ours.blocks[4].attn.rel_pos_h
    with torch.no_grad():
        table.mul_(50.0)
        with pytest.raises(UserError, match="Outputs differ by"):
            output_difference(case, ours, peer, x)
        table.div_(50.0)
        ours.head.projection.bias[0] = float("nan")
        with pytest.raises(UserError, match="Outputs differ by nan"):
            output_difference(case, ours, peer, x)
        ours.head.projection.bias[0] = 0.0


def test_a_training_step_updates_both_sides_alike(tiny):
    case, ours, peer = tiny
    batch = make_batch(case)
    before = ours.patch_embed.proj.weight.clone()
    steps = [make_step(case, model, *batch) for model in (ours, peer)]
    losses = [[float(step()) for _ in range(2)] for step in steps]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][1] < losses[0][0]
    assert not torch.equal(before, ours.patch_embed.proj.weight)


def test_spread_is_the_outer_deciles():
    ratios = [float(i) for i in range(11)]
    assert Result((1.0, 1.0), ratios, 0.0, (0.0, 0.0), 1.0).spread == (1.0, 9.0)


def test_summary_counts_images_of_the_median_step():
    case = Case("mvitv2_small", batch=8)
    result = Result((0.8, 1.0), [1.0, 1.25, 1.5], 1e-6, (2.0**20, float("nan")), 280e9)
    text = report(case, result)
    assert text.splitlines()[-1] == "bench mvitv2_small ratio=1.25 low=1.05 high=1.45 ours=10.0 peer=8.0"
    assert "| ours | 800.0 | 10.0 | 140 | 50% | 1 |" in text and "| timm | 1000.0 | 8.0 | 112 | 40% | - |" in text


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["mvitv2_smal"], "timm has no network 'mvitv2_smal'. Did you mean 'mvitv2_small'."),
        (["mvitv2_small", "--against", "tim"], "--against is 'tim'. Did you mean 'timm'."),
        (["mvitv2_small", "--precision", "fp16"], "--precision is 'fp16'."),
        (["mvitv2_small", "--batch", "0"], "--batch is 0"),
        (["mvitv2_small", "--clock", "cpu"], "--clock is 'cpu'. Accepted: wall, processor."),
        (["mvitv2_small", "--batch", "many"], "invalid int value: 'many'"),
        (["mvitv2_small", "--prec", "fp32"], "nrecognized arguments: --prec fp32"),
        ([], "required: name"),
    ],
)
def test_bad_options_are_one_sentence(arguments, fragment):
    from openmvit.benchmark import main

    with pytest.raises(UserError) as error:
        main(arguments)
    assert fragment in str(error.value)


def test_processor_time_is_for_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(UserError, match="one CPU thread"):
            Case("mvitv2_small", clock="processor", device="cpu")
    finally:
        torch.set_num_threads(threads)


def test_a_missing_peer_gives_the_install_line():
    hide = "import sys, runpy; sys.modules['timm'] = None; sys.argv = ['bench', 'mvitv2_tiny', '--device', 'cpu']; "
    done = python("-c", hide + "runpy.run_module('openmvit.benchmark', run_name='__main__')")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: timm is not installed. Run: pip install timm."


@pytest.mark.gpu
def test_cuda_is_timed_by_events():
    result = measure(Case("mvitv2_tiny", precision="bf16", batch=2, pairs=3, device="cuda"))
    assert min(result.seconds) > 0 and min(result.memory) > 0
