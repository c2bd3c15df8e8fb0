"""Small networks and cards that the hub tests share."""

import torch

from openmvit import MViT, MViTConfig

IMAGE = {"input_size": (32, 32), "depths": (1, 2), "embed_dim": 16, "num_classes": 3}
CLIP = {
    "input_size": (4, 32, 32),
    "patch_kernel": (3, 7, 7),
    "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3),
    "kernel_qkv": (3, 3, 3),
    "stride_q": (1, 2, 2),
    "adaptive_kv_stride": (1, 4, 4),
    "cls_token": True,
    "depths": (1, 2),
    "embed_dim": 16,
    "num_classes": 2,
}
IMAGE_PIXELS = {
    "imgsz": 32,
    "crop_ratio": 0.875,
    "interpolation": "bicubic",
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.25, 0.3],
}
CLIP_PIXELS = {
    "imgsz": 32,
    "mean": [0.45] * 3,
    "std": [0.225] * 3,
    "num_frames": 4,
    "stride": 2,
    "sampling": "span",
    "clips": 5,
    "crops": 3,
    "short_side": 32,
    "stored_side": 256,
}


def network(**changes):
    """A small classifier whose every parameter matters."""
    torch.manual_seed(3)
    model = MViT(MViTConfig(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def image_card(model):
    return {
        "architecture": model.config.to_dict(),
        "model": "mvitv2_micro",
        "task": "image",
        "classes": ["ant", "bee", "cat"],
        "preprocessing": IMAGE_PIXELS,
        "licence": "Apache-2.0",
        "score": {"name": "top1", "value": 91.5, "epoch": 4},
        "data": "/somewhere/else/insects",
        "multilabel": False,
    }


def clip_card(model):
    return {
        "architecture": model.config.to_dict(),
        "model": "mvitv2_micro_8x2",
        "task": "video",
        "classes": ["left", "right"],
        "preprocessing": CLIP_PIXELS,
    }
