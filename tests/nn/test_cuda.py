"""The network on CUDA against the CPU: every form, the fused kernels of attention, and a CUDA graph.

Nothing but torch, torchvision, safetensors and pytest is needed here.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nn.test_fast_paths import CLIP, FORMS, IMAGE, network
from openmvit.nn import ops
from openmvit.nn.fast import choose
from openmvit.nn.grid import conv

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products():
    """Products of fp32 in fp32."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [one.allow_tf32 for one in settings]
    for one in settings:
        one.allow_tf32 = False
    yield
    for one, value in zip(settings, before, strict=True):
        one.allow_tf32 = value


def outputs(model, x, precision=torch.float32):
    """Logits and the gradients of all parameters, on the CPU."""
    with torch.autocast(x.device.type, precision, enabled=precision != torch.float32):
        logits = model(x).float()
    used = [p for name, p in model.named_parameters() if name not in model.unused_parameters()]
    weights = torch.linspace(-1, 1, 5, device=x.device)
    gradients = torch.autograd.grad((logits * weights).sum(), used)
    return [t.detach().cpu() for t in (logits, *gradients)]


def both(form):
    """The same network and input on the CPU and on CUDA."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *FORMS[form]["input_size"])
    return (network(FORMS[form]), x), (network(FORMS[form]).cuda(), x.cuda())


@pytest.mark.parametrize("form", FORMS)
def test_a_network_on_cuda_is_that_on_the_cpu(form):
    on_cpu, on_cuda = both(form)
    for ours, plain in zip(outputs(*on_cuda), outputs(*on_cpu), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("form", [form for form in FORMS if "shifted" not in form])
def test_the_form_in_channels_is_that_on_the_cpu(form, monkeypatch):
    """Which maps of many tokens take."""
    on_cpu, on_cuda = both(form)
    plain = outputs(*on_cpu)
    monkeypatch.setattr(choose, "MOST_SCORES", 0)
    for ours, expected in zip(outputs(*on_cuda), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("most", [0, choose.MOST_SCORES], ids=["in channels", "written out"])
@pytest.mark.parametrize("fields", [IMAGE, CLIP], ids=["image", "clip"])
def test_bf16_attention_takes_a_fused_kernel(fields, most, monkeypatch):
    monkeypatch.setattr(choose, "MOST_SCORES", most)
    torch.manual_seed(0)
    model, x = network(fields), torch.randn(2, 3, *fields["input_size"])
    expected = outputs(model, x)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(fused):  # anything else is an error
        found = outputs(model.cuda(), x.cuda(), torch.bfloat16)
    flat = [torch.cat([t.flatten() for t in side]) for side in (found, expected)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 3e-2


@pytest.mark.parametrize("least", [0, 10**6], ids=["by frames", "channels first"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_filters_of_clips_are_those_of_the_cpu(stride, least, monkeypatch):
    monkeypatch.setattr(choose, "LARGE_FRAME", least)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 9, 6, 8, requires_grad=True), torch.randn(8, 1, 3, 3, 3, requires_grad=True)
    expected = conv(x, weight, None, stride, (1, 1, 1), groups=8)
    found = ops.depthwise(x.cuda(), weight.cuda(), stride, (1, 1, 1))
    grad = torch.randn_like(expected)
    sides = [(out, *torch.autograd.grad(out, (x, weight), grad.to(out.device))) for out in (found, expected)]
    for ours, plain in zip(*sides, strict=True):
        torch.testing.assert_close(ours.cpu(), plain, rtol=1e-4, atol=1e-4)


def test_a_bf16_norm_is_the_rounded_one():
    torch.manual_seed(0)
    norm, x = torch.nn.LayerNorm(96).cuda(), torch.randn(50, 96, device="cuda").bfloat16()
    torch.nn.init.normal_(norm.weight)
    with torch.autocast("cuda", torch.bfloat16):
        found, plain = ops.layer_norm(norm, x)[0], norm(x)
        wide = ops.layer_norm(norm, x.float())[0]
    assert found.dtype == torch.bfloat16 and plain.dtype == wide.dtype == torch.float32
    torch.testing.assert_close(found.float(), plain, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(wide, plain)


@pytest.mark.parametrize("fields", [IMAGE, CLIP], ids=["image", "clip"])
def test_a_cuda_graph_gives_the_same(fields):
    torch.manual_seed(0)
    model = network(fields).cuda().eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):  # warm, recorded, replayed
            x = torch.randn(2, 3, *fields["input_size"], device="cuda")
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
