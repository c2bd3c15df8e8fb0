"""bf16 on a CPU that has no products of bf16: the same network by products in float32."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tests.nn.test_fast_paths import CLIP, FORMS, IMAGE, network, outputs

from openmvit.nn import precision
from openmvit.nn.fast import depthwise, linear
from openmvit.nn.grid import conv
from openmvit.nn.precision import widely, widens

TRIED_ON = ("2.11", "2.15")
"""Releases of torch whose private question about the processor was asked."""


@pytest.fixture
def without_bf16(monkeypatch):
    """A processor without products of bf16, whatever this one has."""
    monkeypatch.setattr(precision, "MULTIPLIES_BF16", False)


def test_the_processor_answers():
    found = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert found == precision.MULTIPLIES_BF16
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        assert not found
    assert torch.__version__.startswith(TRIED_ON), "compare the answer with the processor and name the release"


def test_an_older_processor_in_a_process_of_its_own():
    script = "from openmvit.nn import precision; print(precision.MULTIPLIES_BF16)"
    limits = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=limits, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "False")


def distance(found, exact):
    found, exact = found.detach().float(), exact.detach().float()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("form", FORMS)
def test_a_network_in_bf16_is_as_near_to_fp32(form, without_bf16):
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    exact, ours = outputs(model, x), outputs(model, x, bf16=True)
    for found, value in zip(ours[:2], exact[:2], strict=True):
        assert distance(found, value) < 1e-2
    whole = [torch.cat([g.flatten() for g in side[2:]]) for side in (ours, exact)]
    assert distance(*whole) < 2e-2


@pytest.mark.parametrize("form", ["image", "class_token", "shifted"])
def test_it_is_not_farther_from_fp32_than_products_in_bf16(form, monkeypatch):
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    exact = outputs(model, x)[0]
    distances = []
    for multiplies in (True, False):
        monkeypatch.setattr(precision, "MULTIPLIES_BF16", multiplies)
        distances.append(distance(outputs(model, x, bf16=True)[0], exact))
    assert distances[1] < 1.25 * distances[0]


def products(model, x):
    """Types of all factors of products and filters in a step, as the library is called."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names, types = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_linear_pointwise"}, set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
            if function.overloadpacket.__name__.split(".")[-1] in names:
                types.update(t.dtype for t in args if isinstance(t, torch.Tensor))
            return function(*args, **(kwargs or {}))

    with Watch(), torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(x)
        sum(f.float().square().sum() for f in features).backward()
    return types, {f.dtype for f in features}


@pytest.mark.parametrize("form", [IMAGE, CLIP | {"cls_token": True}, FORMS["windows"]])
def test_no_product_of_a_step_is_in_bf16(form, without_bf16, monkeypatch):
    x = torch.randn(2, 3, *form["input_size"])
    factors, results = products(network(form), x)
    assert factors == {torch.float32}
    monkeypatch.setattr(precision, "MULTIPLIES_BF16", True)
    assert results == products(network(form), x)[1]


def test_with_products_of_bf16_they_are_used(monkeypatch):
    monkeypatch.setattr(precision, "MULTIPLIES_BF16", True)
    factors, _ = products(network(IMAGE), torch.randn(2, 3, *IMAGE["input_size"]))
    assert torch.bfloat16 in factors


@pytest.mark.parametrize("gelu", ["none", "before", "after"])
def test_a_linear_layer_rounds_its_result_alone(gelu, without_bf16):
    torch.manual_seed(0)
    x, layer = torch.randn(3, 7, 24).bfloat16(), torch.nn.Linear(24, 48)
    options = {f"gelu_{gelu}": True} if gelu != "none" else {}
    entering = F.gelu(x) if gelu == "before" else x
    expected = layer(entering.float())
    expected = F.gelu(expected) if gelu == "after" else expected
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = linear(x, None, layer.weight, layer.bias, **options)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-8, atol=1e-6)


def test_weights_of_bf16_too(without_bf16):
    model = network(IMAGE)
    exact = outputs(model, x := torch.randn(2, 3, *IMAGE["input_size"]))[1]
    narrow = network(IMAGE).bfloat16()
    logits = narrow(x.bfloat16())
    logits.sum().backward()
    assert logits.dtype == torch.bfloat16
    assert distance(logits, exact) < 3e-2
    assert {p.grad.dtype for p in narrow.parameters() if p.grad is not None} == {torch.bfloat16}


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 1, 1), (1, 2, 2)])
def test_filters(stride, without_bf16):
    torch.manual_seed(0)
    grid, kernel = (4, 9, 11)[-len(stride) :], (3,) * len(stride)
    x = torch.randn(2, *grid, 16).bfloat16().requires_grad_()
    weight = torch.randn(16, 1, *kernel, requires_grad=True)
    padding = (1,) * len(stride)
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise(x, weight, stride, padding)
    wide = x.detach().float().requires_grad_()
    exact = conv(wide, weight, None, stride, padding, groups=16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)
    grad = torch.randn_like(exact).bfloat16()
    pairs = zip(
        torch.autograd.grad(found, (x, weight), grad),
        torch.autograd.grad(exact, (wide, weight), grad.float()),
        strict=True,
    )
    for ours, theirs in pairs:
        assert distance(ours, theirs) < 1e-2


def test_what_is_not_bf16_stays(without_bf16):
    with torch.autocast("cpu", torch.bfloat16):
        assert widens(torch.zeros(1))
        assert not widens(torch.zeros(1, dtype=torch.float64))
    with torch.autocast("cpu", torch.float16):
        assert not widens(torch.zeros(1))
    assert not widens(torch.zeros(1))
    x = torch.randn(3)
    assert widely(lambda t: t, x) is x


def test_an_exported_graph_does_not_depend_on_the_processor(monkeypatch):
    model, x = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"])
    graphs = []
    for multiplies in (True, False):
        monkeypatch.setattr(precision, "MULTIPLIES_BF16", multiplies)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            graphs.append(str(torch.export.export(model, (x,)).graph))
    assert graphs[0] == graphs[1]


def test_a_compiled_network_is_one_graph(without_bf16):
    torch.compiler.reset()
    model, x = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        expected = model(x)
    assert distance(found, expected) < 1e-2
