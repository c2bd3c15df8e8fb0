"""ONNX forms of torchvision's operators, whose arguments the exporter's own forms do not know."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

_ALL = 2**62
"""More boxes than there are."""
_INT64 = 7
"""ONNX's number of the type."""


def translations() -> dict[Any, Callable[..., Any]]:
    """For `custom_translation_table` of `torch.onnx.export`."""
    import torchvision  # noqa: F401  (brings the operators)

    known = torch.ops.torchvision
    return {known.nms.default: _nms, known.roi_align.default: _roi_align, operator.le: _at_most}


def _opset() -> Any:
    from onnxscript import opset18

    return opset18


def _nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    op = _opset()
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(boxes, op.Constant(value_ints=[0])),
        op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
        op.Constant(value_ints=[_ALL]),
        op.Constant(value_floats=[float(iou_threshold)]),
    )
    # Rows are batch, class and box.
    return op.Gather(chosen, op.Constant(value_int=2), axis=1)


def _roi_align(
    features: Any, rois: Any, spatial_scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Any:
    op = _opset()
    return op.RoiAlign(
        features,
        op.Gather(rois, op.Constant(value_ints=[1, 2, 3, 4]), axis=1),
        op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=_INT64),
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        output_height=height,
        output_width=width,
        sampling_ratio=max(sampling_ratio, 0),
        spatial_scale=float(spatial_scale),
    )


def _at_most(a: Any, b: Any) -> Any:
    """What a program asserts of its sizes: nothing reads it, and it may name numbers that have no form in ONNX."""
    return _opset().LessOrEqual(a, min(b, 2**63 - 1) if isinstance(b, int) else b)
