"""What is measured beside the time: operations, the products of a step alone, memory; and how it is told."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from openmvit.benchmark import Result, Side, make_case, measure, report
from openmvit.benchmark.ceilings import Product, record_products, seconds_of_products
from openmvit.benchmark.measure import peer_operations
from openmvit.benchmark.steps import best_step
from openmvit.benchmark.suite import HEAD, choose, cuda_cases, run_suite, suite_cells
from openmvit.errors import UserError

CPU = torch.device("cpu")
OURS, PEER = Side(0.8, 112e9, 2.0**20), Side(1.0, 112e9)


def result(ours=OURS, peer=PEER, **changes):
    return replace(Result(ours, peer, (1.0, 1.25, 1.5), 1e-6, 280e9, 0.5), **changes)


def test_spread_is_the_outer_deciles():
    assert result(ratios=tuple(float(i) for i in range(11))).spread == (1.0, 9.0)


def test_summary_counts_images_of_the_median_step():
    text = report(make_case("mvitv2_small"), result())
    assert text.splitlines()[-1] == "bench mvitv2_small ratio=1.25 low=1.05 high=1.45 ours=10.0 peer=8.0"
    assert "| ours | eager | 800.0 | 10.0 | 140 | 50% | 1 |" in text
    assert "| timm | eager | 1000.0 | 8.0 | 112 | 40% | - |" in text
    assert "| matrix products alone | none | 500.0 | 16.0 | 224 | 80% | - |" in text
    assert "leave room for: 2.00." in text and "outputs differ by 1.0e-06" in text


def test_what_was_chosen_left_out_and_gained_is_told():
    ours = replace(OURS, variant="compiled", left_out=("max-autotune: RuntimeError",))
    peer = replace(PEER, gain=(1.3, 1.4, 1.5))
    text = report(make_case("mvitv2_small_16x4"), result(ours, peer))
    assert "| ours | compiled | 800.0 | 1.2 |" in text and "clips/s" in text
    assert "Left out for ours: max-autotune: RuntimeError." in text
    assert "With the oneDNN switch torchvision gains 1.40 [1.32-1.48]." in text
    assert text.splitlines()[-1].endswith("ours=1.2 peer=1.0")


@pytest.mark.slow
def test_another_network_is_said_to_be_one():
    case = make_case("mvitv2_tiny", against="timm:vit_tiny_patch16_224", batch=1, pairs=3, device="cpu")
    found = measure(case)
    text = report(case, found)
    assert "vit_tiny_patch16_224 is another network, its outputs were not compared" in text
    assert "| timm:vit_tiny_patch16_224 | eager |" in text and "alone" not in text
    assert math.isnan(found.difference) and found.peer.memory > 0


def test_operations_of_another_network_are_its_products_and_convolutions():
    case = make_case("mvitv2_tiny", against="timm:vit_tiny_patch16_224", batch=4, step="train", device="cpu")
    tokens, width, depth = 197, 192, 12
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    expected = depth * block + 196 * 768 * width + width * 1000
    assert peer_operations(case, case.peer.build()) == pytest.approx(2 * expected * 4 * 3, rel=1e-6)


def test_products_of_a_step_are_recorded_forward_and_backward():
    w, x = torch.randn(5, 7, requires_grad=True), torch.randn(2, 3, 7)
    q = torch.randn(2, 1, 4, 8)

    def step():
        F.linear(x, w).sum().backward()
        return F.scaled_dot_product_attention(q, q, q)

    found = record_products(step)
    sizes = sorted((one.sizes, count) for one, count in found.items())
    assert sizes == [
        (((2, 4, 4), (2, 4, 8)), 1),
        (((2, 4, 8), (2, 8, 4)), 1),
        (((5, 6), (6, 7)), 1),
        (((6, 7), (7, 5)), 1),
    ]
    assert sum(one.operations * count for one, count in found.items()) == 2 * (2 * 6 * 7 * 5 + 2 * 2 * 4 * 4 * 8)


@pytest.mark.parametrize("sizes", [((6, 7), (7, 5)), ((2, 6, 7), (2, 7, 5))])
def test_every_way_of_a_product_has_its_shape(sizes):
    strides = tuple(torch.empty(size).stride() for size in sizes)
    repeated = (strides[0], tuple(0 for _ in strides[1]))
    for form in (strides, repeated):
        first, *others = (way() for way in Product(sizes, form, torch.float32).ways(CPU))
        assert first.shape == (*sizes[0][:-1], 5) and all(other.shape[-2:] == (6, 5) for other in others)


def test_the_time_of_products_grows_with_their_number():
    case = make_case("mvitv2_tiny", device="cpu")
    product = Product(((256, 256), (256, 256)), ((256, 1), (256, 1)), torch.float32)
    assert seconds_of_products(case, Counter({product: 50})) > seconds_of_products(case, Counter({product: 1})) > 0


@pytest.mark.slow
def test_the_suite_is_one_table_in_which_a_failure_is_a_row(capsys):
    case = make_case("mvitv2_tiny", against="timm:vit_tiny_patch16_224", batch=1, pairs=3, device="cpu")
    run_suite([replace(case, against="timm:nothing"), case])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and {row.count("|") for row in rows} == {len(HEAD) + 1}
    assert "did not run: timm has no network 'nothing'" in rows[2]
    assert "| eager | eager |" in rows[3] and lines[-1].startswith("Matrix rate, TFLOP/s: fp32 ")


def test_a_part_of_the_suite_can_be_chosen():
    cases = [
        make_case(name, precision=p, device="cpu") for name in ("mvitv2_tiny", "mvitv2_small") for p in ("fp32", "bf16")
    ]
    assert choose(cases, {"name": "mvitv2_tiny", "precision": "bf16"}) == [cases[1]]
    assert choose(cases, {}) == cases
    with pytest.raises(UserError, match=r"no comparison with mode best\. It has mvitv2_small"):
        choose(cases, {"mode": "best"})


def test_a_variant_can_be_left_out():
    case = make_case("mvitv2_tiny", mode="best", batch=2, pairs=3, device="cpu", without="compiled")
    toy, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval(), torch.randn(2, 3, 2, 2)
    _, name, left_out = best_step(case, toy, x, x)
    assert (name, left_out) == ("eager", ["compiled: not tried"])
    with pytest.raises(UserError, match="eager variants are always tried"):
        make_case("mvitv2_tiny", without="eager")


def test_a_row_of_the_suite():
    cells = suite_cells(make_case("mvitv2_small"), result())
    assert cells[6:12] == ["1.25", "1.05-1.45", "10.0", "8.0", "50%", "40%"]


@pytest.mark.gpu
def test_cuda_is_timed_by_events():
    found = measure(make_case("mvitv2_tiny", precision="bf16", batch=2, pairs=3, device="cuda"))
    assert min(found.ours.seconds, found.peer.seconds, found.products) > 0
    assert min(found.ours.memory, found.peer.memory) > 0


@pytest.mark.gpu
def test_cuda_takes_the_fastest_of_its_variants():
    """Of a toy, as a real network takes minutes to compile in all of them."""
    case = make_case("mvitv2_tiny", precision="bf16", mode="best", batch=2, pairs=3, device="cuda")
    toy = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(512, 8))
    toy, x = toy.cuda().eval(), torch.randn(2, 3, 32, 32, device="cuda")
    step, name, left_out = best_step(case, toy, x, x)
    assert left_out == [] and any(way in name for way in ("eager", "compiled", "graphs", "autotune"))
    with torch.no_grad():
        assert float((step().float() - toy(x)).abs().max() / toy(x).abs().max()) < 2e-2


@pytest.mark.gpu
def test_the_cuda_suite_names_every_comparison_once():
    cases = list(cuda_cases(pairs=3))
    assert len(cases) == len({(c.name, c.against, c.precision, c.mode, c.step) for c in cases}) == 48
