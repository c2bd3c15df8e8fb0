"""What is loaded when: in fresh processes, as an import cannot be taken back."""

import os
import subprocess
import sys

import pytest

from colours import write_data

HEAVY = {"torch._dynamo", "sympy", "torchvision", "lightning", "matplotlib", "av", "jsonargparse", "rich"}


def loaded(code: str) -> set[str]:
    """The modules of a fresh process after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import openmvit, openmvit.model",
        "import openmvit\nopenmvit.create_model('mvitv2_tiny', num_classes=3, img_size=32)",
        "import openmvit\nopenmvit.create_model('rev_mvit_base_16x4', num_classes=3)",
    ],
)
def test_a_classifier_needs_none_of_the_heavy_libraries(code):
    found = loaded(code)
    assert "torch" in found and HEAVY & found == set()


def test_a_detector_needs_the_first_three_at_most():
    found = loaded("import openmvit\nopenmvit.create_model('mask_rcnn_mvitv2_micro')")
    assert "torchvision" in found
    assert HEAVY & found <= {"torch._dynamo", "sympy", "torchvision"}


def test_training_of_classifiers_starts_without_torchvision():
    assert HEAVY & loaded("import openmvit.training.run, openmvit.export.run, openmvit.validate") == set()


WRONG = {
    "train --data data --model mvitv2_smal": "Unknown model 'mvitv2_smal'. Did you mean 'mvitv2_small'.",
    "train --data data --model mvitv2_small.in22k": "mvitv2_small has no weights 'in22k'",
    "train --data data --model mvitv2_tiny --weights in22k": "mvitv2_tiny has no weights 'in22k'",
    "train --data data --weights mvitv2_tiny.in22k": "mvitv2_tiny has no weights 'in22k'",
    "train --data nowhere": "nowhere does not exist",
    "train --resume data": "data is no run folder",
    "train --data data --epoch 3": "train has no option --epoch",
    "train --data data --epochs many": "epochs is 'many'",
    "train imagenet/mvitv2_tinny": "There is no recipe 'imagenet/mvitv2_tinny'",
    "val mvitv2_smal": "mvitv2_smal is no model, run folder or file",
    "val mvitv2_small.in22k": "mvitv2_small has no weights 'in22k'",
    "predict mvitv2_smal data": "mvitv2_smal is no model, run folder or file",
    "export mvitv2_smal": "mvitv2_smal is no model, run folder or file",
    "info mvitv2_smal": "mvitv2_smal is no model, run folder or file",
    "bench mvitv2_smal": "Unknown model 'mvitv2_smal'",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_words_are_found_before_torch_is_loaded(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data", train=1, val=1)
    code = "import contextlib, sys\nfrom openmvit.cli import main\n"
    code += f"with contextlib.redirect_stderr(sys.stdout):\n    assert main({line.split()!r}) == 2\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said, with_torch = done.stdout.splitlines()
    assert WRONG[line] in said and with_torch == "False"


def test_words_that_are_right_pass(tmp_path, monkeypatch):
    """What is no name here may be a file, an address or a hub id: nobody looks whether it is there."""
    from openmvit.training.early import check_words
    from openmvit.training.recipe import Recipe

    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data", train=1, val=1)
    for model, weights in [
        (None, "default"),
        (None, "hf:owner/name"),
        (None, "https://host/file.pth"),
        (None, "mvitv2_tiny.fb_in1k"),
        ("mvitv2_tiny", "in1k"),
        ("mvitv2_tiny.fb_in1k", "default"),
        ("mvitv2_small_16x4", "mvitv2_small.fb_in1k"),
        ("mask_rcnn_mvitv2_tiny", "default"),
        ("mvitv2_micro", "none"),
        ("mvitv2_micro", "runs/x/best.safetensors"),
        ("own.json", "none"),
    ]:
        check_words(Recipe(data="data", model=model, weights=weights))
