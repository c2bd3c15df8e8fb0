"""Large maps: what their blocks make is computed again in the backward pass, and nothing else changes."""

import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from nn.test_fast_paths import CLIP, IMAGE, network
from openmvit.nn import recompute

FORMS = {"image": IMAGE, "class_token": CLIP | {"cls_token": True}, "windows": IMAGE | {"window": ((4, 4), (4, 4))}}


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
    monkeypatch.setattr(recompute, "LARGE_MAP", 0)
    model.set_grad_checkpointing(False)
    logits, gradients, whole = step(model, x)
    model.set_grad_checkpointing(None)
    again, same, part = step(model, x)
    assert torch.equal(again, logits)
    assert all(torch.equal(a, b) for a, b in zip(same, gradients, strict=True))
    assert part < whole / 2


def test_stochastic_depth_is_drawn_once(monkeypatch):
    monkeypatch.setattr(recompute, "LARGE_MAP", 0)
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
    monkeypatch.setattr(recompute, "LARGE_MAP", tokens)
    model(x)
    assert calls == []
    monkeypatch.setattr(recompute, "LARGE_MAP", tokens - 1)
    model(x)
    assert [tuple(shape[1:3]) for shape in calls] == [(6, 10), (6, 10), (6, 10), (3, 5)]
    calls.clear()
    with torch.no_grad():
        model(x)
    model.eval()(x)
    model.train().set_grad_checkpointing(False)
    model(x)
    assert calls == []


def test_memory_that_is_freed_goes_back_to_the_system():
    recompute.trim_memory()  # whatever the C library
    assert recompute.LARGE_MAP > 8 * 56 * 56, "the first block of a clip network is to keep its activations"
