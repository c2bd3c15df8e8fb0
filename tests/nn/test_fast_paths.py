"""Every faster way on a CPU against the plain one: attention by products, linear layers of oneDNN."""

import os
import subprocess
import sys
from functools import partial
from math import prod

import pytest
import torch
import torch.nn.functional as F

from nn.forms import attended
from openmvit import nn as core
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.fast import attention, choose, precision
from openmvit.nn.fast import depthwise as filters
from openmvit.nn.fast import linear as layers
from openmvit.nn.fast.linear import uses_one_dnn
from openmvit.nn.grid import conv
from openmvit.nn.ops import depthwise


def linear(x, weight, bias, **how):
    """Of a grid alone, as most tests want it."""
    return layers.apply(x, None, weight, bias, **how)[0]


def apply_linear(layer, x, **how):
    return layers.apply(x, None, layer.weight, layer.bias, **how)[0]


TRIED_ON = ("2.11", "2.14", "2.15")
"""Releases of torch whose private linear layer was compared with the public one."""

IMAGE = {"input_size": (24, 40), "patch_kernel": (3, 3), "patch_padding": (1, 1), "adaptive_kv_stride": (2, 2)}
CLIP = {
    "input_size": (4, 24, 32), "patch_kernel": (1, 3, 3), "patch_stride": (1, 4, 4), "patch_padding": (0, 1, 1),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3),
}  # fmt: skip
FORMS = {
    "image": IMAGE,
    "clip": CLIP,
    "class_token": CLIP | {"cls_token": True},
    "no_position": IMAGE | {"relative_position": "none"},
    "no_term": CLIP | {"cls_token": True, "relative_position": "none", "absolute_position": "separable"},
    "windows": IMAGE | {"window": ((4, 4), (4, 4))},
    "shifted": IMAGE | {"window": ((4, 4), (4, 4)), "window_pattern": "shifted"},
    "max_pool": IMAGE | {"pool_mode": "max"},
    "head_first": IMAGE | {"separate_qkv": True, "pool_first": True},
    "scaled": IMAGE | {"relative_scaled": True},
    "odd_grid": IMAGE | {"input_size": (28, 52), "adaptive_kv_stride": (4, 4)},
    "odd_clip": CLIP | {"input_size": (3, 28, 44), "cls_token": True},
    "odd_windows": IMAGE | {"input_size": (28, 44), "window": ((5, 3), (3, 5)), "adaptive_kv_stride": (1, 1)},
}


@pytest.fixture(autouse=True)
def bf16_pays(monkeypatch):
    """So that bf16 is computed in bf16 here on any processor."""
    monkeypatch.setattr(precision, "BF16_IS_FAST", True)


def network(fields):
    torch.manual_seed(0)
    model = MViT(MViTConfig(depths=(1, 2), embed_dim=16, num_heads=2, num_classes=5, drop_path_rate=0.0, **fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model


def outputs(model, x, bf16=False):
    """Logits without gradient, logits with, gradients of all parameters."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            quiet = model(x).float()
        logits = model(x).float()
    used = [p for name, p in model.named_parameters() if name not in model.unused_parameters()]
    gradients = torch.autograd.grad((logits * torch.linspace(-1, 1, 5)).sum(), used)
    return quiet, logits.detach(), *(g.detach() for g in gradients)


def plainly(model, x, bf16=False):
    """`outputs` by the plain arithmetic alone."""
    with core.plain():
        return outputs(model, x, bf16)


@pytest.mark.parametrize("piece", [2**20, 2**9, 2**6])
@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_that_of_the_plain_path(form, piece, monkeypatch, one_dnn):
    monkeypatch.setattr(attention, "PIECE", piece)
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    for ours, plain in zip(outputs(model, x), plainly(model, x), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("form", ["image", "class_token", "no_position"])
def test_bf16_is_as_near_to_fp32_as_the_plain_path(form, monkeypatch, one_dnn):
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    exact = plainly(model, x)
    ours, plain = outputs(model, x, bf16=True), plainly(model, x, bf16=True)

    def distances(found):
        """Of both outputs, and of all gradients as one vector."""
        pairs = [(f, e) for f, e in zip(found[:2], exact[:2], strict=True)]
        pairs.append(tuple(torch.cat([t.flatten() for t in side[2:]]) for side in (found, exact)))
        return [float((f - e).norm() / e.norm()) for f, e in pairs]

    for ours_off, plain_off in zip(distances(ours), distances(plain), strict=True):
        assert ours_off < max(1e-2, 1.5 * plain_off)


@pytest.mark.parametrize("form", FORMS)
def test_bf16_is_that_of_the_plain_path(form, monkeypatch, one_dnn):
    model, x = network(FORMS[form]), torch.randn(2, 3, *FORMS[form]["input_size"])
    pairs = list(zip(outputs(model, x, bf16=True), plainly(model, x, bf16=True), strict=True))
    for ours, plain in pairs[:2]:
        assert float((ours - plain).norm() / plain.norm()) < 1e-2
    ours, plain = (torch.cat([pair[side].flatten() for pair in pairs[2:]]) for side in (0, 1))
    assert float((ours - plain).norm() / plain.norm()) < 1e-2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("piece", [2**20, 3 * 6 * 8 * 20, 8])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
def test_products_are_softmax_attention(rows, scaled, piece, threads, monkeypatch):
    """In float64 to the last digits, whatever the pieces; gradients against finite differences."""
    monkeypatch.setattr(attention, "PIECE", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    groups, k_grid = ((0,), (1,)), (2, 3)
    q = torch.randn(2, 4, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, rows + 6, 2, 3, dtype=torch.float64, requires_grad=True) for _ in "kv")
    tables = [torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (7, 9)]

    scale = 3**-0.5 if scaled else 1.0

    def by(form):
        return lambda q, k, v, *tables: attended(form, q, k, v, tables, groups, k_grid, scale)

    expected = by("plain")(q, k, v, *tables)
    torch.testing.assert_close(by("by_products")(q, k, v, *tables), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(by("by_products"), (q, k, v, *tables), fast_mode=piece > 8)


@pytest.mark.parametrize(
    ("form", "most", "fused"),
    [("image", 2**22, 1), ("class_token", 2**22, 1), ("clip", 2**22, 0), ("class_token", 8, 2), ("no_term", 2**22, 2)],
)
def test_attention_of_exported_clips_is_products_in_place_of_a_written_term(form, most, fused, monkeypatch):
    monkeypatch.setattr(choose, "MOST_SCORES", most)
    model, x = network(FORMS[form]).eval(), torch.randn(2, 3, *FORMS[form]["input_size"])
    program = torch.export.export(model, (x,))
    calls = [str(node.target) for node in program.graph.nodes]
    # The class query attends in a call of its own, which has no term.
    assert sum("scaled_dot_product" in call for call in calls) == fused * len(model.blocks)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


def test_gradients_of_keys_are_sums_only_where_queries_come_in_pieces(monkeypatch):
    """Sums over pieces are kept in float32; a gradient that is written once has the type of the keys."""
    q, k, v, grad = (torch.randn(2, length, 16).bfloat16() for length in (128, 20, 20, 128))
    found = {}
    for piece in (2**20, 64 * 20 * 2):
        monkeypatch.setattr(attention, "PIECE", piece)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        found[piece] = attention._backward(q, k, v, grad, (True, True, True))
    once, summed = found.values()
    assert [t.dtype for t in once[1:]] == [torch.bfloat16] * 2
    assert [t.dtype for t in summed[1:]] == [torch.float32] * 2
    for ours, theirs in zip(once, summed, strict=True):
        assert float((ours.float() - theirs.float()).norm() / theirs.float().norm()) < 1e-2


@pytest.mark.parametrize("rows", [0, 1])
def test_all_forms_of_attention_agree(rows):
    """With a class row among the keys and without."""
    torch.manual_seed(0)
    k_grid, q = (2, 3), torch.randn(2, 4, 5, 2, 6, dtype=torch.float64)
    k, v = (torch.randn(2, 6 + rows, 2, 6, dtype=torch.float64) for _ in "kv")
    tables = [torch.randn(n, 6, dtype=torch.float64) for n in (7, 9)]
    expected = attended("plain", q, k, v, tables, ((0,), (1,)), k_grid)
    for form in ("by_kernel", "in_channels", "by_products"):
        found = attended(form, q, k, v, tables, ((0,), (1,)), k_grid)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["image", "class_token"])
def test_gradients_of_an_attention_against_finite_differences(form):
    config = MViTConfig(depths=(1, 1), embed_dim=4, num_heads=1, **FORMS[form])
    module = MultiscaleAttention(config.blocks()[1]).double()
    x = torch.randn(1, *((2, 3) if form == "image" else (2, 2, 2)), 4, dtype=torch.float64, requires_grad=True)
    cls = torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True) if form == "class_token" else None
    assert torch.autograd.gradcheck(lambda x: module(x, cls)[0], (x,))


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_filters_frame_by_frame(stride, taps, frames):
    torch.manual_seed(0)
    x = torch.randn(2, frames, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, taps, 3, 3, dtype=torch.float64, requires_grad=True)
    padding = (taps // 2, 1, 1)
    found, expected = depthwise(x, weight, stride, padding), conv(x, weight, None, stride, padding, groups=3)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    first = filters.channels_first(x, weight, stride, padding)
    assert first.is_contiguous()
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    pairs = zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (found, expected)), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("piece", [2**20, 2 * 5 * (5 * 4 * 3 * 8), 2 * (5 * 4 * 3 * 8), 1])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 4, 4)])
def test_gradients_of_filters_whatever_the_pieces(stride, piece, monkeypatch):
    """By one, two and all of five frames, by two and all of three samples: gradients against finite differences."""
    monkeypatch.setattr(filters, "PIECE", piece)
    torch.manual_seed(0)
    x = torch.randn(3, 5, 5, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    filtered = partial(depthwise, stride=stride, padding=(1, 1, 1))
    assert torch.autograd.gradcheck(filtered, (x, weight))
    assert torch.autograd.gradgradcheck(filtered, (x, weight), fast_mode=True)
    for frozen in (x, weight):
        frozen.requires_grad_(False)
        assert torch.autograd.gradcheck(filtered, (x, weight))
        frozen.requires_grad_(True)


@pytest.mark.parametrize("piece", [2**20, 1])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2), (2,)])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16], ids=["autocast", "held_in_bf16"])
def test_filters_in_bf16(held, stride, piece, monkeypatch):
    """As near to float32 as bf16 is, types as everywhere, and x kept in 16 bits for the backward pass."""
    monkeypatch.setattr(filters, "PIECE", piece)
    torch.manual_seed(0)
    axes, batch = len(stride), 64
    # All of one sign, so that sums over samples grow and their rounding shows.
    exact = torch.rand(batch, *(5, 6, 4)[:axes], 3, requires_grad=True)
    weight = torch.randn(3, 1, *(3,) * axes).to(held).requires_grad_()
    x, kept = exact.detach().bfloat16().requires_grad_(), []

    def keep(tensor):
        kept.append((tensor.shape, tensor.dtype))
        return tensor

    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=held == torch.float32), watched:
        out = depthwise(x, weight, stride, (1,) * axes)
    kept_types = {dtype for shape, dtype in kept if prod(shape) == x.numel()}
    assert kept_types == {torch.bfloat16}
    expected = conv(exact, weight.float(), None, stride, (1,) * axes, groups=3)
    grad = torch.rand_like(expected)
    found = out, *torch.autograd.grad(out, (x, weight), grad.bfloat16())
    plain = expected, *torch.autograd.grad(expected, (exact, weight), grad)
    for ours, theirs, dtype in zip(found, plain, (torch.bfloat16, torch.bfloat16, held), strict=True):
        assert ours.dtype == dtype
        ours, theirs = ours.detach().float(), theirs.detach().float()
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


@pytest.mark.parametrize(
    ("stride", "dtype", "autocast"),
    [
        ((1, 1, 1), torch.float32, False),
        ((1, 2, 2), torch.float32, False),
        ((1, 2, 2), torch.float32, True),
        ((1, 1, 1), torch.bfloat16, True),
        ((1, 2, 2), torch.bfloat16, True),
        ((2, 2), torch.bfloat16, True),
    ],
)
def test_filters_take_what_comes(stride, dtype, autocast):
    """No sample at all, memory in another order, one gradient for all, the backward pass under autocast."""
    torch.manual_seed(0)
    axes = len(stride)
    weight = torch.randn(3, 1, *(3,) * axes, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        empty = torch.randn(0, *(5, 6, 4)[:axes], 3, dtype=dtype, requires_grad=True)
        depthwise(empty, weight, stride, (1,) * axes).sum().backward()
        assert empty.grad is not None and empty.grad.shape == empty.shape
        assert weight.grad is not None and not weight.grad.any()
        x = torch.randn(2, 3, *(5, 6, 4)[:axes], dtype=dtype, requires_grad=True)
        last = x.movedim(1, -1)
        found = torch.autograd.grad(depthwise(last, weight, stride, (1,) * axes).sum(), (x, weight))
    plain = conv(last.float(), weight, None, stride, (1,) * axes, groups=3)
    expected = torch.autograd.grad(plain.sum(), (x, weight))
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = 1e-2 if autocast else 1e-5
        assert ours.dtype == theirs.dtype
        assert float((ours.float() - theirs.float()).norm() / theirs.float().norm()) < tolerance


def test_this_release_of_torch_was_tried():
    if not torch.__version__.startswith(TRIED_ON):
        pytest.xfail(f"torch {torch.__version__} is none of {', '.join(TRIED_ON)}: the tests here try it now")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", ["none", "before", "after"])
def test_linear_layers(gelu, precision, one_dnn):
    """That of oneDNN and the public one; a release of torch that is not in `TRIED_ON` is tried here."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 7, 24, requires_grad=True), torch.randn(48, 24, requires_grad=True)
    bias, grad = torch.randn(48, requires_grad=True), torch.randn(2, 5, 7, 48)
    options = {f"gelu_{gelu}": True} if gelu != "none" else {}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        ours = linear(x, weight, bias, **options)
        plain = F.linear(F.gelu(x) if gelu == "before" else x, weight, bias)
        plain = F.gelu(plain) if gelu == "after" else plain
        with torch.no_grad():
            quiet = linear(x, weight, bias, **options)
    tolerance = 1e-5 if precision == torch.float32 else 1e-2
    assert ours.dtype == quiet.dtype == plain.dtype == precision
    scale = tolerance * float(plain.detach().abs().max())
    for found in (ours, quiet):
        torch.testing.assert_close(found, plain, rtol=tolerance, atol=scale)
    inputs = (x, weight, bias)
    pairs = zip(
        *(torch.autograd.grad(y, inputs, grad.to(precision), retain_graph=True) for y in (ours, plain)), strict=True
    )
    for a, b in pairs:
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_without_one_dnn_a_linear_layer_is_the_public_one(monkeypatch):
    monkeypatch.setenv("OPENMVIT_ONEDNN", "0")
    uses_one_dnn.cache_clear()
    layer, x = torch.nn.Linear(8, 16), torch.randn(3, 8)
    assert torch.equal(apply_linear(layer, x), layer(x))
    assert torch.equal(apply_linear(layer, x, gelu_before=True), layer(F.gelu(x)))
    assert torch.equal(apply_linear(layer, x, gelu_after=True), F.gelu(layer(x)))
    uses_one_dnn.cache_clear()


def test_replaced_and_hooked_layers_are_called(one_dnn):
    model, seen = network(IMAGE), []
    block = model.blocks[0]
    block.mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    block.mlp.act.register_forward_hook(lambda *_: seen.append("act"))
    block.mlp.fc2 = torch.nn.Sequential(block.mlp.fc2, torch.nn.Tanh())
    block.attn.proj.register_forward_pre_hook(lambda *_: seen.append("proj"))
    x = torch.randn(1, 3, 24, 40)
    before = model(x)
    with torch.no_grad():
        model(x)
    assert seen == ["proj", "fc1", "act"] * 2
    block.attn.qkv.register_full_backward_hook(lambda *_: seen.append("backward"))
    block.attn.proj.forward = lambda t: 0 * t
    assert not torch.equal(model(x), before)
    model(x).sum().backward()
    assert "backward" in seen


def test_hooks_on_all_modules_are_called(one_dnn):
    model, seen = network(CLIP), []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda layer, _: seen.append(layer))
    try:
        outputs(model, torch.randn(1, 3, *CLIP["input_size"]))
    finally:
        hook.remove()
    layers = {layer for layer in model.blocks.modules() if isinstance(layer, torch.nn.Linear | torch.nn.GELU)}
    assert layers <= set(seen)


def test_a_new_qkv_is_called_and_gives_the_same():
    model, x = network(IMAGE), torch.randn(1, 3, 24, 40)
    before = model(x)
    calls, layer = [], model.blocks[0].attn.qkv
    layer.register_forward_hook(lambda *_: calls.append(1))
    model.blocks[0].attn.qkv = torch.nn.Sequential(layer)
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)
    assert len(calls) == 1


def test_types_that_do_not_fit_stay_an_error(one_dnn):
    layer = torch.nn.Linear(8, 16).bfloat16()
    with pytest.raises(RuntimeError, match="dtype"):
        apply_linear(layer, torch.randn(3, 8))


@pytest.mark.parametrize("frozen", [("weight",), ("bias",), ("weight", "bias"), ("x",), ("x", "weight")])
def test_gradients_of_what_is_not_frozen(frozen, one_dnn):
    layer, x = torch.nn.Linear(8, 16), torch.randn(3, 8)
    leaves = {"x": x, "weight": layer.weight, "bias": layer.bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen)
    apply_linear(layer, x, gelu_before=True).square().sum().backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.grad = None
    layer(F.gelu(x)).square().sum().backward()
    for name, leaf in leaves.items():
        assert (found[name] is None) == (leaf.grad is None) == (name in frozen)
        if leaf.grad is not None:
            torch.testing.assert_close(found[name], leaf.grad, rtol=1e-5, atol=1e-4)


def test_float64_stays_under_autocast(one_dnn):
    layer = torch.nn.Linear(8, 16).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert apply_linear(layer, torch.randn(3, 8, dtype=torch.float64), gelu_before=True).dtype == torch.float64


@pytest.mark.parametrize("form", ["image", "class_token"])
def test_an_empty_batch_stays_empty(form):
    model = network(FORMS[form])
    out = model(torch.randn(0, 3, *FORMS[form]["input_size"]))
    assert out.shape == (0, 5)
    out.sum().backward()


@pytest.mark.parametrize(("capability", "pays"), [("AVX512", True), ("AVX2", False)])
def test_one_dnn_takes_linear_layers_with_avx512(capability, pays, monkeypatch, one_dnn):
    monkeypatch.delenv("OPENMVIT_ONEDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    uses_one_dnn.cache_clear()
    assert uses_one_dnn(torch.float32) == pays


def test_a_wrong_setting_is_an_error(monkeypatch):
    monkeypatch.setenv("OPENMVIT_ONEDNN", "yes")
    uses_one_dnn.cache_clear()
    with pytest.raises(UserError, match=r"OPENMVIT_ONEDNN is 'yes'\. Set it to 1 or 0"):
        network(IMAGE)(torch.randn(1, 3, 24, 40))
    uses_one_dnn.cache_clear()


@pytest.mark.parametrize("instructions", ["AVX2", "SSE41"])
def test_processors_without_bf16_instructions(instructions):
    """In a process whose oneDNN may use no more than that; on many older processors it is so by nature."""
    script = """
import torch
from openmvit import create_model
model = create_model("mvitv2_micro").eval().bfloat16()
with torch.no_grad():
    print(model(torch.randn(1, 3, *model.config.input_size).bfloat16()).shape)
"""
    limits = {"ONEDNN_MAX_CPU_ISA": instructions, "OPENMVIT_ONEDNN": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | limits, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_hooks_see_stays(one_dnn):
    """Nothing is written into tensors that somebody may hold."""
    model, x, seen = network(FORMS["class_token"]), torch.randn(1, 3, 4, 24, 32), []
    for module in model.modules():
        module.register_forward_hook(
            lambda _, inputs, out: seen.extend([*inputs, *(out if type(out) is tuple else [out])])
        )
    copies = []
    for module in model.modules():
        module.register_forward_hook(
            lambda _, inputs, out: copies.extend(
                None if t is None else t.clone() for t in [*inputs, *(out if type(out) is tuple else [out])]
            )
        )
    with torch.no_grad():
        model(x)
    assert len(seen) == len(copies) > 50
    assert all(a is None or torch.equal(a, b) for a, b in zip(seen, copies, strict=True))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
def test_a_hooked_projection_sees_what_the_norm_gave(fused):
    """Under autocast the others share one copy in the type of the products."""
    model, x = network(IMAGE | {"separate_qkv": not fused, "absolute_position": "joint"}), torch.randn(1, 3, 24, 40)
    block = model.blocks[0].attn
    layers = [block.qkv] if fused else [block.q, block.k, block.v]
    types = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: types.append(args[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x)
    assert types == [torch.float32] * len(layers)


def test_one_copy_serves_three_projections(monkeypatch):
    model = network(IMAGE | {"absolute_position": "joint"})
    whole, types = layers.apply, []

    def noted(x, cls, weight, bias, **how):
        types.append(x.dtype)
        return whole(x, cls, weight, bias, **how)

    monkeypatch.setattr(layers, "apply", noted)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.blocks[0].attn(torch.randn(1, 8, 14, 16))
    assert types[:3] == [torch.bfloat16] * 3
