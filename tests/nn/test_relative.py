"""Relative forms: the way through channels, tables and their parameters. Their formulas are in test_position.py."""

import pytest
import torch

from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.nn.fast import choose

IMAGE = {
    "input_size": (16, 24), "patch_kernel": (3, 3), "patch_padding": (1, 1), "adaptive_kv_stride": (2, 2),
    "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3,
}  # fmt: skip
CLIP = {
    "input_size": (4, 12, 12), "patch_kernel": (1, 3, 3), "patch_stride": (1, 4, 4), "patch_padding": (0, 1, 1),
    "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 2, 2), "kernel_qkv": (3, 3, 3), "cls_token": True,
    "depths": (1, 2), "embed_dim": 8, "num_heads": 2, "num_classes": 3,
}  # fmt: skip


@pytest.mark.parametrize("form", ["time", "space"])
def test_forms_of_single_axes_may_go_through_channels(form, monkeypatch):
    torch.manual_seed(0)
    model = MViT(MViTConfig(**CLIP | {"relative_position": form})).double().eval()
    x = torch.randn(1, 3, 4, 16, 12, dtype=torch.float64)
    plain = model(x)
    monkeypatch.setattr(choose, "MOST_SCORES", 0)
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
