"""Our file and the reading of others: nothing half-written, nothing run, nothing silently dropped."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import openmvit
from openmvit import MViT, MViTConfig, UserError
from openmvit.checkpoint import load_weights, read, read_model, save
from openmvit.export import export
from openmvit.weights.reading import read_weights

FIELDS = {"input_size": (32, 32), "depths": (1, 1), "embed_dim": 16, "num_classes": 5, "cls_token": True}


def build(**changes):
    torch.manual_seed(0)
    return MViT(MViTConfig(**FIELDS | {"absolute_position": "joint"} | changes))


def card(model):
    return {"architecture": model.config.to_dict(), "classes": list("abcde"), "task": "image"}


def test_a_file_is_self_sufficient(tmp_path):
    model = build().eval()
    save(tmp_path / "weights" / "best.safetensors", model.state_dict(), card(model))
    for target in (tmp_path, tmp_path / "weights" / "best.safetensors"):
        again, header = read_model(target)
        assert header["classes"] == list("abcde")
        assert header["format"] == 1
        assert again.config == model.config
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(again(x), model(x))
        assert not again.training
        again(x).sum().backward()
        assert again.head.projection.weight.grad is not None
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["best.safetensors"]


@pytest.mark.parametrize("key", ["model_state", "state_dict", "model", None])
def test_wrappers_of_other_projects(tmp_path, key):
    state = build().state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "other.pyth")
    found, header = read(tmp_path / "other.pyth")
    assert header is None
    assert found.keys() == state.keys()


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"model_state": {"w": Attack(tmp_path / "pwned")}}, tmp_path / "attack.pyth")
    with pytest.raises(UserError, match="Refused"):
        read(tmp_path / "attack.pyth")
    assert not (tmp_path / "pwned").exists()


def damage(path, kind):
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"not weights at all" * 9}[kind])


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
def test_damaged_files_are_one_sentence(tmp_path, name, kind):
    path = tmp_path / name
    save_file(build().state_dict(), path) if name.endswith("s") else torch.save(build().state_dict(), path)
    damage(path, kind)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="no file or run folder"):
        read(tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"no weights/best\.safetensors"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_an_exported_graph_holds_no_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\x0a" * 40)
    for reader in (read, lambda path: openmvit.create_model("mvitv2_micro", pretrained=path)):
        with pytest.raises(UserError, match=r"is an exported graph and holds no network\. Name the run or the weights"):
            reader(tmp_path / name)


def test_a_header_that_lies_about_the_architecture(tmp_path):
    model = build()
    save(tmp_path / "w.safetensors", model.state_dict(), card(build(embed_dim=32)))
    with pytest.raises(UserError, match="does not fit the architecture"):
        read_model(tmp_path / "w.safetensors")


def test_a_newer_format_is_named(tmp_path):
    header = {"openmvit": json.dumps({"format": 99})}
    save_file(build().state_dict(), tmp_path / "w.safetensors", metadata=header)
    with pytest.raises(UserError, match="newer version"):
        read(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "x"}, r"header of .* format is 'x'\. Accepted: a whole number\. Train it again"),
        ({"format": None}, "format is 'None'"),
        ({"format": True}, "format is 'True'"),
        ({"classes": 5}, r"classes is '5'\. Accepted: a list of texts"),
        ({"classes": "abcde"}, "classes is 'abcde'"),
        ({"classes": list("abcd")}, "header of .* names 4 classes of a network with 5"),
        ({"task": 1}, "task is '1'"),
        ({"model": ["x"]}, "model is"),
        ({"category_ids": ["x"]}, "category_ids is"),
        ({"recipe": 3}, "recipe is '3'"),
        ({"preprocessing": None}, r"preprocessing is 'None'\. Accepted: a record"),
        ({"preprocessing": {"imgsz": "x"}}, "imgsz is 'x'"),
        ({"preprocessing": {"mean": [1, 2]}}, "mean is"),
    ],
)
def test_a_header_that_cannot_be_is_one_sentence_for_whoever_reads_it(tmp_path, changes, reason):
    model, path = build(), tmp_path / "w.safetensors"
    text = json.dumps({"format": 1} | card(model) | changes)
    save_file(model.state_dict(), path, metadata={"openmvit": text})
    for reader in (openmvit.load, read_weights, lambda target: export(target, "torch")):
        with pytest.raises(UserError, match=reason):
            reader(path)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("text", ["[]", "5", "null", "{"])
def test_a_header_that_is_no_card_is_named(tmp_path, text):
    save_file(build().state_dict(), tmp_path / "w.safetensors", metadata={"openmvit": text})
    with pytest.raises(UserError, match=r"no card|Cannot read"):
        read(tmp_path / "w.safetensors")


def test_what_nobody_filled_in_may_be_null(tmp_path):
    model = build()
    empty = dict.fromkeys(("task", "model", "licence", "classes", "category_ids", "recipe", "data"))
    save(tmp_path / "w.safetensors", model.state_dict(), card(model) | empty)
    assert read_model(tmp_path / "w.safetensors")[1]["classes"] is None
    with pytest.raises(UserError, match="preprocessing lacks 'imgsz'"):
        openmvit.load(tmp_path / "w.safetensors")


def test_other_safetensors_have_no_card(tmp_path):
    save_file(build().state_dict(), tmp_path / "w.safetensors")
    assert read(tmp_path / "w.safetensors")[1] is None
    with pytest.raises(UserError, match="does not say which network"):
        read_model(tmp_path / "w.safetensors")


def test_an_older_file_survives_a_failed_write(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()
    (tmp_path / "w.safetensors.tmp").mkdir()  # the temporary name cannot be written
    with pytest.raises((UserError, OSError)):
        save(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before


def test_weights_adapt_to_size_channels_and_classes():
    source = build()
    target = build(input_size=(64, 64), in_chans=5, num_classes=7)
    fresh = target.head.projection.weight.clone()
    report = load_weights(target, source.state_dict(), source.config)
    assert target.load_report is report
    assert report.reinitialised == ["head.projection.weight", "head.projection.bias"]
    assert torch.equal(target.head.projection.weight, fresh)
    resized = {row.split()[0] for row in report.resized}
    expected = {f"blocks.{i}.attn.rel_pos_{a}" for i in (0, 1) for a in "hw"}
    assert resized == expected | {"pos_embed", "patch_embed.proj.weight"}
    assert len(report.loaded) + len(report.resized) + 2 == len(source.state_dict())
    assert torch.equal(target.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert torch.equal(target.pos_embed[:, :1], source.pos_embed[:, :1])
    assert "resized 6" in str(report)


@torch.no_grad()
def test_other_input_channels_keep_the_response_to_grey():
    source = build().eval()
    x = torch.randn(1, 1, 32, 32)
    expected = source.patch_embed(x.expand(-1, 3, -1, -1))
    for channels in (1, 4, 6):
        target = build(in_chans=channels)
        load_weights(target, source.state_dict(), source.config)
        found = target.patch_embed(x.expand(-1, channels, -1, -1))
        if channels != 4:  # four channels repeat one of the three, so its weight counts more
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_mismatch_beyond_the_head_is_an_error_unless_asked_for():
    source, target = build(), build(embed_dim=32)
    with pytest.raises(UserError, match="do not fit this network"):
        load_weights(target, source.state_dict(), source.config)
    with pytest.raises(UserError, match="Only 0 of the 54 tensors of the trunk fit"):
        load_weights(target, source.state_dict(), source.config, strict=False)
    deeper = build(depths=(1, 2))
    with pytest.raises(UserError, match=r"blocks\.2"):
        load_weights(deeper, source.state_dict(), source.config)
    shallower = build(depths=(1,))
    with pytest.raises(UserError, match=r"blocks\.1"):
        load_weights(shallower, source.state_dict(), source.config)


def test_a_few_tensors_may_be_lost_if_asked_for_but_no_more():
    source, target = build(), build()
    fresh = {key: value.clone() for key, value in target.state_dict().items()}
    lost = ["blocks.0.norm1.weight", "blocks.1.mlp.fc1.bias"]
    state = {key: value + 1 for key, value in source.state_dict().items() if key not in lost}
    with pytest.raises(UserError, match="2 tensors do not fit"):
        load_weights(target, state, source.config)
    report = load_weights(target, state, source.config, strict=False)
    assert report.reinitialised == lost
    assert report.share == pytest.approx(52 / 54)
    assert json.loads(json.dumps(report.to_dict()))["loaded"] == report.loaded
    assert torch.equal(target.norm.weight, source.norm.weight + 1)
    for key in ("blocks.0.norm2.weight", "norm.weight"):
        del state[key]
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match="Only 50 of the 54"):
        load_weights(target, {key: value + 1 for key, value in state.items()}, source.config, strict=False)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    assert torch.equal(target.blocks[0].norm1.weight, fresh["blocks.0.norm1.weight"])


def test_a_network_of_our_own_file_has_a_report_too(tmp_path):
    model = build()
    save(tmp_path / "w.safetensors", model.state_dict(), card(model))
    report = read_model(tmp_path / "w.safetensors")[0].load_report
    assert set(report.loaded) == set(model.state_dict())
    assert report.source == str(tmp_path / "w.safetensors")


def test_header_is_readable_by_any_tool(tmp_path):
    model = build()
    save(tmp_path / "w.safetensors", model.state_dict(), card(model))
    assert load_file(tmp_path / "w.safetensors").keys() == model.state_dict().keys()
