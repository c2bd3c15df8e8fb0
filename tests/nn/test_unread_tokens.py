"""Tokens that no window of a strided filter reads get no keys and values, in the training of clips on a CPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nn.test_fast_paths import CLIP, IMAGE, network, outputs
from openmvit.nn import fast, filters
from openmvit.nn.grid import avg_pool, conv, max_pool

WIDE = CLIP | {"input_size": (3, 64, 92), "adaptive_kv_stride": (1, 8, 8)}
"""A clip network whose three blocks have strides of 8, 4 and 4, on grids that these do not divide."""
FORMS = {
    "class_token": WIDE | {"cls_token": True},
    "no_class_token": WIDE,
    "windows": WIDE | {"window": ((2, 16, 16), (2, 8, 8))},
    "max_pool": WIDE | {"pool_mode": "max"},
    "separate": WIDE | {"separate_qkv": True},
}


@pytest.fixture
def read(monkeypatch):
    """Of every grid that was cut, the share of tokens that is left."""
    shares, plain = [], filters.rows_read

    def noted(x, kernel, stride):
        out = plain(x, kernel, stride)
        shares.append(out[0].numel() / x.numel())
        return out

    monkeypatch.setattr(filters, "rows_read", noted)
    return shares


def all_tokens(monkeypatch, model, x):
    with monkeypatch.context() as patch:
        patch.setattr(fast, "tokens_read", lambda x, *_: (x, None))
        return outputs(model, x)


def assert_equal(found, expected):
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("pool", ["filter", "max", "avg"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 4), (3, 8), (1, 2), (5, 7), (3, 3), (3, 2)])
def test_a_pool_gives_the_same_without_the_rows_between_its_windows(kernel, stride, pool):
    """Whatever the size: windows that end at the border, short of it, and behind it."""
    kernels, strides, padding = (3, kernel, kernel), (1, stride, stride), (1, kernel // 2, kernel // 2)
    weight = torch.randn(3, 1, *kernels, dtype=torch.float64)
    ways = {
        "filter": lambda x, strides: conv(x, weight, None, strides, padding, groups=3),
        "max": lambda x, strides: max_pool(x, kernels, strides),
        "avg": lambda x, strides: avg_pool(x, kernels, strides),
    }
    for size in range(1, 3 * stride + 1):
        x = torch.randn(2, 2, size, 3 * stride + 1 - size, 3, dtype=torch.float64)
        read, left = filters.rows_read(x, kernels, strides)
        assert left == (1, min(kernel, stride), min(kernel, stride))
        assert (read.numel() < x.numel()) == (stride > kernel and max(x.shape[2:4]) > kernel - kernel // 2)
        torch.testing.assert_close(ways[pool](read, left), ways[pool](x, strides), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_training_is_that_of_all_tokens(form, read, monkeypatch):
    model, x = network(FORMS[form]), torch.randn(2, 3, *WIDE["input_size"])
    found = outputs(model, x)
    assert len(read) == 3  # a cut per block, in the one of two forwards that has a gradient
    assert all(share < 0.6 for share in read)
    assert_equal(found, all_tokens(monkeypatch, model, x))


@pytest.mark.parametrize("watched", ["pool_k", "pool_v", "qkv", "all modules"])
def test_who_watches_a_layer_sees_all_tokens(watched, read):
    model, sizes = network(WIDE), []

    def note(layer, args):
        sizes.append(tuple(args[0].shape[2:4]))
        assert len(args) == 1

    for block in model.blocks if watched != "all modules" else ():
        getattr(block.attn, watched).register_forward_pre_hook(note)
    everywhere = torch.nn.modules.module.register_module_forward_pre_hook
    hook = everywhere(lambda *_: None) if watched == "all modules" else None
    try:
        outputs(model, torch.randn(2, 3, *WIDE["input_size"]))
    finally:
        if hook is not None:
            hook.remove()
    assert not read
    assert set(sizes) <= {(16, 23), (8, 12)}
    assert len(sizes) == (0 if hook is not None else 6)


def test_other_networks_and_other_calls_project_all_tokens(read):
    image = IMAGE | {"input_size": (64, 92), "adaptive_kv_stride": (8, 8)}
    first = WIDE | {"separate_qkv": True, "pool_first": True}
    for fields in (image, first):
        outputs(network(fields), torch.randn(2, 3, *fields["input_size"]))
    model, x = network(WIDE), torch.randn(1, 3, *WIDE["input_size"])
    torch.compile(model, backend="aot_eager")(x).sum().backward()
    torch.export.export(model, (x,))
    assert not read


def test_a_stride_that_somebody_changed_counts(read, monkeypatch):
    model, x = network(WIDE), torch.randn(2, 3, *WIDE["input_size"])
    for name in ("pool_k", "pool_v"):
        getattr(model.blocks[0].attn, name).stride = (1, 4, 4)
    assert_equal(outputs(model, x), all_tokens(monkeypatch, model, x))
    assert read[0] > 0.5
    pool = model.blocks[0].attn.pool_v
    pool.stride = [1, 4, 4]  # the same
    outputs(model, x)
    assert len(read) == 6
    pool.kernel, pool.weight = (3, 5, 5), torch.nn.Parameter(torch.randn(len(pool.weight), 1, 3, 5, 5))
    assert_equal(outputs(model, x), all_tokens(monkeypatch, model, x))
    assert len(read) == 8  # not in the block whose filters differ


def test_a_step_runs_without_values(read):
    """Which rows are read does not depend on data."""
    model = network(WIDE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.randn(1, 3, *WIDE["input_size"])).sum().backward()
    assert len(read) == 3
