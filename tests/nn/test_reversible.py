"""The reversible network: gradients of ordinary autograd, in memory that hardly depends on depth."""

import pytest
import torch

from openmvit import MViT, MViTConfig, UserError
from openmvit.nn.fast import precision

SMALL = {"input_size": (64, 64), "depths": (1, 2, 3), "embed_dim": 8, "num_classes": 5, "drop_path_rate": 0.0}


def build(**fields):
    torch.manual_seed(0)
    model = MViT(MViTConfig(**SMALL | fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def gradients(model, x, recompute):
    model.recompute_streams = recompute
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # the same samples are dropped
    out = model(x)
    out.float().square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {"input": x.grad, "output": out.detach()}


@pytest.mark.parametrize("fusion", ["mean", "mlp"])
@pytest.mark.parametrize("rate", [0.0, 0.6])
def test_gradients_are_those_of_plain_autograd(fusion, rate):
    model = build(reversible=fusion, drop_path_rate=rate).double()
    x = torch.randn(6, 3, 64, 48, dtype=torch.float64)
    ours, plain = gradients(model, x, True), gradients(model, x, False)
    assert ours.keys() == plain.keys() == {"input", "output", *(name for name, _ in model.named_parameters())}
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_a_sample_is_dropped_from_both_branches_and_from_whole_transitions():
    model = build(reversible="mean", drop_path_rate=0.6).double()
    block = model.blocks[2]
    x1, x2 = torch.randn(64, 4, 4, 16, dtype=torch.float64), torch.randn(64, 4, 4, 16, dtype=torch.float64)
    keep = block.draw(x1)
    y1, y2 = block(x1, x2, keep)
    dropped = keep.flatten() == 0
    assert 0 < dropped.sum() < 64
    assert torch.equal(y1[dropped], x1[dropped]) and torch.equal(y2[dropped], x2[dropped])
    assert not torch.isclose(y1[~dropped], x1[~dropped]).all(dim=(1, 2, 3)).any()
    x = torch.randn(64, 8, 8, 32, dtype=torch.float64)
    through = model.blocks[3](x)
    gone = ~through.any(dim=(1, 2, 3))
    assert 0 < gone.sum() < 64


def test_frozen_blocks_and_a_frozen_input_need_no_gradient():
    model = build(reversible="mlp").double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for parameter in model.blocks[4].parameters():
        parameter.requires_grad_(False)
    model.blocks[2].attn.requires_grad_(False)
    ours, plain = gradients(model, x, True), gradients(model, x, False)
    assert ours.keys() == plain.keys() and not any(name.startswith("blocks.4.") for name in ours)
    for name, expected in plain.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("pays", [True, False])
def test_autocast_recomputes_in_the_precision_of_the_forward_pass(pays, monkeypatch):
    monkeypatch.setattr(precision, "BF16_IS_FAST", pays)
    model = build(reversible="mean", drop_path_rate=0.3)
    x = torch.randn(4, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map_.dtype == torch.float32 for map_ in model.forward_features(x))
    found = []
    for recompute in (True, False):
        model.recompute_streams = recompute
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).float().square().sum()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.isfinite(found[0]).all()
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999
    # Backward inside the region would meet weights cast without gradient, were they cached.
    model.recompute_streams = True
    model.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x).float().square().sum().backward()
    again = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.nn.functional.cosine_similarity(again, found[1], dim=0) > 0.999


class _Kept:
    """A tensor that autograd keeps; `peak` counts the bytes of all that live."""

    alive = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        self.bytes = 0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel() * tensor.element_size()
        _Kept.alive += self.bytes
        _Kept.peak = max(_Kept.peak, _Kept.alive)

    def __del__(self):
        _Kept.alive -= self.bytes


def peak_bytes(depth, reversible, recompute=True):
    """Most bytes that autograd keeps at one time of a training step."""
    model = build(depths=(1, 2, depth), reversible=reversible)
    model.recompute_streams = recompute
    _Kept.alive = _Kept.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(_Kept, lambda kept: kept.tensor):
        model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert _Kept.alive == 0
    return _Kept.peak


def test_memory_hardly_depends_on_depth():
    shallow, deep = peak_bytes(4, "mean"), peak_bytes(32, "mean")
    assert deep <= 1.02 * shallow
    # The same network by plain autograd, and the ordinary network, keep every block's activations.
    assert peak_bytes(32, "mean", recompute=False) > 2.5 * peak_bytes(4, "mean", recompute=False) > 4 * shallow
    assert peak_bytes(32, "none") > 2.5 * peak_bytes(4, "none")


def test_shards_of_parameters_need_kept_activations(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        model, mesh = build(reversible="mean"), init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        with pytest.raises(UserError, match="set recompute_streams to False"):
            model(torch.randn(1, 3, 64, 64))
        model.recompute_streams = False
        model(torch.randn(1, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def test_features_are_both_streams_and_any_size_runs():
    model = build(reversible="mlp", absolute_position="joint").eval()
    maps = model.forward_features(torch.randn(1, 3, 96, 48))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 24, 12), (1, 32, 12, 6), (1, 64, 6, 3)]
    assert model.config.stage_dims == (16, 32, 64) and model.config.num_features == 64


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"cls_token": True}, "cls_token"),
        ({"dim_mul_in_attention": False}, "dim_mul_in_attention"),
        ({"depths": (1, 1, 3)}, "two blocks"),
        ({"layer_scale": 0.1}, "layer_scale"),
    ],
)
def test_what_reversible_networks_do_not_have_is_refused(fields, fragment):
    with pytest.raises(UserError, match=fragment):
        MViTConfig(**SMALL | {"reversible": "mean"} | fields)


@pytest.mark.parametrize(("name", "parameters"), [("rev_mvit_base", 39_689_320), ("rev_mvit_base_16x4", 34_963_120)])
def test_published_networks_have_the_published_size(name, parameters):
    from openmvit import create_model

    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
