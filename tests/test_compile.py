"""What `torch.compile` makes of the networks: one graph each, no second one for a batch, at most one for a size."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from openmvit import MViT, MViTConfig
from openmvit.model import FeatureMaps
from openmvit.nn.fast import choose

SMALL = {"depths": (1, 1), "embed_dim": 8, "num_heads": 1, "num_classes": 5, "drop_path_rate": 0.0}
IMAGE = SMALL | {"input_size": (32, 32)}
CLIP = SMALL | {
    "input_size": (4, 32, 32), "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 4, 4), "cls_token": True,
}  # fmt: skip
VARIANTS = {
    "image": IMAGE,
    "image with positions": IMAGE | {"cls_token": True, "absolute_position": "joint"},
    "clip with class token": CLIP,
    "first version": CLIP
    | {"absolute_position": "separable", "relative_position": "none", "residual_pooling": False}
    | {"dim_mul_in_attention": False, "full_q_pooling": False, "kernel_qkv": None},
    "windows": IMAGE | {"window": (4, 4), "window_pattern": "hybrid", "adaptive_kv_stride": (2, 2)},
    "shifted windows": IMAGE | {"window": (4, 4), "window_pattern": "shifted", "adaptive_kv_stride": (2, 2)},
    "terms of keys": IMAGE | {"relative_terms": "qk"},
    "two streams": IMAGE | {"reversible": "mean", "depths": (1, 2)},
}
SIZES = [(32, 32), (64, 32), (48, 80)]


@pytest.fixture(autouse=True)
def fresh():
    """Graphs of other tests are no graphs of this one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(fields):
    torch.manual_seed(0)
    return MViT(MViTConfig(**fields))


def inputs(config, batch=2, size=(32, 32)):
    return torch.randn(batch, 3, *config.input_size[:-2], *size)


def counted(model: nn.Module, **options):
    """The model compiled as one graph or not at all, and the graphs that were made."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    return torch.compile(model, backend=backend, fullgraph=True, **options), graphs


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_the_forward_pass_is_one_graph_for_every_batch(fields):
    model = build(fields).eval()
    compiled, graphs = counted(model)
    for batch in (2, 3, 5, 15):
        x = inputs(model.config, batch)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


@torch.no_grad()
def test_without_a_mark_the_second_batch_size_makes_the_last_graph():
    model = build(IMAGE).eval()
    compiled, graphs = counted(model)
    for batch in (2, 3, 5, 15):  # the framework chooses its convolutions anew for one, and on CPUs from 16 on
        compiled(inputs(model.config, batch))
    assert len(graphs) == 2


@torch.no_grad()
def test_attention_that_holds_no_scores_and_feature_maps_are_one_graph(monkeypatch):
    monkeypatch.setattr(choose, "MOST_SCORES", 0)
    model = FeatureMaps(build(IMAGE | {"num_classes": 0}), stage_norms=True).eval()
    compiled, graphs = counted(model)
    x = torch.randn(1, 3, 64, 96)
    for ours, plain in zip(compiled(x), model(x), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


def test_a_training_step_that_computes_large_maps_again_is_one_graph(monkeypatch):
    monkeypatch.setattr(choose, "LARGE_MAP", 0)
    model = build(IMAGE).train()
    plain = copy.deepcopy(model)
    compiled, graphs = counted(model)
    x = inputs(model.config)
    output, expected = compiled(x), plain(x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    for out in (output, expected):
        out.square().sum().backward()
    assert len(graphs) == 1
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["image", "clip with class token", "two streams"])
def test_a_training_step_is_one_graph(name):
    model = build(VARIANTS[name] | {"drop_path_rate": 0.2}).train()
    model.recompute_streams = False  # of two streams, which would not show what they compute anew
    compiled, graphs = counted(model)
    compiled(inputs(model.config)).square().sum().backward()
    assert len(graphs) == 1
    assert set(dict(model.named_parameters())) - set(gradients(model)) == model.unused_parameters()


@pytest.mark.slow
def test_the_compiler_of_the_framework_gives_the_same_numbers():
    model = build(IMAGE | {"depths": (1,)}).train()
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True)
    x = inputs(model.config)
    outputs = [each(x) for each in (compiled, plain)]
    for out in outputs:
        out.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    expected = gradients(plain)
    assert gradients(model).keys() == expected.keys()
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["image", "clip with class token", "shifted windows"])
def test_a_batch_of_another_size_is_not_compiled_again(name):
    """By the framework's own compiler, whose programs are what a user waits for."""
    counters.clear()
    model = build(VARIANTS[name]).eval()
    compiled = torch.compile(model, fullgraph=True)
    for batch, graphs in ((2, 1), (3, 1), (5, 1), (15, 1), (16, 2), (40, 2), (1, 3)):
        x = inputs(model.config, batch)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
        assert counters["stats"]["unique_graphs"] == graphs


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["image", *(pytest.param(n, marks=pytest.mark.slow) for n in ("clip with class token", "windows"))]
)
def test_another_size_makes_one_other_graph_at_most(name):
    model = build(VARIANTS[name]).eval()
    compiled, graphs = counted(model)
    for number, size in enumerate(SIZES, start=1):
        x = inputs(model.config, 2, size)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
        assert len(graphs) <= number
    made = len(graphs)
    for size in SIZES:  # none that was seen is forgotten
        compiled(inputs(model.config, 2, size))
    assert len(graphs) == made
