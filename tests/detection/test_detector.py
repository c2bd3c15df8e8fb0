"""The assembly: one forward for training and evaluation, any picture sizes, necks of the paper's comparisons."""

import pytest
import torch

from detection.small import BACKBONE, CASCADE, detector, pictures, target
from openmvit.config import MViTConfig
from openmvit.errors import UserError
from openmvit.model import FeatureMaps
from openmvit.nn.fast import precision

SIZES = ((50, 70), (64, 40))
KINDS = {
    "mask_rcnn": {},
    "cascade": CASCADE | {"head_norm": "bn"},
    "cascade_ln": CASCADE | {"head_norm": "ln", "neck_norm": "ln", "square_pad": 96},
}


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_forward_is_the_same_in_train_and_eval(fields, training):
    model = detector(**fields).train(training)
    images = pictures(*SIZES)
    alone = model(images)
    found, losses = model(images, [target(s) for s in SIZES])
    assert len(alone) == len(found) == 2
    for one, size in zip(found, SIZES, strict=True):
        assert one.size == size
        assert one.boxes.shape == (len(one), 4)
        assert 0 < len(one) <= 7
        assert one.masks().shape == (len(one), *size)
        assert not one.boxes.requires_grad
        assert (one.boxes[:, 2] <= size[1]).all()
        assert (one.boxes[:, 3] <= size[0]).all()
    stages = ["loss_cls", "loss_box_reg"]
    if fields:
        stages = [f"{name}_stage{i}" for name in stages for i in range(3)]
    assert losses.keys() == {"loss_rpn_cls", "loss_rpn_loc", "loss_mask", *stages}
    empty, again = model(images, [target(s) for s in SIZES], detect=False)
    assert empty == []
    assert again.keys() == losses.keys()


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("counts", [(2, 1), (0, 2), (0, 0)], ids=str)
def test_every_parameter_gets_a_gradient(fields, counts):
    model = detector(**fields).train()
    targets = [target(size, n, polygons=n == 1) for size, n in zip(SIZES, counts, strict=True)]
    _, losses = model(pictures(*SIZES), targets, detect=False)
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_a_search_leaves_no_trace_in_batch_statistics():
    model = detector(**KINDS["cascade"]).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(pictures(*SIZES))
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(m.training for m in model.modules())


def test_output_sizes_scale_boxes_and_masks():
    model, images = detector(), pictures(*SIZES)
    own = model(images)
    larger = model(images, output_sizes=[(100, 140), (128, 120)])
    assert [d.size for d in larger] == [(100, 140), (128, 120)]
    torch.testing.assert_close(larger[0].boxes, own[0].boxes * 2)
    torch.testing.assert_close(larger[1].boxes, own[1].boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))
    assert larger[0].masks().shape[1:] == (100, 140)


def test_padding_changes_what_neighbours_see_unless_it_is_square():
    first, second = pictures((40, 40), (64, 96))
    for square, same in ((0, False), (96, True)):
        model = detector(square_pad=square)
        maps, sizes = model.features([first])
        beside, _ = model.features([first, second])
        crop = [x[:1, :, : y.shape[2], : y.shape[3]] for x, y in zip(beside, maps, strict=True)]
        equal = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, crop, strict=True))
        assert equal is same
        assert sizes == [(40, 40)]


@torch.no_grad()
def test_boxes_stay_float32_under_autocast(monkeypatch):
    monkeypatch.setattr(precision, "BF16_IS_FAST", True)
    model = detector(**KINDS["cascade"]).train()
    with torch.autocast("cpu", torch.bfloat16):
        found, losses = model(pictures(*SIZES), [target(s) for s in SIZES])
    assert {d.boxes.dtype for d in found} == {d.scores.dtype for d in found} == {torch.float32}
    assert {value.dtype for value in losses.values()} == {torch.float32}


def test_gradient_checkpointing_changes_no_loss():
    sums = []
    for recompute in (False, True):
        model = detector().train()
        model.set_grad_checkpointing(recompute)
        torch.manual_seed(3)
        _, losses = model(pictures(*SIZES), [target(s) for s in SIZES], detect=False)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        sums.append((total.detach(), torch.stack([g.norm() for g in grads]).sum()))
    torch.testing.assert_close(sums[0], sums[1])


@pytest.mark.parametrize("fields", [{}, CASCADE], ids=["mask_rcnn", "cascade"])
def test_other_classes_start_with_fresh_predictors_alone(fields):
    model = detector(**fields)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(5)
    after = model.state_dict()
    changed = {k for k in after if k not in before or before[k].shape != after[k].shape}
    assert all(k.startswith(("roi_heads.box_predictors.", "roi_heads.mask_predictor.")) for k in changed)
    kept = [k for k in before if not k.startswith(("roi_heads.box_predictors.", "roi_heads.mask_predictor."))]
    assert all(torch.equal(before[k], after[k]) for k in kept)
    assert model.config.num_classes == 5
    assert all(d.labels.max() < 5 for d in model(pictures(*SIZES)) if len(d))
    # Every classifier parameter, and none of the rest, belongs to the predictors.
    own = {id(p) for p in model.classifier_parameters()}
    assert {n for n, p in model.named_parameters() if id(p) in own} == {
        k for k in after if k.startswith(("roi_heads.box_predictors.", "roi_heads.mask_predictor."))
    }


def test_layer_numbers_for_decay_and_freezing():
    model = detector()
    ids = {name: model.layer_id(name) for name, _ in model.named_parameters()}
    assert ids["backbone.model.patch_embed.proj.weight"] == 0
    assert ids["backbone.model.blocks.5.norm1.weight"] == 6
    rest = {n for n in ids if not n.startswith("backbone.model.")}
    assert {ids[n] for n in rest} == {7}


@pytest.mark.parametrize("neck", ["last", "simple"])
def test_single_scale_and_plain_backbones(neck):
    plain = MViTConfig(
        input_size=(64, 64), depths=(2,), embed_dim=16, num_heads=2, patch_kernel=(16, 16), patch_stride=(16, 16),
        patch_padding=(0, 0), kernel_qkv=(1, 1), adaptive_kv_stride=None, residual_pooling=False, num_classes=0,
        relative_position="none", absolute_position="joint", full_q_pooling=False,
    )  # fmt: skip
    backbone = plain if neck == "simple" else BACKBONE
    channels = 8 if neck == "simple" else BACKBONE.num_features
    model = detector(backbone=backbone, neck=neck, channels=channels).train()
    assert model.config.strides == ((4, 8, 16, 32, 64) if neck == "simple" else (32,))
    maps, _ = model.features(pictures((60, 90)))
    wide = [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert [x.shape[2:] for x in maps] == ([*wide, (1, 2)] if neck == "simple" else [(2, 3)])
    assert {x.shape[1] for x in maps} == {channels}
    found, losses = model(pictures((60, 90)), [target((60, 90))])
    assert len(found[0]) > 0
    torch.stack(list(losses.values())).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_backbone_alone_gives_maps_at_any_size():
    model = detector()
    assert isinstance(model.backbone, FeatureMaps)
    maps = model.backbone(torch.randn(1, 3, 45, 77))
    assert [x.shape[1:] for x in maps] == [(8, 12, 20), (16, 6, 10), (32, 3, 5), (64, 2, 3)]


@pytest.mark.parametrize(
    ("images", "targets", "words"),
    [
        ([], None, "no picture"),
        (torch.zeros(1, 3, 32, 32), None, "got a tensor"),
        ([torch.zeros(1, 32, 32)], None, "shape [1, 32, 32]"),
        ([torch.zeros(3, 32, 32)], [], "1 pictures came with 0 targets"),
    ],
)
def test_bad_input_is_named(images, targets, words):
    with pytest.raises(UserError) as caught:
        detector()(images, targets)
    assert words in str(caught.value)


def test_a_picture_larger_than_the_square_is_refused():
    with pytest.raises(UserError, match="does not fit the square of 96"):
        detector(square_pad=96)(pictures((64, 100)))
