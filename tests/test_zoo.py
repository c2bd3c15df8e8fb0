"""Names, changes and weights: what `create_model` promises."""

import http.server
import os
import threading
from functools import partial

import pytest
import torch
import yaml

from openmvit import UserError, create_model, list_models
from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.convert import from_native
from openmvit.weights.reading import read_weights
from openmvit.zoo import load_model

# Counted on the released networks.
PARAMETERS = {
    "mvitv2_tiny": 24173320, "mvitv2_small": 34870216, "mvitv2_base": 51472744, "mvitv2_large": 217992952,
    "mvitv2_base_cls": 65444032, "mvitv2_large_cls": 234583216, "mvitv2_huge_cls": 694804128,
    "mvitv1_base_16": 36982600, "mvitv2_small_16x4": 34537744, "mvitv2_base_32x3": 51230128,
    "mvitv2_large_40x3": 213390112, "mvitv1_base_16x4": 36610672, "mvitv1_base_32x3": 36611440,
    "mvitv1_base24_32x3": 53115280, "maskfeat_mvitv2_small_16x4": 36475120, "maskfeat_mvitv2_large_16x4": 217578064,
}  # fmt: skip
TEST_NAME = "mvitv2_tiny"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_names_and_patterns():
    assert set(PARAMETERS) <= set(list_models())
    assert list_models("*_cls") == [f"mvitv2_{size}_cls" for size in ("small", "base", "large", "huge")]
    with pytest.raises(UserError, match="Did you mean 'mvitv2_small'"):
        create_model("mvitv2_smal")
    with pytest.raises(UserError, match="'num_classes'"):
        create_model("mvitv2_tiny", num_clases=3)
    with pytest.raises(UserError, match="takes images"):
        create_model("mvitv2_tiny", num_frames=8)


def test_changes():
    config = model_config("mvitv2_tiny", img_size=(384, 320), num_classes=7, in_chans=1, drop_path_rate=0.2)
    assert config.input_size == (384, 320)
    assert (config.num_classes, config.in_chans, config.drop_path_rate) == (7, 1, 0.2)
    backbone = create_model("mvitv2_tiny", features_only=True, out_indices=(1, 3))
    assert backbone.channels == [192, 768]


@pytest.fixture(scope="module")
def small():
    """A narrow network under a published name: the real loading code on files that take no time."""
    torch.manual_seed(0)
    return create_model(TEST_NAME, embed_dim=16, num_classes=11)


CFG = {
    "MVIT": {
        "MODE": "conv", "POOL_FIRST": False, "CLS_EMBED_ON": False, "PATCH_KERNEL": [7, 7], "PATCH_STRIDE": [4, 4],
        "PATCH_PADDING": [3, 3], "EMBED_DIM": 16, "NUM_HEADS": 1, "MLP_RATIO": 4.0, "QKV_BIAS": True,
        "DROPPATH_RATE": 0.1, "DEPTH": 10, "DIM_MUL": [[1, 2.0], [3, 2.0], [8, 2.0]],
        "HEAD_MUL": [[1, 2.0], [3, 2.0], [8, 2.0]], "POOL_KV_STRIDE_ADAPTIVE": [4, 4],
        "POOL_Q_STRIDE": [[i, *((2, 2) if i in (1, 3, 8) else (1, 1))] for i in range(10)],
        "POOL_KVQ_KERNEL": [3, 3], "ZERO_DECAY_POS_CLS": False, "USE_ABS_POS": False, "REL_POS_SPATIAL": True,
        "REL_POS_ZERO_INIT": False, "RESIDUAL_POOLING": True, "DIM_MUL_IN_ATT": True,
    },
    "DATA": {"TRAIN_CROP_SIZE": 224, "INPUT_CHANNEL_NUM": [3, 3]},
    "MODEL": {"NUM_CLASSES": 11, "DROPOUT_RATE": 0.0},
    "SOLVER": {"BASE_LR": 0.1},
}  # fmt: skip


def write(path, model, kind):
    """A file of each family and wrapper, as the projects write them."""
    state = model.state_dict()
    if kind == "authors":
        content = {"model_state": state, "epoch": 300, "optimizer_state": {"lr": 0.1}, "cfg": yaml.safe_dump(CFG)}
    elif kind == "ddp":
        content = {"model_state": {f"module.{k}": v for k, v in state.items()}}
    elif kind == "five_axes":
        content = {"model_state": {k: v.unsqueeze(2) if ".pool_" in k else v for k, v in state.items()}}
    else:
        content = from_native("timm", model.config, state)
    torch.save(content, path)


@pytest.mark.parametrize("kind", ["authors", "ddp", "five_axes", "timm"])
@torch.no_grad()
def test_files_of_every_family_load(tmp_path, small, kind, capsys):
    write(tmp_path / "w.pyth", small, kind)
    model = create_model(TEST_NAME, pretrained=tmp_path / "w.pyth", embed_dim=16, num_classes=11)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), small.eval()(x))
    assert "loaded" in capsys.readouterr().err
    other = create_model(TEST_NAME, pretrained=str(tmp_path / "w.pyth"), embed_dim=16, num_classes=3, img_size=256)
    assert other.load_report.reinitialised == ["head.projection.weight", "head.projection.bias"]
    assert len(other.load_report.resized) == 20


def test_a_file_of_another_architecture_is_refused(tmp_path, small):
    write(tmp_path / "w.pyth", small, "timm")
    with pytest.raises(UserError, match="do not fit"):
        create_model("mvitv2_small", pretrained=tmp_path / "w.pyth", embed_dim=16)


@pytest.mark.parametrize(
    ("name", "changes", "size"),
    [
        ("mvitv1_base_16", {"img_size": 64}, (64, 64)),
        ("mvitv1_base_32x3", {}, (32, 224, 224)),
        ("mvitv1_base_16x4", {"img_size": 64}, (16, 64, 64)),
        ("mvitv2_large_40x3", {}, (40, 312, 312)),
        ("mvitv2_large_16x4", {}, (16, 224, 224)),
        ("mvitv2_small", {"img_size": 384}, (384, 384)),
    ],
)
def test_the_size_of_a_bare_file_is_read_from_its_tables(tmp_path, name, changes, size, monkeypatch):
    narrow = {key: row | {"embed_dim": 48} for key, row in ARCHITECTURES.items() if key.startswith("mvit")}
    monkeypatch.setattr("openmvit.architectures.ARCHITECTURES", narrow)
    monkeypatch.setattr("openmvit.weights.reading.ARCHITECTURES", narrow)
    with torch.device("meta"):
        model = create_model(name, num_classes=9, **changes)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    torch.save({"model_state": state, "cfg": "MVIT: {UNKNOWN_KEY: 1}"}, tmp_path / "bare.pyth")
    found = read_weights(tmp_path / "bare.pyth")
    assert found.model == name
    assert found.config.input_size == size
    assert found.config.num_classes == 9


def test_the_first_v1_file_has_no_pools_where_the_stride_is_one(tmp_path):
    with torch.device("meta"):
        model = create_model("mvitv1_base_16x4", pool_kv_at_stride_one=False)
    # Counted on the code of June 2021.
    assert sum(p.numel() for p in model.parameters()) == 36599536
    lacking = [i for i, block in enumerate(model.config.blocks()) if not block.kernel_kv]
    assert lacking == [14, 15]
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    torch.save({"model_state": state}, tmp_path / "k400_2021.pyth")
    found = read_weights(tmp_path / "k400_2021.pyth")
    assert found.model == "mvitv1_base_16x4"
    assert not found.config.pool_kv_at_stride_one
    assert found.state.keys() == state.keys()


def test_a_misfit_can_be_asked_for(tmp_path, small):
    torch.save({"model_state": small.state_dict()}, tmp_path / "w.pyth")
    with pytest.raises(UserError, match="do not fit"):
        create_model(TEST_NAME, pretrained=tmp_path / "w.pyth", embed_dim=16, layer_scale=0.1)
    with pytest.raises(UserError, match=r"Only \d+ of the \d+ tensors of the trunk fit"):
        create_model(TEST_NAME, pretrained=tmp_path / "w.pyth", embed_dim=16, mlp_ratio=2.0, strict=False)
    model = create_model(
        TEST_NAME,
        tmp_path / "w.pyth",
        embed_dim=16,
        num_classes=11,
        patch_kernel=(3, 3),
        patch_padding=(1, 1),
        strict=False,
    )
    assert model.load_report.reinitialised == ["patch_embed.proj.weight"]
    assert "blocks.0.attn.qkv.weight" in model.load_report.loaded


@pytest.fixture
def server(tmp_path):
    """The released files' place, played by this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


PLACE = "dl.fbaipublicfiles.com/mvit/mvitv2_models"


@pytest.fixture
def released(server, small, tmp_path, monkeypatch):
    """The authors' file at its place below a mirror, in the shape of a narrow network."""
    folder, url = server
    monkeypatch.setenv("OPENMVIT_MIRROR", url)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    (folder / PLACE).mkdir(parents=True)
    write(folder / PLACE / "MViTv2_T_in1k.pyth", small, "authors")
    return folder / PLACE / "MViTv2_T_in1k.pyth"


@torch.no_grad()
def test_default_weights_are_fetched_once_and_loaded(released, small, capsys):
    model = create_model(f"{TEST_NAME}.in1k", embed_dim=16, num_classes=11).eval()
    assert "mvitv2_tiny.fb_in1k" in capsys.readouterr().err
    assert model.load_report.source == "mvitv2_tiny.fb_in1k"
    released.unlink()
    again = create_model(TEST_NAME, pretrained=True, embed_dim=16, num_classes=11).eval()
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(x), again(x))
    assert torch.equal(model(x), small.eval()(x))


def test_weights_bring_their_classes_unless_others_are_asked_for(released, tmp_path):
    assert create_model(TEST_NAME, embed_dim=16).config.num_classes == 1000
    own = create_model(TEST_NAME, pretrained=True, embed_dim=16)
    assert own.config.num_classes == 11
    assert own.load_report.reinitialised == []
    asked = create_model(TEST_NAME, pretrained=True, embed_dim=16, num_classes=7)
    assert asked.config.num_classes == 7
    assert asked.load_report.reinitialised == ["head.projection.weight", "head.projection.bias"]
    address = f"http://127.0.0.1:{os.environ['OPENMVIT_MIRROR'].rpartition(':')[2]}"
    for weights_of in (released, f"{address}/{PLACE}/MViTv2_T_in1k.pyth"):
        assert create_model(TEST_NAME, pretrained=weights_of, embed_dim=16).config.num_classes == 11


def test_weights_that_cannot_be_had_name_the_ways_out(released, tmp_path):
    released.unlink()
    with pytest.raises(UserError, match=r"404.*--weights FILE, or --weights none"):
        create_model(TEST_NAME, pretrained=True)
    assert {path.suffix for path in (tmp_path / "cache").rglob("*.*")} <= {".lock"}


def test_load_model_takes_names_and_says_what_is_near():
    with pytest.raises(UserError, match="Did you mean 'mvitv2_tiny'"):
        load_model("mvitv2_tiy")
    with pytest.raises(UserError, match="no file or run folder"):
        load_model("runs/image/none")
