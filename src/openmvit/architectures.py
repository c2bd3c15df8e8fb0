"""Published architectures as data: a name is the fields of MViTConfig that differ from its defaults."""

from __future__ import annotations

import fnmatch
from typing import Any

from openmvit.config import MViTConfig
from openmvit.errors import UserError, did_you_mean

# depths, embed_dim, num_heads (paper, Table 1; H: Table 2)
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"depths": (1, 2, 5, 2)},
    "small": {"depths": (1, 2, 11, 2)},
    "base": {"depths": (2, 3, 16, 3)},
    "large": {"depths": (2, 6, 36, 4), "embed_dim": 144, "num_heads": 2},
    "huge": {"depths": (4, 8, 60, 8), "embed_dim": 192, "num_heads": 3},
}
# Stochastic depth of the ImageNet recipes.
_DROP_PATH = {"tiny": 0.1, "small": 0.1, "base": 0.3, "large": 0.5, "huge": 0.8}
_V1: dict[str, Any] = {
    "cls_token": True,
    "absolute_position": "joint",
    "relative_position": "none",
    "residual_pooling": False,
    "full_q_pooling": False,
    "dim_mul_in_attention": False,
    "init": "slowfast",
}
# Kinetics-400 networks of the video code base: 16 or more frames, class token, K/V stride 8.
_CLIP: dict[str, Any] = {
    "input_size": (16, 224, 224),
    "num_classes": 400,
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3),
    "stride_q": (1, 2, 2),
    "adaptive_kv_stride": (1, 8, 8),
    "cls_token": True,
    "drop_rate": 0.5,
    "init": "slowfast",
}
_REV: dict[str, Any] = _V1 | {"cls_token": False, "dim_mul_in_attention": True}
_V1_CLIP: dict[str, Any] = _CLIP | _V1 | {"absolute_position": "separable"}
# MaskFeat's fine-tune form: widths grow in the MLP, mean of the grid before the norm.
_MASKFEAT: dict[str, Any] = _CLIP | {
    "dim_mul_in_attention": False,
    "norm_after_pool": True,
    "drop_rate": 0.0,
    "head_init_scale": 0.001,
}
_FRAMES_32: dict[str, Any] = {"input_size": (32, 224, 224)}
_IN21K: dict[str, Any] = {"cls_token": True, "num_classes": 19168}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"mvitv2_{size}": _SIZES[size] | {"drop_path_rate": _DROP_PATH[size]} for size in ("tiny", "small", "base")},
    # The released ImageNet-1K L grows in the MLP; the paper's text and all the others grow in attention.
    "mvitv2_large": _SIZES["large"] | {"drop_path_rate": _DROP_PATH["large"], "dim_mul_in_attention": False},
    # No weights of the small one were released.
    **{
        f"mvitv2_{size}_cls": _SIZES[size] | {"drop_path_rate": _DROP_PATH[size]} | _IN21K
        for size in ("small", "base", "large", "huge")
    },
    "mvitv1_base_16": _SIZES["small"] | _V1 | {"drop_path_rate": 0.1},
    "mvitv1_base_24": _SIZES["base"] | _V1 | {"drop_path_rate": 0.1},
    "mvitv2_small_16x4": _SIZES["small"] | _CLIP | {"drop_path_rate": 0.2},
    "mvitv2_base_32x3": _SIZES["base"] | _CLIP | _FRAMES_32 | {"drop_path_rate": 0.3},
    "mvitv2_large_16x4": _SIZES["large"] | _CLIP | {"drop_path_rate": 0.75},
    "mvitv2_large_40x3": _SIZES["large"] | _CLIP | {"input_size": (40, 312, 312), "drop_path_rate": 0.75},
    "mvitv1_base_16x4": _SIZES["small"] | _V1_CLIP | {"drop_path_rate": 0.2},
    # Two networks were published as v1 32x3: pytorchvideo's has 16 blocks, SlowFast's 24 with kernels from strides.
    "mvitv1_base_32x3": _SIZES["small"] | _V1_CLIP | _FRAMES_32 | {"drop_path_rate": 0.2},
    "mvitv1_base24_32x3": _SIZES["base"] | _V1_CLIP | _FRAMES_32 | {"kernel_qkv": None, "drop_path_rate": 0.3},
    "maskfeat_mvitv2_small_16x4": _SIZES["small"] | _MASKFEAT | {"drop_path_rate": 0.1},
    "maskfeat_mvitv2_large_16x4": _SIZES["large"] | _MASKFEAT | {"drop_path_rate": 0.2},
    # Reversible networks; the image one keeps three projections, as its code does.
    "rev_mvit_base": _SIZES["small"] | _REV | {"reversible": "mlp", "separate_qkv": True, "drop_path_rate": 0.1},
    "rev_mvit_base_16x4": _SIZES["small"]
    | _CLIP
    | _REV
    | {"reversible": "mean", "absolute_position": "separable", "qkv_bias": False, "drop_path_rate": 0.05},
    # Ours, for the demos: they train on a CPU in minutes. Nobody published them.
    "mvitv2_micro": {"input_size": (32, 32), "depths": (1, 2, 2), "embed_dim": 48, "drop_path_rate": 0.0},
    "mvitv2_micro_8x2": _CLIP
    | {
        "input_size": (8, 32, 32),
        "depths": (1, 2, 2),
        "embed_dim": 48,
        "adaptive_kv_stride": (1, 4, 4),
        "drop_path_rate": 0.0,
        "drop_rate": 0.0,
    },
}
"""Name -> fields of MViTConfig that differ from its defaults."""


# facebookresearch/detectron2, projects MViTv2 and ViTDet. Drop path of the code, not of the paper (0.1, 0.3, 0.4).
_HYBRID: dict[str, Any] = {
    "num_classes": 0,
    "window": (56, 56),
    "window_pattern": "hybrid",
    "global_kv_stride_factor": 2,
}
_BACKBONES: dict[str, dict[str, Any]] = {
    size: _SIZES[size] | _HYBRID | {"drop_path_rate": rate}
    for size, rate in (("tiny", 0.2), ("small", 0.2), ("base", 0.4), ("large", 0.5), ("huge", 0.6))
}
_CASCADE: dict[str, Any] = {
    "head_norm": "bn",
    "rpn_convs": 2,
    "stage_iou": (0.5, 0.6, 0.7),
    "coder_weights": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    "class_agnostic": True,
    "box_convs": (256, 256, 256, 256),
    "box_fcs": (1024,),
}
_SQUARE: dict[str, Any] = {"neck_norm": "ln", "head_norm": "ln", "square_pad": 1024}
# Ours, for the demo: few channels and proposals, anchors of small things, heads without convolutions for boxes.
_MICRO: dict[str, Any] = {
    "backbone": ARCHITECTURES["mvitv2_micro"]
    | {"num_classes": 0, "window": (16, 16), "window_pattern": "hybrid", "global_kv_stride_factor": 1},
    "num_classes": 10,
    "channels": 64,
    "anchor_sizes": (16.0, 32.0, 64.0, 128.0),
    "rpn_candidates": (200, 100),
    "rpn_proposals": (100, 50),
    "rpn_samples": 128,
    "roi_samples": 48,
    "box_fcs": (128, 128),
    "mask_convs": (64, 64),
    "max_detections": 20,
}
_STAGES = ("stage_iou", "coder_weights", "class_agnostic")

DETECTORS: dict[str, dict[str, Any]] = {
    **{f"mask_rcnn_mvitv2_{size}": {"backbone": _BACKBONES[size]} for size in ("tiny", "small", "base", "large")},
    **{f"cascade_mask_rcnn_mvitv2_{size}": {"backbone": _BACKBONES[size]} | _CASCADE for size in _BACKBONES},
    **{
        f"cascade_mask_rcnn_mvitv2_{size}_ln": {"backbone": _BACKBONES[size]} | _CASCADE | _SQUARE
        for size in ("base", "large", "huge")
    },
    "mask_rcnn_mvitv2_micro": _MICRO,
    "cascade_mask_rcnn_mvitv2_micro": _MICRO | {key: _CASCADE[key] for key in _STAGES},
}
"""Name -> fields of DetectorConfig that differ from its defaults."""

# ViT-B: one scale, no pools, no position term in attention.
_VIT_BASE: dict[str, Any] = {
    "depths": (12,),
    "embed_dim": 768,
    "num_heads": 12,
    "patch_kernel": (16, 16),
    "patch_stride": (16, 16),
    "patch_padding": (0, 0),
    "adaptive_kv_stride": None,
    "pool_kv_at_stride_one": False,
    "full_q_pooling": False,
    "residual_pooling": False,
    "relative_position": "none",
    "absolute_position": "joint",
}
PLAIN: dict[str, dict[str, Any]] = {
    "vit_base": _VIT_BASE | {"cls_token": True},
    "mask_rcnn_vit_base": {"backbone": _VIT_BASE | {"num_classes": 0}, "neck": "simple"},
}
"""Networks that the paper compares with in its tables: fields as above. They are counted and trained in its rows, and
are no models by name."""


def is_detector(name: str) -> bool:
    """Whether a name of `DETECTORS` or `PLAIN` is that of a detector."""
    return name in DETECTORS or "backbone" in PLAIN.get(name, {})


def classifier_config(name: str, **changes: Any) -> MViTConfig:
    """`model_config`, for classifiers of `PLAIN` too; those take no `img_size`."""
    return MViTConfig(**PLAIN[name]).replace(**changes) if name in PLAIN else model_config(name, **changes)


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern such as `mvitv2_*`."""
    return [name for name in (*ARCHITECTURES, *DETECTORS) if fnmatch.fnmatch(name, pattern)]


def check_name(name: str) -> None:
    """Raise a UserError that names the nearest if there is no such model."""
    if name not in ARCHITECTURES and name not in DETECTORS:
        raise UserError(f"Unknown model {name!r}", did_you_mean(name, [*ARCHITECTURES, *DETECTORS]))


def model_config(
    name: str, *, img_size: int | tuple[int, int] | None = None, num_frames: int | None = None, **changes: Any
) -> MViTConfig:
    """Configuration of a named architecture, with changes.

    Args:
        img_size: nominal side, or (height, width), in pixels.
        num_frames: nominal frames of a clip.
        changes: fields of MViTConfig.
    Raises:
        UserError: if the name or a field is unknown, naming the nearest.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"Unknown model {name!r}", did_you_mean(name, ARCHITECTURES))
    config = MViTConfig(**ARCHITECTURES[name])
    size = config.input_size
    if num_frames is not None and config.ndim < 3:
        raise UserError(f"num_frames is {num_frames} and {name} takes images", "Leave num_frames out")
    if img_size is not None:
        size = (*size[:-2], *((img_size, img_size) if isinstance(img_size, int) else img_size))
    if num_frames is not None:
        size = (num_frames, *size[1:])
    return config.replace(input_size=size, **changes)
