"""Schedule, groups, average: numbers against formulas and against torch's own loops."""

from __future__ import annotations

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.detection.detector import Detector
from openmvit.model import MViT
from openmvit.training.ema import Ema
from openmvit.training.layers import decayed
from openmvit.training.optim import (
    learning_rate,
    lr_scale,
    make_optimizer,
    parameter_groups,
    scheduled_rate,
    set_learning_rate,
    soft_cross_entropy,
)
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import load_recipe
from openmvit.zoo.detectors import detector_config


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


def test_step_schedule_of_the_published_detectors() -> None:
    recipe = load_recipe("coco/mask_rcnn_mvitv2_tiny")
    assert lr_scale(recipe, 64) == 1.0

    def rate(update: int) -> float:
        return scheduled_rate(recipe, 0.0, update, 1.0)

    assert rate(0) == pytest.approx(1.6e-7) and rate(125) == pytest.approx(1.6e-4 * 0.5005)
    assert rate(250) == rate(52_499) == 1.6e-4
    assert rate(52_500) == rate(62_499) == pytest.approx(1.6e-5)
    assert rate(62_500) == rate(67_499) == pytest.approx(1.6e-6)


def test_cosine_over_updates() -> None:
    recipe = Recipe(updates=100, warmup_updates=20, lr=1.0, warmup_lr=0.0, min_lr=0.0)
    found = [scheduled_rate(recipe, 9.9, update, 1.0) for update in (0, 10, 20, 60, 100)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def detector(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return Detector(detector_config(name))


def test_detectors_decay_everything_but_norms_and_relative_tables() -> None:
    model = detector("cascade_mask_rcnn_mvitv2_tiny")
    found = decayed(model, "not_norms")
    for name, _ in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        is_norm = type(module).__name__ in ("LayerNorm", "BatchNorm2d")
        assert (name in found) == (not is_norm and "rel_pos" not in name), name
    assert "backbone.model.blocks.0.mlp.fc1.bias" in found and "neck.fpn.inner_blocks.0.0.bias" in found


def test_the_vitdet_family_also_decays_tables_and_the_norms_outside_of_the_backbone() -> None:
    model = detector("cascade_mask_rcnn_mvitv2_base_ln")
    found = decayed(model, "vitdet")
    assert "backbone.model.blocks.0.attn.rel_pos_h" in found and "backbone.model.blocks.0.norm1.weight" not in found
    assert "backbone.norms.0.weight" not in found and "backbone.model.blocks.0.attn.norm_k.bias" not in found
    outside = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert outside <= found
    plain = decayed(model, "not_norms")
    left = {name for name in outside if name not in plain}
    assert left and all(type(model.get_submodule(n.rpartition(".")[0])).__name__ == "LayerNorm2d" for n in left)


def test_batch_statistics_are_averaged_with_the_weights() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    ema = Ema(model, 0.75)
    with torch.no_grad():
        for value in (model[0].weight, model[0].running_mean):
            value.fill_(4.0)
    ema.update(model)
    assert ema.weights["0.weight"].tolist() == [1.75] * 3 and ema.weights["0.running_mean"].tolist() == [1.0] * 3
    with ema.applied(model):
        assert model[0].running_mean.tolist() == [1.0] * 3
    assert model[0].running_mean.tolist() == [4.0] * 3
