"""Schedule, groups, average: numbers against formulas and against torch's own loops."""

from __future__ import annotations

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.model import MViT
from openmvit.training.ema import Ema
from openmvit.training.optim import (
    learning_rate,
    lr_scale,
    make_optimizer,
    parameter_groups,
    set_learning_rate,
    soft_cross_entropy,
)
from openmvit.training.recipe import Recipe


def tiny() -> MViT:
    return MViT(MViTConfig(input_size=(32, 32), depths=(1, 1), embed_dim=16, cls_token=True, num_classes=5))


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0.0, 8e-8),
        (35.0, (8e-8 + 2e-3) / 2),
        (69.999, 2e-3 * 69.999 / 70 + 8e-8 * 0.001 / 70),
        (70.0, 2e-3),
        (135.0, 8e-6 + (2e-3 - 8e-6) * (2 + 2**0.5) / 4),
        (200.0, (8e-6 + 2e-3) / 2),
        (330.0, 8e-6),
    ],
)
def test_learning_rate_of_the_published_imagenet_schedule(epoch: float, expected: float) -> None:
    got = learning_rate(epoch, peak=2e-3, start=8e-8, end=8e-6, warmup_epochs=70, total_epochs=330)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0.0, peak=1.0, start=0.1, end=0.0, warmup_epochs=0, total_epochs=10) == 1.0


def test_learning_rate_is_scaled_by_samples_per_update() -> None:
    assert lr_scale(Recipe(lr_batch=256), 2048) == 8.0
    assert lr_scale(Recipe(lr_batch=0), 2048) == 1.0


def test_only_parameters_with_one_axis_are_not_decayed() -> None:
    model = tiny()
    decay = {n: g["weight_decay"] for g in parameter_groups(model, 0.05, 1.0) for n in g["names"]}
    assert decay == {n: 0.05 if p.dim() > 1 else 0.0 for n, p in model.named_parameters()}
    assert decay["blocks.0.attn.rel_pos_h"] == decay["cls_token"] == decay["patch_embed.proj.weight"] == 0.05
    assert decay["blocks.0.attn.pool_q.weight"] == 0.05
    assert decay["norm.weight"] == decay["head.projection.bias"] == 0.0


def test_layer_decay_multiplies_the_rate_per_layer_below_the_head() -> None:
    optimizer = make_optimizer(tiny(), Recipe(layer_decay=0.5))
    set_learning_rate(optimizer, 0.8)
    rate = {n: g["lr"] for g in optimizer.param_groups for n in g["names"]}
    assert rate["head.projection.weight"] == rate["norm.bias"] == 0.8
    assert rate["blocks.1.mlp.fc1.weight"] == 0.4
    assert rate["blocks.0.mlp.fc1.weight"] == 0.2
    assert rate["patch_embed.proj.weight"] == rate["cls_token"] == 0.1


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny()
    model.blocks[0].requires_grad_(False)
    names = {n for g in parameter_groups(model, 0.05, 1.0) for n in g["names"]}
    assert names == {n for n, _ in model.named_parameters() if not n.startswith("blocks.0.")}


def test_optimisers_are_those_of_the_published_recipes() -> None:
    adamw = make_optimizer(tiny(), Recipe(betas=(0.9, 0.95)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["eps"], adamw.defaults["amsgrad"]) == ((0.9, 0.95), 1e-8, False)
    sgd = make_optimizer(tiny(), Recipe(optimizer="sgd"))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["dampening"]) == (0.9, True, 0)


def test_soft_cross_entropy_is_torchs_own() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 9), torch.rand(6, 9).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), torch.nn.functional.cross_entropy(logits, targets))


def test_average_follows_its_formula_and_the_swap_is_exact() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average, expected = Ema(model, 0.9), model.weight.detach().double().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
    torch.testing.assert_close(average.weights["weight"].double(), expected, rtol=1e-6, atol=1e-6)
    own, mean = model.weight.detach().clone(), average.weights["weight"].clone()
    with average.applied(model):
        assert torch.equal(model.weight, mean)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.weights["weight"], mean)
