"""The models of transformers: the same numbers as the networks they wrap, under transformers' names."""

import pytest
import torch
from hubfiles import CLIP, IMAGE, network
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
)

import openmvit.hub as hub
from openmvit import UserError
from openmvit.checkpoint import read_model
from openmvit.hub.recording import recorded
from openmvit.nn import ops
from openmvit.nn.fast import choose


@pytest.fixture
def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def test_image_logits_equal_the_networks(image_file, image_folder, pictures):
    model = AutoModelForImageClassification.from_pretrained(image_folder)
    native, _ = read_model(image_file)
    assert type(model) is hub.MViTV2ForImageClassification
    assert not model.training
    assert torch.equal(model(pictures).logits, native(pictures))


def test_clip_logits_equal_the_networks_by_either_name(clip_file, clip_folder):
    model = AutoModelForVideoClassification.from_pretrained(clip_folder)
    native, _ = read_model(clip_file)
    clips = torch.randn(2, 4, 3, 32, 32)  # [B, T, C, H, W]
    expected = native(clips.movedim(1, 2))
    assert torch.equal(model(pixel_values_videos=clips).logits, expected)
    assert torch.equal(model(pixel_values=clips).logits, expected)


def test_wrong_inputs_are_named(clip_folder):
    model = AutoModelForVideoClassification.from_pretrained(clip_folder)
    with pytest.raises(UserError, match=r"Give pixel_values_videos \[B, T, 3, H, W\]"):
        model(torch.randn(1, 3, 4, 32, 32))
    with pytest.raises(UserError, match="got 0 inputs"):
        model()
    with pytest.raises(UserError, match="Take MViTV2ForVideoClassification"):
        AutoModelForImageClassification.from_pretrained(clip_folder)


def test_features_are_what_the_classifier_reads(image_file, image_folder, pictures):
    out = AutoModel.from_pretrained(image_folder)(pictures)
    native, _ = read_model(image_file)
    assert out.last_hidden_state.shape == (2, 16, 32)
    assert torch.equal(native.head(out.pooler_output), native(pictures))
    assert torch.allclose(out.last_hidden_state.mean(1), out.pooler_output, atol=1e-6)


def test_hidden_states_and_attentions_change_no_bit_of_the_logits(clip_file, clip_folder):
    model = AutoModelForVideoClassification.from_pretrained(clip_folder)
    native, _ = read_model(clip_file)
    clips = torch.randn(1, 4, 3, 32, 32)
    out = model(clips, output_hidden_states=True, output_attentions=True)
    assert torch.equal(out.logits, native(clips.movedim(1, 2)))
    # 2 x 8 x 8 tokens and a class token; K and V pooled 4 x 4, then 2 x 2.
    assert [tuple(h.shape) for h in out.hidden_states] == [(1, 129, 16)] * 2 + [(1, 33, 32)] * 2
    assert [tuple(a.shape) for a in out.attentions] == [(1, 1, 129, 9), (1, 2, 33, 33), (1, 2, 33, 9)]
    plain = model(clips)
    assert plain.hidden_states is None
    assert plain.attentions is None
    as_tuple = model(clips, output_hidden_states=True, return_dict=False)
    assert torch.equal(as_tuple[0], out.logits)
    assert torch.equal(as_tuple[1][2], out.hidden_states[2])


VARIANTS = {
    "plain": IMAGE,
    "class token": CLIP,
    "windows": IMAGE | {"window": (4, 4), "window_pattern": "hybrid", "adaptive_kv_stride": (2, 2)},
    "shifted": IMAGE | {"window": (4, 4), "window_pattern": "shifted", "adaptive_kv_stride": (2, 2)},
    "terms on values": IMAGE | {"relative_terms": "qkv"},
    "no positions": IMAGE | {"relative_position": "none", "residual_pooling": False},
}


@pytest.mark.parametrize("channels", [False, True], ids=["written out", "in channels"])
@pytest.mark.parametrize("name", VARIANTS)
def test_attentions_times_values_are_the_output(name, channels, monkeypatch):
    """The weights that are given are those the block has used, in every form that attention has."""
    if channels:
        monkeypatch.setattr(choose, "MOST_SCORES", 0)
    model = network(**VARIANTS[name])
    part, seen = model.blocks[1].attn, []
    part.register_forward_hook(lambda m, inputs, out: seen.append((inputs, out)))
    x = torch.randn(2, 3, *model.config.input_size)
    with torch.no_grad(), recorded(model, attentions=True) as kept:
        model(x)
    weights, ((tokens, *cls), out) = kept.attentions[1], seen[0]
    assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    if name in ("terms on values", "windows", "shifted"):
        if name != "terms on values":
            assert weights.shape == (2 * 4, 2, 4, 16)  # 4 windows of 2 x 2 queries and 4 x 4 keys
            assert (weights == 0).any() == (name == "shifted")
        return
    cls = cls[0] if cls else None
    (q, q_cls), (k, k_cls), (v, v_cls) = map(part.pool, "qkv", ops.project([part.qkv], tokens, cls))
    rows = [t.flatten(1, -3) for t in (q, k, v)]
    if cls is not None:
        rows = [torch.cat(pair, 1) for pair in zip((q_cls, k_cls, v_cls), rows, strict=True)]
    own = torch.einsum("bhqk,bkhc->bqhc", weights, rows[2])
    first = 0 if cls is None else 1
    if part.config.residual_pooling:
        own[:, first:] += rows[0][:, first:]
    expected = out[0].flatten(1, -2) if cls is None else torch.cat([out[1], out[0].flatten(1, -2)], 1)
    assert torch.allclose(part.proj(own.flatten(-2)), expected, atol=1e-5)


def test_attentions_equal_timms():
    """timm writes its attention out: its softmax outputs are an oracle."""
    timm = pytest.importorskip("timm")
    from openmvit import create_model
    from openmvit.convert import to_native

    class Softmaxes(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.kept = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.Tensor.softmax:
                self.kept.append(out)
            return out

    torch.manual_seed(0)
    theirs = timm.create_model("mvitv2_tiny", img_size=64, num_classes=2).eval()
    ours = create_model("mvitv2_tiny", img_size=64, num_classes=2).eval()
    ours.load_state_dict(to_native("timm", ours.config, theirs.state_dict()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), Softmaxes() as expected:
        theirs(x)
    with torch.no_grad():
        found = hub.wrap(ours, {})(x, output_attentions=True).attentions
    assert len(found) == len(expected.kept) == 10
    for own, other in zip(found, expected.kept, strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_reversible_networks_give_a_state_per_stage():
    model = network(**IMAGE, reversible="mean", dim_mul_in_attention=True)
    wrapped = hub.wrap(model, {})
    x = torch.randn(1, 3, 32, 32)
    out = wrapped(x, output_hidden_states=True, output_attentions=True)
    assert torch.equal(out.logits, model(x))
    assert [h.shape[1] for h in out.hidden_states] == [64, 64, 16]
    assert len(out.attentions) == 3


@pytest.mark.parametrize(
    ("labels", "count", "kind", "expected"),
    [
        (torch.tensor([0, 2]), 3, "single_label_classification", torch.nn.functional.cross_entropy),
        (torch.eye(3)[:2], 3, "multi_label_classification", torch.nn.functional.binary_cross_entropy_with_logits),
        (torch.tensor([[0.5], [2.0]]), 1, "regression", torch.nn.functional.mse_loss),
    ],
)
def test_the_loss_follows_the_problem_type(labels, count, kind, expected, pictures):
    config = hub.MViTV2Config(**IMAGE | {"num_classes": count})
    model = hub.MViTV2ForImageClassification(config)
    out = model(pictures, labels=labels)
    assert config.problem_type == kind
    assert torch.equal(out.loss, expected(out.logits, labels))
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_gradient_checkpointing_computes_the_same_gradients(pictures):
    model = hub.MViTV2ForImageClassification(hub.MViTV2Config(**IMAGE, drop_path_rate=0.0)).train()
    gradients = []
    for on in (False, True):
        if on:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing is on
        assert model.mvitv2.grad_checkpointing is on
        model.zero_grad()
        out = model(pictures, labels=torch.tensor([0, 1]), output_hidden_states=True, output_attentions=True)
        (out.loss + out.hidden_states[1].sum() + out.attentions[1].square().sum()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)
    model.gradient_checkpointing_disable()
    assert not model.mvitv2.grad_checkpointing


def test_another_number_of_labels_starts_the_classifier_alone_anew(image_folder, pictures):
    model, report = hub.MViTV2ForImageClassification.from_pretrained(
        image_folder, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key for key, *_ in report["mismatched_keys"]} == {
        "mvitv2.head.projection.weight",
        "mvitv2.head.projection.bias",
    }
    old = hub.MViTV2ForImageClassification.from_pretrained(image_folder)
    for name, value in old.mvitv2.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(model.mvitv2.state_dict()[name], value), name
    weight = model.mvitv2.head.projection.weight
    assert 0.01 < weight.std() < 0.03  # the published rule, not what the memory held
    assert torch.equal(model.mvitv2.head.projection.bias, torch.zeros(7))
    assert model(pictures).logits.shape == (2, 7)


def test_fresh_networks_start_by_the_published_rule():
    torch.manual_seed(11)
    native = network_of(CLIP | {"init": "slowfast", "head_init_scale": 0.001})
    torch.manual_seed(11)
    config = hub.MViTV2Config(**CLIP, init="slowfast", head_init_scale=0.001)
    model = hub.MViTV2ForVideoClassification(config)
    for name, value in native.state_dict().items():
        assert torch.equal(model.mvitv2.state_dict()[name], value), name


def network_of(fields):
    from openmvit import MViT, MViTConfig

    return MViT(MViTConfig(**fields))


def test_backbone_gives_the_stages(image_file, image_folder, pictures):
    names = ["stem", "stage1", "stage2"]
    model = hub.MViTV2Backbone.from_pretrained(image_folder, out_features=names)
    native, _ = read_model(image_file)
    maps = model(pictures).feature_maps
    assert model.channels == [16, 16, 32]
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 8, 8), (16, 8, 8), (32, 4, 4)]
    for own, expected in zip(maps[1:], native.forward_features(pictures), strict=True):
        assert torch.equal(own, expected)
    fresh = AutoBackbone.from_config(AutoConfig.from_pretrained(image_folder, out_indices=[2]))
    assert fresh.out_features == ["stage2"]
    assert len(fresh(pictures).feature_maps) == 1


def test_a_saved_backbone_has_no_dead_parameters(tmp_path, pictures):
    model = hub.MViTV2Backbone(hub.MViTV2Config(**IMAGE, out_features=["stage2"]))
    model(pictures).feature_maps[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = hub.MViTV2Backbone.from_pretrained(tmp_path)
    assert torch.equal(again(pictures).feature_maps[0], model.eval()(pictures).feature_maps[0])
