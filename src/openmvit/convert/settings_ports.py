"""Settings of the ports: timm, torchvision, pytorchvideo, mmaction2."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from openmvit.config import MViTConfig
from openmvit.convert.settings import config_from_mvit
from openmvit.errors import UserError, did_you_mean

_CLIP_STEM: dict[str, Any] = {"patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4), "patch_padding": (1, 3, 3)}


def _known(settings: Mapping[str, Any], known: set[str]) -> None:
    for key in settings:
        if key not in known:
            raise UserError(f"Unknown setting {key}", did_you_mean(key, sorted(known)))


_TIMM = {
    "depths": "depths", "mlp_ratio": "mlp_ratio", "pool_first": "pool_first", "expand_attn": "dim_mul_in_attention",
    "qkv_bias": "qkv_bias", "use_cls_token": "cls_token", "residual_pooling": "residual_pooling", "mode": "pool_mode",
    "kernel_qkv": "kernel_qkv", "patch_kernel": "patch_kernel", "patch_stride": "patch_stride",
    "patch_padding": "patch_padding", "norm_eps": "norm_eps", "num_classes": "num_classes", "in_chans": "in_chans",
    "drop_path_rate": "drop_path_rate", "drop_rate": "drop_rate",
}  # fmt: skip
_TIMM_READ = {
    "embed_dim", "num_heads", "use_abs_pos", "stride_q", "stride_kv", "stride_kv_adaptive", "pool_type", "rel_pos_type",
    "act_layer", "norm_layer", "img_size",
}  # fmt: skip
# What timm takes where a field is left out and our default is another.
_TIMM_DEFAULTS: dict[str, Any] = {
    "depths": (2, 3, 16, 3), "rel_pos_type": "spatial", "stride_kv_adaptive": (4, 4), "drop_path_rate": 0.0,
}  # fmt: skip


def config_from_timm(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the fields of timm's MultiScaleVitCfg, with `img_size` and `num_classes` beside them.

    Raises:
        UserError: for an unknown field, or a value that this network does not have.
    """
    _known(settings, _TIMM.keys() | _TIMM_READ)
    settings = _TIMM_DEFAULTS | dict(settings)
    for key, accepted in (("pool_type", "max"), ("act_layer", "gelu"), ("norm_layer", "layernorm")):
        if settings.get(key, accepted) != accepted:
            raise UserError(f"{key} is {settings[key]!r}", f"Accepted: {accepted}")
    if settings.get("rel_pos_type") not in (None, "", "none", "spatial"):
        raise UserError(f"rel_pos_type is {settings['rel_pos_type']!r}", "Accepted: spatial, none")
    fields: dict[str, Any] = {ours: settings[theirs] for theirs, ours in _TIMM.items() if theirs in settings}
    for key in ("embed_dim", "num_heads"):
        value = settings.get(key, 96 if key == "embed_dim" else 1)
        fields[key] = value[0] if isinstance(value, list | tuple) else value
    size = settings.get("img_size", 224)
    fields["input_size"] = (size, size) if isinstance(size, int) else tuple(size)
    fields["pool_norm_eps"] = settings.get("norm_eps", 1e-6)
    fields["separate_qkv"] = settings.get("pool_first", False)
    strides = settings.get("stride_q") or ((1, 1), (2, 2), (2, 2), (2, 2))
    if len({tuple(s) for s in strides[1:]}) > 1:
        raise UserError(f"stride_q is {strides}", "Accepted: one stride from stage 2 on")
    fields["stride_q"] = tuple(strides[-1])
    stride_kv = settings.get("stride_kv")
    fields |= {"stride_kv": stride_kv, "adaptive_kv_stride": None if stride_kv else settings.get("stride_kv_adaptive")}
    fields["absolute_position"] = "joint" if settings.get("use_abs_pos") else "none"
    fields["relative_position"] = "decomposed" if settings.get("rel_pos_type") == "spatial" else "none"
    return MViTConfig(**fields)


_TORCHVISION_BLOCK = (
    "num_heads",
    "input_channels",
    "output_channels",
    "kernel_q",
    "kernel_kv",
    "stride_q",
    "stride_kv",
)
_TORCHVISION = {
    "spatial_size", "temporal_size", "block_setting", "residual_pool", "residual_with_cls_embed", "rel_pos_embed",
    "proj_after_attn", "dropout", "stochastic_depth_prob", "num_classes",
}  # fmt: skip


def config_from_torchvision(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the arguments of torchvision's MViT; `block_setting` is one record or dictionary per block.

    Raises:
        UserError: for an unknown field, or a value that this network does not have.
    """
    _known(settings, _TORCHVISION)
    if settings.get("residual_pool") and settings.get("residual_with_cls_embed", True):
        raise UserError("residual_with_cls_embed is true", "Accepted: false, as in the released weights")
    rows = [b if isinstance(b, dict) else vars(b) for b in settings["block_setting"]]
    for row in rows:
        _known(row, set(_TORCHVISION_BLOCK))
    relative, side = bool(settings.get("rel_pos_embed")), settings["spatial_size"]
    config = MViTConfig(
        input_size=(settings["temporal_size"], *((side, side) if isinstance(side, int) else side)),
        num_classes=settings.get("num_classes", 400),
        **_torchvision_stages(rows),
        **_CLIP_STEM,
        residual_pooling=settings.get("residual_pool", False),
        dim_mul_in_attention=settings.get("proj_after_attn", False),
        cls_token=True,
        absolute_position="none" if relative else "separable",
        relative_position="decomposed" if relative else "none",
        drop_path_rate=settings.get("stochastic_depth_prob", 0.0),
        drop_rate=settings.get("dropout", 0.5),
    )
    _check_blocks(rows, config)
    return config


def _torchvision_stages(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A stage starts where the number of heads changes."""
    starts = [i for i in range(1, len(rows)) if rows[i]["num_heads"] != rows[i - 1]["num_heads"]]
    return {
        "depths": tuple(b - a for a, b in pairwise([0, *starts, len(rows)])),
        "embed_dim": rows[0]["input_channels"],
        "num_heads": rows[0]["num_heads"],
        "kernel_qkv": tuple(rows[0]["kernel_kv"]),
        "stride_q": tuple(rows[starts[0]]["stride_q"]) if starts else (1, 1, 1),
        "full_q_pooling": all(row["kernel_q"] for row in rows),
        "adaptive_kv_stride": None,
        "stride_kv": tuple(tuple(rows[i]["stride_kv"]) for i in [0, *starts]),
    }


def _check_blocks(rows: list[dict[str, Any]], config: MViTConfig) -> None:
    for row, block in zip(rows, config.blocks(), strict=True):
        ours = (block.num_heads, block.dim, block.dim_out, block.kernel_q, block.kernel_kv, block.stride_kv)
        names = ("num_heads", "input_channels", "output_channels", "kernel_q", "kernel_kv", "stride_kv")
        theirs = tuple(tuple(v) if isinstance(v, list | tuple) else v for v in (row[n] for n in names))
        if ours != theirs:
            raise UserError(f"block_setting[{block.index}] fits no stage: {row}", "Accepted: one setting per stage")


# pytorchvideo's argument -> the authors' setting, and its default.
_PYTORCHVIDEO: dict[str, tuple[str, Any]] = {
    "cls_embed_on": ("CLS_EMBED_ON", True),
    "sep_pos_embed": ("SEP_POS_EMBED", True),
    "depth": ("DEPTH", 16),
    "norm": ("NORM", "layernorm"),
    "patch_embed_dim": ("EMBED_DIM", 96),
    "conv_patch_embed_kernel": ("PATCH_KERNEL", (3, 7, 7)),
    "conv_patch_embed_stride": ("PATCH_STRIDE", (2, 4, 4)),
    "conv_patch_embed_padding": ("PATCH_PADDING", (1, 3, 3)),
    "enable_patch_embed_norm": ("NORM_STEM", False),
    "use_2d_patch": ("PATCH_2D", False),
    "num_heads": ("NUM_HEADS", 1),
    "mlp_ratio": ("MLP_RATIO", 4.0),
    "qkv_bias": ("QKV_BIAS", True),
    "dropout_rate_block": ("DROPOUT_RATE", 0.0),
    "droppath_rate_block": ("DROPPATH_RATE", 0.0),
    "pooling_mode": ("MODE", "conv"),
    "pool_first": ("POOL_FIRST", False),
    "embed_dim_mul": ("DIM_MUL", []),
    "atten_head_mul": ("HEAD_MUL", []),
    "pool_q_stride_size": ("POOL_Q_STRIDE", []),
    "pool_kv_stride_size": ("POOL_KV_STRIDE", None),
    "pool_kv_stride_adaptive": ("POOL_KV_STRIDE_ADAPTIVE", None),
    "pool_kvq_kernel": ("POOL_KVQ_KERNEL", None),
    "separate_qkv": ("SEPARATE_QKV", True),
}
_PYTORCHVIDEO_FLAT = {
    "spatial_size": "crop_size", "temporal_size": "num_frames", "head_num_classes": "num_classes",
    "input_channels": "in_chans", "head_dropout_rate": "drop_rate",
}  # fmt: skip


def config_from_pytorchvideo(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the arguments of pytorchvideo's `create_multiscale_vision_transformers`.

    Raises:
        UserError: for an unknown argument, or a value that this network does not have.
    """
    arguments = settings.get("arguments", settings)
    _known(settings, {"source", "arguments", "outputs"} if "arguments" in settings else set(settings))
    _known(arguments, _PYTORCHVIDEO.keys() | _PYTORCHVIDEO_FLAT.keys())
    section = {theirs: arguments.get(ours, default) for ours, (theirs, default) in _PYTORCHVIDEO.items()}
    section |= {"USE_ABS_POS": True, "REL_POS_SPATIAL": False, "RESIDUAL_POOLING": False, "DIM_MUL_IN_ATT": False}
    flat: dict[str, Any] = {"num_classes": 400, "drop_rate": 0.5, "MVIT": section}
    flat |= {theirs: arguments[ours] for ours, theirs in _PYTORCHVIDEO_FLAT.items() if ours in arguments}
    return config_from_mvit(flat).replace(init="mvit")


_MMACTION2_SIZES = {
    "tiny": {"embed_dims": 96, "num_layers": 10, "num_heads": 1, "downscale_indices": [1, 3, 8]},
    "small": {"embed_dims": 96, "num_layers": 16, "num_heads": 1, "downscale_indices": [1, 3, 14]},
    "base": {"embed_dims": 96, "num_layers": 24, "num_heads": 1, "downscale_indices": [2, 5, 21]},
    "large": {"embed_dims": 144, "num_layers": 48, "num_heads": 2, "downscale_indices": [2, 8, 44]},
}
_MMACTION2 = {
    "arch", "spatial_size", "temporal_size", "in_channels", "num_classes", "drop_path_rate", "dropout_ratio", "source",
    "with_cls_token", "rel_pos_embed", "residual_pooling", "dim_mul_in_attention", "adaptive_kv_stride", "other",
    "outputs", "mlp_ratio", "qkv_bias", "pool_kernel",
}  # fmt: skip


def config_from_mmaction2(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the arguments of mmaction2's MViT backbone, with `num_classes` of its head beside them.

    Raises:
        UserError: for an unknown argument, or an architecture name that it does not have.
    """
    _known(settings, _MMACTION2)
    side = settings.get("spatial_size", 224)
    return MViTConfig(
        input_size=(settings.get("temporal_size", 16), side, side),
        in_chans=settings.get("in_channels", 3),
        num_classes=settings.get("num_classes", 400),
        **_openmmlab_stages(settings["arch"]),
        mlp_ratio=settings.get("mlp_ratio", 4.0),
        qkv_bias=settings.get("qkv_bias", True),
        **_CLIP_STEM,
        kernel_qkv=settings.get("pool_kernel", (3, 3, 3)),
        stride_q=(1, 2, 2),
        adaptive_kv_stride=settings.get("adaptive_kv_stride", (1, 8, 8)),
        residual_pooling=settings.get("residual_pooling", True),
        dim_mul_in_attention=settings.get("dim_mul_in_attention", True),
        cls_token=settings.get("with_cls_token", True),
        relative_position="decomposed" if settings.get("rel_pos_embed", True) else "none",
        drop_path_rate=settings.get("drop_path_rate", 0.1),
        drop_rate=settings.get("dropout_ratio", 0.5),
        init="slowfast",
    )


# mmpretrain's argument -> ours, and its default.
_MMPRETRAIN: dict[str, tuple[str, Any]] = {
    "in_channels": ("in_chans", 3),
    "num_classes": ("num_classes", 1000),
    "drop_path_rate": ("drop_path_rate", 0.0),
    "residual_pooling": ("residual_pooling", True),
    "dim_mul_in_attention": ("dim_mul_in_attention", True),
    "rel_pos_zero_init": ("rel_pos_zero_init", False),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "qkv_bias": ("qkv_bias", True),
    "pool_kernel": ("kernel_qkv", (3, 3)),
}
_MMPRETRAIN_READ = {"arch", "img_size", "adaptive_kv_stride", "use_abs_pos_embed", "rel_pos_spatial"}


def config_from_mmpretrain(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the arguments of mmpretrain's MViT backbone, with `num_classes` of its head beside them.

    Raises:
        UserError: for an unknown argument, or an architecture name that it does not have.
    """
    _known(settings, _MMPRETRAIN.keys() | _MMPRETRAIN_READ)
    size, stride = settings.get("img_size", 224), settings.get("adaptive_kv_stride", 4)
    return MViTConfig(
        **_openmmlab_stages(settings["arch"]),
        **{ours: settings.get(theirs, default) for theirs, (ours, default) in _MMPRETRAIN.items()},
        input_size=(size, size) if isinstance(size, int) else tuple(size),
        adaptive_kv_stride=(stride, stride) if isinstance(stride, int) else tuple(stride),
        absolute_position="joint" if settings.get("use_abs_pos_embed", False) else "none",
        relative_position="decomposed" if settings.get("rel_pos_spatial", True) else "none",
        init="slowfast",
    )


def _openmmlab_stages(arch: Any) -> dict[str, Any]:
    if isinstance(arch, str):
        if arch not in _MMACTION2_SIZES:
            raise UserError(f"arch is {arch!r}", did_you_mean(arch, _MMACTION2_SIZES))
        arch = _MMACTION2_SIZES[arch]
    _known(arch, set(_MMACTION2_SIZES["tiny"]))
    edges = [0, *arch["downscale_indices"], arch["num_layers"]]
    depths = tuple(b - a for a, b in pairwise(edges))
    return {"depths": depths, "embed_dim": arch["embed_dims"], "num_heads": arch["num_heads"]}
