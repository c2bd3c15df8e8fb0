"""What one detector is, as plain data: Mask R-CNN is the cascade with one stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from openmvit.architectures import DETECTORS, PLAIN
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.records import from_fields, settle

Neck = Literal["pyramid", "last", "simple"]
HeadNorm = Literal["none", "bn", "ln"]
SoftNms = Literal["none", "linear", "gaussian"]

_POSITIVE = ("num_classes", "channels", "rpn_convs", "rpn_samples", "roi_samples", "max_detections")
_SHARES = ("rpn_nms", "rpn_positive", "roi_positive", "score_threshold", "nms")


@dataclass(frozen=True)
class DetectorConfig:
    """Backbone, neck, region proposals, box and mask heads, and how detections are chosen.

    Boxes are x0 y0 x1 y1 in pixels of the network's input, continuous: pixel i covers i..i+1. Pairs `(train, test)`.
    Source: the released configurations of facebookresearch/detectron2, projects MViTv2 and ViTDet.
    """

    backbone: MViTConfig
    num_classes: int = 80
    neck: Neck = "pyramid"
    """`pyramid` joins all stages, `last` reads the last map, `simple` makes a pyramid of the last map (plain ViT)."""
    channels: int = 256
    """Of the neck's maps and of the mask head."""
    neck_norm: Literal["none", "ln"] = "none"
    head_norm: HeadNorm = "none"
    """Norm of the convolutions of box and mask heads."""
    rpn_convs: int = 1
    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Side of the square anchor, pixels, one per map of the neck; with a single map all are on it."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    rpn_candidates: tuple[int, int] = (2000, 1000)
    """Best anchors per map before suppression."""
    rpn_proposals: tuple[int, int] = (1000, 1000)
    """Best proposals per image after it."""
    rpn_nms: float = 0.7
    rpn_samples: int = 256
    """Anchors per image that the loss sees."""
    rpn_positive: float = 0.5
    """Most of them that may be objects."""
    stage_iou: tuple[float, ...] = (0.5,)
    """Overlap from which a box is an object, per stage of the box heads."""
    coder_weights: tuple[tuple[float, ...], ...] = ((10.0, 10.0, 5.0, 5.0),)
    """Scale of the box targets dx, dy, dw, dh, per stage."""
    class_agnostic: bool = False
    """One box per proposal instead of one per class."""
    box_convs: tuple[int, ...] = ()
    """Widths of the convolutions of a box head."""
    box_fcs: tuple[int, ...] = (1024, 1024)
    """Widths of its linear layers."""
    mask_convs: tuple[int, ...] = (256, 256, 256, 256)
    roi_samples: int = 512
    """Proposals per image that the box losses see."""
    roi_positive: float = 0.25
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """`sigmoid` scores every class on its own (LVIS)."""
    federated_classes: int = 0
    """With `sigmoid`: classes per batch whose loss counts, the present ones and drawn others; 0 counts all."""
    score_threshold: float = 0.05
    nms: float = 0.5
    soft_nms: SoftNms = "none"
    max_detections: int = 100
    square_pad: int = 0
    """Side of the square that every batch is padded to; 0 pads to multiples of the coarsest stride."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Of the channels red, green, blue, 0..255."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        settle(self)
        _check(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each map that the neck gives, finest first; the last is that of the extra coarse map."""
        first, step = self.backbone.patch_stride[0], self.backbone.stride_q[0]
        last = first * step ** (len(self.backbone.depths) - 1)
        if self.neck == "last":
            return (last,)
        if self.neck == "simple":
            return (last // 4, last // 2, last, last * 2, last * 4)
        levels = [first * step**i for i in range(len(self.backbone.depths))]
        return (*levels, levels[-1] * 2)

    @property
    def divisor(self) -> int:
        """Padded sides are multiples of it: the stride of the coarsest map before the extra one."""
        return self.strides[0] if self.neck == "last" else self.strides[-2]

    def replace(self, **changes: Any) -> DetectorConfig:
        """A copy with some fields changed; an unknown field is a UserError naming the nearest."""
        return DetectorConfig.from_dict(self.to_dict() | changes)

    def change(self, **changes: Any) -> DetectorConfig:
        """A copy with some fields changed, of its own or of its backbone; what both have is its own.

        Raises:
            UserError: if neither has such a field, naming the nearest.
        """
        own = {field.name for field in dataclasses.fields(self)}
        inner = {field.name for field in dataclasses.fields(MViTConfig)} - own
        fields = {key: value for key, value in changes.items() if key not in inner}
        backbone = {key: value for key, value in changes.items() if key in inner}
        # At once: some rules are between both.
        return self.replace(**({"backbone": self.backbone.replace(**backbone)} | fields))

    @staticmethod
    def named(name: str, **changes: Any) -> DetectorConfig:
        """A detector of `architectures`, of the paper's plain ones too, with changes of its own or of its backbone."""
        return DetectorConfig.from_dict(PLAIN.get(name) or DETECTORS[name]).change(**changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives the same record back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> DetectorConfig:
        """Inverse of `to_dict`; lists are read as tuples.

        Raises:
            UserError: if a key is no field, naming the nearest one.
        """
        backbone = fields.get("backbone")
        made = backbone if isinstance(backbone, MViTConfig) else MViTConfig.from_dict(backbone or {})
        return from_fields(DetectorConfig, {**fields, "backbone": made}, "The detector")


def _check(c: DetectorConfig) -> None:
    """Every rule between fields; each message names the fields."""
    for name in _POSITIVE:
        if getattr(c, name) < 1:
            raise UserError(f"{name} is {getattr(c, name)}", "It must be at least 1")
    for name in _SHARES:
        if not 0 <= getattr(c, name) <= 1:
            raise UserError(f"{name} is {getattr(c, name)}", "Accepted: 0..1")
    if len(c.stage_iou) != len(c.coder_weights) or not c.stage_iou:
        raise UserError(
            f"stage_iou has {len(c.stage_iou)} stages and coder_weights {len(c.coder_weights)}", "Give as many of both"
        )
    if len(c.stage_iou) > 1 and not c.class_agnostic:
        raise UserError("A cascade needs class_agnostic", "Set class_agnostic: true, or give one stage")
    if c.neck != "last" and len(c.anchor_sizes) != len(c.strides):
        raise UserError(
            f"anchor_sizes has {len(c.anchor_sizes)} values and the neck gives {len(c.strides)} maps",
            "Give one per map",
        )
    if c.backbone.ndim != 2 or c.backbone.cls_token:
        raise UserError("A detector's backbone takes images and has no class token", "Set cls_token: false")
    if c.federated_classes and c.scores != "sigmoid":
        raise UserError("federated_classes is given and scores is 'softmax'", "Accepted with scores: sigmoid only")
    if c.square_pad % c.divisor:
        raise UserError(f"square_pad {c.square_pad} is no multiple of {c.divisor}", "Change it, or leave it out")
