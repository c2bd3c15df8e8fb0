"""A detector from plain settings, as they lie beside recorded detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmvit.config import MViTConfig
from openmvit.detection.config import DetectorConfig
from openmvit.detection.detector import Detector
from openmvit.errors import UserError

_STRIDES = (4, 8, 16, 32, 64)


def from_settings(settings: Mapping[str, Any]) -> Detector:
    """A detector with fresh weights from a description of its parts.

    Args:
        settings: `backbone` (with a record per block), `fpn`, `rpn`, `roi` and `input`; `training_run` if the losses
            are to be computed with other sample sizes than the published ones.
    Raises:
        UserError: if a part is missing, or asks for something that no released detector has.
    """
    return Detector(config_from_settings(settings))


def config_from_settings(settings: Mapping[str, Any]) -> DetectorConfig:
    """The record of `from_settings`."""
    missing = [key for key in ("backbone", "fpn", "rpn", "roi", "input") if key not in settings]
    if missing:
        raise UserError(f"The settings lack {', '.join(missing)}", "Give the parts backbone, fpn, rpn, roi and input")
    fpn, rpn, roi, pictures = (settings[key] for key in ("fpn", "rpn", "roi", "input"))
    samples = settings.get("training_run", {})
    found = DetectorConfig(
        backbone=_backbone(settings["backbone"]),
        num_classes=roi["num_classes"],
        channels=fpn["out_channels"],
        neck_norm="ln" if fpn["norm"] else "none",
        head_norm=_norm(roi["head_norm"]),
        rpn_convs=rpn["convs"],
        anchor_sizes=tuple(rpn["anchor_sizes"]),
        aspect_ratios=tuple(rpn["aspect_ratios"]),
        rpn_candidates=(rpn["pre_nms_topk"]["train"], rpn["pre_nms_topk"]["test"]),
        rpn_proposals=(rpn["post_nms_topk"]["train"], rpn["post_nms_topk"]["test"]),
        rpn_nms=rpn["nms"],
        rpn_samples=samples.get("rpn_batch_per_image", 256),
        rpn_positive=samples.get("rpn_positive_fraction", 0.5),
        stage_iou=tuple(roi["stage_iou"]),
        coder_weights=tuple(tuple(weights) for weights in roi["stage_coder_weights"]),
        class_agnostic=roi["class_agnostic_box_regression"],
        box_convs=tuple(roi["box_head_convs"]),
        box_fcs=tuple(roi["box_head_fcs"]),
        # The last width is that of the transposed convolution.
        mask_convs=tuple(roi["mask_head_channels"][:-1]),
        roi_samples=samples.get("roi_batch_per_image", 512),
        roi_positive=samples.get("roi_positive_fraction", 0.25),
        score_threshold=roi["score_threshold"],
        nms=roi["nms"],
        max_detections=roi["max_detections"],
        square_pad=pictures["square_pad"],
        mean=tuple(pictures["mean"]),
        std=tuple(pictures["std"]),
    )
    _check(found, settings)
    return found


def _backbone(settings: Mapping[str, Any]) -> MViTConfig:
    ends, stem = settings["last_block_of_each_stage"], settings["patch_embed"]
    side, kernel = settings["table_image_size"], settings["qkv_pool_kernel"]
    config = MViTConfig(
        input_size=(side, side),
        num_classes=0,
        depths=tuple(end - start for start, end in zip([-1, *ends], ends, strict=False)),
        embed_dim=settings["embed_dim"],
        num_heads=settings["base_heads"],
        mlp_ratio=settings["mlp_ratio"],
        patch_kernel=(stem["kernel"],) * 2,
        patch_stride=(stem["stride"],) * 2,
        patch_padding=(stem["padding"],) * 2,
        kernel_qkv=(kernel, kernel),
        adaptive_kv_stride=(settings["blocks"][0]["kv_stride"],) * 2,
        window=(settings["blocks"][0]["window"],) * 2,
        window_pattern="hybrid",
        global_kv_stride_factor=2,
        residual_pooling=settings["residual_pooling"],
        relative_position="decomposed" if settings["relative_position"] else "none",
        absolute_position="joint" if settings["absolute_position"] else "none",
        drop_path_rate=settings["drop_path"],
        norm_eps=settings["layer_norm_eps"],
        pool_norm_eps=settings["layer_norm_eps"],
    )
    _check_blocks(config, settings["blocks"])
    return config


def _check_blocks(config: MViTConfig, blocks: Sequence[Mapping[str, Any]]) -> None:
    for ours, theirs in zip(config.blocks(), blocks, strict=True):
        made = {
            "dim_in": ours.dim,
            "dim_out": ours.dim_out,
            "heads": ours.num_heads,
            "q_stride": ours.stride_q[0],
            "kv_stride": ours.stride_kv[0],
            "window": ours.window[0] if ours.window else 0,
            "rel_pos_length": ours.table_lengths[0] if ours.relative_groups else 0,
        }
        wrong = [key for key, value in made.items() if theirs.get(key, value) != value]
        if wrong:
            raise UserError(
                f"Block {ours.index} has {wrong[0]} {theirs[wrong[0]]} where the released rules give {made[wrong[0]]}",
                "Only networks that follow the released rules can be built",
            )


def _norm(name: str | None) -> Any:
    if not name:
        return "none"
    return "ln" if "layer" in name.lower() or name == "LN" else "bn"


def _check(found: DetectorConfig, settings: Mapping[str, Any]) -> None:
    rpn, pictures = settings["rpn"], settings["input"]
    fixed = {
        "rpn strides": (tuple(rpn["strides"]), _STRIDES),
        "rpn offset": (rpn["offset"], 0.0),
        "rpn iou_thresholds": (tuple(rpn["iou_thresholds"]), (0.3, 0.7)),
        "rpn coder_weights": (tuple(rpn["coder_weights"]), (1, 1, 1, 1)),
        "input channel_order": (pictures["channel_order"], "RGB"),
        "input size_divisibility": (pictures["size_divisibility"], found.divisor),
        "roi stages": (settings["roi"]["stages"], len(found.stage_iou)),
        "roi box_pool": (settings["roi"]["box_pool"], 7),
        "roi mask_pool": (settings["roi"]["mask_pool"], 14),
    }
    for name, (given, made) in fixed.items():
        if given != made:
            raise UserError(f"The settings ask for {name} {given}", f"Accepted: {made}")
