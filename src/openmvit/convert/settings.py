"""A source's own settings become an MViTConfig; a field we do not know is an error, never skipped."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from openmvit.config import MViTConfig, Size
from openmvit.errors import UserError, did_you_mean

# Settings that change training or naming, not the network.
_NO_EFFECT = {"ZERO_DECAY_POS_CLS"}
_DIRECT = {
    "MODE": "pool_mode",
    "POOL_FIRST": "pool_first",
    "CLS_EMBED_ON": "cls_token",
    "EMBED_DIM": "embed_dim",
    "NUM_HEADS": "num_heads",
    "MLP_RATIO": "mlp_ratio",
    "QKV_BIAS": "qkv_bias",
    "DROPPATH_RATE": "drop_path_rate",
    "LAYER_SCALE_INIT_VALUE": "layer_scale",
    "NORM_STEM": "norm_stem",
    "REL_POS_ZERO_INIT": "rel_pos_zero_init",
    "RESIDUAL_POOLING": "residual_pooling",
    "DIM_MUL_IN_ATT": "dim_mul_in_attention",
    "SEPARATE_QKV": "separate_qkv",
    "HEAD_INIT_SCALE": "head_init_scale",
    "USE_MEAN_POOLING": "norm_after_pool",
    "PATCH_KERNEL": "patch_kernel",
    "PATCH_STRIDE": "patch_stride",
    "PATCH_PADDING": "patch_padding",
}
_READ = {
    "PATCH_2D", "NORM", "DEPTH", "DIM_MUL", "HEAD_MUL", "POOL_KV_STRIDE", "POOL_KV_STRIDE_ADAPTIVE", "POOL_Q_STRIDE",
    "POOL_KVQ_KERNEL", "SEP_POS_EMBED", "DROPOUT_RATE", "USE_ABS_POS", "REL_POS_SPATIAL", "REL_POS_TEMPORAL",
    "USE_FIXED_SINCOS_POS", "REV",
}  # fmt: skip
_NEEDED = {
    "PATCH_KERNEL", "PATCH_STRIDE", "PATCH_PADDING", "EMBED_DIM", "NUM_HEADS", "DEPTH", "DIM_MUL", "HEAD_MUL", "MODE",
    "CLS_EMBED_ON", "MLP_RATIO", "QKV_BIAS", "USE_ABS_POS", "REL_POS_SPATIAL", "RESIDUAL_POOLING", "DIM_MUL_IN_ATT",
}  # fmt: skip
# Top-level keys of the flat form (the JSON beside a recorded network).
_FLAT = {"source", "crop_size", "num_frames", "num_classes", "in_chans", "drop_rate", "head", "outputs", "MVIT"}


def config_from_mvit(settings: Mapping[str, Any]) -> MViTConfig:
    """Configuration from the settings of facebookresearch/mvit or SlowFast.

    Args:
        settings: the whole `cfg` tree (MVIT, DATA and MODEL are read), or the flat form with `crop_size`, `num_frames`,
            `num_classes` and MVIT.
    Raises:
        UserError: for an unknown field, or a value that this network does not have; the message names it.
    """
    if "MVIT" not in settings:
        raise UserError("The settings have no MVIT section", "Give the cfg of an MViT model")
    flat = _flatten(settings)
    m = dict(settings["MVIT"])
    known = _DIRECT.keys() | _READ | _NO_EFFECT
    for key in m:
        if key not in known:
            raise UserError(f"Unknown setting MVIT.{key}", did_you_mean(key, sorted(known)))
    _refuse(m, flat)
    fields: dict[str, Any] = {ours: m[theirs] for theirs, ours in _DIRECT.items() if theirs in m}
    ndim = len(m["PATCH_KERNEL"])
    size = (int(flat["crop_size"]),) * 2
    fields["input_size"] = size if ndim == 2 else (int(flat["num_frames"]), *size)
    fields["num_classes"] = int(flat["num_classes"])
    fields["in_chans"] = int(flat.get("in_chans", 3))
    fields["drop_rate"] = float(flat.get("drop_rate", 0.0))
    starts = _stage_starts(m)
    fields["depths"] = tuple(b - a for a, b in pairwise([0, *starts, int(m["DEPTH"])]))
    fields |= _pools(m, starts, ndim) | _positions(m, ndim)
    fields |= _streams(m, starts)
    fields["init"] = "slowfast" if "PATCH_2D" in m or ndim == 3 else "mvit"
    return MViTConfig(**fields)


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    if "DATA" not in settings:
        for key in settings:
            if key not in _FLAT:
                raise UserError(f"Unknown setting {key}", did_you_mean(key, sorted(_FLAT)))
        return dict(settings)
    data, model = settings["DATA"], settings.get("MODEL", {})
    return {
        "crop_size": data["TRAIN_CROP_SIZE"],
        "num_frames": data.get("NUM_FRAMES", 1),
        "in_chans": (data.get("INPUT_CHANNEL_NUM") or [3])[0],
        "num_classes": model["NUM_CLASSES"],
        "drop_rate": model.get("DROPOUT_RATE", 0.0),
    }


def _refuse(m: Mapping[str, Any], flat: Mapping[str, Any]) -> None:
    """Absent settings, and values that need another network."""
    for key in sorted(_NEEDED - m.keys()):
        raise UserError(f"MVIT.{key} is absent", "Give the whole MVIT section, defaults included")
    if m.get("NORM", "layernorm") != "layernorm":
        raise UserError(f"MVIT.NORM is {m['NORM']!r}", "Accepted: layernorm")
    if m.get("DROPOUT_RATE", 0.0):
        raise UserError(f"MVIT.DROPOUT_RATE is {m['DROPOUT_RATE']}", "Accepted: 0.0")
    for key in ("DIM_MUL", "HEAD_MUL"):
        if any(factor != 2.0 for _, factor in m[key]):
            raise UserError(f"MVIT.{key} is {m[key]}", "Accepted: factors of 2.0")
    if [i for i, _ in m["DIM_MUL"]] != [i for i, _ in m["HEAD_MUL"]]:
        raise UserError("MVIT.DIM_MUL and MVIT.HEAD_MUL name different blocks", "Widths and heads double together")
    if len(m["PATCH_KERNEL"]) == 3 and "num_frames" not in flat:
        raise UserError("MVIT.PATCH_KERNEL has three axes and num_frames is absent", "Give num_frames")


_FUSIONS = {"avg": "mean", "concat_linear_2": "mlp"}
_REV = {"ENABLE", "RESPATH_FUSE", "BUFFER_LAYERS", "RES_PATH", "PRE_Q_FUSION"}


def _streams(m: Mapping[str, Any], starts: list[int]) -> dict[str, Any]:
    """Fields of a reversible network."""
    rev = m.get("REV", {})
    for key in rev:
        if key not in _REV:
            raise UserError(f"Unknown setting MVIT.REV.{key}", did_you_mean(key, sorted(_REV)))
    if not rev.get("ENABLE"):
        return {}
    for key, accepted in (("RESPATH_FUSE", "concat"), ("RES_PATH", "conv"), ("BUFFER_LAYERS", starts)):
        value = rev.get(key)
        if (list(value) if isinstance(value, tuple) else value) != accepted:
            raise UserError(f"MVIT.REV.{key} is {value!r}", f"Accepted: {accepted}")
    if rev.get("PRE_Q_FUSION") not in _FUSIONS:
        raise UserError(f"MVIT.REV.PRE_Q_FUSION is {rev.get('PRE_Q_FUSION')!r}", f"Accepted: {', '.join(_FUSIONS)}")
    # Widths grow in the transitions whatever DIM_MUL_IN_ATT says, and the released clip network's settings ask for a
    # class token that its code refuses.
    return {"reversible": _FUSIONS[rev["PRE_Q_FUSION"]], "dim_mul_in_attention": True, "cls_token": False}


def _stage_starts(m: Mapping[str, Any]) -> list[int]:
    return [int(i) for i, _ in m["DIM_MUL"]]


def _axes(values: Any, ndim: int, key: str) -> Size:
    """Per-axis values; image networks of the video code carry a first axis of 1, which goes."""
    values = tuple(int(v) for v in values)
    if len(values) == ndim + 1 and values[0] == 1:
        return values[1:]
    if len(values) != ndim:
        raise UserError(f"MVIT.{key} {values} and MVIT.PATCH_KERNEL differ in length", f"Give {ndim} values")
    return values


def _pools(m: Mapping[str, Any], starts: list[int], ndim: int) -> dict[str, Any]:
    depth, ones = int(m["DEPTH"]), (1,) * ndim
    strides = {int(row[0]): _axes(row[1:], ndim, "POOL_Q_STRIDE") for row in m.get("POOL_Q_STRIDE") or []}
    full = len(strides) == depth
    at_starts = {strides.get(i) for i in starts}
    inside = {s for i, s in strides.items() if i not in starts}
    if len(at_starts) != (1 if starts else 0) or None in at_starts or inside - {ones} or (inside and not full):
        raise UserError(
            f"MVIT.POOL_Q_STRIDE is {m.get('POOL_Q_STRIDE')}",
            "Accepted: one stride at the blocks of DIM_MUL, and 1 either in all other blocks or in none",
        )
    kernel = m.get("POOL_KVQ_KERNEL")
    fields: dict[str, Any] = {
        "stride_q": at_starts.pop() if at_starts else ones,
        "full_q_pooling": full,
        "kernel_qkv": _axes(kernel, ndim, "POOL_KVQ_KERNEL") if kernel else None,
    }
    adaptive, listed = m.get("POOL_KV_STRIDE_ADAPTIVE"), m.get("POOL_KV_STRIDE")
    if adaptive:
        return fields | {"adaptive_kv_stride": _axes(adaptive, ndim, "POOL_KV_STRIDE_ADAPTIVE")}
    if not listed:
        raise UserError("MVIT.POOL_KV_STRIDE_ADAPTIVE and MVIT.POOL_KV_STRIDE are both absent", "Give one of them")
    return fields | {"adaptive_kv_stride": None, "stride_kv": _listed_kv(listed, starts, depth, ndim)}


def _listed_kv(listed: Any, starts: list[int], depth: int, ndim: int) -> tuple[Size, ...]:
    rows = {int(row[0]): _axes(row[1:], ndim, "POOL_KV_STRIDE") for row in listed}
    stages = [{rows.get(i) for i in range(a, b)} for a, b in pairwise([0, *starts, depth])]
    if any(len(stage) != 1 or None in stage for stage in stages):
        raise UserError(f"MVIT.POOL_KV_STRIDE is {listed}", "Accepted: every block, with one stride per stage")
    return tuple(stage.pop() or () for stage in stages)


def _positions(m: Mapping[str, Any], ndim: int) -> dict[str, Any]:
    spatial, temporal = bool(m.get("REL_POS_SPATIAL")), bool(m.get("REL_POS_TEMPORAL"))
    if ndim == 3 and spatial != temporal:
        raise UserError(
            f"MVIT.REL_POS_SPATIAL is {spatial} and MVIT.REL_POS_TEMPORAL is {temporal}", "Accepted: both or neither"
        )
    absolute = "none"
    if m.get("USE_FIXED_SINCOS_POS"):
        absolute = "sincos"
    elif m.get("USE_ABS_POS"):
        absolute = "separable" if m.get("SEP_POS_EMBED") else "joint"
    return {"absolute_position": absolute, "relative_position": "decomposed" if spatial else "none"}
