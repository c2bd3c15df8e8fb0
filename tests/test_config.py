"""The row of the table against the published block schedules, and every rule between fields."""

import json

import pytest

from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.block_config import pooled_grid
from openmvit.config import MViTConfig
from openmvit.errors import UserError

CLIP = {
    "input_size": (16, 224, 224), "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 8, 8), "cls_token": True,
}  # fmt: skip


def lengths(config, axis=-1):
    return [block.table_lengths[axis] for block in config.blocks()]


# Stored table lengths at 224 as the released weights have them.
@pytest.mark.parametrize(
    ("depths", "image", "clip"),
    [
        ((1, 2, 5, 2), [111] + [55] * 3 + [27] * 5 + [13], [111] + [55] * 2 + [27] * 6 + [13]),
        ((1, 2, 11, 2), [111] + [55] * 3 + [27] * 11 + [13], [111] + [55] * 2 + [27] * 12 + [13]),
        ((2, 3, 16, 3), [111] * 2 + [55] * 4 + [27] * 16 + [13] * 2, [111] * 2 + [55] * 3 + [27] * 17 + [13] * 2),
        ((2, 6, 36, 4), [111] * 2 + [55] * 7 + [27] * 36 + [13] * 3, [111] * 2 + [55] * 6 + [27] * 37 + [13] * 3),
        ((4, 8, 60, 8), [111] * 4 + [55] * 9 + [27] * 60 + [13] * 7, None),
    ],
)
def test_table_lengths_are_those_of_the_released_files(depths, image, clip):
    heads = {"embed_dim": 144, "num_heads": 2} if depths[1] == 6 else {}
    assert lengths(MViTConfig(depths=depths, **heads)) == image
    if clip is not None:
        config = MViTConfig(depths=depths, **CLIP, **heads)
        assert lengths(config) == clip
        assert lengths(config, 0) == [15] * sum(depths)


def test_312_pixels_keep_the_nominal_tables_and_the_true_grids():
    config = MViTConfig(depths=(2, 6, 36, 4), embed_dim=144, num_heads=2, **CLIP | {"input_size": (40, 312, 312)})
    blocks = config.blocks()
    # The released tables are made for 78, 39, 19, 9 while convolutions give 78, 39, 20, 10.
    assert lengths(config) == [155] * 2 + [77] * 6 + [37] * 37 + [17] * 3
    pairs = [(b.q_grid[-1], b.kv_grid[-1]) for b in blocks]
    assert [pairs[i] for i in (0, 2, 3, 8, 9, 44, 45)] == [
        (78, 10), (39, 20), (39, 10), (20, 20), (20, 10), (10, 20), (10, 10)
    ]  # fmt: skip
    assert blocks[0].table_lengths[0] == 39


def test_widths_grow_in_attention_or_in_the_mlp():
    attention = MViTConfig(depths=(1, 2, 1)).blocks()
    mlp = MViTConfig(depths=(1, 2, 1), dim_mul_in_attention=False).blocks()
    assert [(b.dim, b.dim_attn, b.dim_out) for b in attention] == [
        (96, 96, 96), (96, 192, 192), (192, 192, 192), (192, 384, 384)
    ]  # fmt: skip
    assert [(b.dim, b.dim_attn, b.dim_out) for b in mlp] == [
        (96, 96, 192), (192, 192, 192), (192, 192, 384), (384, 384, 384)
    ]  # fmt: skip
    assert [b.num_heads for b in attention] == [b.num_heads for b in mlp] == [1, 2, 2, 4]


def test_kernels_derive_from_strides_as_in_the_first_32x3_network():
    config = MViTConfig(
        depths=(2, 3, 16, 3), full_q_pooling=False, **CLIP | {"kernel_qkv": None, "input_size": (32, 224, 224)}
    )
    blocks = config.blocks()
    expected = [(1, 9, 9)] * 2 + [(1, 5, 5)] * 3 + [(1, 3, 3)] * 16 + [()] * 3
    assert [b.kernel_kv for b in blocks] == expected
    assert [i for i, b in enumerate(blocks) if b.kernel_q] == [2, 5, 21]
    assert blocks[2].kernel_q == (1, 3, 3)


def test_adaptive_and_listed_strides_agree():
    listed = MViTConfig(adaptive_kv_stride=None, stride_kv=((4, 4), (2, 2), (1, 1), (1, 1)))
    assert listed.blocks() == MViTConfig().blocks()


def test_drop_path_is_linear_in_depth():
    rates = [b.drop_path for b in MViTConfig(drop_path_rate=0.3).blocks()]
    assert rates == pytest.approx([0.3 * i / 15 for i in range(16)])


def test_grid_rounds_as_convolutions_do():
    assert pooled_grid((39, 8), (3, 3), (2, 2)) == (20, 4)
    assert pooled_grid((39, 8), (), (1, 1)) == (39, 8)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_json_gives_the_same_record_back(name):
    config = model_config(name)
    assert MViTConfig.from_dict(json.loads(config.to_json())) == config


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"patch_kernel": (7, 7, 7)}, ("patch_kernel", "input_size")),
        ({"kernel_qkv": (3,)}, ("kernel_qkv", "input_size")),
        ({"stride_kv": ((4, 4), (2, 2), (1, 1), (1, 1))}, ("stride_kv", "adaptive_kv_stride")),
        ({"adaptive_kv_stride": None, "stride_kv": ((4, 4),)}, ("stride_kv", "depths")),
        ({"pool_first": True}, ("pool_first", "separate_qkv")),
        ({"pool_mode": "conv_unshared"}, ("conv_unshared", "pool_first")),
        ({"global_pool": "token"}, ("global_pool", "cls_token")),
        ({"norm_after_pool": True, "global_pool": "token", "cls_token": True}, ("norm_after_pool", "global_pool")),
        ({"absolute_position": "separable"}, ("absolute_position", "input_size")),
        ({"absolute_position": "sincos", "embed_dim": 18, "num_heads": 1}, ("absolute_position", "embed_dim")),
        ({"embed_dim": 97, "num_heads": 2}, ("embed_dim", "num_heads")),
        ({"input_size": (3, 3)}, ("input_size", "patch_stride")),
        ({"pool_mode": "mean"}, ("pool_mode", "avg")),
        ({"relative_position": "decomposd"}, ("relative_position", "decomposed")),
        ({"depths": ()}, ("depths", "at least 1")),
        ({"depths": (1, 0, 2)}, ("depths", "at least 1")),
        ({"drop_path_rate": 1.0}, ("drop_path_rate", "0 <= rate < 1")),
        ({"num_heads": 0}, ("num_heads", "positive")),
        ({"depths": 3}, ("depths is 3", "a list, each a whole number")),
        ({"embed_dim": "16"}, ("embed_dim is '16'", "a whole number")),
        ({"separate_qkv": "yes"}, ("separate_qkv is 'yes'", "true or false")),
        ({"mlp_ratio": True}, ("mlp_ratio is True", "a number")),
        ({"adaptive_kv_stride": (0, 0)}, ("adaptive_kv_stride", "at least 1")),
        ({"adaptive_kv_stride": None, "stride_kv": ((0, 1), (1, 1), (1, 1), (1, 1))}, ("stride_kv", "at least 1")),
        ({"kernel_qkv": (2, 2)}, ("kernel_qkv", "odd")),
        ({"stride_q": (3, 3)}, ("stride_q", "even")),
    ],
)
def test_contradictions_name_both_fields(fields, named):
    with pytest.raises(UserError) as error:
        MViTConfig(**fields)
    assert all(word in str(error.value) for word in named), str(error.value)


def test_unknown_field_names_the_nearest():
    with pytest.raises(UserError, match="'embed_dim'"):
        MViTConfig.from_dict({"embed_dims": 96})
