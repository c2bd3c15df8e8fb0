"""The block: skip paths, drop path, layer scale."""

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.nn.block import DropPath, Mlp, MultiscaleBlock
from openmvit.nn.grid import avg_pool, conv, max_pool


def test_drop_path_shares_one_draw_per_sample_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    x, cls = torch.ones(4000, 2, 2, 3), torch.ones(4000, 1, 3)
    out, out_cls = drop(x, cls)
    kept = out[:, 0, 0, 0]
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(out, kept.view(-1, 1, 1, 1).expand_as(out))
    assert torch.equal(out_cls, kept.view(-1, 1, 1).expand_as(out_cls))
    assert abs(kept.mean() - 1) < 0.03
    assert drop.eval()(x, cls)[0] is x


@pytest.mark.parametrize("in_attention", [True, False])
@torch.no_grad()
def test_skip_reads_the_normed_input_where_widths_change(in_attention):
    torch.manual_seed(0)
    config = MViTConfig(depths=(1, 1), embed_dim=8, input_size=(32, 32), dim_mul_in_attention=in_attention)
    record = config.blocks()[1 if in_attention else 0]
    block = MultiscaleBlock(record).double()
    x = torch.randn(2, 8, 6, 8, dtype=torch.float64)
    block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
    block.mlp.fc2.weight.zero_(), block.mlp.fc2.bias.zero_()
    out, _ = block(x)
    expected = max_pool(block.proj(block.norm1(x)), (3, 3), (2, 2)) if in_attention else block.proj(block.norm2(x))
    torch.testing.assert_close(out, expected)


@torch.no_grad()
def test_layer_scale_multiplies_both_branches():
    torch.manual_seed(0)
    config = MViTConfig(depths=(1,), embed_dim=8, input_size=(32, 32), layer_scale=0.5)
    block = MultiscaleBlock(config.blocks()[0]).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    y = x + 0.5 * block.attn(block.norm1(x))[0]
    torch.testing.assert_close(block(x)[0], y + 0.5 * block.mlp(block.norm2(y))[0])
    block.gamma_1.zero_(), block.gamma_2.zero_()
    assert torch.equal(block(x)[0], x)


@pytest.mark.parametrize("ndim", [2, 3])
def test_grid_operations_keep_the_channels_last_and_contiguous(ndim):
    x = torch.randn(2, *(6, 5, 4)[:ndim], 8)
    kernel, stride = (3,) * ndim, (2,) * ndim
    filters = torch.randn(8, 1, *kernel)
    for out in (
        max_pool(x, kernel, stride),
        avg_pool(x, kernel, stride),
        conv(x, filters, None, stride, (1,) * ndim, 8),
    ):
        assert out.shape == (2, *(3, 3, 2)[:ndim], 8)
        assert out.is_contiguous()
    assert avg_pool(torch.ones_like(x), kernel, stride).min() < 1  # padding counts


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mlp_is_its_layers_in_turn(precision):
    """With gradients it keeps less, in any precision; values and gradients stay those of the layers."""
    torch.manual_seed(0)
    mlp, x = Mlp(6, 24, 8), torch.randn(2, 3, 5, 6, requires_grad=True)
    if precision == torch.float64:
        mlp, x = mlp.double(), x.detach().double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *_: mlp(x)[0], (x, *mlp.parameters()))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        ours, plain = mlp(x)[0], mlp.fc2(mlp.act(mlp.fc1(x)))
    assert ours.dtype == precision
    inputs, weights = (x, *mlp.parameters()), torch.randn_like(plain)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[precision]
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    for a, b in zip(*(torch.autograd.grad(y, inputs, weights) for y in (ours, plain)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_mlp_keeps_one_wide_tensor():
    mlp, x, kept = Mlp(6, 24, 8), torch.randn(50, 6, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        mlp(x)
    assert kept.count(torch.Size([50, 24])) == 1


def test_a_replaced_layer_of_the_mlp_is_called():
    mlp = Mlp(6, 24, 8)
    mlp.fc2 = torch.nn.Sequential(mlp.fc2, torch.nn.Tanh())
    assert mlp(torch.randn(4, 6) * 100)[0].abs().max() <= 1
