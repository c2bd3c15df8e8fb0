"""Every form of the network is exported: positions, class token, windows, streams, pools."""

from math import prod

import pytest
import torch

from clipcolours import TINY as CLIP
from openmvit.config import MViTConfig
from openmvit.export import classifiers
from openmvit.export.classifiers import common_stride, plan_classifier
from openmvit.export.formats import open_file
from openmvit.export.plan import worst_difference
from openmvit.export.run import write
from openmvit.model import MViT

pytestmark = pytest.mark.slow
IMAGE = {"input_size": (32, 32), "depths": (1, 1), "embed_dim": 16, "adaptive_kv_stride": (2, 2), "num_classes": 3}
FIRST = {"cls_token": True, "relative_position": "none", "residual_pooling": False, "dim_mul_in_attention": False}
OPEN = "height and width multiples of 8"
FORMS = {
    "v1": (IMAGE | FIRST | {"absolute_position": "joint"}, OPEN),
    "v2 clip": (CLIP | {"cls_token": True}, OPEN),
    "v1 clip": (CLIP | FIRST | {"absolute_position": "separable"}, OPEN),
    "sincos clip": (CLIP | {"absolute_position": "sincos", "embed_dim": 32, "relative_position": "none"}, OPEN),
    "joint table": (IMAGE | {"relative_position": "joint"}, OPEN),
    "terms of keys and values": (IMAGE | {"relative_terms": "qkv"}, OPEN),
    "windows": (IMAGE | {"window": (4, 4), "window_pattern": "hybrid"}, OPEN),
    "shifted windows": (
        IMAGE | {"window": (4, 4), "window_pattern": "shifted", "depths": (2, 2)},
        "40 x 40 (its windows",
    ),
    "two streams": (IMAGE | {"reversible": "mlp", "depths": (2, 2)}, OPEN),
    "max pools": (IMAGE | {"pool_mode": "max"}, OPEN),
    "other strides": (IMAGE | {"adaptive_kv_stride": None, "stride_kv": ((3, 3), (1, 1))}, "40 is no multiple of 24"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_form_agrees_at_four_sizes(form, kind, tmp_path):
    fields, note = FORMS[form]
    torch.manual_seed(0)
    model = MViT(MViTConfig(**fields))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)  # the published start leaves positions next to nothing
    preprocessing = {"imgsz": 40} | ({"num_frames": 4} if model.config.ndim == 3 else {})
    path = tmp_path / ("a.onnx" if kind == "onnx" else "a.pt2")
    done = write(plan_classifier(model, {"preprocessing": preprocessing}, None, False, kind), kind, path)
    if (form, kind) == ("windows", "torch"):
        note = "40 x 40 (windows stay open in an ONNX file alone)"
    assert note in done.note and done.worst < 1e-5 and done.sizes == 4
    if note == OPEN:
        least = 8 if kind == "onnx" else 16
        assert done.note.endswith(f"{OPEN} from {least}")
        run, axes = open_file(path, kind), model.config.ndim - 2
        for size in ((1, 3, *[4] * axes, least, least), (2, 3, *[4] * axes, 1040, 48)):
            x = torch.randn(size)
            with torch.no_grad():
                assert worst_difference([model(x)], run((x,))) < 1e-5


def test_a_side_that_a_program_of_torch_does_not_leave_open_is_fixed(tmp_path):
    model, card = MViT(MViTConfig(**IMAGE)), {"preprocessing": {"imgsz": 8}}
    assert plan_classifier(model, card, None, False).note.endswith(f"{OPEN} from 8")
    plan = plan_classifier(model, card, None, False, "torch")
    assert plan.note == "batch open, 8 x 8 (less than 16)"
    assert write(plan, "torch", tmp_path / "a.pt2").worst < 1e-5


def test_clips_whose_scores_fill_the_memory_are_compared_in_smaller_batches(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, card = MViT(MViTConfig(**CLIP)), {"preprocessing": {"imgsz": 36, "num_frames": 4}}
    blocks = model.config.replace(input_size=(4, 36, 36)).blocks()
    scores = max(block.num_heads * prod(block.q_grid) * prod(block.kv_grid) for block in blocks)
    plans = []
    for samples in (4, 3, 1, 0):
        monkeypatch.setattr(classifiers, "_MOST_SCORES", scores * samples)
        plans.append(plan_classifier(model, card, None, False))
        assert all(x.shape[1:] == (3, 4, 36, 36) for (x,) in plans[-1].probes)
    assert [[len(x) for (x,) in plan.probes] for plan in plans] == [[1, 2, 3, 4], [1, 2, 1], [1, 1, 1], [1, 1, 1]]
    assert ["compared at 1" in plan.note for plan in plans] == [False, False, True, True]
    first, _, last = (x for (x,) in plans[1].probes)
    assert not torch.equal(first, last)
    done = write(plans[2], "onnx", tmp_path / "a.onnx")
    assert done.sizes == 3 and done.worst < 1e-5


def test_of_the_published_networks_one_fills_the_memory():
    from openmvit.architectures import ARCHITECTURES, model_config

    sizes = {name: model_config(name).input_size for name in ARCHITECTURES}
    probes = {name: classifiers._fixed_sizes(model_config(name), size[:-2], size[-1]) for name, size in sizes.items()}
    assert {name for name, own in probes.items() if len(own) != 4} == {"mvitv2_large_40x3"}


def test_the_stride_of_published_networks_is_32():
    from openmvit.architectures import ARCHITECTURES, model_config

    strides = {name: common_stride(model_config(name)) for name in ARCHITECTURES}
    assert {name for name, stride in strides.items() if stride != 32} == {"mvitv2_micro", "mvitv2_micro_8x2"}
