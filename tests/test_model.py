"""The network as a whole: any size, one code for two and three axes, heads, features, initial values."""

import pytest
import torch

from openmvit import MViT, MViTConfig, UserError
from openmvit.convert import expected_shapes
from openmvit.model import FeatureMaps

SMALL = {"depths": (1, 2, 1), "embed_dim": 16, "num_heads": 2, "num_classes": 5}
IMAGE = SMALL | {"input_size": (32, 32)}
CLIP = SMALL | {
    "input_size": (4, 32, 32), "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 4, 4),
}  # fmt: skip
VARIANTS = [
    IMAGE,
    CLIP,
    IMAGE | {"cls_token": True, "absolute_position": "joint"},
    CLIP | {"cls_token": True, "absolute_position": "separable", "relative_position": "none"},
    CLIP | {"absolute_position": "joint"},
    IMAGE | {"absolute_position": "sincos", "cls_token": True},
    CLIP | {"absolute_position": "sincos"},
    IMAGE | {"norm_stem": True, "layer_scale": 0.1, "separate_qkv": True, "qkv_bias": False},
    IMAGE | {"pool_first": True, "separate_qkv": True, "pool_mode": "conv_unshared"},
    CLIP | {"pool_mode": "avg", "cls_token": True, "norm_after_pool": True},
    IMAGE | {"dim_mul_in_attention": False, "full_q_pooling": False, "kernel_qkv": None},
]


def build(fields, seed=0):
    torch.manual_seed(seed)
    return MViT(MViTConfig(**fields))


@pytest.mark.parametrize("fields", VARIANTS)
def test_every_variant_trains_on_any_size(fields):
    model = build(fields)
    x = torch.randn(2, 3, *((48, 20) if model.config.ndim == 2 else (6, 48, 20)))
    logits = model(x)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == model.unused_parameters()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("fields", VARIANTS)
def test_keys_and_shapes_are_those_that_converters_expect(fields):
    model = build(fields)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected_shapes(model.config)


@pytest.mark.parametrize("fields", VARIANTS)
def test_train_and_eval_return_the_same_logits(fields):
    model = build(fields | {"drop_path_rate": 0.0})
    x = torch.randn(2, 3, *model.config.input_size)
    torch.testing.assert_close(model.train()(x), model.eval()(x))


@torch.no_grad()
def test_a_clip_of_one_frame_is_an_image():
    image = build(IMAGE | {"cls_token": True}).eval()
    clip = build(
        IMAGE | {
            "cls_token": True, "input_size": (1, 32, 32), "patch_kernel": (1, 7, 7), "patch_stride": (1, 4, 4),
            "patch_padding": (0, 3, 3), "kernel_qkv": (1, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 4, 4),
        }
    ).eval()  # fmt: skip
    state = clip.state_dict()
    for key, value in image.state_dict().items():
        state[key] = value.view(state[key].shape)
    for key in state:
        if key.endswith("rel_pos_t"):
            state[key].zero_()
    clip.load_state_dict(state)
    x = torch.randn(2, 3, 40, 24)
    torch.testing.assert_close(clip(x[:, :, None]), image(x), rtol=1e-5, atol=1e-6)


def test_recomputing_activations_changes_no_gradient():
    x, gradients = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model = build(IMAGE | {"drop_path_rate": 0.5}).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        model(x).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("shape", "fragment"),
    [
        ((1, 3, 4, 32, 32), r"Give \[B, 3, H, W\]"),
        ((3, 32, 32), r"Give \[B, 3, H, W\]"),
        ((1, 1, 32, 32), r"Give \[B, 3, H, W\]"),
        ((1, 3, 2, 32), "at least 4 x 4 pixels"),
    ],
)
def test_wrong_input_prints_the_shape_wanted(shape, fragment):
    with pytest.raises(UserError, match=fragment):
        build(IMAGE)(torch.zeros(shape))
    with pytest.raises(UserError, match="got a list"):
        build(IMAGE)([torch.zeros(1, 3, 32, 32)])


def test_clip_network_names_its_axes():
    with pytest.raises(UserError, match=r"\[B, 3, T, H, W\]"):
        build(CLIP)(torch.zeros(1, 3, 32, 32))


def test_a_clip_network_takes_a_single_frame():
    assert build(CLIP).eval()(torch.zeros(1, 3, 1, 32, 32)).shape == (1, 5)


def test_features_are_one_map_per_stage():
    model = build(CLIP).eval()
    maps = model.forward_features(torch.randn(1, 3, 4, 48, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 16, 2, 12, 8), (1, 32, 2, 6, 4), (1, 64, 2, 3, 2)]
    backbone = FeatureMaps(build(IMAGE), out_indices=(0, -1))
    assert backbone.channels == [16, 64]
    assert backbone.strides == [(4, 4), (16, 16)]
    out = backbone(torch.randn(1, 3, 64, 32))
    assert [tuple(m.shape) for m in out] == [(1, 16, 16, 8), (1, 64, 4, 2)]
    sum(m.sum() for m in out).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_reset_classifier():
    model = build(IMAGE)
    model.reset_classifier(9)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 9)
    assert model.config.num_classes == 9
    assert model.classifier_parameters()[0].shape == (9, 64)
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 64)


def test_a_new_classifier_starts_as_the_configuration_says():
    model = build(IMAGE | {"init": "slowfast", "head_init_scale": 0.5, "drop_rate": 0.5}).eval()
    model.reset_classifier(50)
    assert (model.head.projection.bias == 0.01).all()
    assert float(model.head.projection.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), model(x))


@torch.no_grad()
def test_training_drops_before_the_classifier_and_on_both_branches():
    x = torch.randn(4, 3, 32, 32)
    model = build(IMAGE | {"drop_rate": 0.5, "drop_path_rate": 0.0})
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    for branch in ("attn", "mlp"):
        model = build(IMAGE | {"drop_path_rate": 0.9}).train()
        last = model.blocks[-1]
        other = last.mlp.fc2 if branch == "attn" else last.attn.proj
        other.weight.zero_(), other.bias.zero_()
        tokens = torch.randn(64, 4, 4, last.config.dim)
        model.train()
        dropped = last(tokens)[0]
        whole = last.eval()(tokens)[0]
        kept = (dropped - whole).abs().flatten(1).amax(1) > 1e-6
        assert kept.any(), branch


def test_recomputing_happens(monkeypatch):
    calls = []
    real = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr("openmvit.nn.fast.recompute.checkpoint", lambda *a, **k: calls.append(a[0]) or real(*a, **k))
    model = build(IMAGE).train()
    model.set_grad_checkpointing(True)
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert calls == list(model.blocks)


def test_epsilon_of_the_pool_norms_is_its_own():
    model = build(IMAGE | {"pool_norm_eps": 1e-5})
    assert model.blocks[0].attn.norm_q.eps == 1e-5
    assert model.blocks[0].norm1.eps == 1e-6


def test_layer_ids_run_from_stem_to_head():
    model = build(CLIP | {"cls_token": True, "absolute_position": "separable", "norm_stem": True})
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert {v for k, v in ids.items() if k.startswith(("patch_embed", "cls", "pos", "norm_stem"))} == {0}
    assert ids["blocks.0.norm1.weight"] == 1
    assert ids["blocks.3.mlp.fc2.bias"] == 4
    assert {v for k, v in ids.items() if k.startswith(("norm.", "head."))} == {5}


@torch.no_grad()
def test_published_initial_values():
    torch.manual_seed(0)
    image, video = build(IMAGE), build(CLIP | {"init": "slowfast", "head_init_scale": 0.5})
    assert image.blocks[0].attn.qkv.weight.std() == pytest.approx(0.02, rel=0.1)
    assert image.blocks[0].attn.rel_pos_h.std() == pytest.approx(0.02, rel=0.2)
    assert not image.blocks[0].attn.qkv.bias.any()
    # Convolutions keep the framework's uniform values: bound 1 / sqrt(fan in).
    for weight, fan in ((image.patch_embed.proj.weight, 3 * 49), (image.blocks[0].attn.pool_q.weight, 9)):
        assert weight.abs().max() <= fan**-0.5
        assert float(weight.std()) == pytest.approx((3 * fan) ** -0.5, rel=0.15)
    assert (video.blocks[0].norm1.bias == 0.02).all()
    assert (video.head.projection.bias == 0.01).all()
    assert video.patch_embed.proj.weight.std() == pytest.approx(0.02, rel=0.1)
    assert not build(IMAGE | {"rel_pos_zero_init": True}).blocks[0].attn.rel_pos_h.any()


@torch.no_grad()
def test_head_reads_what_the_configuration_says():
    x = torch.randn(2, 3, 32, 32)
    model = build(IMAGE | {"cls_token": True}).eval()
    grid, cls = model.stages(x)[-1]
    torch.testing.assert_close(model(x), model.head(model.norm(cls)[:, 0]))
    model = build(IMAGE | {"cls_token": True, "global_pool": "avg"}).eval()
    grid, cls = model.stages(x)[-1]
    torch.testing.assert_close(model(x), model.head(model.norm(grid).mean((1, 2))))
    model = build(IMAGE | {"cls_token": True, "norm_after_pool": True}).eval()
    grid, cls = model.stages(x)[-1]
    torch.testing.assert_close(model(x), model.head(model.norm(grid.mean((1, 2)))))
