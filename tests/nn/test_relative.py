"""Every relative form against loops over pairs in float64: groups of axes; terms on queries, keys and values."""

import itertools

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.nn import attention as attention_module
from openmvit.nn.attention import MultiscaleAttention

IMAGE = {
    "input_size": (16, 24), "patch_kernel": (3, 3), "patch_padding": (1, 1), "adaptive_kv_stride": (2, 2),
    "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3,
}  # fmt: skip
CLIP = {
    "input_size": (4, 12, 12), "patch_kernel": (1, 3, 3), "patch_stride": (1, 4, 4), "patch_padding": (0, 1, 1),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3), "cls_token": True,
    "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3,
}  # fmt: skip
FORMS = {
    "decomposed": ((0,), (1,)), "joint": ((0, 1),),
    "clip decomposed": ((0,), (1,), (2,)), "clip joint": ((0, 1, 2),), "clip time": ((0,),),
    "clip space": ((1,), (2,)), "clip joint_space": ((0,), (1, 2)),
}  # fmt: skip


def build(form: str, index: int = 1, **fields) -> MultiscaleAttention:
    torch.manual_seed(0)
    base = CLIP if form.startswith("clip") else IMAGE
    config = MViTConfig(**base | {"relative_position": form.split()[-1]} | fields)
    module = MultiscaleAttention(config.blocks()[index]).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def row(module, term, group, q_position, k_position, q_grid, k_grid):
    """The table's row for one query and one key."""
    name = "rel_pos_" + ("" if term == "q" else f"{term}_") + "".join("thw"[-len(q_grid) :][a] for a in group)
    place = []
    for a in group:
        q_size, k_size = q_grid[a], k_grid[a]
        rq, rk = max(k_size / q_size, 1), max(q_size / k_size, 1)
        place.append(int(q_position[a] * rq - k_position[a] * rk + (k_size - 1) * rk))
    return getattr(module, name)[tuple(place)]


def by_loops(module, form, terms, x, cls, scaled):
    """One pair at a time; the class row, where there is one, is key number -1 without any position."""
    (q, _), (k, k_cls), (v, v_cls) = module._heads(x, cls)
    groups, c = FORMS[form], module.config
    q_grid, k_grid = tuple(q.shape[1:-2]), tuple(k.shape[1:-2])
    scale = c.head_dim**-0.5
    out = torch.zeros_like(q)
    for b, h in itertools.product(range(len(q)), range(c.num_heads)):
        for i in itertools.product(*map(range, q_grid)):
            query, logits, values = q[(b, *i, h)], [], []
            if k_cls is not None:
                logits.append(query @ k_cls[b, 0, h] * scale)
                values.append(v_cls[b, 0, h])
            for j in itertools.product(*map(range, k_grid)):
                key, value, bias = k[(b, *j, h)], v[(b, *j, h)], 0.0
                for group in groups:
                    place = (group, i, j, q_grid, k_grid)
                    bias = bias + (query @ row(module, "q", *place) if "q" in terms else 0.0)
                    bias = bias + (key @ row(module, "k", *place) if "k" in terms else 0.0)
                    value = value + (row(module, "v", *place) if "v" in terms else 0.0)
                logits.append(query @ key * scale + bias * (scale if scaled else 1.0))
                values.append(value)
            out[(b, *i, h)] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return module.proj((out + q).flatten(-2))


def check(form, index, **fields):
    module = build(form, index, **fields)
    grid = (2, 3, 3) if form.startswith("clip") else (4, 6)
    x = torch.randn(1, *grid, module.config.dim, dtype=torch.float64)
    cls = torch.randn(1, 1, module.config.dim, dtype=torch.float64) if form.startswith("clip") else None
    # Tables are cut to these grids, so that the loops need no resizing.
    with torch.no_grad():
        (q, _), (k, _), _ = module._heads(x, cls)
        lengths = [2 * max(a, b) - 1 for a, b in zip(q.shape[1:-2], k.shape[1:-2], strict=True)]
        letters = "thw"[-len(grid) :]
        for name in module.config.relative_tables:
            shape = [lengths[letters.index(a)] for a in name.rpartition("_")[2]]
            table = torch.randn(*shape, module.config.head_dim, dtype=torch.float64)
            setattr(module, name, torch.nn.Parameter(table))
    terms, scaled = module.config.relative_terms, module.config.relative_scaled
    expected = by_loops(module, form, terms, x, cls, scaled)
    torch.testing.assert_close(module(x, cls)[0], expected, rtol=1e-10, atol=1e-10)
    inputs = [x.clone().requires_grad_(), *(p for n, p in module.named_parameters() if n.startswith("rel_pos"))]
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad(module(inputs[0], cls)[0], inputs, weights)
    loops = torch.autograd.grad(by_loops(module, form, terms, inputs[0], cls, scaled), inputs, weights)
    for a, b in zip(ours, loops, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert len(inputs) > 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("index", [0, 1])
def test_every_form_is_its_formula(form, index):
    check(form, index)


@pytest.mark.parametrize("terms", ["k", "v", "qk", "qv", "kv", "qkv"])
@pytest.mark.parametrize("form", ["decomposed", "joint", "clip joint_space"])
def test_every_combination_of_terms_is_its_formula(form, terms):
    check(form, 1, relative_terms=terms)


@pytest.mark.parametrize("terms", ["q", "qk"])
def test_the_printed_form_divides_the_relative_terms(terms):
    check("decomposed", 1, relative_terms=terms, relative_scaled=True)


@pytest.mark.parametrize("form", ["joint", "clip joint_space", "clip time"])
def test_gradcheck(form):
    module = build(form, relative_terms="qkv")
    grid = (1, 3, 2) if form.startswith("clip") else (3, 2)
    x = torch.randn(1, *grid, 8, dtype=torch.float64, requires_grad=True)
    cls = torch.randn(1, 1, 8, dtype=torch.float64) if form.startswith("clip") else None
    tables = [p for n, p in module.named_parameters() if n.startswith("rel_pos")]
    assert torch.autograd.gradcheck(lambda x, *_: module(x, cls)[0], (x, *tables))


@pytest.mark.parametrize("form", ["time", "space"])
def test_forms_of_single_axes_may_go_through_channels(form, monkeypatch):
    torch.manual_seed(0)
    model = MViT(MViTConfig(**CLIP | {"relative_position": form})).double().eval()
    x = torch.randn(1, 3, 4, 16, 12, dtype=torch.float64)
    plain = model(x)
    monkeypatch.setattr(attention_module, "MOST_SCORES", 0)
    torch.testing.assert_close(model(x), plain, rtol=1e-12, atol=1e-12)


def test_tables_of_each_form():
    block = MViTConfig(**CLIP | {"relative_position": "joint_space", "relative_terms": "qv"}).blocks()[0]
    assert block.relative_tables == {
        "rel_pos_t": (7, 4), "rel_pos_hw": (5, 5, 4), "rel_pos_v_t": (7, 4), "rel_pos_v_hw": (5, 5, 4),
    }  # fmt: skip
    assert MViTConfig(relative_position="none", relative_terms="qkv").blocks()[0].relative_tables == {}


# Parameters of the paper's rows, in millions (Tables 6, 7, A.6, A.7, by the reference's own counter).
SMALL = {"depths": (1, 2, 11, 2)}
VIDEO = {
    "input_size": (16, 224, 224), "num_classes": 400, "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3), "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 8, 8),
    "cls_token": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({"relative_position": "none"}, 34.758),
        ({"relative_position": "none", "absolute_position": "joint"}, 35.059),
        ({"relative_position": "joint"}, 37.598),
        ({}, 34.870),
        ({"absolute_position": "joint"}, 35.171),
        ({"full_q_pooling": False}, 34.856),
        ({"residual_pooling": False}, 34.870),
        (VIDEO | {"relative_position": "none"}, 34.408),
        (VIDEO | {"relative_position": "none", "absolute_position": "separable"}, 34.709),
        (VIDEO | {"relative_position": "time"}, 34.431),
        (VIDEO | {"relative_position": "space"}, 34.515),
        (VIDEO, 34.538),
        (VIDEO | {"relative_position": "joint_space"}, 37.050),
        (VIDEO | {"relative_position": "joint"}, 73.702),
        (VIDEO | {"full_q_pooling": False}, 34.502),
    ],
)
def test_parameters_of_the_papers_rows(fields, millions):
    with torch.device("meta"):
        model = MViT(MViTConfig(**SMALL | fields))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5.1e-4)


def test_forms_of_clips_are_refused_for_images():
    with pytest.raises(UserError, match="Accepted for images: none, decomposed, joint"):
        MViTConfig(relative_position="time")
