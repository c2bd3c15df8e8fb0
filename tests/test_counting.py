"""Parameters and operations: against fvcore, against the calls of the network itself, and against the tables."""

import math

import pytest
import torch

from openmvit.architectures import ARCHITECTURES, DETECTORS, model_config
from openmvit.counting import count_calls, count_classifier, count_detector
from openmvit.detection.config import DetectorConfig
from openmvit.errors import UserError
from openmvit.model import FeatureMaps, MViT
from openmvit.nn.fast import choose

ATTENTION, MLP = {"dim_mul_in_attention": True}, {"dim_mul_in_attention": False}
TOKEN = {"cls_token": True, "num_classes": 1000}
CLIP_MLP = MLP | {"num_classes": 400}

# Millions of parameters, billions of operations with and without norms.
IMAGES = {
    "T": ("mvitv2_tiny", {}, 24.173, 4.704, 4.677),
    "S": ("mvitv2_small", {}, 34.870, 6.998, 6.960),
    "S, stride 8": ("mvitv2_small", {"adaptive_kv_stride": (8, 8)}, 34.865, 6.329, 6.300),
    "B": ("mvitv2_base", {}, 51.473, 10.159, 10.102),
    "B 384": ("mvitv2_base", {"img_size": 384}, 51.599, 36.685, 36.520),
    "L in MLP": ("mvitv2_large", {}, 217.993, 43.869, 43.711),
    "L in MLP 384": ("mvitv2_large", {"img_size": 384}, 218.164, 145.930, 145.465),
    "L": ("mvitv2_large", ATTENTION, 213.635, 41.914, 41.760),
    "L 384": ("mvitv2_large", ATTENTION | {"img_size": 384}, 213.807, 140.185, 139.732),
    "L token": ("mvitv2_large", ATTENTION | TOKEN, 213.636, 42.151, 41.996),
    "L token 384": ("mvitv2_large", ATTENTION | TOKEN | {"img_size": 384}, 213.807, 140.468, 140.014),
    "L, stride 8": ("mvitv2_large", ATTENTION | {"adaptive_kv_stride": (8, 8)}, 213.631, 39.559, 39.443),
    "H": ("mvitv2_huge_cls", TOKEN, 666.880, 120.639, 120.305),
    "H 384": ("mvitv2_huge_cls", TOKEN | {"img_size": 384}, 667.130, 388.517, 387.538),
    "H 512": ("mvitv2_huge_cls", TOKEN | {"img_size": 512}, 667.329, 763.539, 761.800),
    "B 21k": ("mvitv2_base_cls", {}, 65.444, 10.232, 10.175),
    "L 21k": ("mvitv2_large_cls", {}, 234.583, 42.172, 42.017),
    "H 21k": ("mvitv2_huge_cls", {}, 694.804, 120.667, 120.333),
    "v1 16": ("mvitv1_base_16", {}, 36.983, 7.844, 7.809),
    "v1 24": ("mvitv1_base_24", {}, 53.516, 10.988, 10.940),
}
CLIPS = {
    "S 400": ("mvitv2_small_16x4", {}, 34.538, 64.457, 64.224),
    "S 174": ("mvitv2_small_16x4", {"num_classes": 174}, 34.364, 64.457, 64.224),
    "S 80": ("mvitv2_small_16x4", {"num_classes": 80, "global_pool": "avg"}, 34.292, 64.457, 64.224),
    "B 400": ("mvitv2_base_32x3", {}, 51.230, 225.170, 224.473),
    "B 600": ("mvitv2_base_32x3", {"num_classes": 600}, 51.384, 225.170, 224.473),
    "B 700": ("mvitv2_base_32x3", {"num_classes": 700}, 51.461, 225.170, 224.473),
    "B 174": ("mvitv2_base_32x3", {"num_classes": 174}, 51.056, 225.170, 224.473),
    "B 80": ("mvitv2_base_32x3", {"num_classes": 80, "global_pool": "avg"}, 50.984, 225.170, 224.473),
    "L 16 in MLP": ("mvitv2_large_16x4", MLP, 217.578, 377.789, 376.822),
    "L 16": ("mvitv2_large_16x4", {}, 213.220, 362.147, 361.211),
    "L 40 in MLP": ("mvitv2_large_40x3", MLP | {"img_size": 224}, 217.661, 1127.608, 1125.191),
    "L 40": ("mvitv2_large_40x3", {"img_size": 224}, 213.303, 1088.508, 1086.170),
    "L 40 312": ("mvitv2_large_40x3", {}, 213.390, 2828.101, 2823.404),
    "L 40 312 600": ("mvitv2_large_40x3", {"num_classes": 600}, 213.621, 2828.101, 2823.404),
    "L 40 312 700": ("mvitv2_large_40x3", {"num_classes": 700}, 213.736, 2828.102, 2823.404),
    "L 40 312 174": ("mvitv2_large_40x3", {"num_classes": 174}, 213.130, 2828.101, 2823.404),
    "L 40 312 80": ("mvitv2_large_40x3", {"num_classes": 80, "global_pool": "avg"}, 213.021, 2828.101, 2823.404),
    "L 32 312 600": ("mvitv2_large_40x3", {"num_frames": 32, "num_classes": 600}, 213.593, 2063.454, 2059.696),
    "L 40 352 600": ("mvitv2_large_40x3", {"img_size": 352, "num_classes": 600}, 213.669, 3790.349, 3784.577),
    "v1 16": ("mvitv1_base_16x4", {}, 36.611, 70.804, 70.599),
    "v1 32": ("mvitv1_base_32x3", {}, 36.611, 170.367, 169.958),
    "v1 64": ("mvitv1_base_16x4", {"num_frames": 64}, 36.613, 455.879, 455.062),
    "v1 24 32": ("mvitv1_base24_32x3", {"kernel_qkv": (3, 3, 3)}, 53.173, 236.811, 236.240),
}
# Backbone, then the whole detector with one box head and with three.
DETECTION = {
    "tiny": (23.41, 107.24, 43.68, 278.7, 75.85, 700.6),
    "small": (34.10, 154.74, 54.38, 326.2, 86.54, 748.1),
    "base": (50.71, 220.50, 70.98, 391.9, 103.15, 813.8),
    "large": (212.48, 879.62, 232.94, 1052.5, 265.11, 1474.4),
    "large in MLP": (216.84, 919.60, 237.56, 1096.6, 269.73, 1518.5),
    "huge": (665.35, 2487.99, 685.99, 2662.4, 718.16, 3084.3),
}


@pytest.mark.parametrize("row", [*IMAGES, *(f"clip {name}" for name in CLIPS)])
def test_classifiers_cost_what_the_tables_say(row):
    name, changes, parameters, operations, without = CLIPS[row[5:]] if row.startswith("clip ") else IMAGES[row]
    total = count_classifier(model_config(name, **changes)).total
    assert round(total.parameters / 1e6, 3) == parameters
    assert total.operations / 1e9 == pytest.approx(operations, rel=1e-4)
    assert total.without_norms / 1e9 == pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("row", DETECTION)
def test_detectors_cost_what_the_tables_say(row):
    size, _, form = row.partition(" ")
    found = []
    for stages in (1, 3):
        fields = DETECTORS[f"cascade_mask_rcnn_mvitv2_{size}"]
        config = DetectorConfig.from_dict(fields if stages == 3 else {"backbone": fields["backbone"]})
        if form:
            config = config.replace(backbone=config.backbone.replace(dim_mul_in_attention=False))
        count = count_detector(config)
        trunk = [cost for part, cost in count.parts.items() if part.isdigit() or part in ("stem", "norms")]
        if stages == 1:
            found += [sum(c.parameters for c in trunk) / 1e6, sum(c.operations for c in trunk) / 1e9]
        found += [count.total.parameters / 1e6, count.total.operations / 1e9]
    assert found == pytest.approx(DETECTION[row], rel=2e-4)


def test_the_shares_of_the_heads():
    shares = {"neck": 53.1, "proposals": 50.6, "box heads": 14.3, "mask head": 53.0, "pasting": 0.41}
    cascade = {"proposals": 100.9, "box heads": 385.9}
    for name, wanted in (("mask_rcnn_mvitv2_small", shares), ("cascade_mask_rcnn_mvitv2_small", cascade)):
        parts = count_detector(DetectorConfig.from_dict(DETECTORS[name])).parts
        assert {part: parts[part].operations / 1e9 for part in wanted} == pytest.approx(wanted, rel=1e-3)


def products_of_a_fused_call(inputs, outputs):
    """fvcore leaves fused attention out."""
    query, key, value = (one.type().sizes() for one in inputs[:3])
    rows = query[0] * query[1] * query[2] * key[2]
    return rows * (query[3] + value[3])


def elements_of_a_norm(inputs, outputs):
    """As fvcore counts them; its own rule refuses more than five axes, and clips have six."""
    return 5 * math.prod(inputs[0].type().sizes())


def by_fvcore(make, size):
    """Operations and parameters of a network of zeros for one input."""
    nn = pytest.importorskip("fvcore.nn", reason="the comparison is with fvcore")
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    analysis = nn.FlopCountAnalysis(model, torch.zeros(1, 3, *size))
    analysis.set_op_handle("aten::scaled_dot_product_attention", products_of_a_fused_call)
    analysis.set_op_handle("aten::layer_norm", elements_of_a_norm)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total(), nn.parameter_count(model)[""]


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name", ["mvitv2_tiny", "mvitv2_small", slow("mvitv2_base"), slow("mvitv2_large"), slow("mvitv2_small_16x4")]
)
def test_equal_to_fvcore_on_the_default_models(name, monkeypatch):
    # Large maps go through a form with more channels, which is ours; the count is that of the plain one.
    monkeypatch.setattr(choose, "MOST_SCORES", 2**62)
    config = model_config(name)
    # A trace drops what nobody reads: of the last block all but the class token, where the head reads that alone.
    config = config.replace(cls_token=False)
    operations, parameters = by_fvcore(lambda: MViT(config), config.input_size)
    # It reads the costs of einsum off a text with four digits.
    assert count_classifier(config).total.operations == pytest.approx(operations, rel=1e-6)
    assert count_classifier(config).total.parameters == parameters


@pytest.mark.slow
def test_equal_to_fvcore_on_the_backbone_of_a_detector(monkeypatch):
    monkeypatch.setattr(choose, "MOST_SCORES", 2**62)
    config = DetectorConfig.from_dict(DETECTORS["mask_rcnn_mvitv2_tiny"])
    found = by_fvcore(lambda: FeatureMaps(MViT(config.backbone), stage_norms=True), (800, 1280))
    trunk = [c for part, c in count_detector(config).parts.items() if part.isdigit() or part in ("stem", "norms")]
    assert sum(cost.operations for cost in trunk) == pytest.approx(found[0], rel=1e-6)
    assert sum(cost.parameters for cost in trunk) == found[1]


def calls_of(config, size=None):
    size = config.input_size if size is None else size
    with torch.device("meta"):
        model = MViT(config)
        return count_calls(model, torch.empty(1, config.in_chans, *size))


def kinds(cost):
    """Both kinds of matrix product as one: operators do not say what they are for."""
    found = dict(cost.by_kind)
    found["attention"] = found.get("attention", 0) + found.pop("position", 0)
    return {kind: count for kind, count in found.items() if count}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_arithmetic_on_records_is_what_the_network_calls(name):
    config = model_config(name)
    # Small, and not a multiple of the strides: pools round up. Blocks of a stage differ in the first and last only.
    depths = tuple(min(depth, 2) for depth in config.depths)
    config = config.replace(input_size=(*(6,) * (config.ndim - 2), 76, 100), depths=depths)
    counted, called = count_classifier(config).total, calls_of(config)
    assert kinds(counted) == kinds(called)
    assert counted.parameters == called.parameters


CHANGES = {
    "windows": {"window": (56, 56)},
    "windows with padding": {"window": (24, 24)},
    "windows, some global": {"window": (56, 56), "window_pattern": "hybrid", "global_kv_stride_factor": 2},
    "shifted windows": {"window": (28, 28), "window_pattern": "shifted"},
    "joint tables": {"relative_position": "joint"},
    "terms on keys": {"relative_terms": "k"},
    "terms on queries, keys and values, joint": {"relative_terms": "qkv", "relative_position": "joint"},
    "pool first": {"pool_first": True, "separate_qkv": True},
    "filters not shared": {"pool_first": True, "separate_qkv": True, "pool_mode": "conv_unshared"},
    "max pools": {"pool_mode": "max"},
    "no relative position": {"relative_position": "none", "absolute_position": "joint"},
    "no pools at stride one": {"pool_kv_at_stride_one": False, "full_q_pooling": False, "kernel_qkv": None},
    "norm of the stem": {"norm_stem": True, "cls_token": True},
    "norm after the pool": {"norm_after_pool": True},
    "two streams": {"reversible": "mean"},
    "two streams joined by an MLP": {"reversible": "mlp"},
    "narrow MLP": {"mlp_ratio": 1.5, "qkv_bias": False, "layer_scale": 0.1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_option_is_in_the_arithmetic(change):
    config = model_config("mvitv2_tiny", **CHANGES[change])
    counted, called = count_classifier(config).total, calls_of(config)
    assert kinds(counted) == kinds(called)
    assert counted.parameters == called.parameters


@pytest.mark.parametrize("form", ["time", "space", "joint_space", "joint"])
def test_positions_of_clips_are_in_the_arithmetic(form):
    config = model_config("mvitv2_small_16x4", num_frames=6, img_size=64, relative_position=form)
    counted, called = count_classifier(config).total, calls_of(config)
    assert kinds(counted) == kinds(called)
    assert counted.parameters == called.parameters


def test_another_input_size_costs_more_but_has_the_same_parameters():
    config = model_config("mvitv2_tiny")
    counted = count_classifier(config, (224, 256)).total
    assert kinds(counted) == kinds(calls_of(config, (224, 256)))
    assert counted.parameters == count_classifier(config).total.parameters


def test_a_backbone_costs_what_its_calls_cost():
    config = DetectorConfig.from_dict(DETECTORS["mask_rcnn_mvitv2_tiny"])
    parts = count_detector(config, (200, 300)).parts
    with torch.device("meta"):
        backbone = FeatureMaps(MViT(config.backbone), stage_norms=True)
        called = count_calls(backbone, torch.empty(1, 3, 224, 320))
    own = [cost for name, cost in parts.items() if name.isdigit() or name in ("stem", "norms")]
    assert sum(c.operations for c in own) == called.operations
    assert sum(c.parameters for c in own) == called.parameters
    assert parts["pasting"].operations == 4 * 100 * 200 * 300


def test_a_size_that_is_too_small_says_so():
    with pytest.raises(UserError, match="smaller than patch_stride"):
        count_classifier(model_config("mvitv2_tiny"), (2, 2))
    with pytest.raises(UserError, match="differ in length"):
        count_classifier(model_config("mvitv2_tiny"), (8, 224, 224))


def test_operators_and_their_costs():
    x = torch.empty(2, 6, 8, 8, device="meta")
    cases = [
        (torch.nn.Conv2d(6, 4, 3, padding=1, groups=2), "conv", 2 * 64 * 4 * 3 * 9),
        (torch.nn.ConvTranspose2d(6, 4, 2, 2), "conv", 2 * 64 * 6 * 4 * 4),
        (torch.nn.GroupNorm(2, 6), "norm", 5 * x.numel()),
        (torch.nn.GroupNorm(2, 6, affine=False), "norm", 4 * x.numel()),
        (torch.nn.LayerNorm(8, elementwise_affine=False), "norm", 4 * x.numel()),
        (torch.nn.BatchNorm2d(6), "norm", 2 * x.numel()),
        (torch.nn.Upsample(scale_factor=2), "resample", 4 * x.numel()),
        (torch.nn.Upsample(scale_factor=2, mode="bilinear"), "resample", 16 * x.numel()),
        (torch.nn.Linear(8, 5), "linear", 2 * 6 * 8 * 8 * 5),
        (torch.nn.Linear(8, 5, bias=False), "linear", 2 * 6 * 8 * 8 * 5),
    ]
    for module, kind, wanted in cases:
        found = count_calls(module.to("meta"), x)
        assert found.by_kind == {kind: wanted}, module
