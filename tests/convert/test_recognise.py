"""Files of every family on disk: the network is found from keys and shapes, and the report says what decided."""

import json
import pickle

import pytest
import torch
import yaml
from safetensors.torch import save_file

from convert.test_families import as_draft, as_mmpretrain, pretrained_by_maskfeat
from openmvit import MViT, UserError, create_model
from openmvit.architectures import model_config
from openmvit.convert import from_native, recognise
from openmvit.zoo import convert_file, load_model
from parity.golden import FOLDER, load


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this narrow are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def narrow(name, **changes):
    """A published architecture with few channels, random weights everywhere."""
    torch.manual_seed(0)
    config = model_config(name)
    config = config.replace(embed_dim=8 * config.num_heads, num_classes=5, **changes)
    model = MViT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def example(model):
    return torch.randn(1, 3, *((4, 64, 64) if model.config.ndim == 3 else (64, 64)))


def written(path, content):
    """The file in the form that its name asks for."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in content.items()}, path)
    elif path.suffix == ".pkl":
        with path.open("wb") as file:
            pickle.dump({"model": {k: v.numpy() for k, v in content.items()}, "__author__": "test"}, file)
    else:
        torch.save(content, path)
    return path


def state_of(model, source, **options):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if source == "huggingface":
        return as_draft(state, model.config.depths)
    return as_mmpretrain(state) if source == "mmpretrain" else from_native(source, model.config, state, **options)


# name of the file, architecture, source, wrapping of the state dict, changes of the network, words of the reason
CASES = {
    "official": ("a.pyth", "mvitv2_tiny", "mvit", "model_state", {}, ["mvit", "2D filters", "no class token"]),
    "official, prefixed": ("a.pth", "mvitv2_tiny", "mvit", "module.", {}, ["mvit", "mvitv2_tiny"]),
    "growth in the MLP": ("a.pth", "mvitv2_large", "mvit", "model_state", {}, ["grow in the MLP"]),
    "growth in attention": ("a.pth", "mvitv2_large_cls", "mvit", "model_state", {}, ["grow in attention"]),
    "5-D pools of images": ("a.pyth", "mvitv1_base_16", "slowfast", "model_state", {}, ["slowfast", "3D filters"]),
    "first v1 clip file": (
        "a.pyth", "mvitv1_base_16x4", "slowfast", "model_state", {"pool_kv_at_stride_one": False}, ["no K/V pools"],
    ),
    "v1 clips of 32 frames": ("a.pyth", "mvitv1_base_32x3", "slowfast", "model_state", {}, ["position tables decided"]),
    "kernels from strides": ("a.pyth", "mvitv1_base24_32x3", "slowfast", "model_state", {}, ["2-3-16-3 blocks"]),
    "clips of 312 pixels": ("a.pyth", "mvitv2_large_40x3", "slowfast", "model_state", {}, ["position tables decided"]),
    "fine-tuned MaskFeat": ("a.pyth", "maskfeat_mvitv2_small_16x4", "slowfast", "model_state", {}, ["in the MLP"]),
    "reversible images": ("a.pyth", "rev_mvit_base", "slowfast", "model_state", {}, ["rev_backbone.", "reversible"]),
    "timm": ("a.safetensors", "mvitv2_small", "timm", "", {}, ["timm (keys stages.*)"]),
    "timm, state_dict": ("a.pth.tar", "mvitv2_base_cls", "timm", "state_dict", {}, ["timm"]),
    "torchvision": ("a.pth", "mvitv2_small_16x4", "torchvision", "", {}, ["torchvision (keys conv_proj.*)"]),
    "pytorchvideo": ("a.pyth", "mvitv1_base_16x4", "pytorchvideo", "model_state", {}, ["pytorchvideo"]),
    "pytorchvideo in SlowFast": ("a.pyth", "mvitv1_base_16x4", "pytorchvideo", "model.", {}, ["pytorchvideo"]),
    "mmaction2": ("a.pth", "mvitv2_small_16x4", "mmaction2", "state_dict", {}, ["mmaction2 (keys cls_head.*)"]),
    "mmpretrain": ("a.pth", "mvitv2_base", "mmpretrain", "state_dict", {}, ["mmpretrain (keys head.fc.*)"]),
    "draft": ("a.safetensors", "mvitv2_tiny", "huggingface", "", {}, ["huggingface (keys mvitv2.*)"]),
    "arrays in a pickle": ("a.pkl", "mvitv2_tiny", "mvit", "", {}, ["mvit"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_files_of_every_family_are_found(case, tmp_path):
    file, name, source, wrapping, changes, words = CASES[case]
    model = narrow(name, **changes)
    options = {"separate_qkv": True} if source == "pytorchvideo" else {}
    content = state_of(model, source, **options)
    if wrapping.endswith("."):
        content = {f"{wrapping}{key}": value for key, value in content.items()}
    elif wrapping:
        content = {wrapping: content, "epoch": 3}
    found, card = load_model(written(tmp_path / file, content))
    assert card["model"] == name
    assert found.config.blocks() == model.config.blocks() and found.config.num_classes == 5
    assert found.config.input_size == model.config.input_size
    x = example(model)
    torch.testing.assert_close(found(x), model(x), rtol=1e-5, atol=1e-6)
    report = found.load_report
    assert all(word in report.reason for word in words), report.reason
    assert not report.reinitialised and not report.resized
    assert len(report.loaded) == len(model.state_dict())


@pytest.mark.parametrize("in_file", [True, False])
@torch.no_grad()
def test_the_reversible_clip_file_with_stray_rows(in_file, tmp_path):
    """With the released settings, which ask for a class token, and without."""
    model, recorded = load("rev_video")
    state = {k.removeprefix("param/"): v for k, v in recorded.items() if k.startswith("param/")}
    stray = {"cls_token": torch.zeros(1, 1, 8), "pos_embed_class": torch.zeros(1, 1, 8)}
    content = {"model_state": state | stray}
    if in_file:
        settings = json.loads((FOLDER / "rev_video.json").read_text())
        section = settings["MVIT"] | {"CLS_EMBED_ON": True}
        content["cfg"] = yaml.safe_dump({
            "MVIT": section, "DATA": {"TRAIN_CROP_SIZE": 64, "NUM_FRAMES": 4}, "MODEL": {"NUM_CLASSES": 7},
        })  # fmt: skip
        found, card = load_model(written(tmp_path / "a.pyth", content))
        assert card["model"] is None and "the settings in the file" in found.load_report.reason
    else:
        model = narrow("rev_mvit_base_16x4")
        content = {"model_state": state_of(model, "slowfast") | stray}
        found, card = load_model(written(tmp_path / "a.pyth", content))
        assert card["model"] == "rev_mvit_base_16x4"
    assert found.load_report.ignored == ["cls_token", "pos_embed_class"]
    x = example(model)
    torch.testing.assert_close(found(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_pretrained_maskfeat_file_starts_the_fine_tune_form(tmp_path, capsys):
    _, state, extra = pretrained_by_maskfeat()
    file = written(tmp_path / "k400_MVIT_S_MaskFeat_PT_epoch_00300.pyth", {"model_state": state | extra})
    model = create_model("maskfeat_mvitv2_small_16x4", pretrained=file, embed_dim=8, num_classes=9)
    report = model.load_report
    assert report.ignored == sorted(extra)
    assert {key.partition(".")[0] for key in report.reinitialised} == {"norm", "head"}
    assert len(report.resized) == 2
    assert torch.equal(model.blocks[3].attn.qkv.weight, state["blocks.3.attn.qkv.weight"])
    assert "ignored 7" in capsys.readouterr().err
    # Without a name it is found too.
    found, card = load_model(file)
    assert card["model"] == "maskfeat_mvitv2_small_16x4" and found.config.num_classes == 0
    assert "pre-trained, without norm and head" in found.load_report.reason


def test_mmaction2_reads_the_class_token_of_a_maskfeat_network(tmp_path):
    model = narrow("maskfeat_mvitv2_small_16x4", norm_after_pool=False)
    assert model.config.head_reads == "token"
    found, card = load_model(written(tmp_path / "a.pth", {"state_dict": state_of(model, "mmaction2")}))
    assert card["model"] == "maskfeat_mvitv2_small_16x4" and "class token in mmaction2" in found.load_report.reason
    x = example(model)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "source"), [("mvitv2_base", "mmpretrain"), ("mvitv2_small_16x4", "mmaction2")])
def test_the_use_of_a_token_decides_where_every_file_holds_one(name, source, tmp_path):
    model = narrow(name)
    state = state_of(model, source)
    state.setdefault("backbone.cls_token", torch.zeros(1, 1, 8))
    backbone = {key: value for key, value in state.items() if key.startswith("backbone.")}
    found, card = load_model(written(tmp_path / "a.pth", {"state_dict": backbone}))
    assert card["model"] == name and found.config.num_classes == 0
    reason = found.load_report.reason
    assert "without a head" in reason
    assert ("mvitv2_base_cls fits too, the project's use of a class token decided" in reason) is (name == "mvitv2_base")


def test_settings_in_the_file_describe_networks_without_a_name(tmp_path):
    model, recorded = load("image_v2_expand_in_mlp")
    settings = json.loads((FOLDER / "image_v2_expand_in_mlp.json").read_text())
    cfg = {"MVIT": settings["MVIT"], "DATA": {"TRAIN_CROP_SIZE": 64}, "MODEL": {"NUM_CLASSES": 7}}
    state = {k.removeprefix("param/"): v for k, v in recorded.items() if k.startswith("param/")}
    file = written(tmp_path / "a.pyth", {"model_state": state, "cfg": yaml.safe_dump(cfg)})
    found, card = load_model(file)
    assert card["model"] is None and found.config.blocks() == model.config.blocks()
    with torch.no_grad():
        torch.testing.assert_close(found(recorded["input/image"]), recorded["output/logits"], rtol=1e-5, atol=1e-5)
    # Settings of another network do not count against the tensors.
    wrong = cfg | {"MVIT": settings["MVIT"] | {"DIM_MUL_IN_ATT": True}}
    with pytest.raises(UserError, match=r"6 blocks, width 16.* are those of no network here"):
        load_model(written(tmp_path / "b.pyth", {"model_state": state, "cfg": yaml.safe_dump(wrong)}))
    with pytest.raises(UserError, match="are those of no network here"):
        load_model(written(tmp_path / "c.pyth", {"model_state": {"fc.weight": torch.zeros(2, 2)}}))


def test_convert_says_what_decided_and_what_was_left_out(tmp_path):
    model = narrow("mvitv2_tiny")
    file = written(
        tmp_path / "a.pth", {"state_dict": state_of(model, "mmpretrain") | {"backbone.cls_token": torch.zeros(1, 1, 8)}}
    )
    sentence = convert_file(file)
    for words in (
        "mvitv2_tiny",
        "5 classes",
        "ignored 1 (backbone.cls_token)",
        "mmpretrain (keys head.fc.*)",
        "width 8",
    ):
        assert words in sentence
    again, card = load_model(tmp_path / "a.safetensors")
    assert card["model"] == "mvitv2_tiny"
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize("name", ["mvitv2_tiny", "mvitv1_base_16"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 0), (3, 3, 3, 3, 3, 3)])
def test_tensors_of_any_shape_are_refused_with_a_sentence(shape, name):
    """Each tensor of a good file in turn, as damaged or hostile files have them."""
    state = state_of(narrow(name), "mvit")
    config = model_config(name)
    first = [key for key in state if not key.startswith("blocks.") or key.startswith("blocks.1.")]
    assert len(first) > 20
    for key in first:
        bad = state | {key: torch.zeros(shape)}
        for asked in (None, (name, config.replace(embed_dim=8))):
            with pytest.raises(UserError):
                recognise(bad, {name: config}, "a file", asked=asked)


@pytest.mark.parametrize(
    ("key", "shape"), [("pos_embed", (1, 7, 7)), ("head.projection.bias", (4,)), ("norm.bias", (9,))]
)
def test_tensors_of_another_size_are_refused_by_the_network(key, shape, tmp_path):
    state = state_of(narrow("mvitv1_base_16"), "slowfast") | {key: torch.zeros(shape)}
    with pytest.raises(UserError):
        load_model(written(tmp_path / "a.pth", {"model_state": state}))


def test_what_was_asked_for_must_fit(tmp_path):
    state = state_of(narrow("mvitv2_tiny"), "timm")
    candidates = {"mvitv2_tiny": model_config("mvitv2_tiny")}
    assert recognise(state, candidates, "a file").config.embed_dim == 8
    with pytest.raises(UserError, match="do not fit this architecture"):
        recognise(state, candidates, "a file", asked=("mvitv2_small", model_config("mvitv2_small")))
