"""Faster ways under everything else that takes gradients: of second order, by `torch.func`, of some inputs only."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from nn.forms import attended
from openmvit.config import MViTConfig
from openmvit.model import MViT
from openmvit.nn.fast import attention as products
from openmvit.nn.fast.linear import apply

GROUPS, K_GRID = ((0,), (1,)), (2, 3)
CLIP = MViTConfig(
    input_size=(4, 16, 16), patch_kernel=(1, 3, 3), patch_stride=(1, 4, 4), patch_padding=(0, 1, 1), stride_q=(1, 2, 2),
    adaptive_kv_stride=(1, 2, 2), kernel_qkv=(3, 3, 3), depths=(1, 1), embed_dim=8, num_classes=3, cls_token=True,
    drop_path_rate=0.0,
)  # fmt: skip
IMAGE = MViTConfig(input_size=(16, 16), depths=(1, 1), embed_dim=8, num_classes=3, drop_path_rate=0.0)
NETWORKS = {"image": IMAGE, "clip": CLIP}


def leaves(rows=6):
    """Queries, keys, values and a table per axis, in float64."""
    torch.manual_seed(0)
    shapes = [(2, 4, 5, 2, 3), (2, rows, 2, 3), (2, rows, 2, 3), (7, 3), (9, 3)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def by_products(q, k, v, *tables):
    return attended("by_products", q, k, v, tables, GROUPS, K_GRID, 3**-0.5)


@pytest.mark.parametrize("rows", [6, 7])
def test_second_order_of_products(rows):
    assert gradgradcheck(by_products, leaves(rows), fast_mode=True)


@pytest.mark.parametrize("gelu", [False, True])
def test_linear_layers_to_second_order(gelu):
    torch.manual_seed(0)
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 4), (5, 4), (5,))]

    def layer(x, weight, bias):
        return apply(x, None, weight, bias, gelu_before=gelu)[0]

    assert gradcheck(layer, inputs)
    assert gradgradcheck(layer, inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_penalty_on_gradients_trains(name):
    """Double backward through a whole network on the ways of a CPU; float64 takes those of attention."""
    torch.manual_seed(0)
    model = MViT(NETWORKS[name]).double()
    x = torch.randn(2, 3, *NETWORKS[name].input_size, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    penalty = gradient.square().sum()
    (found,) = torch.autograd.grad(penalty, model.blocks[0].attn.rel_pos_h)
    step = torch.zeros_like(found)
    step.view(-1)[found.abs().argmax()] = 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            model.blocks[0].attn.rel_pos_h += sign * step
        moved = torch.autograd.grad(model(x).square().sum(), x)[0].square().sum()
        values.append(float(moved))
        with torch.no_grad():
            model.blocks[0].attn.rel_pos_h -= sign * step
    slope = (values[0] - values[1]) / 2e-5
    assert float(found.abs().max()) == pytest.approx(abs(slope), rel=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # not every operator has a batched form
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_per_sample(name):
    """`torch.func.vmap` over `torch.func.grad` equals a backward pass for each sample."""
    torch.manual_seed(0)
    model = MViT(NETWORKS[name])
    x, parameters = torch.randn(2, 3, *NETWORKS[name].input_size), dict(model.named_parameters())

    def loss(weights, one):
        return torch.func.functional_call(model, weights, (one[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        alone = torch.autograd.grad(model(one[None]).square().sum(), parameters.values(), allow_unused=True)
        for name_, gradient in zip(parameters, alone, strict=True):
            expected = torch.zeros_like(parameters[name_]) if gradient is None else gradient
            torch.testing.assert_close(found[name_][i], expected, rtol=1e-4, atol=1e-5 * max(1.0, expected.abs().max()))


@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (3,), (0, 4), (1, 2), (3, 4)])
def test_gradients_of_some_inputs_are_those_of_all(kept):
    tensors = leaves()
    grad = torch.randn(2, 4, 5, 2, 3, dtype=torch.float64)
    expected = torch.autograd.grad(by_products(*tensors), tensors, grad)
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i in kept)
    found = torch.autograd.grad(by_products(*tensors), [tensors[i] for i in kept], grad)
    for i, gradient in zip(kept, found, strict=True):
        torch.testing.assert_close(gradient, expected[i], rtol=1e-12, atol=1e-12)


def test_nothing_is_computed_for_frozen_keys(monkeypatch):
    """A frozen network in front of trained tables pays for the tables alone."""
    seen, backward = [], products._backward

    def spy(*arguments):
        seen.append(backward(*arguments))
        return seen[-1]

    monkeypatch.setattr(products, "_backward", spy)
    q, k, v, *tables = (t.detach() for t in leaves())
    tables[0].requires_grad_()
    by_products(q, k, v, *tables).sum().backward()
    ((of_q, of_k, of_v),) = seen
    assert of_q is not None and of_k is None and of_v is None
    assert tables[0].grad is not None and tables[1].grad is None


@pytest.mark.parametrize("read", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("gelu", [False, True])
def test_grid_and_class_token_share_a_linear_layer(gelu, read, one_dnn):
    """Results and gradients of two calls; what nobody reads has no gradient."""
    torch.manual_seed(0)
    x, cls = torch.randn(2, 3, 4, 6, requires_grad=True), torch.randn(2, 1, 6, requires_grad=True)
    weight, bias = torch.randn(5, 6, requires_grad=True), torch.randn(5, requires_grad=True)
    inputs = (x, cls, weight, bias)
    together = apply(x, cls, weight, bias, gelu_before=gelu)
    alone = [F.linear(F.gelu(t) if gelu else t, weight, bias) for t in (x, cls)]
    gradients = []
    for side in (together, alone):
        loss = sum(side[i].square().sum() for i in read)
        gradients.append(torch.autograd.grad(loss, inputs, allow_unused=True))
    for ours, plain in zip((*together, *gradients[0]), (*alone, *gradients[1]), strict=True):
        assert (ours is None) == (plain is None)
        torch.testing.assert_close(ours, plain)


def test_an_unread_grid_has_no_part_in_the_graph_of_the_class_token():
    """Its memory is free at once, and a hook on what only it needs is never called."""
    torch.manual_seed(0)
    model, called = MViT(CLIP), []
    model.blocks[-1].attn.rel_pos_h.register_hook(called.append)
    model.blocks[0].attn.rel_pos_h.register_hook(called.append)
    model(torch.randn(1, 3, *CLIP.input_size)).sum().backward()
    assert len(called) == 1 and called[0] is not None


def test_tokens_of_two_types_stay_an_error():
    x, cls, weight = torch.randn(2, 3, 4), torch.randn(2, 1, 4, dtype=torch.float64), torch.randn(5, 4)
    with pytest.raises(RuntimeError):
        apply(x, cls, weight, None)


SHAPES = [(8, 49, 49), (64, 196, 196), (33, 196, 196), (2, 3136, 196), (1, 6272, 1569), (1, 130, 20000), (0, 4, 4)]


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("piece", [2**18, 2**21])
def test_pieces_are_equal_shares(piece, shape, threads, monkeypatch):
    """Every query once, in the fewest pieces that fit, of which only the last may be smaller."""
    batch, queries, keys = shape
    monkeypatch.setattr(products, "PIECE", piece)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k = torch.empty(batch, queries, 1), torch.empty(batch, keys, 1)
    seen, sizes = torch.zeros(batch, queries), []
    for some, rows in products._pieces(q, k):
        seen[some, rows] += 1
        sizes.append(seen[some, rows].numel())
        assert sizes[-1] * keys * 4 <= min(threads, products.MOST_THREADS) * max(piece, keys * 4)
    assert (seen == 1).all()
    per_matrix = sizes if queries * keys * 4 <= piece // 2 else sizes[: len(sizes) // max(batch, 1)]
    assert len(set(per_matrix[:-1])) <= 1 and all(size >= per_matrix[-1] for size in per_matrix)


@pytest.mark.parametrize(
    ("total", "most", "unit", "step"),
    [(1600, 668, 64, 576), (1569, 1569, 64, 1569), (130, 100, 64, 64), (32, 13, 2, 12), (5, 4, 2, 4), (7, 3, 64, 3)],
)
def test_a_share_is_in_whole_units_and_the_last_is_no_remainder(total, most, unit, step):
    assert products._share(total, most, unit) == step
