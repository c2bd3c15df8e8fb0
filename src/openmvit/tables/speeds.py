"""Speed and memory that the paper prints, and which network stands in which row, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from openmvit.config import Size
from openmvit.tables.rows import ROWS, Setting

Quantity = Literal["train", "test", "memory"]
"""Training steps per second, pictures or clips answered per second, bytes that a training step takes."""


@dataclass(frozen=True)
class SpeedRow:
    """A row of a table.

    Args:
        setting: the network; None where there is none here.
        printed: the paper's digits by quantity.
        note: where the network may differ from the paper's; without a network, why there is none.
    """

    name: str
    setting: Setting | None
    printed: dict[Quantity, str]
    note: str = ""


@dataclass(frozen=True)
class SpeedTable:
    """Rows that are measured in turn.

    Args:
        reference: name of the row that ratios are taken to: the paper's default.
        size: of the input, pixels (h, w) or frames and pixels (t, h, w).
        batch: inputs per call.
        remarks: what a reader must know of the numbers.
    """

    name: str
    title: str
    reference: str
    size: Size
    batch: int
    rows: tuple[SpeedRow, ...]
    remarks: tuple[str, ...] = ()

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """What the paper prints in this table."""
        found = {quantity for row in self.rows for quantity in row.printed}
        return tuple(quantity for quantity in _ORDER if quantity in found)


_ORDER: tuple[Quantity, ...] = ("train", "test", "memory")
SWIN_BASE = "swin_base"
"""Base of a setting that torchvision builds."""

_S = Setting("mvitv2_small")
# A quarter of the pixels has a quarter of the boxes, so that the heads keep their share; and all boxes count, since
# random weights find none that is sure.
_QUARTER: dict[str, Any] = {
    "rpn_candidates": (500, 250),
    "rpn_proposals": (250, 250),
    "roi_samples": 128,
    "max_detections": 25,
    "score_threshold": 0.0,
}
_MASK_S = Setting("mask_rcnn_mvitv2_small", _QUARTER)
_MASK_VIT = Setting("mask_rcnn_vit_base", _QUARTER)
_VIT_HYBRID: dict[str, Any] = {"window": (14, 14), "window_pattern": "hybrid", "global_blocks": (3, 7, 11)}
_NO_WINDOWS: dict[str, Any] = {"window": None, "window_pattern": "all", "global_kv_stride_factor": 1}
_POOLED = "keys and values pooled by 2, as the caption says; the paper's operations show that more was pooled"
_WINDOWS = "windows of 14 tokens; the paper does not say how large"
_HALF = (
    "Pictures of half the paper's size (800 x 1280), batch 1, with a quarter of its proposals, of the boxes sampled in "
    "training and of those kept in the answer, so that the heads keep their share of the work; random weights, seven "
    "objects."
)


def _memory(printed: str) -> dict[Quantity, str]:
    return {"memory": printed}


def _counted(table: str, row: str, printed: dict[Quantity, str], note: str = "") -> SpeedRow:
    """A row whose operations `openmvit tables` counts."""
    return SpeedRow(row, ROWS[table, row][0], printed, note)


def _detector(name: str, setting: Setting | None, train: str, test: str, memory: str, note: str = "") -> SpeedRow:
    return SpeedRow(name, setting, {"train": train, "test": test, "memory": memory}, note)


_ATTENTION = SpeedTable(
    "4a",
    "Attention, ImageNet-1K",
    "MViTv2-S pooling",
    (224, 224),
    4,
    (
        _counted("4a", "ViT-B full", _memory("12.4")),
        _counted("4a", "ViT-B fixed win", _memory("9.7")),
        _counted("4a", "ViT-B Swin", _memory("9.7")),
        _counted("4a", "ViT-B Hwin", _memory("10.4")),
        SpeedRow("ViT-B pooling", Setting("vit_base", {"adaptive_kv_stride": (2, 2)}), _memory("8.3"), _POOLED),
        _counted("4a", "MViTv2-S pooling", _memory("6.8")),
        _counted("4a", "MViTv2-S pooling (stride=8)", _memory("5.5")),
        _counted("4a", "MViTv2-S pooling + Swin", _memory("6.0")),
        _counted("4a", "MViTv2-S pooling + Hwin", _memory("6.2")),
    ),
    (
        "The paper does not state its batch; gradients and the optimizer's state, which do not grow with it, weigh "
        "more in a small one, and more in ViT-B (86 M parameters) than in MViTv2-S (35 M).",
        "On a CPU scores are computed by pieces, and again in the backward pass, so that windows save no memory. Only "
        "shifted windows hold theirs, with the mask.",
    ),
)
_ATTENTION_DETECTION = SpeedTable(
    "4b",
    "Attention, COCO, Mask R-CNN",
    "MViTv2-S pooling + Hwin (default)",
    (400, 640),
    1,
    (
        _detector("ViT-B full", _MASK_VIT, "2.3", "4.6", "24.7"),
        _detector("ViT-B fixed win", _MASK_VIT(window=(14, 14)), "3.3", "7.8", "5.6", _WINDOWS),
        _detector("ViT-B Swin", _MASK_VIT(window=(14, 14), window_pattern="shifted"), "3.1", "7.5", "5.7", _WINDOWS),
        _detector("ViT-B Hwin", _MASK_VIT(**_VIT_HYBRID), "3.1", "6.8", "11.0", _WINDOWS),
        _detector("ViT-B pooling", _MASK_VIT(adaptive_kv_stride=(2, 2)), "2.9", "7.9", "8.8", _POOLED),
        _detector(
            "ViT-B pooling + Hwin",
            _MASK_VIT(adaptive_kv_stride=(2, 2), **_VIT_HYBRID),
            *("3.1", "8.8", "5.5"),
            f"{_POOLED}; {_WINDOWS}",
        ),
        _detector("MViTv2-S pooling", _MASK_S(**_NO_WINDOWS), "1.5", "4.2", "19.5"),
        _detector(
            "MViTv2-S pooling (stride=8)", _MASK_S(adaptive_kv_stride=(8, 8), **_NO_WINDOWS), "2.5", "8.3", "7.8"
        ),
        _detector(
            "MViTv2-S pooling + Swin", _MASK_S(window_pattern="shifted", global_kv_stride_factor=1), "2.6", "9.2", "4.9"
        ),
        _detector("MViTv2-S pooling + Hwin (default)", _MASK_S, "2.7", "9.4", "5.2"),
    ),
    (
        _HALF,
        "Global attention grows with the square of the tokens and all else with their number: at half size, rows "
        "without windows are nearer to the others than in the paper.",
        "No row holds all scores of a large map: on a CPU they are computed by pieces, or by a kernel of the library "
        "that does so. The memory that global attention took in the paper does not appear.",
        "On a CPU time follows the operations: at full size 601 to 879 G in ViT-B, 318 to 652 G in MViTv2-S. On the "
        "paper's cards it did not.",
    ),
)
_POSITION_DETECTION = SpeedTable(
    "6",
    "Positions, COCO, Mask R-CNN",
    "(4) decomposed rel. pos.",
    (400, 640),
    1,
    (
        _detector("(1) no pos.", _MASK_S(relative_position="none"), "3.1", "10.3", "5.0"),
        _detector("(2) abs. pos.", _MASK_S(relative_position="none", absolute_position="joint"), "3.1", "10.1", "5.0"),
        _detector("(3) joint rel. pos.", _MASK_S(relative_position="joint"), "0.7", "3.4", "15.3"),
        _detector("(4) decomposed rel. pos.", _MASK_S, "2.7", "9.4", "5.2"),
        _detector("(5) abs. + dec. rel. pos.", _MASK_S(absolute_position="joint"), "2.7", "9.5", "5.2"),
    ),
    (_HALF,),
)
_RUNTIME = SpeedTable(
    "8",
    "Runtime, ImageNet-1K",
    "MViTv2-S",
    (224, 224),
    8,
    (
        SpeedRow("Swin-B", Setting(SWIN_BASE), {"test": "276"}, "torchvision's swin_b"),
        SpeedRow("MViTv2-S", _S, {"test": "341"}),
        SpeedRow("MViTv2-B", Setting("mvitv2_base"), {"test": "253"}),
    ),
    (
        "On a CPU time follows the operations: 15.4 G in Swin-B, 7.0 G in MViTv2-S, 10.2 G in MViTv2-B. On the paper's "
        "card Swin-B was faster than that.",
    ),
)
_RUNTIME_DETECTION = SpeedTable(
    "8b",
    "Runtime, COCO, Mask R-CNN (the other columns of Table 8)",
    "MViTv2-S",
    (400, 640),
    1,
    (
        _detector("Swin-B", None, "2.5", "9.4", "6.3", "Swin-B is built for classification only"),
        _detector("MViTv2-S", _MASK_S, "2.7", "9.4", "5.2"),
        _detector("MViTv2-B", Setting("mask_rcnn_mvitv2_base", _QUARTER), "2.1", "7.2", "6.9"),
    ),
    (_HALF,),
)
_TERMS = SpeedTable(
    "A.4",
    "Relative terms on queries, keys and values, ImageNet-1K",
    "rel q",
    (224, 224),
    4,
    tuple(
        SpeedRow(f"rel {terms}", _S(relative_terms=terms), {"test": test, "memory": memory})
        for terms, memory, test in (
            ("q", "6.2", "316"),
            ("k", "6.2", "321"),
            ("qk", "6.4", "300"),
            ("v", "30.8", "109"),
            ("qv", "30.9", "104"),
            ("qkv", "30.9", "103"),
        )
    ),
    (
        "The value term sums the attention weights over the other axes before it meets a table, a small product per "
        "axis that never holds queries x keys x channels: the paper's fivefold memory does not appear, and what is "
        "left is the cost of holding all attention weights. On a CPU row `rel q` alone computes them by pieces in "
        "training; terms on keys are written out for every pair too.",
    ),
)
_POSITION_VIDEO = SpeedTable(
    "A.6",
    "Positions for video, MViTv2-S 16x4",
    "(5) dec. space rel. + time rel.",
    (16, 224, 224),
    1,
    tuple(
        _counted("A.6", row, {"train": train})
        for row, train in (
            ("(1) no pos.", "91.5"),
            ("(2) abs. pos.", "91.0"),
            ("(3) time-only rel.", "80.5"),
            ("(4) space-only rel.", "76.2"),
            ("(5) dec. space rel. + time rel.", "66.6"),
            ("(6) joint space rel. + time rel.", "33.6"),
            ("(7) joint space/time rel.", "8.4"),
        )
    ),
    (
        "A joint table of space and time gathers a position row for every pair of a query and a key: row 7 needs the "
        "most memory by far, and is not run where that is more than half of what is free.",
    ),
)
SPEED_TABLES: dict[str, SpeedTable] = {
    table.name: table
    for table in (
        *(_ATTENTION, _ATTENTION_DETECTION, _POSITION_DETECTION, _RUNTIME, _RUNTIME_DETECTION),
        *(_TERMS, _POSITION_VIDEO),
    )
}
"""Name of the table -> its rows, in the order of the paper."""
