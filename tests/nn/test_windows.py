"""Windows: the cut itself, attention inside them against loops in float64, gradients, and the rules of the records."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from nn.forms import attended
from nn.loops import agree, attention_by_loops
from openmvit import architectures
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import FeatureMaps, MViT
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.fast import choose
from openmvit.nn.grid import merge, partition

GOLDEN = Path(__file__).parents[1] / "golden" / "detection"
HYBRID = {
    "input_size": (32, 32), "patch_kernel": (3, 3), "patch_padding": (1, 1), "adaptive_kv_stride": (2, 2),
    "depths": (1, 3, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 0,
    "window": (4, 4), "window_pattern": "hybrid", "global_kv_stride_factor": 2,
}  # fmt: skip


@pytest.mark.parametrize(("grid", "window"), [((5,), (2,)), ((5, 7), (2, 3)), ((4, 6), (2, 3)), ((3, 5, 4), (2, 4, 4))])
def test_partition_cuts_where_loops_cut(grid, window):
    x = torch.randn(2, *grid, 3, 2)
    counts = [-(-n // w) for n, w in zip(grid, window, strict=True)]
    rows = iter(partition(x, window))
    for sample, corner in itertools.product(range(2), itertools.product(*map(range, counts))):
        cut = next(rows)
        for place in itertools.product(*map(range, window)):
            source = tuple(c * w + p for c, w, p in zip(corner, window, place, strict=True))
            inside = all(s < n for s, n in zip(source, grid, strict=True))
            assert torch.equal(cut[place], x[(sample, *source)] if inside else torch.zeros(3, 2))
    assert next(rows, None) is None
    assert torch.equal(merge(partition(x, window), window, grid), x)


@pytest.mark.parametrize(("grid", "window"), [((5, 7), (2, 4)), ((3, 5, 4), (2, 4, 2)), ((2, 5, 6), (2, 2, 4))])
def test_shifted_windows_cut_the_rolled_grid(grid, window):
    x = torch.randn(2, *grid, 3)
    counts = [-(-n // w) for n, w in zip(grid, window, strict=True)]
    rows = iter(partition(x, window, shifted=True))
    for sample, corner in itertools.product(range(2), itertools.product(*map(range, counts))):
        cut = next(rows)
        for place in itertools.product(*map(range, window)):
            # Half a window further on, round the end of the padded axis; an axis with one window stays.
            source = [
                (c * w + p + (w // 2 if n > 1 else 0)) % (n * w)
                for c, w, p, n in zip(corner, window, place, counts, strict=True)
            ]
            inside = all(s < n for s, n in zip(source, grid, strict=True))
            assert torch.equal(cut[place], x[(sample, *source)] if inside else torch.zeros(3))
    assert next(rows, None) is None
    assert torch.equal(merge(partition(x, window, shifted=True), window, grid, shifted=True), x)


def build(index: int, **changes) -> MultiscaleAttention:
    torch.manual_seed(0)
    module = MultiscaleAttention(MViTConfig(**HYBRID | changes).blocks()[index]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


@pytest.mark.parametrize("index", [0, 1, 2, 4])
@pytest.mark.parametrize("grid", [(4, 8), (5, 6)])
@torch.no_grad()
def test_windowed_attention_is_its_formula(index, grid):
    module = build(index)
    assert module.config.window == ((2, 2) if index in (2, 4) else (4, 4))
    x = torch.randn(2, *grid, module.config.dim, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], attention_by_loops(module, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("index", [0, 1, 3])
def test_gradients_through_windows(index):
    module = build(index)
    x = torch.randn(1, 3, 5, module.config.dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t)[0], (x,))


def test_all_parameters_of_a_windowed_block_have_gradients():
    module = build(1)
    module(torch.randn(1, 5, 6, 8, dtype=torch.float64))[0].sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in module.named_parameters() if n != "norm_k.bias"
    )


@pytest.mark.parametrize("cls", [0, 1])
@pytest.mark.parametrize(("q_grid", "k_grid"), [((6, 4), (3, 2)), ((2, 4, 4), (2, 2, 2))])
def test_position_in_channels_equals_the_written_out_term(q_grid, k_grid, cls):
    torch.manual_seed(0)
    shape = {"dtype": torch.float64, "requires_grad": True}
    q = torch.randn(2, *q_grid, 3, 4, **shape)
    rows = cls + torch.Size(k_grid).numel()
    k, v = torch.randn(2, rows, 3, 4, **shape), torch.randn(2, rows, 3, 4, **shape)
    tables = [torch.randn(2 * max(a, b) - 1, 4, **shape) for a, b in zip(q_grid, k_grid, strict=True)]

    groups = tuple((axis,) for axis in range(len(k_grid)))
    plain, channels = (attended(form, q, k, v, tables, groups, k_grid) for form in ("plain", "in_channels"))
    torch.testing.assert_close(channels, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(plain)
    inputs = (q, k, v, *tables)
    for ours, theirs in zip(*(torch.autograd.grad(o, inputs, weights) for o in (channels, plain)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fields", [{"cls_token": True}, {"window": (4, 4)}], ids=["class token", "windows"])
def test_a_network_is_the_same_in_both_forms(fields, monkeypatch):
    torch.manual_seed(0)
    model = MViT(MViTConfig(input_size=(32, 32), depths=(1, 2), embed_dim=8, num_heads=2, num_classes=3, **fields))
    model = model.double().eval()
    x = torch.randn(2, 3, 40, 24, dtype=torch.float64)
    plain = model(x)
    monkeypatch.setattr(choose, "MOST_SCORES", 0)
    torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mask_rcnn_plain", "mask_rcnn_ln_square"])
def test_records_follow_the_released_rules(name):
    recorded = json.loads((GOLDEN / name / "config.json").read_text())["backbone"]
    ends = recorded["last_block_of_each_stage"]
    config = MViTConfig(
        depths=tuple(b - a for a, b in itertools.pairwise([-1, *ends])), embed_dim=recorded["embed_dim"],
        window=(56, 56), window_pattern="hybrid", global_kv_stride_factor=2,
    )  # fmt: skip
    for ours, theirs in zip(config.blocks(), recorded["blocks"], strict=True):
        assert (ours.window or (0, 0)) == (theirs["window"],) * 2
        assert ours.stride_q == (theirs["q_stride"],) * 2
        assert ours.stride_kv == (theirs["kv_stride"],) * 2
        assert ours.table_lengths == (theirs["rel_pos_length"],) * 2
        assert (ours.dim, ours.dim_out, ours.num_heads) == (theirs["dim_in"], theirs["dim_out"], theirs["heads"])


def test_windows_lag_one_block_behind_the_grid():
    config = MViTConfig(depths=(2, 3, 16, 3), window=(56, 56), window_pattern="hybrid", global_kv_stride_factor=2)
    blocks = config.blocks()
    windows = [b.window[0] if b.window else 0 for b in blocks]
    assert windows == [56, 56, 56, 28, 0, 28, *[14] * 14, 0, 14, 7, 0]
    assert [b.stride_kv[0] for b in blocks] == [4, 4, 2, 2, 4, *[1] * 15, 2, 1, 1, 1]
    assert all(b.window for b in MViTConfig(window=(56, 56)).blocks())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": (56, 56), "cls_token": True}, "window is (56, 56) and cls_token is true"),
        ({"window": (50, 50)}, "window (50, 50) becomes (50, 50) in block 0"),
        ({"window_pattern": "hybrid"}, "window is not"),
        ({"window": ((28, 28), (14, 14))}, "fits neither"),
        ({"window": (56,)}, "fits neither"),
        ({"window": (56, 56), "window_pattern": "swin"}, "Accepted: all, shifted, hybrid"),
    ],
)
def test_rules_between_fields(fields, words):
    with pytest.raises(UserError) as caught:
        MViTConfig(**fields)
    assert words in str(caught.value)


@pytest.mark.parametrize("size", [(64, 64), (49, 83), (31, 130)])
def test_maps_of_any_size(size):
    torch.manual_seed(0)
    config = MViTConfig(**HYBRID | {"window": (8, 8)})
    model = FeatureMaps(MViT(config), stage_norms=True)
    maps = model(torch.randn(1, 3, *size))
    grid = tuple((n + 2 - 3) // 4 + 1 for n in size)
    for found, channels in zip(maps, (8, 16, 32), strict=True):
        assert found.shape == (1, channels, *grid)
        # Normed maps are outputs only: each position has mean 0 and variance 1.
        torch.testing.assert_close(found.mean(1), torch.zeros(1, *grid), atol=1e-5, rtol=0)
        grid = tuple(-(-n // 2) for n in grid)
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())


SHIFTED = {"window_pattern": "shifted", "global_kv_stride_factor": 1}


@pytest.mark.parametrize(("index", "grid"), [(1, (8, 12)), (1, (7, 5)), (3, (4, 6)), (3, (2, 5)), (5, (3, 4))])
def test_shifted_attention_is_its_formula(index, grid):
    module = build(index, **SHIFTED)
    assert module.config.shifted
    agree(module, torch.randn(1, *grid, module.config.dim, dtype=torch.float64))


def test_every_second_block_is_shifted_and_one_window_never():
    blocks = MViTConfig(**HYBRID | SHIFTED).blocks()
    assert [b.shifted for b in blocks] == [False, True] * 3
    module, plain = build(1, **SHIFTED), build(1, window_pattern="all", global_kv_stride_factor=1)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], plain(x)[0], rtol=1e-12, atol=1e-12)
    x = torch.randn(1, 8, 4, 8, dtype=torch.float64)
    assert not torch.allclose(module(x)[0], plain(x)[0])


@pytest.mark.parametrize("index", [1, 3])
def test_gradients_through_shifted_windows(index):
    module = build(index, **SHIFTED)
    x = torch.randn(1, 3, 5, module.config.dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t)[0], (x,))


# Position terms beside the default one, which have no other way than the written-out one inside windows.
TERMS = {
    "joint": {"relative_position": "joint"},
    "k": {"relative_terms": "k"},
    "v": {"relative_terms": "v"},
    "qkv": {"relative_terms": "qkv"},
    "qkv, joint": {"relative_terms": "qkv", "relative_position": "joint"},
    "scaled": {"relative_scaled": True},
    "qk, scaled": {"relative_terms": "qk", "relative_scaled": True},
}


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(("pattern", "index"), [("all", 1), ("all", 3), ("shifted", 1), ("shifted", 3)])
def test_windows_with_every_term_are_their_formula(terms, pattern, index):
    fields = TERMS[terms] | {"window_pattern": pattern, "global_kv_stride_factor": 1}
    module = build(index, **fields)
    assert module.config.shifted == (pattern == "shifted")
    agree(module, torch.randn(1, *((5, 7) if index == 1 else (3, 4)), module.config.dim, dtype=torch.float64))


@pytest.mark.parametrize("terms", TERMS)
@torch.no_grad()
def test_windows_with_every_term_are_the_attention_of_each_window_alone(terms):
    """Without filters between neighbours a window knows nothing of the others: it is a map of its own."""
    fields = TERMS[terms] | {"kernel_qkv": (1, 1), "window_pattern": "all", "global_kv_stride_factor": 1}
    module = build(1, **fields)
    alone = build(1, **fields | {"window": None, "input_size": (16, 16), "depths": (1, 3)})
    assert alone.config.grid == (4, 4) and not alone.config.window
    alone.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 12, module.config.dim, dtype=torch.float64)
    found = module(x)[0]
    side, out = module.config.window[0], module.config.q_window[0]
    for i, j in itertools.product(range(8 // side), range(12 // side)):
        expected = alone(x[:, i * side : (i + 1) * side, j * side : (j + 1) * side])[0]
        cut = found[:, i * out : (i + 1) * out, j * out : (j + 1) * out]
        torch.testing.assert_close(cut, expected, rtol=1e-10, atol=1e-10)


# Three axes; a shifted window needs more than one key along each, or some of its queries would see none.
CLIP = {
    "input_size": (4, 16, 16), "patch_kernel": (1, 1, 1), "patch_stride": (1, 2, 2), "patch_padding": (0, 0, 0),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3), "depths": (2, 2), "embed_dim": 4,
    "num_heads": 1, "num_classes": 0, "window": (2, 4, 4), "window_pattern": "all", "global_kv_stride_factor": 1,
}  # fmt: skip
CLIP_TERMS = {
    "decomposed": {},
    "joint space, on queries, keys and values": {"relative_position": "joint_space", "relative_terms": "qkv"},
    "joint": {"relative_position": "joint"},
    "time": {"relative_position": "time", "relative_terms": "kv"},
    "none": {"relative_position": "none"},
}


@pytest.mark.parametrize("terms", CLIP_TERMS)
@pytest.mark.parametrize(("pattern", "index"), [("all", 0), ("all", 2), ("shifted", 1), ("shifted", 3)])
def test_windows_of_clips_are_their_formula(terms, pattern, index):
    fields = CLIP_TERMS[terms] | {"window_pattern": pattern}
    module = build(index, **CLIP | fields)
    assert module.config.shifted == (pattern == "shifted")
    agree(module, torch.randn(1, 3, *((2, 3) if index > 1 else (5, 6)), module.config.dim, dtype=torch.float64))


# ViT: one scale, nothing pooled but keys and values where a stride says so, no position term.
PLAIN = {key: value for key, value in architectures.PLAIN["vit_base"].items() if key not in ("depths", "cls_token")} | {
    "input_size": (32, 32), "patch_kernel": (4, 4), "patch_stride": (4, 4), "embed_dim": 8, "num_heads": 2,
    "depths": (4,), "num_classes": 3,
}  # fmt: skip
NO_WINDOWS = {"window": None, "window_pattern": "all", "global_kv_stride_factor": 1}
SCALES = {"plain": PLAIN, "multiscale": HYBRID | NO_WINDOWS | {"num_classes": 3}}
STRIDES = {"full": None, "pooling": (2, 2), "pooling more": (4, 4)}
WINDOWS = {
    "no windows": {},
    "fixed": {"window": (4, 4)},
    "shifted": {"window": (4, 4), "window_pattern": "shifted"},
    "hybrid": {"window": (4, 4), "window_pattern": "hybrid"},
}


@pytest.mark.parametrize("stride", ["full", "pooling"])
@pytest.mark.parametrize("windows", ["fixed", "shifted"])
def test_windows_of_a_plain_network_are_their_formula(windows, stride):
    fields = PLAIN | WINDOWS[windows] | {"adaptive_kv_stride": STRIDES[stride], "kernel_qkv": (3, 3)}
    torch.manual_seed(0)
    module = MultiscaleAttention(MViTConfig(**fields).blocks()[1]).double()
    assert not module.config.relative_groups and module.config.shifted == (windows == "shifted")
    agree(module, torch.randn(1, 6, 7, 8, dtype=torch.float64))
    x = torch.randn(1, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t)[0], (x,))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("stride", STRIDES)
def test_strides_and_windows_are_independent(scale, windows, stride):
    """Both columns in every combination, on one scale and on several, as a classifier and as maps of any size."""
    fields = SCALES[scale] | {"adaptive_kv_stride": STRIDES[stride]} | WINDOWS[windows]
    if windows == "hybrid" and scale == "plain":
        fields |= {"global_blocks": (1, 3)}
    config = MViTConfig(**fields)
    blocks = config.blocks()
    assert blocks[0].stride_kv == (STRIDES[stride] or (1, 1))
    inside = [bool(b.window) for b in blocks]
    assert inside == {
        "no windows": [False] * len(blocks),
        "hybrid": [True, False] * 2 if scale == "plain" else [True, True, True, False, True, False],
    }.get(windows, [True] * len(blocks))
    assert [b.shifted for b in blocks] == [windows == "shifted" and i % 2 == 1 for i in range(len(blocks))]
    torch.manual_seed(0)
    model = MViT(config)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    maps = FeatureMaps(MViT(config.replace(num_classes=0)), stage_norms=True)
    found = maps(torch.randn(1, 3, 41, 58))
    assert len(found) == len(config.depths)
    sum(one.square().sum() for one in found).backward()
    for network in (model, maps):
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_windows_per_stage_and_chosen_global_blocks():
    config = MViTConfig(window=((28, 28), (14, 14), (7, 7), (7, 7)), window_pattern="hybrid")
    windows = [b.window[0] if b.window else 0 for b in config.blocks()]
    assert windows == [28, 28, 0, 14, *[7] * 9, 0, 14, 0]
    vit = MViTConfig(
        depths=(12,), embed_dim=48, num_heads=4, patch_kernel=(16, 16), patch_stride=(16, 16), patch_padding=(0, 0),
        kernel_qkv=(1, 1), adaptive_kv_stride=None, full_q_pooling=False, residual_pooling=False,
        window=(7, 7), window_pattern="hybrid", global_blocks=(3, 7, 11),
    )  # fmt: skip
    assert [i for i, b in enumerate(vit.blocks()) if not b.window] == [3, 7, 11]
    assert vit.blocks()[0].table_lengths == (13, 13)
    assert vit.blocks()[3].table_lengths == (27, 27)
    with pytest.raises(UserError, match="global_blocks is"):
        vit.replace(global_blocks=(12,))
