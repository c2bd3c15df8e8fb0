"""Folders, configurations, cards: everything arrives, in both directions, and nothing that is not true."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from hubfiles import CLIP, IMAGE, IMAGE_PIXELS, image_card, network
from safetensors.torch import save_file

import openmvit
import openmvit.hub as hub
from openmvit import MViTConfig, UserError
from openmvit.architectures import ARCHITECTURES, model_config
from openmvit.checkpoint import read, save
from openmvit.convert import from_native


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_file_to_folder_to_file(kind, request, tmp_path):
    file = request.getfixturevalue(f"{kind}_file")
    folder = request.getfixturevalue(f"{kind}_folder")
    state, card = read(file)
    again, own = read(hub.to_checkpoint(folder, tmp_path / "again.safetensors"))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    for key in ("architecture", "classes", "preprocessing", "task", "model"):
        assert own[key] == card[key], key
    assert own.get("score") == card.get("score")
    with pytest.raises(UserError, match="exists"):
        hub.to_checkpoint(folder, tmp_path / "again.safetensors")
    with pytest.raises(UserError, match="holds a model already"):
        hub.from_checkpoint(file, folder)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_of_a_folder_have_the_rights_that_the_umask_leaves(image_file, tmp_path, mask):
    before = os.umask(mask)
    try:
        folder = hub.from_checkpoint(image_file, tmp_path / "folder")
    finally:
        os.umask(before)
    rights = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
    assert "model.safetensors" in rights
    assert rights == dict.fromkeys(rights, oct(0o666 & ~mask))


def test_a_folder_read_back_is_a_checkpoint_that_predicts(image_folder, tmp_path):
    file = hub.to_checkpoint(image_folder, tmp_path / "insects.safetensors")
    picture = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
    assert openmvit.load(file).predict(picture)[0].labels[0] in {"ant", "bee", "cat"}


def test_a_folder_without_its_processor_is_refused(image_folder, tmp_path):
    hub.MViTV2ForImageClassification.from_pretrained(image_folder).save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        hub.to_checkpoint(tmp_path / "bare", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"no config\.json"):
        hub.to_checkpoint(tmp_path, tmp_path / "x.safetensors")


def test_the_card_tells_score_licence_and_preprocessing_and_no_path(image_folder):
    text = (image_folder / "README.md").read_text()
    matter = front_matter(image_folder)
    assert matter["license"] == "apache-2.0"
    assert matter["pipeline_tag"] == "image-classification"
    assert "- top1 91.5 on insects (validation split)" in text
    assert "- crop_pct: 0.875" in text
    assert "- image_mean: [0.4, 0.5, 0.6]" in text
    assert "2112.01526" in text
    assert "/somewhere" not in text + (image_folder / "config.json").read_text()


def test_the_card_of_a_released_file_comes_from_its_weight_card(tmp_path):
    from openmvit.weights import find_card

    released = find_card("mvitv2_tiny", "fb_in1k")
    model = openmvit.create_model("mvitv2_tiny")
    file = tmp_path / released.url.rpartition("/")[2]  # as the authors' project stores it
    torch.save({"model_state": model.state_dict()}, file)
    folder = hub.from_checkpoint(file, tmp_path / "folder")
    matter, text = front_matter(folder), (folder / "README.md").read_text()
    assert matter["license"] == released.licence.lower()
    assert matter["datasets"] == ["imagenet-1k"]
    metric = matter["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("top1", released.published["top1"])
    assert f"- top1 {released.published['top1']:g} on imagenet-1k (published)" in text
    kept = json.loads((folder / "preprocessor_config.json").read_text())
    assert (kept["crop_pct"], kept["resample"], kept["size"]) == (0.875, 3, {"shortest_edge": 256})


def test_a_score_does_not_outlive_its_weights(image_folder, tmp_path):
    model = hub.MViTV2ForImageClassification.from_pretrained(image_folder)
    model.save_pretrained(tmp_path / "same")
    assert "91.5" in (tmp_path / "same" / "README.md").read_text()
    with torch.no_grad():
        model.mvitv2.head.projection.bias.add_(1)
    model.save_pretrained(tmp_path / "trained")
    assert "Not measured." in (tmp_path / "trained" / "README.md").read_text()
    assert "score" not in json.loads((tmp_path / "trained" / "config.json").read_text())["about"]


def test_a_card_of_the_users_own_is_left_alone(image_folder, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    hub.MViTV2ForImageClassification.from_pretrained(image_folder).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_several_labels_per_picture_are_a_problem_type(tmp_path):
    model = network(**IMAGE)
    save(tmp_path / "m.safetensors", model.state_dict(), image_card(model) | {"multilabel": True})
    folder = hub.from_checkpoint(tmp_path / "m.safetensors", tmp_path / "m")
    config = hub.MViTV2Config.from_pretrained(folder)
    assert config.problem_type == "multi_label_classification"
    assert config.label2id == {"ant": 0, "bee": 1, "cat": 2}
    assert read(hub.to_checkpoint(folder, tmp_path / "n.safetensors"))[1]["multilabel"] is True


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_configurations_survive_json(name, tmp_path):
    network = model_config(name)
    config = hub.MViTV2Config.from_network(network)
    config.save_pretrained(tmp_path)
    again = hub.MViTV2Config.from_pretrained(tmp_path)
    assert again.network() == network
    assert again.to_dict() == config.to_dict() | {"_name_or_path": again._name_or_path}


DRAFT = {
    "model_type": "mvitv2",
    "depths": [1, 2, 5, 2],
    "in_channels": 3,
    "hidden_size": 96,
    "num_heads": 1,
    "image_size": [224, 224],
    "patch_kernel_size": [7, 7],
    "patch_stride_size": [4, 4],
    "patch_padding_size": [3, 3],
    "use_cls_token": False,
    "use_absolute_positional_embeddings": False,
    "attention_pool_first": False,
    "expand_feature_dimension_in_attention": True,
    "mode": "conv",
    "kernel_qkv": [3, 3],
    "stride_q": [[1, 1], [2, 2], [2, 2], [2, 2]],
    "stride_kv_adaptive": [4, 4],
    "stride_kv": None,
    "qkv_bias": True,
    "residual_pooling": True,
    "relative_positional_embeddings_type": "spatial",
    "mlp_ratio": 4,
    "hidden_activation_function": "gelu",
    "drop_path_rate": 0.1,
    "drop_rate": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-6,
}


def test_the_drafts_configuration_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(DRAFT | {"num_labels": 1000}))
    config = hub.MViTV2Config.from_pretrained(tmp_path)
    assert config.network() == model_config("mvitv2_tiny")
    assert (config.hidden_size, config.in_channels, config.image_size) == (96, 3, (224, 224))
    other = hub.MViTV2Config(
        **DRAFT | {"use_cls_token": True, "use_absolute_positional_embeddings": True, "layer_norm_epsilon": 1e-5},
        num_labels=2,
    ).network()
    assert other == model_config(
        "mvitv2_tiny", num_classes=2, cls_token=True, absolute_position="joint", norm_eps=1e-5, pool_norm_eps=1e-5
    )
    first = hub.MViTV2Config(**DRAFT | {"attention_pool_first": True}).network()
    assert (first.pool_first, first.separate_qkv, first.norm_eps, first.pool_norm_eps) == (True, True, 1e-6, 1e-5)
    strides = [[4, 4], [2, 2], [1, 1], [1, 1]]
    fields = {key: value for key, value in DRAFT.items() if key != "stride_kv_adaptive"}
    explicit = hub.MViTV2Config(**fields | {"stride_kv": strides})
    assert explicit.network().blocks()[0].stride_kv == (4, 4)


def test_weights_with_the_drafts_names_are_converted_and_never_ignored(tmp_path):
    native = openmvit.create_model("mvitv2_tiny", num_classes=1000).eval()
    renamed = from_native("huggingface", native.config, native.state_dict())
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text(json.dumps(DRAFT | {"num_labels": 1000}))
    save_file(renamed, tmp_path / "draft" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"become a folder by openmvit\.hub\.from_checkpoint"):
        hub.MViTV2ForImageClassification.from_pretrained(tmp_path / "draft")
    folder = hub.from_checkpoint(tmp_path / "draft" / "model.safetensors", tmp_path / "ours")
    model = hub.MViTV2ForImageClassification.from_pretrained(folder)
    for name, value in native.state_dict().items():
        assert torch.equal(model.mvitv2.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_activation_function": "relu"}, "hidden_activation_function is 'relu'"),
        ({"hidden_size": 96, "embed_dim": 48}, "hidden_size is 96 and embed_dim is 48"),
        ({"stride_q": [[1, 1], [2, 2], [4, 4], [2, 2]]}, "stride_q"),
        ({"relative_positional_embeddings_type": "temporal"}, "Accepted: 'spatial' and ''"),
        ({"num_frames": 8}, "has no frames"),
        ({"embed_dim": 50, "num_heads": 3}, "embed_dim 50 is no multiple of num_heads 3"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        hub.MViTV2Config(**fields)


def test_changes_on_loading_reach_the_network(clip_folder):
    config = hub.MViTV2Config.from_pretrained(clip_folder, num_frames=8, image_size=64)
    assert config.network().input_size == (8, 64, 64)
    assert MViTConfig(**CLIP).replace(input_size=(8, 64, 64)) == config.network()


UPLOADED: dict[str, bytes] = {}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload takes."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            answer = {"url": f"http://{self.headers['Host']}/user/{asked['name']}", "id": f"user/{asked['name']}"}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    UPLOADED[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"http://{self.headers['Host']}/user/m/commit/{'0' * 40}", "commitOid": "0" * 40}
        else:
            answer = {"errors": [], "warnings": []}
        self.answer(answer)

    def do_GET(self):
        self.answer({"id": "user/m", "sha": "0" * 40, "siblings": [], "name": "user", "type": "user"})

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


PUSH = """
import sys
import openmvit.hub as hub
model = hub.MViTV2ForImageClassification.from_pretrained(sys.argv[1])
processor = hub.MViTV2ImageProcessor.from_pretrained(sys.argv[1])
print(model.push_to_hub("user/m", processor=processor, token="hf_none"))
"""


def test_push_to_hub_uploads_the_folder_with_our_card(image_folder, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(Path(openmvit.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(image_folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("config.json", "preprocessor_config.json", "model.safetensors", "README.md"):
        assert UPLOADED[name] == (image_folder / name).read_bytes(), name
    assert IMAGE_PIXELS["imgsz"] == json.loads(UPLOADED["preprocessor_config.json"])["crop_size"]["height"]
