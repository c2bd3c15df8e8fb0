"""The network on CUDA against the CPU: every form, the fused kernels of attention, and a CUDA graph.

Nothing but torch, torchvision, safetensors and pytest is needed here.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nn.test_fast_paths import CLIP, FORMS, IMAGE, network
from openmvit.nn import attention

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
    monkeypatch.setattr(attention, "MOST_SCORES", 0)
    for ours, expected in zip(outputs(*on_cuda), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("most", [0, attention.MOST_SCORES], ids=["in channels", "written out"])
@pytest.mark.parametrize("fields", [IMAGE, CLIP], ids=["image", "clip"])
def test_bf16_attention_takes_a_fused_kernel(fields, most, monkeypatch):
    monkeypatch.setattr(attention, "MOST_SCORES", most)
    torch.manual_seed(0)
    model, x = network(fields), torch.randn(2, 3, *fields["input_size"])
    expected = outputs(model, x)
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(fused):  # anything else is an error
        found = outputs(model.cuda(), x.cuda(), torch.bfloat16)
    flat = [torch.cat([t.flatten() for t in side]) for side in (found, expected)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 3e-2


@pytest.mark.parametrize("fields", [IMAGE, CLIP], ids=["image", "clip"])
def test_a_cuda_graph_gives_the_same(fields):
    torch.manual_seed(0)
    model = network(fields).cuda().eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    with torch.no_grad():
        for _ in range(4):  # warm, recorded, replayed
            x = torch.randn(2, 3, *fields["input_size"], device="cuda")
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
