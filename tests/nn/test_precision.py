"""bf16 on a CPU that is faster in float32: the same network in float32 as a whole."""

import platform
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detection.small import detector, pictures, target
from nn.test_fast_paths import CLIP, FORMS, IMAGE, network
from openmvit.nn.fast import precision
from openmvit.nn.fast.precision import is_slow_in_bf16
from openmvit.nn.fast.tracing import is_exporting
from openmvit.nn.ops import autocast

TRIED_ON = ("2.11", "2.15")
"""Releases of torch whose private questions about the processor were asked."""


@pytest.fixture
def slow_bf16(monkeypatch):
    """A processor that is slower in bf16, whatever this one is."""
    monkeypatch.setattr(precision, "BF16_IS_FAST", False)


def test_the_processor_answers():
    if not torch.__version__.startswith(TRIED_ON):
        pytest.xfail("compare the answers with the processor and name the release")
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() in (True, False)
    assert torch.cpu._is_amx_tile_supported() in (True, False)
    if platform.machine() == "x86_64":
        text = Path("/proc/cpuinfo").read_text()
        fast = "amx_bf16" in text or "GenuineIntel" not in text
        assert ("avx512bw" in text and fast) == precision.BF16_IS_FAST


@pytest.mark.parametrize(
    ("supported", "amx", "processor", "pays"),
    [
        (False, False, "AuthenticAMD", False),
        (True, False, "AuthenticAMD", True),
        (True, False, "GenuineIntel", False),
        (True, True, "GenuineIntel", True),
        (True, False, "", True),
    ],
)
def test_it_pays_by_maker_and_instructions(supported, amx, processor, pays, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(precision, "has_amx", lambda: amx)
    monkeypatch.setattr(precision, "_processor", lambda: processor)
    assert precision._is_fast_in_bf16() == pays


@pytest.mark.parametrize(
    ("capability", "processor", "pays"),
    [
        ("DEFAULT", "AuthenticAMD", False),
        ("AVX2", "AuthenticAMD", False),
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX512", "GenuineIntel flags: amx_bf16 amx_tile", True),
    ],
)
def test_without_the_private_questions_the_system_answers(capability, processor, pays, monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(precision, "_processor", lambda: processor)
    assert precision._is_fast_in_bf16() == pays


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


def step(model, x):
    """Maps with gradient and without, and the gradients of their squares."""
    model.zero_grad()
    maps = model.forward_features(x)
    sum(f.float().square().sum() for f in maps).backward()
    with torch.no_grad():
        quiet = model.forward_features(x)
    return [*maps, *quiet, *(p.grad for p in model.parameters() if p.grad is not None)]


STEPS = {
    "image": IMAGE,
    "clip with a class token": CLIP | {"cls_token": True},
    "windows": FORMS["windows"],
    "reversible": IMAGE | {"reversible": "mlp"},
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("form", STEPS)
def test_a_step_is_the_one_in_float32_to_the_last_bit(form, again, slow_bf16):
    model, x = network(STEPS[form]), torch.randn(2, 3, *STEPS[form]["input_size"])
    exact = step(model, x)
    if again:
        model.set_grad_checkpointing()
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        found = step(model, x)
    assert watch.types == {torch.float32}
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_where_it_pays_products_are_in_bf16(monkeypatch):
    monkeypatch.setattr(precision, "BF16_IS_FAST", True)
    with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
        step(network(IMAGE), torch.randn(2, 3, *IMAGE["input_size"]))
    assert torch.bfloat16 in watch.types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pictures_of_16_bits_are_widened(dtype, slow_bf16):
    model, x = network(IMAGE), torch.randn(2, 3, *IMAGE["input_size"]).to(dtype)
    with torch.no_grad():
        exact = model(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_pictures_of_other_types_stay_an_error(dtype, pays, monkeypatch):
    monkeypatch.setattr(precision, "BF16_IS_FAST", pays)
    with pytest.raises(RuntimeError, match="type"), torch.autocast("cpu", torch.bfloat16):
        network(IMAGE)(torch.ones(2, 3, *IMAGE["input_size"]).to(dtype))


def test_weights_of_bf16_stay_in_it(slow_bf16):
    x = torch.randn(2, 3, *IMAGE["input_size"])
    exact, narrow = network(IMAGE)(x), network(IMAGE).bfloat16()
    with Watch() as watch:
        logits = narrow(x.bfloat16())
    logits.sum().backward()
    assert torch.bfloat16 in watch.types and logits.dtype == torch.bfloat16  # some filters are faster in float32
    assert float((logits.float() - exact).norm() / exact.norm()) < 3e-2


def test_a_replica_without_parameters_runs(monkeypatch):
    """As `nn.DataParallel` makes them: weights are attributes there."""
    model, x = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"])
    expected = model(x)
    monkeypatch.setattr(model, "parameters", lambda: iter(()))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_a_detector_is_in_float32_with_neck_and_heads(slow_bf16):
    model, seen = detector().eval(), pictures((40, 56))
    with torch.no_grad():
        exact = model(seen)[0]
        with torch.autocast("cpu", torch.bfloat16), Watch() as watch:
            found = model(seen)[0]
    assert watch.types == {torch.float32}
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=0)


def test_losses_of_a_detector_are_those_in_float32(slow_bf16):
    model, seen, targets = detector().train(), pictures((40, 56)), [target((40, 56))]
    found = []
    for bf16 in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(model(seen, targets, detect=False)[1])
        sum(found[-1].values()).backward()
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_what_is_not_asked_for_stays(slow_bf16):
    weight = torch.zeros(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_slow_in_bf16(weight)
        assert not is_slow_in_bf16(weight.double())
        assert not is_slow_in_bf16(weight.bfloat16())
        with autocast(weight):
            assert not torch.is_autocast_enabled("cpu")
        with autocast(weight.bfloat16()):
            assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", torch.float16):
        assert not is_slow_in_bf16(weight)
    assert not is_slow_in_bf16(weight)


def test_types_that_do_not_fit_stay_an_error(slow_bf16):
    with pytest.raises(RuntimeError, match="type"):
        network(IMAGE)(torch.randn(2, 3, *IMAGE["input_size"]).bfloat16())


@pytest.mark.parametrize("way", ["export", "trace"])
def test_a_graph_that_is_written_does_not_depend_on_the_processor(way, monkeypatch):
    model, x = network(IMAGE).eval(), torch.randn(2, 3, *IMAGE["input_size"])
    graphs = []
    for pays in (True, False):
        monkeypatch.setattr(precision, "BF16_IS_FAST", pays)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            if way == "export":
                graphs.append(str(torch.export.export(model, (x,)).graph))
            else:
                graph = str(torch.jit.trace(model, x, check_trace=False).inlined_graph)
                graphs.append(re.sub(r"___torch_mangle_\d+\.", "", graph))
    assert graphs[0] == graphs[1]


def test_a_compiled_network_multiplies_no_bf16(slow_bf16):
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
    torch.testing.assert_close(found, expected)


class Asks(torch.nn.Module):
    def forward(self, x):
        return x + int(is_exporting())


def test_a_compiler_is_no_exporter():
    """The public question takes it for one in torch 2.11."""
    x = torch.zeros(2)
    assert float(torch.compile(Asks(), fullgraph=True, backend="eager")(x).sum()) == 0
    assert float(torch.export.export(Asks(), (x,)).module()(x).sum()) == 2
    assert not is_exporting()
