"""Large maps: what their blocks make is computed again in the backward pass, and nothing else changes."""

import weakref
from math import prod
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from nn.test_fast_paths import CLIP, IMAGE, network
from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.nn.fast import choose, recompute

FORMS = {"image": IMAGE, "class_token": CLIP | {"cls_token": True}, "windows": IMAGE | {"window": ((4, 4), (4, 4))}}


def resident():
    """Bytes of this process in memory; 0 where it cannot be told."""
    table = Path("/proc/self/statm")
    return int(table.read_text().split()[1]) * 4096 if table.exists() else 0


def step(model, x):
    """Logits, gradients, and bytes that the forward pass keeps."""
    kept = weakref.WeakValueDictionary()

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(x)
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    torch.manual_seed(1)
    used = [p for name, p in model.named_parameters() if name not in model.unused_parameters()]
    gradients = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), used)
    return logits, gradients, size


@pytest.mark.parametrize("form", FORMS)
def test_a_large_map_keeps_less_and_changes_no_bit(form, monkeypatch):
    model, x = network(FORMS[form]).train(), torch.randn(2, 3, *FORMS[form]["input_size"])
    monkeypatch.setattr(choose, "LARGE_MAP", 0)
    model.set_grad_checkpointing(False)
    logits, gradients, whole = step(model, x)
    model.set_grad_checkpointing(None)
    again, same, part = step(model, x)
    assert torch.equal(again, logits)
    assert all(torch.equal(a, b) for a, b in zip(same, gradients, strict=True))
    assert part < whole / 2


def test_stochastic_depth_is_drawn_once(monkeypatch):
    monkeypatch.setattr(choose, "LARGE_MAP", 0)
    model, x = network(IMAGE).train(), torch.randn(8, 3, *IMAGE["input_size"])
    for block in model.blocks:
        block.drop_path.rate = 0.5
    sides = []
    for enable in (False, None):
        model.set_grad_checkpointing(enable)
        torch.manual_seed(3)
        sides.append(step(model, x)[:2])
    assert torch.equal(sides[0][0], sides[1][0])
    assert all(torch.equal(a, b) for a, b in zip(sides[0][1], sides[1][1], strict=True))


def test_only_training_steps_on_large_maps_are_computed_twice(monkeypatch):
    calls = []
    monkeypatch.setattr(recompute, "checkpoint", lambda f, x, cls, **_: calls.append(x.shape) or f(x, cls))
    model, x = network(IMAGE).train(), torch.randn(1, 3, *IMAGE["input_size"])
    tokens = 6 * 10
    monkeypatch.setattr(choose, "LARGE_MAP", tokens + 1)
    model(x)
    assert calls == []
    monkeypatch.setattr(choose, "LARGE_MAP", tokens)
    model(x)
    assert [tuple(shape[1:3]) for shape in calls] == [(6, 10), (6, 10), (6, 10)]
    calls.clear()
    with torch.no_grad():
        model(x)
    model.eval()(x)
    model.train().set_grad_checkpointing(False)
    model(x)
    assert calls == []


def test_a_graph_can_be_gone_through_twice(monkeypatch):
    monkeypatch.setattr(choose, "LARGE_MAP", 0)
    model, x = network(IMAGE).train(), torch.randn(1, 3, *IMAGE["input_size"])
    loss = model(x).square().sum()
    weight = model.blocks[0].norm1.weight
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradients_of_gradients_and_transforms_are_those_without(monkeypatch):
    monkeypatch.setattr(choose, "LARGE_MAP", 0)
    model, x = network(IMAGE).double().train(), torch.randn(1, 3, *IMAGE["input_size"], dtype=torch.float64)
    weight = model.blocks[0].norm1.weight
    found = []
    for enable in (False, None):
        model.set_grad_checkpointing(enable)
        (first,) = torch.autograd.grad(model(x).square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        transformed = torch.func.grad(lambda t: model(t).square().sum())(x)
        found.append((first.detach(), second, transformed))
    for ours, plain in zip(*reversed(found), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


def test_pictures_and_clips_of_224_keep_their_activations():
    configs = [model_config(name) for name in ARCHITECTURES]
    tokens = [prod(config.patch_grid) for config in configs if max(config.input_size) <= 224]
    assert len(tokens) > 20 and max(tokens) < choose.LARGE_MAP <= 256 * 256


def test_memory_that_is_freed_goes_back_to_the_system():
    before = resident()
    tensors = [torch.ones(2**20) for _ in range(64)]
    last = torch.ones(2**20)  # the heap cannot shrink from its end
    del tensors
    recompute.trim_memory()
    assert last.sum() > 0 and resident() < before + 64 * 2**20
