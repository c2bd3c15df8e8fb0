"""Image weights in clip networks: the paper's rule keeps the image's output, the public code's rule copies."""

import pytest
import torch

from openmvit import MViT, MViTConfig, UserError, create_model
from openmvit.checkpoint import load_weights, save
from openmvit.convert import inflate

IMAGE = {"input_size": (64, 64), "depths": (1, 2, 1), "embed_dim": 16, "num_classes": 5}
CLIP = {
    "input_size": (8, 64, 64), "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 4, 4),
}  # fmt: skip
FRESH = ("cls_token", "rel_pos_t", "pos_embed_temporal", "pos_embed_class")


def build(**fields):
    torch.manual_seed(0)
    model = MViT(MViTConfig(**IMAGE | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


V1 = {"absolute_position": "joint", "relative_position": "none", "residual_pooling": False}


@pytest.mark.parametrize("fields", [{}, V1, {"dim_mul_in_attention": False}])
@torch.no_grad()
def test_a_still_clip_gives_the_output_of_the_image(fields):
    image = build(**fields)
    clip = build(**fields | CLIP | ({"absolute_position": "separable"} if "absolute_position" in fields else {}))
    state = inflate(image.state_dict(), image.config, clip.config)
    report = load_weights(clip, state, image.config)
    assert not report.ignored
    assert not report.reinitialised
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(clip(x[:, :, None].expand(-1, -1, 8, -1, -1)), image(x), rtol=1e-4, atol=1e-5)
    moving = x[:, :, None] * torch.linspace(0, 1, 8).view(1, 1, 8, 1, 1)
    assert not torch.allclose(clip(moving), image(x), atol=1e-3)


@torch.no_grad()
def test_copy_repeats_filters_and_leaves_temporal_tables(fields=CLIP):
    image, clip = build(), build(**fields)
    own = clip.blocks[0].attn.rel_pos_t.clone()
    state = inflate(image.state_dict(), image.config, clip.config, "copy")
    report = load_weights(clip, state, image.config, may_start_fresh=FRESH)
    assert {key.rpartition(".")[2] for key in report.reinitialised} == {"rel_pos_t"}
    assert torch.equal(clip.blocks[0].attn.rel_pos_t, own)
    for frame in range(3):
        assert torch.equal(clip.patch_embed.proj.weight[:, :, frame], image.patch_embed.proj.weight)
        assert torch.equal(clip.blocks[1].attn.pool_q.weight[:, :, frame], image.blocks[1].attn.pool_q.weight)


def test_other_strides_resize_the_tables_and_a_new_class_token_is_reported():
    image = build()
    clip = build(**CLIP | {"cls_token": True, "adaptive_kv_stride": (1, 8, 8), "num_classes": 9})
    report = load_weights(
        clip, inflate(image.state_dict(), image.config, clip.config), image.config, may_start_fresh=FRESH
    )
    assert report.reinitialised == ["cls_token", "head.projection.weight", "head.projection.bias"]
    # Only the first block of the third stage reads its keys on a coarser grid than in the image.
    assert {row.split()[0] for row in report.resized} == {f"blocks.3.attn.rel_pos_{axis}" for axis in "hw"}


def test_create_model_inflates_a_file(tmp_path, capsys):
    image = create_model("mvitv2_tiny", embed_dim=16, depths=(1, 2, 11, 2), num_classes=7)
    card = {"architecture": image.config.to_dict(), "model": "mvitv2_small"}
    save(tmp_path / "image.safetensors", image.state_dict(), card)
    clip = create_model("mvitv2_small_16x4", pretrained=tmp_path / "image.safetensors", embed_dim=16)
    assert "inflated (centre)" in capsys.readouterr().err
    assert not clip.blocks[0].attn.rel_pos_t.any()
    assert "head.projection.weight" in clip.load_report.reinitialised
    create_model("mvitv2_small_16x4", pretrained=tmp_path / "image.safetensors", embed_dim=16, inflation="copy")
    assert "inflated (copy)" in capsys.readouterr().err


def test_faults_are_named():
    image, clip = build(), build(**CLIP)
    with pytest.raises(UserError, match="Weights of 3 axes"):
        inflate(clip.state_dict(), clip.config, image.config)
    with pytest.raises(UserError, match="Accepted: centre, copy"):
        inflate(image.state_dict(), image.config, clip.config, "mean")
