"""bf16 on a CPU that has no products of bf16: the same network by products in float32."""

import platform
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.nn.test_fast_paths import CLIP, FORMS, IMAGE, network, outputs
from torch.utils._python_dispatch import TorchDispatchMode

from openmvit.nn import precision
from openmvit.nn.fast import depthwise, linear
from openmvit.nn.grid import conv
from openmvit.nn.precision import in_float32, needs_float32

TRIED_ON = ("2.11", "2.15")
"""Releases of torch whose private question about the processor was asked."""


@pytest.fixture
def without_bf16(monkeypatch):
    """A processor without products of bf16, whatever this one has."""
    monkeypatch.setattr(precision, "HAS_BF16_KERNELS", False)


def test_the_processor_answers():
    if not torch.__version__.startswith(TRIED_ON):
        pytest.xfail("compare the answer with the processor and name the release")
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() == precision.HAS_BF16_KERNELS
    if platform.machine() == "x86_64":
        assert ("avx512bw" in Path("/proc/cpuinfo").read_text()) == precision.HAS_BF16_KERNELS


@pytest.mark.parametrize(("capability", "kernels"), [("DEFAULT", False), ("AVX2", False), ("AVX512", True)])
def test_without_the_private_question_the_instructions_answer(capability, kernels, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert precision._has_bf16_kernels() == kernels


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
def test_it_is_about_as_near_to_fp32_as_products_in_bf16(form, monkeypatch):
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    exact = outputs(model, x)[0]
    distances = []
    for kernels in (True, False):
        monkeypatch.setattr(precision, "HAS_BF16_KERNELS", kernels)
        distances.append(distance(outputs(model, x, bf16=True)[0], exact))
    assert distances[1] < 1.25 * distances[0]


class Watch(TorchDispatchMode):
    """Types of all factors of products and filters, as the library is called."""

    NAMES = (
        "mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_linear_pointwise",
        "_scaled_dot_product_flash_attention_for_cpu",
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__.split(".")[-1] in self.NAMES:
            self.types.update(t.dtype for t in args if isinstance(t, torch.Tensor))
        return function(*args, **(kwargs or {}))


def watched_step(model, x):
    """What a step multiplies, and the types of its feature maps."""
    with Watch() as watch, torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(x)
        sum(f.float().square().sum() for f in features).backward()
        with torch.no_grad():
            model.forward_features(x)
    return watch.types, {f.dtype for f in features}


@pytest.mark.parametrize("form", [IMAGE, CLIP | {"cls_token": True}, FORMS["windows"]])
def test_no_product_of_a_step_is_in_bf16(form, without_bf16, monkeypatch):
    x = torch.randn(2, 3, *form["input_size"])
    factors, results = watched_step(network(form), x)
    assert factors == {torch.float32}
    monkeypatch.setattr(precision, "HAS_BF16_KERNELS", True)
    assert results == watched_step(network(form), x)[1]


def test_with_another_activation_too(without_bf16):
    model = network(IMAGE)
    for block in model.blocks:
        block.mlp.act = torch.nn.ReLU()
    assert watched_step(model, torch.randn(2, 3, *IMAGE["input_size"]))[0] == {torch.float32}


def test_with_products_of_bf16_they_are_used(monkeypatch):
    monkeypatch.setattr(precision, "HAS_BF16_KERNELS", True)
    factors, _ = watched_step(network(IMAGE), torch.randn(2, 3, *IMAGE["input_size"]))
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


TERMS = {
    "keys and values": IMAGE | {"relative_terms": "qkv"},
    "joint": IMAGE | {"relative_terms": "qkv", "relative_position": "joint"},
}


@pytest.mark.parametrize("form", FORMS | TERMS)
def test_weights_of_bf16_too(form, without_bf16):
    form = (FORMS | TERMS)[form]
    exact = outputs(network(form), x := torch.randn(2, 3, *form["input_size"]))[1]
    narrow = network(form).bfloat16()
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


def test_types_that_do_not_fit_stay_an_error(without_bf16):
    layer = torch.nn.Linear(8, 16)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(3, 8).bfloat16(), None, layer.weight, layer.bias)


def test_what_is_not_bf16_stays(without_bf16):
    with torch.autocast("cpu", torch.bfloat16):
        assert needs_float32(torch.zeros(1))
        assert not needs_float32(torch.zeros(1, dtype=torch.float64))
    with torch.autocast("cpu", torch.float16):
        assert not needs_float32(torch.zeros(1))
    assert not needs_float32(torch.zeros(1))
    x = torch.randn(3)
    assert in_float32(lambda t: t, x) is x


@pytest.mark.parametrize("way", ["export", "trace"])
def test_a_graph_that_is_written_does_not_depend_on_the_processor(way, monkeypatch):
    model, x = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"])
    graphs = []
    for kernels in (True, False):
        monkeypatch.setattr(precision, "HAS_BF16_KERNELS", kernels)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            if way == "export":
                graphs.append(str(torch.export.export(model, (x,)).graph))
            else:
                graph = str(torch.jit.trace(model, x, check_trace=False).inlined_graph)
                graphs.append(re.sub(r"___torch_mangle_\d+\.", "", graph))
    assert graphs[0] == graphs[1]


def test_a_compiled_network_multiplies_no_bf16(without_bf16):
    """All but its classifier, which is small and called as it is."""
    torch.compiler.reset()
    model, x, watch = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"]), Watch()

    def backend(graph, _):
        def run(*inputs):
            with watch:
                return graph(*inputs)

        return run

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(model.forward_features, fullgraph=True, backend=backend)(x)
        expected = model.forward_features(x)
    assert watch.types == {torch.float32}
    for ours, eager in zip(found, expected, strict=True):
        assert distance(ours, eager) < 1e-2
