"""Pooling attention against its formulas in float64: pools, their residual, class token or none, two and three axes."""

import pytest
import torch

from nn.reference import attention
from openmvit.config import MViTConfig
from openmvit.nn.attention import MultiscaleAttention

CLIP = {
    "input_size": (4, 24, 24), "patch_kernel": (1, 3, 3), "patch_stride": (1, 4, 4), "patch_padding": (0, 1, 1),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3),
}  # fmt: skip
IMAGE = {"input_size": (24, 24), "patch_kernel": (3, 3), "patch_padding": (1, 1), "adaptive_kv_stride": (2, 2)}
POOLS = [
    {"pool_mode": "conv"},
    {"pool_mode": "max"},
    {"pool_mode": "avg"},
    {"pool_mode": "conv", "separate_qkv": True, "qkv_bias": False},
    {"pool_mode": "conv", "separate_qkv": True, "pool_first": True},
    {"pool_mode": "conv_unshared", "separate_qkv": True, "pool_first": True},
    {"pool_mode": "conv", "relative_position": "none", "residual_pooling": False, "full_q_pooling": False},
    {"pool_mode": "conv", "dim_mul_in_attention": False},
    {"residual_pooling": False},
    {"full_q_pooling": False},
]


def build(cls_token, size, index=1, **fields):
    torch.manual_seed(0)
    config = MViTConfig(depths=(1, 2), embed_dim=8, num_heads=2, cls_token=cls_token, **size | fields)
    module = MultiscaleAttention(config.blocks()[index]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@pytest.mark.parametrize("fields", POOLS, ids=lambda f: "-".join(map(str, f.values())))
@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("size", [IMAGE, CLIP], ids=["image", "clip"])
@pytest.mark.parametrize("index", [0, 1, 2])
@torch.no_grad()
def test_attention_is_its_formula(size, cls_token, fields, index):
    module = build(cls_token, size, index, **fields)
    grid = (3, 5) if len(size["input_size"]) == 2 else (3, 3, 4)
    x = torch.randn(1, *grid, module.config.dim, dtype=torch.float64)
    cls = torch.randn(1, 1, module.config.dim, dtype=torch.float64) if cls_token else None
    out, out_cls = module(x, cls)
    rows = x.flatten(1, -2) if cls is None else torch.cat([cls, x.flatten(1, -2)], 1)
    expected, expected_grid = attention(module, rows, grid, cls_token)
    found = out.flatten(1, -2) if out_cls is None else torch.cat([out_cls, out.flatten(1, -2)], 1)
    assert tuple(out.shape[1:-1]) == expected_grid
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cls_token", [False, True])
@pytest.mark.parametrize("size", [IMAGE, CLIP], ids=["image", "clip"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("index", "full_q"), [(1, True), (2, True), (2, False)])
def test_gradients(size, cls_token, residual, index, full_q):
    module = build(cls_token, size, index, residual_pooling=residual, full_q_pooling=full_q)
    assert (module.pool_q is None) == (index == 2 and not full_q)
    grid = (4, 2) if len(size["input_size"]) == 2 else (2, 2, 4)
    x = torch.randn(1, *grid, module.config.dim, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    cls = torch.randn(1, 1, module.config.dim, dtype=torch.float64, requires_grad=True) if cls_token else None

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x, cls))[0]

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_class_query_sees_no_position_and_adds_no_query():
    module = build(True, IMAGE)
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    cls = torch.randn(1, 1, 8, dtype=torch.float64)
    before, before_cls = module(x, cls)
    with torch.no_grad():
        module.rel_pos_h.normal_()
    after, after_cls = module(x, cls)
    assert torch.equal(before_cls, after_cls)
    assert not torch.allclose(before, after)
