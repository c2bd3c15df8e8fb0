"""Both sides compute the same, and in mode `best` each takes the fastest way that works."""

import math
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from openmvit.benchmark import make_case, steps
from openmvit.benchmark.peers import SAME, find_peer
from openmvit.benchmark.steps import build, make_batch, make_step, onednn_switch, output_difference
from openmvit.convert import to_native
from openmvit.errors import UserError
from openmvit.nn.fast import precision
from openmvit.zoo import create_model

measure = import_module("openmvit.benchmark.measure")  # the package has a function of that name


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    case = make_case("mvitv2_tiny", batch=2, step="train", device="cpu")
    return case, *build(case)


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


def test_torchvision_holds_our_clip_weights_and_drops_nothing():
    case = make_case("mvitv2_small_16x4", device="cpu")
    ours, peer = build(case)
    assert output_difference(case, ours, peer, make_batch(case)[0]) < 1e-5
    chances = [module.p for module in peer.modules() if hasattr(module, "p")]
    assert chances and set(chances) == {0.0}


def test_every_peer_of_the_same_name_takes_our_weights():
    for package, names in SAME.items():
        for name in names:
            with torch.device("meta"):
                ours, theirs = create_model(name), find_peer(name, package).build()
            state = to_native(package, ours.config, theirs.state_dict())
            assert state.keys() == ours.state_dict().keys(), name


def test_an_unknown_network_of_timm_is_named():
    with pytest.raises(UserError, match="timm has no network 'vit_bas'"):
        build(make_case("mvitv2_tiny", against="timm:vit_bas", device="cpu"))


@pytest.mark.parametrize("network", ["swin_base_patch4_window7_224", "vit_base_patch16_224", "hiera_base_224"])
def test_the_other_networks_of_the_runtime_table_exist(network):
    with torch.device("meta"):
        assert sum(p.numel() for p in find_peer("mvitv2_base", f"timm:{network}").build().parameters()) > 50e6


def test_the_switch_ends_where_it_began():
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(KeyError), onednn_switch():
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise KeyError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


BEST = """
import torch
from openmvit.benchmark import make_case
from openmvit.benchmark.steps import best_step
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).eval()
x = torch.randn(2, 3, 4, 4)
case = make_case("mvitv2_tiny", precision="bf16", mode="best", device="cpu")
step, name, left_out = best_step(case, model, x, x)
assert (step().float() - model(x)).abs().max() < 2e-2
print(name, left_out, sep=chr(10))
"""


@pytest.mark.parametrize("compiler", ["none", pytest.param("as it is", marks=pytest.mark.slow)])
def test_what_does_not_compile_is_left_out_by_name(compiler, tmp_path):
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    if compiler == "none":
        environment["CXX"] = "/nowhere/c++"
    done = subprocess.run([sys.executable, "-c", BEST], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    name, left_out = done.stdout.splitlines()
    if compiler == "none":
        assert name in ("eager", "eager, bf16 weights")
        assert "compiled: " in left_out and "compiled, bf16 weights: " in left_out
    else:
        assert left_out == "[]"


def toy():
    """A network that takes the inputs of mvitv2_tiny and has its classes."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 16, 16), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(1568, 1000)
    )


def test_training_variants_start_from_the_same_weights_and_the_wrong_one_is_left_out(monkeypatch):
    case = make_case("mvitv2_tiny", batch=2, mode="best", step="train", device="cpu")

    def three(case, model, images, labels):
        plain = make_step(case, model, images, labels)

        def spoils():
            loss = plain()
            with torch.no_grad():
                model[3].weight.mul_(3.0)
            return loss

        yield "eager", model, lambda: spoils
        yield "same", model, lambda: plain
        yield "wrong", model, lambda: lambda: plain() * 1.1

    monkeypatch.setattr(steps, "variants", three)
    _, name, left_out = steps.best_step(case, toy().train(), *make_batch(case))
    assert name in ("eager", "same") and left_out == ["wrong: output differs by 1.0e-01"]


@pytest.mark.parametrize("variant", ["eager", "eager, bf16 weights", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_memory_of_the_chosen_variant_is_measured(variant, monkeypatch):
    case = make_case("mvitv2_tiny", batch=8, precision="bf16", mode="best", device="cpu")
    monkeypatch.setattr(measure, "build_ours", lambda case: toy().eval())
    assert 0 <= measure._peak_memory(case, 0, variant) < 2**28


def test_a_process_that_is_killed_costs_its_memory_alone(monkeypatch):
    def killed(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(measure, "in_own_process", killed)
    assert math.isnan(measure.peak_memory(make_case("mvitv2_tiny", device="cpu"), 0))


def test_bf16_weights_need_no_autocast(tiny, monkeypatch):
    monkeypatch.setattr(precision, "BF16_IS_FAST", True)
    case, ours, _ = tiny
    case = replace(case, precision="bf16", step="infer")
    x = make_batch(case)[0]
    plain = make_step(case, ours, x, x)()
    cast = make_step(case, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 2)).bfloat16(), x, x)
    assert plain.dtype == torch.bfloat16 and cast().dtype == torch.bfloat16
