"""Which network stands in which row of the paper's tables, as data: an architecture's name and what differs.

And why a printed number is not that of its row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Setting:
    """A published architecture with changes.

    Args:
        base: name of an architecture, a detector or one of `PLAIN`.
        changes: its fields that differ, `img_size` and `num_frames` among them; a detector's or its backbone's.
    """

    base: str
    changes: dict[str, Any] = field(default_factory=dict)

    def __call__(self, **changes: Any) -> Setting:
        """The same with further changes."""
        return Setting(self.base, self.changes | changes)


_T, _S, _B = (Setting(f"mvitv2_{size}") for size in ("tiny", "small", "base"))
_B384 = _B(img_size=384)
# The released L grows in the MLP; its parameters are in all tables, but operations are those of the other form.
_L_MLP = Setting("mvitv2_large")
_L_MLP384 = _L_MLP(img_size=384)
_L = _L_MLP(dim_mul_in_attention=True)
_L_TOKEN = _L(cls_token=True)
_H = Setting("mvitv2_huge_cls", {"num_classes": 1000})
_V1_16, _V1_24 = Setting("mvitv1_base_16"), Setting("mvitv1_base_24")
_VIT_B = Setting("vit_base")
_VIT_WINDOWS = _VIT_B(cls_token=False, window=(7, 7))
_S_WINDOWS = _S(window=((28, 28), (14, 14), (7, 7), (7, 7)))

_S16, _B32, _L40 = (Setting(f"mvitv2_{name}") for name in ("small_16x4", "base_32x3", "large_40x3"))
_L40_MLP = _L40(dim_mul_in_attention=False)
_V1_CLIP, _V1_CLIP32 = Setting("mvitv1_base_16x4"), Setting("mvitv1_base_32x3")
_V1_CLIP64 = _V1_CLIP(num_frames=64)
_V1_CLIP24 = Setting("mvitv1_base24_32x3", {"kernel_qkv": (3, 3, 3)})
# The action head reads the mean of the grid, here in one box, and its class token is dropped before.
_AVA: dict[str, Any] = {"num_classes": 80, "global_pool": "avg"}

_MASK = {size: Setting(f"mask_rcnn_mvitv2_{size}") for size in ("tiny", "small", "base")}
_MASK_L = Setting("mask_rcnn_mvitv2_large", {"dim_mul_in_attention": False})
_CASCADE = {size: Setting(f"cascade_mask_rcnn_mvitv2_{size}") for size in ("tiny", "small", "base", "huge")}
_CASCADE_L = Setting("cascade_mask_rcnn_mvitv2_large", {"dim_mul_in_attention": False})
_V1_FIELDS: dict[str, Any] = {
    "dim_mul_in_attention": False,
    "absolute_position": "joint",
    "relative_position": "none",
    "residual_pooling": False,
    "full_q_pooling": False,
    "global_kv_stride_factor": 1,
}

Row = tuple[Setting, Setting]
"""What the operations and what the parameters of a row were counted on."""


def _same(setting: Setting) -> Row:
    return setting, setting


def _classes(count: int, operations: Setting, parameters: Setting | None = None) -> Row:
    return operations(num_classes=count), (parameters or operations)(num_classes=count)


_IMAGENET: dict[str, Row] = {
    "MViTv2-T": _same(_T),
    "MViTv2-S": _same(_S),
    "MViTv2-B": _same(_B),
    "MViTv2-B up384": _same(_B384),
    "MViTv2-L": (_L_TOKEN, _L_MLP),
    "MViTv2-L up384": (_L(img_size=384), _L_MLP384),
    "MViT-v1-B-16 (baseline)": _same(_V1_16),
    "MViTv1-B-24 (baseline)": _same(_V1_24),
}
_BY_TABLE: dict[str, dict[str, Row]] = {
    "1": {
        "MViT-T": _same(_T),
        "MViT-S": _same(_S),
        "MViT-B": _same(_B),
        "MViT-L": (_L(adaptive_kv_stride=(8, 8)), _L_MLP),
        "MViT-H": _same(_H),
    },
    "2": _IMAGENET,
    "A.3": _IMAGENET,
    "3": {
        "MViTv2-L": (_L_TOKEN, _L_MLP),
        "MViTv2-H": _same(_H),
        "MViTv2-L up384": (_L_TOKEN(img_size=384), _L_MLP384),
        "MViTv2-H up384": _same(_H(img_size=384)),
        "MViTv2-H up512": _same(_H(img_size=512)),
    },
    "4a": {
        "ViT-B full": _same(_VIT_B),
        "ViT-B fixed win": _same(_VIT_WINDOWS),
        "ViT-B Swin": _same(_VIT_WINDOWS(window_pattern="shifted")),
        # Three global blocks; the paper does not say which.
        "ViT-B Hwin": _same(_VIT_WINDOWS(window_pattern="hybrid", global_blocks=(3, 7, 11))),
        "MViTv2-S pooling": _same(_S),
        "MViTv2-S pooling (stride=8)": _same(_S(adaptive_kv_stride=(8, 8))),
        "MViTv2-S pooling + Swin": _same(_S_WINDOWS(window_pattern="shifted")),
        "MViTv2-S pooling + Hwin": _same(_S_WINDOWS(window_pattern="hybrid")),
    },
    "5a": {
        "MViTv2-T": _same(_MASK["tiny"]),
        "MViTv2-S": _same(_MASK["small"]),
        "MViTv2-B": _same(_MASK["base"]),
        "MViTv2-L": _same(_MASK_L),
        "MViTv2-L (IN-21K)": _same(_MASK_L),
        **{f"MViTv1-{size[0].upper()} (baseline)": _same(_MASK[size](**_V1_FIELDS)) for size in _MASK},
    },
    "5b": {
        "MViTv2-T": _same(_CASCADE["tiny"]),
        "MViTv2-S": _same(_CASCADE["small"]),
        "MViTv2-B": _same(_CASCADE["base"]),
        "MViTv2-B (IN-21K)": _same(_CASCADE["base"]),
        "MViTv2-L": _same(_CASCADE_L),
        "MViTv2-L (IN-21K, LSJ 50ep)": _same(_CASCADE_L),
        "MViTv2-H (IN-21K, LSJ 50ep)": _same(_CASCADE["huge"]),
        "MViTv2-L (IN-21K, LSJ 50ep, SoftNMS+multi-scale)": _same(_CASCADE_L),
    },
    "9": {
        "ViT-B FPN": _same(Setting("mask_rcnn_vit_base")),
        "MViTv2-S no FPN": _same(_MASK["small"](neck="last", channels=768)),
        "MViTv2-S FPN": _same(_MASK["small"]),
    },
    "10": {
        "MViTv2-S, 16x4": _same(_S16),
        "MViTv2-B, 32x3": _same(_B32),
        "MViTv2-L up312, 40x3": (_L40, _L40_MLP),
        "MViTv1, 16x4 (baseline)": _same(_V1_CLIP),
        "MViTv1, 32x3 (baseline)": _same(_V1_CLIP32),
    },
    "11": {
        "MViTv2-B, 32x3": _classes(600, _B32),
        "MViTv2-L up312, 32x3": _classes(600, _L40(num_frames=32), _L40_MLP(num_frames=32)),
        "MViTv2-L up312, 40x3": _classes(600, _L40, _L40_MLP),
        "MViTv2-L up352, 40x3": _classes(600, _L40(img_size=352), _L40_MLP(img_size=352)),
        "MViTv1-B-24, 32x3 (baseline)": _classes(600, _V1_CLIP24),
    },
    "12": {
        "MViTv2-B, 32x3": _classes(700, _B32),
        "MViTv2-L up312, 40x3": _classes(700, _L40, _L40_MLP),
    },
    "13": {
        "MViTv2-S, 16x4": _classes(174, _S16),
        "MViTv2-B, 32x3 (K400)": _classes(174, _B32),
        "MViTv2-B, 32x3 (IN21K+K400)": _classes(174, _B32),
        "MViTv2-L up312, 40x3": _classes(174, _L40),
        "MViTv1-B, 16x4 (baseline)": _classes(174, _V1_CLIP),
        "MViTv1-B, 64x3 (baseline)": _classes(174, _V1_CLIP64),
        "MViTv1-B-24, 32x3 (baseline)": _classes(174, _V1_CLIP24),
    },
    "14": {
        "MViTv2-S 16x4": _same(_S16),
        "MViTv2-B 32x3": _same(_B32),
        "MViTv2-L 40x3": _same(_L40_MLP(img_size=224)),
        "MViTv2-L up312 40x3": (_L40, _L40_MLP),
    },
    "A.1": {"MViTv2-L": _same(_CASCADE_L), "MViTv2-L (multi-scale)": _same(_CASCADE_L)},
    "A.2": {
        "MViTv2-S, 16x4 (K400)": _same(_S16(**_AVA)),
        **{f"MViTv2-B, 32x3 ({data})": _same(_B32(**_AVA)) for data in ("K400", "K600", "K700")},
        "MViTv2-L up312, 40x3 (IN21K+K700)": _same(_L40(**_AVA)),
        "MViTv1-B, 16x4 K400 (baseline)": _same(_V1_CLIP(**_AVA)),
        "MViTv1-B, 64x3 K400 (baseline)": _same(_V1_CLIP64(**_AVA)),
        "MViTv1-B, 16x4 K600 (baseline)": _same(_V1_CLIP(**_AVA)),
        "MViTv1-B-24, 32x3 K600 (baseline)": _same(_V1_CLIP24(**_AVA)),
    },
    "A.6": {
        "(1) no pos.": _same(_S16(relative_position="none")),
        "(2) abs. pos.": _same(_S16(relative_position="none", absolute_position="separable")),
        "(3) time-only rel.": _same(_S16(relative_position="time")),
        "(4) space-only rel.": _same(_S16(relative_position="space")),
        "(5) dec. space rel. + time rel.": _same(_S16),
        "(6) joint space rel. + time rel.": _same(_S16(relative_position="joint_space")),
        "(7) joint space/time rel.": _same(_S16(relative_position="joint")),
    },
    "A.7": {
        "(1) w/o": _same(_S16(full_q_pooling=False, residual_pooling=False)),
        "(2) full Q pooling": _same(_S16(residual_pooling=False)),
        "(3) residual": _same(_S16(full_q_pooling=False)),
        "(4) full Q pooling + residual": _same(_S16),
    },
}
ROWS: dict[tuple[str, str], Row] = {(table, row): own for table, rows in _BY_TABLE.items() for row, own in rows.items()}
"""(table, row) -> what its operations and its parameters were counted on."""

Figure = Literal["flops_g", "without_norms_g", "params_m"]
"""Billions of operations, those without norms, or millions of parameters."""


@dataclass(frozen=True)
class Reason:
    """Why the paper prints another number than the network of a row has.

    Args:
        text: in plain words, with a `{}` for the count of each form.
        forms: networks and what is counted of them. The first one has the printed number.
        settled: false where that form does not fit the rows beside it, so that nothing is known.
    """

    text: str
    forms: tuple[tuple[Setting, Figure], ...]
    settled: bool = True


def _copied(released: Setting) -> Reason:
    text = "{} is that of 16 frames of 224 pixels and 400 classes, growing in the MLP; the released form has {}"
    first = Setting("mvitv2_large_16x4", {"dim_mul_in_attention": False})
    return Reason(text, ((first, "params_m"), (released, "params_m")))


def _other_classes(setting: Setting, classes: int) -> Reason:
    return Reason(f"{{}} is the number with {classes} classes", ((setting(num_classes=classes), "params_m"),))


def _fewer_pools(setting: Setting) -> Reason:
    text = "{} without norms and without pools of keys and values at stride 1 (pool_kv_at_stride_one: false)"
    return Reason(text, ((setting(pool_kv_at_stride_one=False), "without_norms_g"),))


def _pooled_first(classes: int) -> Reason:
    text = "{} if pooled before projected (pool_first: true), which has {} M parameters and so fits both cells"
    form = _B32(pool_first=True, separate_qkv=True, num_classes=classes)
    return Reason(text, ((form, "flops_g"), (form, "params_m")))


_OWN_KERNELS = _V1_CLIP(kernel_qkv=None)
_NO_TOKEN: dict[str, Any] = {"kernel_qkv": None, "cls_token": False}
_L_FIRST = _L_MLP(pool_first=True, separate_qkv=True, cls_token=True)
EXPLAINED: dict[tuple[str, str, str], Reason] = {
    ("3", "MViTv2-L up384", "flops_g"): Reason(
        "open: {} without norms, pooled before projected and growing in the MLP, but that form has {} at 224 pixels, "
        "where the paper prints 42.1",
        ((_L_FIRST(img_size=384), "without_norms_g"), (_L_FIRST, "without_norms_g")),
        settled=False,
    ),
    ("10", "MViTv2-L up312, 40x3", "params_m"): _copied(_L40),
    ("10", "MViTv1, 16x4 (baseline)", "flops_g"): Reason(
        "open: {} without norms, without a class token and with kernels that follow from strides (kernel_qkv: null), "
        "but that form has {} at 32 frames, where the paper prints 170",
        ((_V1_CLIP(**_NO_TOKEN), "without_norms_g"), (_V1_CLIP32(**_NO_TOKEN), "without_norms_g")),
        settled=False,
    ),
    ("11", "MViTv2-B, 32x3", "flops_g"): _pooled_first(600),
    ("11", "MViTv2-L up312, 32x3", "params_m"): _copied(_L40(num_frames=32, num_classes=600)),
    ("11", "MViTv2-L up312, 40x3", "params_m"): _copied(_L40(num_classes=600)),
    ("11", "MViTv2-L up352, 40x3", "params_m"): _copied(_L40(img_size=352, num_classes=600)),
    ("11", "MViTv1-B-24, 32x3 (baseline)", "params_m"): _other_classes(_V1_CLIP24, 80),
    ("12", "MViTv2-B, 32x3", "flops_g"): _pooled_first(700),
    ("12", "MViTv2-L up312, 40x3", "params_m"): _copied(_L40(num_classes=700)),
    ("13", "MViTv1-B, 16x4 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP),
    ("13", "MViTv1-B, 16x4 (baseline)", "params_m"): _other_classes(_V1_CLIP, 400),
    ("13", "MViTv1-B, 64x3 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP64),
    ("13", "MViTv1-B, 64x3 (baseline)", "params_m"): _other_classes(_V1_CLIP64, 400),
    ("13", "MViTv1-B-24, 32x3 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP24),
    ("13", "MViTv1-B-24, 32x3 (baseline)", "params_m"): _other_classes(_V1_CLIP24, 400),
    ("14", "MViTv2-L up312 40x3", "params_m"): _copied(_L40),
    ("A.2", "MViTv1-B, 16x4 K400 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP(**_AVA)),
    ("A.2", "MViTv1-B, 64x3 K400 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP64(**_AVA)),
    ("A.2", "MViTv1-B, 16x4 K600 (baseline)", "flops_g"): Reason(
        "{} without norms and with kernels that follow from strides (kernel_qkv: null), which has {} M parameters and "
        "so fits both cells",
        ((_OWN_KERNELS(**_AVA), "without_norms_g"), (_OWN_KERNELS(**_AVA), "params_m")),
    ),
    ("A.2", "MViTv1-B-24, 32x3 K600 (baseline)", "flops_g"): _fewer_pools(_V1_CLIP24(**_AVA)),
}
"""(table, row, quantity) -> why the paper prints another number than the row's network has."""

_V1_320 = "73 M are not those of B-24 (53.8 M at 320): a wider network, whose configuration nobody published"
NOT_COMPUTABLE: list[tuple[str, str, str, str, str]] = [
    ("2", "MViT-v1-B-24 up320 (baseline)", "flops_g", "32.7", _V1_320),
    ("2", "MViT-v1-B-24 up320 (baseline)", "params_m", "73", _V1_320),
    ("A.3", "MViT-v1-B-24 up320 (baseline)", "flops_g", "32.7", _V1_320),
    ("A.3", "MViT-v1-B-24 up320 (baseline)", "params_m", "73", _V1_320),
    (
        "4a",
        "ViT-B pooling",
        "flops_g",
        "10.9",
        "pooled keys and values alone give 17.0, and the MLPs cost 11.1: queries must be pooled too, and the paper "
        "does not say how",
    ),
    (
        "9",
        "ViT-B no FPN",
        "flops_g",
        "725",
        "the backbone is 637.4, and heads of 768 channels on its one map give 775 in all: other heads, and the paper "
        "does not say which",
    ),
]
"""Table, row, quantity, printed value, and why no configuration can be built for it."""
