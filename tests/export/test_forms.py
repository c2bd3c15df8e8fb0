"""Every form of the network is exported: positions, class token, windows, streams, pools."""

import pytest
import torch

from clipcolours import TINY as CLIP
from openmvit.config import MViTConfig
from openmvit.export.classifiers import common_stride, plan_classifier
from openmvit.export.run import write
from openmvit.model import MViT

pytestmark = pytest.mark.slow
IMAGE = {"input_size": (32, 32), "depths": (1, 1), "embed_dim": 16, "adaptive_kv_stride": (2, 2), "num_classes": 3}
FIRST = {"cls_token": True, "relative_position": "none", "residual_pooling": False, "dim_mul_in_attention": False}
OPEN = "height and width multiples of 8"
FORMS = {
    "v1": (IMAGE | FIRST | {"absolute_position": "joint"}, OPEN),
    "v1 clip": (CLIP | FIRST | {"absolute_position": "separable"}, OPEN),
    "sincos clip": (CLIP | {"absolute_position": "sincos", "embed_dim": 32, "relative_position": "none"}, OPEN),
    "joint table": (IMAGE | {"relative_position": "joint"}, OPEN),
    "terms of keys and values": (IMAGE | {"relative_terms": "qkv"}, OPEN),
    "windows": (IMAGE | {"window": (4, 4), "window_pattern": "hybrid"}, OPEN),
    "shifted windows": (
        IMAGE | {"window": (4, 4), "window_pattern": "shifted", "depths": (2, 2)},
        "32 x 32 (its windows",
    ),
    "two streams": (IMAGE | {"reversible": "mlp", "depths": (2, 2)}, OPEN),
    "max pools": (IMAGE | {"pool_mode": "max"}, OPEN),
    "other strides": (IMAGE | {"adaptive_kv_stride": None, "stride_kv": ((3, 3), (1, 1))}, "32 is no multiple of 24"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_agrees_at_four_sizes(form, tmp_path):
    fields, note = FORMS[form]
    torch.manual_seed(0)
    model = MViT(MViTConfig(**fields))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)  # the published start leaves positions next to nothing
    preprocessing = {"imgsz": 32} | ({"num_frames": 4} if model.config.ndim == 3 else {})
    done = write(plan_classifier(model, {"preprocessing": preprocessing}, None, False), "onnx", tmp_path / "a.onnx")
    assert note in done.note and done.worst < 1e-5


def test_the_stride_of_published_networks_is_32():
    from openmvit.architectures import ARCHITECTURES, model_config

    strides = {name: common_stride(model_config(name)) for name in ARCHITECTURES}
    assert {name for name, stride in strides.items() if stride != 32} == {"mvitv2_micro", "mvitv2_micro_8x2"}
