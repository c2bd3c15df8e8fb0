"""Other projects' weights, both ways: names and shapes of mmpretrain, the draft, MaskFeat and the rest."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from openmvit import MViT, UserError
from openmvit.architectures import model_config
from openmvit.convert import config_from, dropped_keys, from_native, to_native
from parity.golden import FOLDER, load


def recorded(name="image_v2_expand_in_attention", source="mvit"):
    """Configuration, weights under the authors' names, and the whole recorded file."""
    settings = json.loads((FOLDER / f"{name}.json").read_text())
    file = load_file(FOLDER / f"{name}.safetensors")
    state = {k.removeprefix("param/"): v for k, v in file.items() if k.startswith("param/")}
    return config_from(source, settings), state, file


def as_mmpretrain(state):
    """The authors' keys as mmpretrain writes them."""
    names = {"patch_embed.proj": "backbone.patch_embed.projection", "norm": "backbone.norm3"}
    out = {}
    for key, value in state.items():
        stem, leaf = key.rpartition(".")[::2]
        if stem.startswith("head."):
            out[f"head.fc.{leaf}"] = value
        else:
            out[f"{names[stem]}.{leaf}" if stem in names else f"backbone.{key}"] = value
    return out


_DRAFT = (
    (r"^patch_embed\.", "mvitv2.embeddings.patch_embeddings."),
    (r"^norm\.", "mvitv2.encoder.layer_norm."),
    (r"^head\.projection\.", "classifier."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"(\.blocks\.\d+)\.proj\.", r"\1.shortcut_project_feature_dim."),
    (r"\.attn\.", ".attention.attention."),
    (r"rel_pos_h", "relative_positional_embeddings_height"),
    (r"rel_pos_w", "relative_positional_embeddings_width"),
    *((rf"_{x}\.", f"_{word}.") for x, word in (("q", "query"), ("k", "key"), ("v", "value"))),
)


def as_draft(state, depths):
    """The authors' keys as the draft for transformers writes them."""
    places = [(s, b) for s, depth in enumerate(depths) for b in range(depth)]
    out = {}
    for key, value in state.items():
        if found := re.match(r"blocks\.(\d+)", key):
            stage, block = places[int(found[1])]
            key = f"mvitv2.encoder.stages.{stage}.blocks.{block}{key[found.end() :]}"
        for pattern, text in _DRAFT:
            key = re.sub(pattern, text, key)
        out[key] = value
    return out


def assert_same(found, expected):
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape and torch.equal(found[key], value), key


@pytest.mark.parametrize("name", ["image_v2_expand_in_attention", "image_v2_expand_in_mlp"])
@pytest.mark.parametrize("source", ["mmpretrain", "huggingface"])
@torch.no_grad()
def test_recorded_image_networks_under_other_names(source, name):
    config, state, file = recorded(name)
    theirs = as_mmpretrain(state) if source == "mmpretrain" else as_draft(state, config.depths)
    model = MViT(config).eval()
    model.load_state_dict(to_native(source, config, theirs))
    torch.testing.assert_close(model(file["input/image"]), file["output/logits"], rtol=1e-5, atol=1e-5)
    assert_same(from_native(source, config, model.state_dict()), theirs)
    if source == "huggingface":  # the bare model of the draft has no prefix and no classifier
        bare = {k.removeprefix("mvitv2."): v for k, v in theirs.items() if not k.startswith("classifier.")}
        assert_same(to_native(source, config.replace(num_classes=0), bare), headless(to_native(source, config, theirs)))


def headless(state):
    return {key: value for key, value in state.items() if not key.startswith("head.")}


def test_the_draft_names_a_class_token_and_positions():
    config, state, _ = recorded("image_v2_cls_token_abs_pos")
    theirs = as_draft(state, config.depths)
    theirs["mvitv2.embeddings.cls_token"] = theirs.pop("cls_token")
    theirs["mvitv2.embeddings.absolute_positional_embeddings"] = theirs.pop("pos_embed")
    native = to_native("huggingface", config, theirs)
    assert_same(native, state)
    assert_same(from_native("huggingface", config, native), theirs)


@pytest.mark.parametrize("source", ["mmpretrain", "mmaction2"])
def test_openmmlab_networks_always_hold_a_token(source):
    config, state, _ = recorded()
    theirs = from_native(source, config, state)
    unused = {"backbone.cls_token": torch.zeros(1, 1, 8), "backbone.norm1.weight": torch.zeros(16)}
    assert dropped_keys(source, config, theirs | unused) == sorted(unused)
    assert_same(to_native(source, config, theirs | unused), state)
    assert dropped_keys(source, config.replace(cls_token=True), theirs | unused) == ["backbone.norm1.weight"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["rev_image", "rev_video"])
def test_fused_and_separate_projections_become_what_the_network_has(name, fused):
    config, state, file = recorded(name, "slowfast")
    other = config.replace(separate_qkv=not fused)
    native = to_native("slowfast", other, state)
    assert any(".attn.qkv." in key for key in native) is fused
    model = MViT(other).eval()
    model.load_state_dict(native)
    x = file["input/image"] if name == "rev_image" else file["input/video"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), file["output/logits"], rtol=1e-5, atol=1e-5)
    assert_same(from_native("slowfast", other, native, separate_qkv=config.separate_qkv), state)


def test_pytorchvideo_gets_the_projections_its_loader_wants():
    config, state, _ = recorded("pytorchvideo_v1_video", "pytorchvideo")
    native = to_native("pytorchvideo", config, state)
    theirs = from_native("pytorchvideo", config, native, separate_qkv=True)
    for i in range(config.depth):
        rows = torch.cat([theirs[f"blocks.{i}.attn.{x}.weight"] for x in "qkv"])
        assert torch.equal(rows, state[f"blocks.{i}.attn.qkv.weight"])
    assert not any(".qkv." in key for key in theirs)
    assert_same(to_native("pytorchvideo", config, theirs), native)
    assert_same(from_native("pytorchvideo", config, native), state)


def test_stray_rows_of_the_reversible_clip_network_are_dropped_and_listed():
    config, state, _ = recorded("rev_video", "slowfast")
    stray = {"cls_token": torch.zeros(1, 1, 8), "pos_embed_class": torch.zeros(1, 1, 8)}
    assert dropped_keys("slowfast", config, state | stray) == sorted(stray)
    assert_same(to_native("slowfast", config, state | stray), to_native("slowfast", config, state))
    plain, image, _ = recorded()
    with pytest.raises(UserError, match=r"cls_token\) too many"):
        to_native("mvit", plain, image | {"cls_token": stray["cls_token"]})


MASKED = {
    "mask_token": (1, 1, 8), "pred_head.transforms.0.0.weight": (64,), "pred_head.transforms.0.0.bias": (64,),
    "pred_head.projections.0.weight": (108, 64), "pred_head.projections.0.bias": (108,),
    "hogs.0.weight_x": (3, 1, 3, 3), "hogs.0.weight_y": (3, 1, 3, 3),
}  # fmt: skip


def pretrained_by_maskfeat():
    """Weights in the shape of a MaskFeat file: no norm and head, more keys, whole tables in the last stage."""
    torch.manual_seed(0)
    config = model_config("maskfeat_mvitv2_small_16x4", embed_dim=8)
    state = headless(MViT(config).state_dict())
    del state["norm.weight"], state["norm.bias"]
    for axis in "hw":
        state[f"blocks.15.attn.rel_pos_{axis}"] = torch.randn(27, 8)
    return config, state, {key: torch.randn(shape) for key, shape in MASKED.items()}


def test_maskfeat_files_become_the_fine_tune_form():
    from openmvit.checkpoint import load_weights

    config, state, extra = pretrained_by_maskfeat()
    headless_config = config.replace(num_classes=0)
    native = to_native("slowfast", headless_config, state | extra)
    assert_same(native, state)
    assert dropped_keys("slowfast", headless_config, state | extra) == sorted(extra)
    report = load_weights(MViT(config), native, headless_config, may_start_fresh=("norm.weight", "norm.bias"))
    assert {row.split()[0] for row in report.resized} == {f"blocks.15.attn.rel_pos_{axis}" for axis in "hw"}
    assert all("[27, 8] -> [13, 8]" in row for row in report.resized)
    # Without the marks of pre-training a file without the norm is damaged.
    with pytest.raises(UserError, match=r"2 keys \(norm\.bias, norm\.weight\) missing"):
        to_native("slowfast", headless_config, state)


@pytest.mark.parametrize(
    ("name", "source", "parameters"),
    [
        ("mvitv2_tiny", "mmpretrain", 24_173_320),
        ("mvitv2_large", "mmpretrain", 217_992_952),
        ("mvitv2_small", "huggingface", 34_870_216),
        ("mvitv2_base_cls", "timm", 65_444_032),
        ("mvitv2_small_16x4", "mmaction2", 34_537_744),
        ("rev_mvit_base", "slowfast", 39_689_320),
        ("rev_mvit_base_16x4", "slowfast", 34_963_120),
        ("mvitv1_base_16", "slowfast", 36_982_600),
    ],
)
def test_published_networks_go_out_and_back_whole(name, source, parameters):
    config = model_config(name)
    with torch.device("meta"):
        state = MViT(config).state_dict()
    theirs = from_native(source, config, state)
    assert len(theirs) == len(state) and sum(t.numel() for t in theirs.values()) == parameters
    back = to_native(source, config, theirs)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}


def test_recorded_networks_that_go_back_drop_nothing_their_loader_needs():
    for name, source in (("rev_image", "slowfast"), ("mmaction2_v2_video", "mmaction2")):
        config, state, _ = recorded(name, source)
        assert dropped_keys(source, config, state) == []
    config, state, _ = recorded("pytorchvideo_v1_video", "pytorchvideo")
    dropped = dropped_keys("pytorchvideo", config, state)
    assert all("_attention_pool_" in key for key in dropped)
    assert set(dropped) <= from_native("pytorchvideo", config, to_native("pytorchvideo", config, state)).keys()
    assert load("rev_image")[0].config.reversible == "mlp"
