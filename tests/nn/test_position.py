"""Index arithmetic, table resizing, absolute tables, and every form of position against loops over pairs."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from nn.forms import position_of
from nn.loops import agree
from openmvit.config import MViTConfig
from openmvit.model import MViT
from openmvit.nn.attention import MultiscaleAttention
from openmvit.nn.position import resize_grid, resize_table, sincos_table
from openmvit.nn.relative import relative_bias, relative_index, relative_rows


def exact_index(q_size, k_size):
    """Truncated distances in exact rational arithmetic."""
    rq, rk = max(Fraction(k_size, q_size), Fraction(1)), max(Fraction(q_size, k_size), Fraction(1))
    rows = [[int(i * rq - j * rk + (k_size - 1) * rk) for j in range(k_size)] for i in range(q_size)]
    return torch.tensor(rows)


PAIRS = [(56, 14), (28, 28), (14, 28), (28, 14), (7, 14), (14, 7), (56, 7), (8, 8), (10, 20), (20, 10), (1, 1), (13, 1)]


@pytest.mark.parametrize(("q_size", "k_size"), [*PAIRS, (39, 20), (25, 7), (7, 25)])
def test_index_is_the_exact_distance(q_size, k_size):
    index = relative_index(q_size, k_size)
    assert torch.equal(index, exact_index(q_size, k_size))
    assert index.min() >= 0
    assert index.max() <= 2 * max(q_size, k_size) - 2


@pytest.mark.parametrize(("q_size", "k_size", "different"), [(78, 10, 103), (39, 10, 38)])
def test_released_312_models_rest_on_float32_truncation(q_size, k_size, different):
    index = relative_index(q_size, k_size)
    assert int((index != exact_index(q_size, k_size)).sum()) == different
    assert index.min() == 0


@pytest.mark.parametrize("q_size", range(1, 40))
def test_index_never_leaves_the_table(q_size):
    for k_size in range(1, 40):
        index = relative_index(q_size, k_size)
        assert index.min() >= 0
        assert index.max() <= 2 * max(q_size, k_size) - 2


def test_table_is_resampled_linearly():
    table = torch.randn(37, 4)
    expected = F.interpolate(table.T[None], size=39, mode="linear", align_corners=False)[0].T
    assert torch.equal(resize_table(table, 39), expected)
    assert resize_table(table, 37) is table
    assert relative_rows(table, (20,), (10,), (0,)).shape == (20, 10, 4)


@pytest.mark.parametrize("grids", [((3, 4), (2, 5)), ((2, 3, 4), (4, 3, 2))])
def test_bias_is_the_sum_over_axes(grids):
    q_grid, k_grid = grids
    q = torch.randn(2, *q_grid, 3, 5, dtype=torch.float64)
    tables = [torch.randn(2 * max(a, b) - 1, 5, dtype=torch.float64) for a, b in zip(q_grid, k_grid, strict=True)]
    groups = tuple((axis,) for axis in range(len(k_grid)))
    k = torch.randn(2, *k_grid, 3, 5, dtype=torch.float64)
    bias = relative_bias(q, k, position_of(tables, groups, q_grid, k_grid))
    indices = [relative_index(a, b) for a, b in zip(q_grid, k_grid, strict=True)]
    for i, qp in enumerate(torch.cartesian_prod(*map(torch.arange, q_grid)).tolist()):
        for j, kp in enumerate(torch.cartesian_prod(*map(torch.arange, k_grid)).tolist()):
            rows = [t[n[a, b]] for t, n, a, b in zip(tables, indices, qp, kp, strict=True)]
            expected = sum(q[(slice(None), *qp)] @ row for row in rows)
            torch.testing.assert_close(bias[:, :, i, j], expected)


def test_absolute_table_is_resized_by_number_of_axes():
    table = torch.randn(1, 4, 6, 5)
    expected = F.interpolate(table.movedim(-1, 1), size=(8, 3), mode="bicubic", align_corners=False).movedim(1, -1)
    assert torch.equal(resize_grid(table, (8, 3)), expected)
    assert resize_grid(table, (4, 6)) is table
    assert resize_grid(torch.randn(1, 4, 5), (7,)).shape == (1, 7, 5)
    assert resize_grid(torch.randn(1, 2, 4, 6, 5), (3, 4, 4)).shape == (1, 3, 4, 4, 5)


def test_sincos_shares_channels_between_axes():
    image = sincos_table((3, 5), 16)
    assert image.shape == (1, 3, 5, 16)
    # Last axis first: the first half does not change along the first axis, the second half not along the last.
    assert torch.equal(image[0, 0, :, :8], image[0, 2, :, :8])
    assert torch.equal(image[0, :, 0, 8:], image[0, :, 4, 8:])
    torch.testing.assert_close(image[0, 0, 4, 0], torch.tensor(4.0).sin())
    torch.testing.assert_close(image[0, 2, 0, 8 + 4], torch.tensor(2.0).cos())
    clip = sincos_table((2, 3, 5), 16)
    assert torch.equal(clip[0, 0, 0, 0, :4], clip[0, 0, 2, 4, :4])
    torch.testing.assert_close(clip[0, 1, 0, 0, 0], torch.tensor(1.0).sin())


def test_a_network_trains_on_sizes_first_seen_in_inference_mode():
    table = torch.randn(2 * 23 - 1, 4, requires_grad=True)
    with torch.inference_mode():
        relative_rows(table, (23,), (7,), (0,))
    relative_rows(table, (23,), (7,), (0,)).sum().backward()
    assert table.grad is not None


IMAGE = {
    "input_size": (8, 6), "patch_kernel": (1, 1), "patch_stride": (2, 2), "patch_padding": (0, 0),
    "adaptive_kv_stride": (2, 2),
}  # fmt: skip
CLIP = {
    "input_size": (2, 4, 4), "patch_kernel": (1, 1, 1), "patch_stride": (1, 2, 2), "patch_padding": (0, 0, 0),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3), "cls_token": True,
}  # fmt: skip
# Both columns of the tables on positions (6, A.6); what is learned has these names.
FORMS = {
    "none": (IMAGE, "none", "none", []),
    "absolute": (IMAGE, "joint", "none", ["pos_embed"]),
    "joint": (IMAGE, "none", "joint", ["hw"]),
    "decomposed": (IMAGE, "none", "decomposed", ["h", "w"]),
    "absolute and decomposed": (IMAGE, "joint", "decomposed", ["pos_embed", "h", "w"]),
    "clip none": (CLIP, "none", "none", []),
    "clip absolute": (CLIP, "separable", "none", ["pos_embed_temporal", "pos_embed_spatial", "pos_embed_class"]),
    "clip absolute, one table": (CLIP, "joint", "none", ["pos_embed"]),
    "clip time": (CLIP, "none", "time", ["t"]),
    "clip space": (CLIP, "none", "space", ["h", "w"]),
    "clip decomposed": (CLIP, "none", "decomposed", ["t", "h", "w"]),
    "clip joint space": (CLIP, "none", "joint_space", ["t", "hw"]),
    "clip joint": (CLIP, "none", "joint", ["thw"]),
    "clip absolute and decomposed": (CLIP, "joint", "decomposed", ["pos_embed", "t", "h", "w"]),
}  # fmt: skip


def network(form: str) -> MViT:
    """Two blocks in float64, the second of which pools its queries; every position drawn at random."""
    torch.manual_seed(0)
    fields, absolute, relative, _ = FORMS[form]
    small = {"in_chans": 1, "depths": (1, 1), "embed_dim": 4, "mlp_ratio": 1.0, "num_classes": 2, "drop_path_rate": 0.0}
    config = MViTConfig(**fields | small | {"absolute_position": absolute, "relative_position": relative})
    model = MViT(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_every_form(form):
    model = network(form)
    own = {name: p for name, p in model.named_parameters() if "pos" in name}
    tables = [name for name in FORMS[form][3] if not name.startswith("pos")]
    wanted = [name for name in FORMS[form][3] if name.startswith("pos")]
    assert set(own) == {*wanted, *(f"blocks.{i}.attn.rel_pos_{name}" for i in (0, 1) for name in tables)}
    x = torch.randn(1, 1, *model.config.input_size, dtype=torch.float64, requires_grad=True)

    def run(x, *positions):
        return torch.func.functional_call(model, dict(zip(own, positions, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *own.values()))
    model(x).square().sum().backward()
    idle = {name for name, p in own.items() if p.grad is None or not p.grad.any()}
    assert idle == own.keys() & model.unused_parameters()


@pytest.mark.parametrize("form", [form for form in FORMS if "absolute" in form])
def test_absolute_positions_are_a_row_per_place(form):
    model = network(form)
    x = torch.randn(1, 1, *model.config.input_size, dtype=torch.float64)
    found, cls = model.embed(x)
    plain, grid = model.patch_embed(x), model.config.patch_grid
    first = int(model.config.cls_token)
    for number, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).tolist()):
        if FORMS[form][1] == "separable":
            space = place[1] * grid[2] + place[2]
            own = model.pos_embed_temporal[0, place[0]] + model.pos_embed_spatial[0, space]
        else:
            own = model.pos_embed[0, first + number]
        torch.testing.assert_close(found[(0, *place)], plain[(0, *place)] + own, rtol=0, atol=1e-15)
    if first:
        row = model.pos_embed_class[0, 0] if FORMS[form][1] == "separable" else model.pos_embed[0, 0]
        torch.testing.assert_close(cls[0, 0], model.cls_token[0, 0] + row, rtol=0, atol=1e-15)


# What is written out pair by pair: the groups of axes that share a table, and grids small enough for loops.
PAIRED = {
    "decomposed": ((0,), (1,)), "joint": ((0, 1),),
    "clip decomposed": ((0,), (1,), (2,)), "clip joint": ((0, 1, 2),), "clip time": ((0,),),
    "clip space": ((1,), (2,)), "clip joint_space": ((0,), (1, 2)),
}  # fmt: skip
PAIRED_IMAGE = IMAGE | {"input_size": (8, 12), "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3}
PAIRED_CLIP = CLIP | {"input_size": (2, 6, 6), "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3}


def attention(form: str, index: int, **fields) -> MultiscaleAttention:
    """The attention of a block in float64, everything drawn at random; its tables have the size of its grids."""
    torch.manual_seed(0)
    base = PAIRED_CLIP if form.startswith("clip") else PAIRED_IMAGE
    config = MViTConfig(**base | {"relative_position": form.split()[-1]} | fields)
    module = MultiscaleAttention(config.blocks()[index]).double()
    assert module.config.relative_groups == PAIRED[form]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def tokens(module: MultiscaleAttention, form: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A grid, and for clips a class token."""
    grid, dim = module.config.grid, module.config.dim
    cls = torch.randn(1, 1, dim, dtype=torch.float64) if form.startswith("clip") else None
    return torch.randn(1, *grid, dim, dtype=torch.float64), cls


@pytest.mark.parametrize("form", PAIRED)
@pytest.mark.parametrize("index", [0, 1])
def test_every_form_is_its_formula(form, index):
    module = attention(form, index)
    agree(module, *tokens(module, form))


@pytest.mark.parametrize("terms", ["k", "v", "qk", "qv", "kv", "qkv"])
@pytest.mark.parametrize("form", ["decomposed", "joint", "clip joint_space"])
def test_every_combination_of_terms_is_its_formula(form, terms):
    module = attention(form, 1, relative_terms=terms)
    agree(module, *tokens(module, form))


@pytest.mark.parametrize("terms", ["q", "qk"])
def test_the_printed_form_divides_the_relative_terms(terms):
    module = attention("decomposed", 1, relative_terms=terms, relative_scaled=True)
    agree(module, *tokens(module, "decomposed"))


@pytest.mark.parametrize("form", ["joint", "clip joint_space", "clip time"])
def test_gradients_of_all_terms(form):
    module = attention(form, 1, relative_terms="qkv")
    grid = (1, 3, 2) if form.startswith("clip") else (3, 2)
    x = torch.randn(1, *grid, 8, dtype=torch.float64, requires_grad=True)
    cls = tokens(module, form)[1]
    tables = [p for n, p in module.named_parameters() if n.startswith("rel_pos")]
    assert torch.autograd.gradcheck(lambda x, *_: module(x, cls)[0], (x, *tables))


def cubic(distance: float) -> float:
    """Weight of a sample in bicubic interpolation, with the library's -0.75."""
    d = abs(distance)
    if d < 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def samples(length: int, wanted: int, reach: int, weight) -> torch.Tensor:
    """`[wanted, length]`: how each new place mixes the old ones; the ends are repeated outwards."""
    found = torch.zeros(wanted, length, dtype=torch.float64)
    for i in range(wanted):
        place = (i + 0.5) * length / wanted - 0.5
        # Of two neighbours, as the library does, none lies before the first place.
        place = max(place, 0.0) if reach == 1 else place
        first = math.floor(place)
        for j in range(first - reach + 1, first + reach + 1):
            found[i, min(max(j, 0), length - 1)] += weight(place - j)
    return found


@pytest.mark.parametrize(("sizes", "wanted"), [((4, 3), (6, 5)), ((6, 5), (4, 2)), ((2, 3, 4), (3, 5, 4))])
def test_joint_tables_are_resized_as_images_and_as_volumes(sizes, wanted):
    """Bicubic on two axes, trilinear on three: the product of one mixing per axis, here written out."""
    table = torch.randn(*(2 * n - 1 for n in sizes), 5, dtype=torch.float64, requires_grad=True)
    reach, weight = (2, cubic) if len(sizes) == 2 else (1, lambda d: 1 - abs(d))
    mixed = table
    for axis, (old, new) in enumerate(zip(table.shape[:-1], (2 * n - 1 for n in wanted), strict=True)):
        mixed = torch.tensordot(samples(old, new, reach, weight), mixed.movedim(axis, 0), dims=1).movedim(0, axis)
    found = relative_rows(table, wanted, wanted, tuple(range(len(wanted))))
    for i in itertools.product(*map(range, wanted)):
        for j in itertools.product(*map(range, wanted)):
            row = mixed[tuple(a - b + n - 1 for a, b, n in zip(i, j, wanted, strict=True))]
            torch.testing.assert_close(found[(*i, *j)], row, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(found)
    (ours,) = torch.autograd.grad(found, table, weights)
    places = tuple(
        relative_index(n, n).view(shape) for n, shape in zip(wanted, spread(len(wanted), wanted), strict=True)
    )
    (theirs,) = torch.autograd.grad(mixed[places], table, weights)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def spread(axes: int, sizes) -> list[list[int]]:
    """Shapes that put an index `[n, n]` of each axis at its place among queries and at that among keys."""
    return [[n if a in (axis, axes + axis) else 1 for a in range(2 * axes)] for axis, n in enumerate(sizes)]
