"""The names that users may rely on. A change here is a change for them: CHANGELOG.md tells it."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import openmvit

ROOT = Path(__file__).parents[1]

PUBLIC = {
    "openmvit": {"MViT", "MViTConfig", "UserError", "create_model", "list_models", "load"},
    "openmvit.convert": {
        "SOURCES",
        "config_from",
        "expected_shapes",
        "detect_source",
        "dropped_keys",
        "recognise",
        "from_native",
        "inflate",
        "fuse_qkv",
        "split_qkv",
        "to_native",
        "unwrap",
    },
}
MODEL_METHODS = {
    "forward",
    "forward_features",
    "reset_classifier",
    "set_grad_checkpointing",
    "classifier_parameters",
    "layer_id",
    "config",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    home = importlib.import_module(module)
    assert set(home.__all__) == PUBLIC[module]
    for name in PUBLIC[module]:
        assert getattr(home, name) is not None


def test_a_model_offers_what_the_contract_says():
    config = openmvit.MViTConfig(depths=(1, 1), embed_dim=8, input_size=(32, 32), num_classes=2)
    model = openmvit.MViT(config)
    assert {name for name in MODEL_METHODS if hasattr(model, name)} == MODEL_METHODS


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no_such_name"):
        openmvit.no_such_name  # noqa: B018
    assert set(openmvit.__all__) <= set(dir(openmvit))


def test_user_error_is_one_line_with_cause_and_fix():
    error = openmvit.UserError("No images\n  in x", "Give a folder of class folders")
    assert isinstance(error, ValueError)
    assert str(error) == "No images in x. Give a folder of class folders."


def test_importing_the_package_loads_no_torch():
    code = "import sys, openmvit; openmvit.UserError; openmvit.MViTConfig; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert openmvit.__version__ == project["version"] == newest[1]
