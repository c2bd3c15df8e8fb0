"""Small heads and a scene for them, and the cascade in plain loops over single boxes, float64."""

import math

import numpy as np
import torch
from torch import nn
from torchvision.ops import roi_align

from openmvit.config import MViTConfig
from openmvit.detection.config import DetectorConfig
from openmvit.detection.roi_heads import RoiHeads

SIZES = [(100, 120), (90, 128)]
CASCADE = {
    "stage_iou": (0.5, 0.6, 0.7),
    "coder_weights": ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)),
    "class_agnostic": True,
    "box_convs": (8,),
    "box_fcs": (24,),
}


def config(**changes):
    backbone = MViTConfig(input_size=(64, 64), num_classes=0, depths=(1, 1, 1, 1), embed_dim=8)
    small = {"num_classes": 3, "channels": 8, "box_fcs": (24, 24), "mask_convs": (8, 8), "roi_positive": 1.0}
    return DetectorConfig(**{"backbone": backbone} | small | changes)


def heads_of(seed=0, liveliness=1.0, **changes):
    """Heads whose predictors do something: fresh ones hardly move a box."""
    torch.manual_seed(seed)
    heads = RoiHeads(config(**changes))
    for predictor in heads.box_predictors:
        nn.init.normal_(predictor.bbox_pred.weight, std=0.3 * liveliness)
        nn.init.normal_(predictor.cls_score.weight, std=0.3 * liveliness)
    nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.3)
    return heads


def scene(proposals=12, masks="bitmask"):
    """Two pictures: maps, proposals near the objects, and targets."""
    torch.manual_seed(1)
    maps = [torch.randn(2, 8, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    objects = [
        torch.tensor([[10.2, 12.1, 60.4, 70.3], [50.5, 20.0, 118.0, 95.5]]),
        torch.tensor([[5.0, 8.5, 90.0, 80.5]]),
    ]
    labels = [torch.tensor([2, 0]), torch.tensor([1])]
    boxes = []
    for one, (h, w) in zip(objects, SIZES, strict=True):
        near = one[torch.arange(proposals) % len(one)] + torch.randn(proposals, 4) * 8
        near[:, 0::2].clamp_(0, w)
        near[:, 1::2].clamp_(0, h)
        near[-1] = torch.tensor([w + 5.0, 20.0, w + 20.0, 40.0])  # leaves the picture after the first stage
        boxes.append(near)
    targets = [{"boxes": b, "labels": n} for b, n in zip(objects, labels, strict=True)]
    for target, size in zip(targets, SIZES, strict=True):
        target["masks"] = [ellipse(*b) for b in target["boxes"].tolist()]
        if masks == "bitmask":
            target["masks"] = torch.stack([filled(b, size) for b in target["boxes"].tolist()])
    return maps, boxes, targets


def ellipse(x0, y0, x1, y1):
    angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    points = [(x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angle), (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angle)]
    return [np.stack(points, axis=1).ravel()]


def filled(box, size):
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    x = (x - (box[0] + box[2]) / 2) / (box[2] - box[0])
    y = (y - (box[1] + box[3]) / 2) / (box[3] - box[1])
    return x**2 + y**2 < 0.25


# The cascade once more: plain loops over single boxes, float64, numbers instead of tensors outside the layers.


def features(maps, image, box, cells):
    side = math.sqrt(max(0.0, (box[2] - box[0]) * (box[3] - box[1])))
    level = 2 if side == 0 else max(2, min(5, math.floor(4 + math.log2(side / 224 + 1e-8))))
    row = torch.tensor([[image, *box]], dtype=torch.float64)
    return roi_align(maps[level - 2].double(), row, cells, 1 / 2**level, sampling_ratio=-1, aligned=True)


def overlap(a, b):
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if shared > 0 else 0.0


def nearest(box, target, limit):
    """Class and object of a box; class 3 is background."""
    values = [overlap(box, other) for other in target["boxes"].double().tolist()]
    best = max(range(len(values)), key=values.__getitem__, default=None)
    if best is None or values[best] < limit:
        return 3, None
    return int(target["labels"][best]), best


def moved(box, delta, weights, size=None):
    w, h = box[2] - box[0], box[3] - box[1]
    x = box[0] + w / 2 + delta[0] / weights[0] * w
    y = box[1] + h / 2 + delta[1] / weights[1] * h
    w *= math.exp(min(delta[2] / weights[2], math.log(1000 / 16)))
    h *= math.exp(min(delta[3] / weights[3], math.log(1000 / 16)))
    corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    if size is None:
        return corners
    return [min(max(c, 0), (size[1], size[0])[i % 2]) for i, c in enumerate(corners)]


def offsets(box, wanted, weights):
    w, h, to_w, to_h = box[2] - box[0], box[3] - box[1], wanted[2] - wanted[0], wanted[3] - wanted[1]
    dx, dy = (wanted[0] + to_w / 2 - box[0] - w / 2) / w, (wanted[1] + to_h / 2 - box[1] - h / 2) / h
    return [dx * weights[0], dy * weights[1], math.log(to_w / w) * weights[2], math.log(to_h / h) * weights[3]]


def softmax(row):
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def answers(heads, stage, maps, image, box):
    logits, delta = heads.box_predictors[stage](heads.box_heads[stage](features(maps, image, box, 7)))
    return logits[0].tolist(), delta[0].tolist()


@torch.no_grad()
def loop_losses(heads, maps, start, targets, fixed=None):
    """Losses of the cascade, and the boxes of every stage; with `fixed` boxes are those instead of being moved."""
    losses, boxes, every = {}, fixed[0] if fixed else start, []
    for stage, limit in enumerate(heads.config.stage_iou):
        weights, rows = heads.config.coder_weights[stage], 0
        classification, regression, after = 0.0, 0.0, []
        for image, of_image in enumerate(boxes):
            after.append([])
            for box in of_image:
                logits, delta = answers(heads, stage, maps, image, box)
                label, object_ = nearest(box, targets[image], limit)
                classification -= math.log(softmax(logits)[label])
                if object_ is not None:
                    wanted = offsets(box, targets[image]["boxes"][object_].double().tolist(), weights)
                    own = delta if heads.config.class_agnostic else delta[4 * label : 4 * label + 4]
                    regression += sum(abs(a - b) for a, b in zip(own, wanted, strict=True))
                other = moved(box, delta, weights, SIZES[image])
                after[-1] += [other] if other[2] > other[0] and other[3] > other[1] else []
                rows += 1
        name = f"_stage{stage}" if len(heads.config.stage_iou) > 1 else ""
        losses |= {f"loss_cls{name}": classification / rows, f"loss_box_reg{name}": regression / rows}
        every.append(boxes)
        boxes = fixed[stage + 1] if fixed and stage + 1 < len(fixed) else after
    return losses, every


@torch.no_grad()
def loop_mask_loss(heads, maps, start, targets):
    total, cells = 0.0, 0
    for image, of_image in enumerate(start):
        for box in of_image:
            label, object_ = nearest(box, targets[image], heads.config.stage_iou[0])
            if object_ is None:
                continue
            row = torch.tensor([[0, *box]], dtype=torch.float64)
            share = roi_align(targets[image]["masks"][object_][None, None].double(), row, 28, aligned=True)
            logits = heads.mask_predictor(heads.mask_head(features(maps, image, box, 14)))[0, label]
            for value, wanted in zip(logits.flatten().tolist(), (share >= 0.5).flatten().tolist(), strict=True):
                total += math.log1p(math.exp(-value if wanted else value))
                cells += 1
    return total / cells


def first_boxes(boxes, targets):
    return [[*b.double().tolist(), *t["boxes"].double().tolist()] for b, t in zip(boxes, targets, strict=True)]
