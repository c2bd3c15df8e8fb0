"""The authors' settings: an unknown field or a network that we do not have is an error that names it."""

import copy
import json

import pytest

from openmvit import MViTConfig, UserError
from openmvit.convert import SOURCES, config_from
from parity.golden import FOLDER


def settings(name="image_v2_expand_in_attention"):
    return json.loads((FOLDER / f"{name}.json").read_text())


def changed(name="image_v2_expand_in_attention", **fields):
    result = copy.deepcopy(settings(name))
    result["MVIT"] |= fields
    return result


def test_recorded_settings_become_a_row():
    config = config_from("slowfast", settings("video_v1"))
    assert config.depths == (1, 2, 2, 1)
    assert config.input_size == (4, 64, 64)
    assert (config.absolute_position, config.relative_position) == ("separable", "none")
    assert not config.full_q_pooling
    image = config_from("slowfast", settings("image_v1"))
    assert image.input_size == (64, 64)
    assert (image.kernel_qkv, image.stride_q, image.adaptive_kv_stride) == ((3, 3), (2, 2), (4, 4))


def test_whole_cfg_trees_and_flat_settings_agree():
    flat = settings("video_v2")
    tree = {
        "MVIT": flat["MVIT"],
        "DATA": {"TRAIN_CROP_SIZE": 64, "NUM_FRAMES": 4, "INPUT_CHANNEL_NUM": [3]},
        "MODEL": {"NUM_CLASSES": 7, "DROPOUT_RATE": 0.5},
        "TRAIN": {"BATCH_SIZE": 8},
    }
    assert config_from("slowfast", tree) == config_from("slowfast", flat).replace(drop_rate=0.5)


def test_listed_strides_are_read():
    listed = [[i, *({0: (4, 4), 1: (2, 2), 2: (2, 2)}.get(i, (1, 1)))] for i in range(6)]
    config = config_from("mvit", changed(POOL_KV_STRIDE_ADAPTIVE=None, POOL_KV_STRIDE=listed))
    assert config.blocks() == config_from("mvit", settings()).blocks()


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"EMBED_DIMS": 96}, "Unknown setting MVIT.EMBED_DIMS. Did you mean 'EMBED_DIM'"),
        ({"REV": {"ENABLE": True}}, "MVIT.REV.RESPATH_FUSE"),
        ({"REV": {"ENABLE": False, "FUSE": 1}}, "Unknown setting MVIT.REV.FUSE"),
        ({"NORM": "batchnorm"}, "MVIT.NORM"),
        ({"DROPOUT_RATE": 0.1}, "MVIT.DROPOUT_RATE"),
        ({"DIM_MUL": [[1, 1.5], [3, 2.0], [5, 2.0]]}, "MVIT.DIM_MUL"),
        ({"HEAD_MUL": [[1, 2.0], [3, 2.0]]}, "MVIT.DIM_MUL and MVIT.HEAD_MUL"),
        ({"POOL_Q_STRIDE": [[1, 2, 2], [3, 2, 2]]}, "MVIT.POOL_Q_STRIDE"),
        ({"POOL_Q_STRIDE": [[1, 2, 2], [2, 1, 1], [3, 2, 2], [5, 2, 2]]}, "MVIT.POOL_Q_STRIDE"),
        ({"POOL_KV_STRIDE_ADAPTIVE": None}, "MVIT.POOL_KV_STRIDE_ADAPTIVE"),
        ({"POOL_KVQ_KERNEL": [3, 3, 3]}, "MVIT.POOL_KVQ_KERNEL"),
        ({"POOL_KV_STRIDE_ADAPTIVE": None, "POOL_KV_STRIDE": [[0, 4, 4]]}, "MVIT.POOL_KV_STRIDE is"),
    ],
)
def test_what_we_do_not_have_is_named(fields, fragment):
    with pytest.raises(UserError) as error:
        config_from("mvit", changed(**fields))
    assert fragment in str(error.value)


def test_other_faults_are_named():
    with pytest.raises(UserError, match="Did you mean 'slowfast'"):
        config_from("slowfst", settings())
    with pytest.raises(UserError, match="no MVIT section"):
        config_from("mvit", {"crop_size": 3})
    with pytest.raises(UserError, match="Unknown setting crop_sizes"):
        config_from("mvit", settings() | {"crop_sizes": 3})
    for key in ("DEPTH", "RESIDUAL_POOLING", "CLS_EMBED_ON", "DIM_MUL_IN_ATT"):
        missing = settings()
        del missing["MVIT"][key]
        # The two code bases have other defaults, and some of these leave no trace in the tensors.
        with pytest.raises(UserError, match=rf"MVIT\.{key} is absent"):
            config_from("mvit", missing)
    with pytest.raises(UserError, match="REL_POS_TEMPORAL"):
        config_from("slowfast", changed("video_v2", REL_POS_TEMPORAL=False))


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"depth": (1, 2, 5, 2)}, "Did you mean 'depths'"),
        ({"pool_type": "avg"}, "pool_type"),
        ({"rel_pos_type": "learned"}, "rel_pos_type"),
        ({"stride_q": ((1, 1), (2, 2), (1, 1), (2, 2))}, "stride_q"),
    ],
)
def test_timm_settings_are_strict_too(fields, fragment):
    with pytest.raises(UserError, match=fragment):
        config_from("timm", fields)


def test_absent_settings_of_timm_are_timms_defaults():
    import dataclasses

    from timm.models.mvitv2 import MultiScaleVitCfg

    assert config_from("timm", {}).blocks() == config_from("timm", dataclasses.asdict(MultiScaleVitCfg())).blocks()


def test_every_source_has_a_table():
    config = MViTConfig()
    others = {"timm", "torchvision", "pytorchvideo", "mmaction2", "mmpretrain", "huggingface"}
    assert set(SOURCES) == {"mvit", "slowfast"} | others
    assert all(source.rules(config) and source.rules(None) for source in SOURCES.values())


def test_settings_of_reversible_networks():
    image, clip = config_from("slowfast", settings("rev_image")), config_from("slowfast", settings("rev_video"))
    assert (image.reversible, clip.reversible) == ("mlp", "mean")
    assert image.separate_qkv and not clip.separate_qkv and not clip.qkv_bias
    # The released clip settings ask for a class token, which the code refuses, and for growth in the MLP.
    assert clip == config_from("slowfast", changed("rev_video", CLS_EMBED_ON=True, DIM_MUL_IN_ATT=True))
    for key, value in (("RES_PATH", "max"), ("PRE_Q_FUSION", "concat"), ("BUFFER_LAYERS", [1, 3])):
        rev = settings("rev_image")["MVIT"]["REV"] | {key: value}
        with pytest.raises(UserError, match=f"MVIT.REV.{key} is"):
            config_from("slowfast", changed("rev_image", REV=rev))


def test_settings_of_mmpretrain_describe_the_named_networks():
    from openmvit.architectures import model_config

    for size in ("tiny", "small", "base", "large"):
        found = config_from("mmpretrain", {"arch": size, "dim_mul_in_attention": size != "large"})
        assert found.replace(drop_path_rate=0.0).blocks() == model_config(f"mvitv2_{size}", drop_path_rate=0.0).blocks()
    with pytest.raises(UserError, match="Did you mean 'adaptive_kv_stride'"):
        config_from("mmpretrain", {"arch": "tiny", "adaptive_kv_strides": 4})
    with pytest.raises(UserError, match=r"read by openmvit\.hub"):
        config_from("huggingface", {})
