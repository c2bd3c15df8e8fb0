"""The command line: verbs, spellings of options, help without torch, info, models, convert, data, doctor."""

import copy
import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

import openmvit
from colours import picture, train_run, write_data, write_model
from openmvit import checkpoint
from openmvit.architectures import model_config
from openmvit.cli import main
from openmvit.cli.arguments import parse
from openmvit.cli.main import DATA, VERBS
from openmvit.cli.options import PredictOptions, TrainOptions
from openmvit.convert import from_native
from openmvit.errors import UserError, did_you_mean
from openmvit.model import MViT


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=os.environ | environment
    )


def options(*argv):
    return parse("train", "", TrainOptions, ("recipe?",), list(argv))


def test_help_imports_no_torch():
    code = "import sys; from openmvit.cli import main\n"
    code += "for argv in (['--help'], ['train', '--help'], ['val', '-h'], ['--version'], []): assert main(argv) == 0\n"
    code += "print(sorted({'torch', 'lightning', 'numpy', 'PIL'} & set(sys.modules)))"
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]" and not done.stderr, done.stderr


def test_the_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in VERBS)


@pytest.mark.parametrize("verb", [name for name in VERBS if name not in ("bench", "data")])
def test_the_help_of_a_verb_lists_its_options_with_meaning(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    squeezed = "".join(text.split())
    for field in fields(VERBS[verb].options):
        assert f"--{field.name.replace('_', '-')} " in text
    assert "_" not in "".join(word for word in text.split() if word.startswith("--"))
    if verb == "train":
        assert "Probabilityofahorizontalflip." in squeezed and "default:0.5" in squeezed


@pytest.mark.parametrize("action", DATA)
def test_the_help_of_an_action_on_data_lists_its_options(action, capsys):
    assert main(["data", "--help"]) == 0
    assert f"  {action} " in capsys.readouterr().out
    assert main(["data", action, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: openmvit data {action} DIR")
    for field in fields(DATA[action].options):
        assert f"--{field.name.replace('_', '-')} " in text


def test_an_action_on_data_takes_its_own_options_only(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path), "--short-side", "64"]) == 2
    assert "data check has no option --short-side" in capsys.readouterr().err
    assert main(["data", "prepare", str(tmp_path)]) == 2
    assert "Give --out DIR" in capsys.readouterr().err
    assert main(["data", "bench", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"openmvit {openmvit.__version__}"


@pytest.mark.parametrize(
    "argv",
    [
        ["--grad-ckpt", "true", "--val-fraction", "0.2", "--mean", "0.1,0.2,0.3", "--lr", "1e-3", "r"],
        ["r", "--grad-ckpt", "--val-fraction=0.2", "--mean=[0.1, 0.2, 0.3]", "--lr=0.001"],
        ["grad_ckpt=true", "r", "val-fraction=0.2", "mean=0.1,0.2,0.3", "lr=1e-3"],
        ["--val_fraction", "0.2", "--lr", ".001", "--mean", "[0.1,0.2,0.3]", "--grad_ckpt", "--", "r"],
    ],
)
def test_spellings_of_the_same_options(argv):
    given = options(*argv)
    assert given.positional == {"recipe": "r"}
    assert given.flags == {"grad_ckpt": True, "val_fraction": 0.2, "mean": (0.1, 0.2, 0.3), "lr": 0.001}


def test_values_keep_their_type():
    given = options("--batch", "auto", "--freeze", "6", "--imgsz", "null", "--plots", "false", "--auto-augment", "null")
    assert given.flags == {"batch": "auto", "freeze": "6", "imgsz": None, "plots": False, "auto_augment": None}
    assert options("--batch", "8", "--name", "3").flags == {"batch": 8, "name": "3"}
    assert options("--min-lr", "-1").flags == {"min_lr": -1.0}


def test_none_is_null_where_null_is_a_value():
    given = options("--auto-augment", "none", "--imgsz", "None", "--jitter=none", "--weights", "none", "--name", "none")
    wanted = {"auto_augment": None, "imgsz": None, "jitter": None, "weights": "none", "name": "none"}
    assert given.flags == wanted
    with pytest.raises(UserError, match="crop_scale is none"):
        options("--crop-scale", "none")


@pytest.mark.parametrize("typed", ["0.5", "0.5,0.6,0.7", "0.5,x", "[0.5]"])
def test_a_wrong_number_of_numbers_is_shown_as_it_was_typed(typed):
    with pytest.raises(UserError) as caught:
        options("--crop-scale", typed)
    assert str(caught.value) == f"crop_scale is {typed}. Give 2 numbers with commas between them."


@pytest.mark.parametrize(
    ("argv", "sources", "file"),
    [
        (["run", "a.png", "--json"], ["a.png"], "-"),
        (["run", "--json", "a.png", "b.png"], ["a.png", "b.png"], "-"),
        (["run", "a.png", "--json", "--top", "1"], ["a.png"], "-"),
        (["run", "--json", "x.json", "a.png"], ["a.png"], "x.json"),
        (["run", "a.png", "--json=x"], ["a.png"], "x"),
        (["run", "a.png"], ["a.png"], None),
    ],
)
def test_json_takes_a_file_only_if_it_is_one(argv, sources, file):
    given = parse("predict", "", PredictOptions, ("target", "sources+"), argv)
    assert given.positional == {"target": "run", "sources": sources}
    assert given.options()["json"] == file


def test_json_without_a_file_is_all_of_the_output(tmp_path, capsys):
    data = write_data(tmp_path / "data", train=2, val=1)
    run = str(train_run(tmp_path, data, epochs=1, warmup_epochs=0))
    capsys.readouterr()
    assert main(["val", "--json", run, "--workers", "0", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["samples"] == 3 and 0 <= scores["top1"] <= 1
    picture_file = str(data / "val" / "ant" / "0.png")
    before = Path(picture_file).read_bytes()
    assert main(["predict", run, "--device", "cpu", "--json", picture_file]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in found] == [picture_file] and Path(picture_file).read_bytes() == before
    assert main(["predict", run, "--device", "cpu", __file__]) == 2
    assert "The file cannot be read as an image" in capsys.readouterr().err


def test_data_or_a_run_in_the_place_of_a_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), train=1, val=1)
    Path("run").mkdir()
    Path("run/args.yaml").touch()
    Path("list.csv").touch()
    for word, said in {
        "data": "Did you mean --data data.",
        "list.csv": "Did you mean --data list.csv.",
        "run": "Did you mean --resume run.",
    }.items():
        assert main(["train", word]) == 2
        assert said in capsys.readouterr().err
    assert main(["train", "data", "--data", "data"]) == 2
    assert "Leave it out, or name a recipe" in capsys.readouterr().err


def test_the_nearest_of_many_words_are_named():
    names = openmvit.list_models()
    assert did_you_mean("mvitv2_smal", names) == "Did you mean 'mvitv2_small'"
    said = did_you_mean("zzzz", names)
    assert said.startswith(f"The nearest of {len(names)} are ") and len(said.split(", ")) == 3
    assert did_you_mean("zzzz", ["image", "video"]) == "Accepted: image, video"


@pytest.mark.parametrize("words", [("no data", "Give --data DIR"), ("It failed",), ("a  b\n c", "d")])
def test_an_error_is_the_same_after_its_way_between_processes(words):
    error = UserError(*words)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is UserError
        assert (str(again), again.cause, again.fix) == (str(error), error.cause, error.fix)


@pytest.mark.parametrize("argv", [["--epoch", "3"], ["--ep=3"], ["epoch=3"], ["-e", "3"], ["a", "b"], ["--data"]])
def test_nothing_is_abbreviated_or_ignored(argv):
    with pytest.raises(UserError):
        options(*argv)


def test_a_file_whose_name_has_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=3").touch()
    assert options("lr=3").positional == {"recipe": "lr=3"}


def test_flags_win_over_config_which_wins_over_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), train=2, val=1)
    write_model("tiny.json")
    Path("recipe.yaml").write_text(
        "model: tiny.json\nweights: none\nimgsz: 32\nepochs: 3\nbatch: 4\nlr: 5e-4\nworkers: 0\n"
    )
    Path("more.yaml").write_text("epochs: 2\nlr: 7e-4\nplots: false\ndevice: cpu\n")
    assert main(["train", "recipe.yaml", "--config", "more.yaml", "--data", "data", "--epochs", "1", "name=x"]) == 0
    written = yaml.safe_load(Path("runs/image/x/args.yaml").read_text())
    assert (written["epochs"], written["lr"], written["batch"], written["workers"]) == (1, 7e-4, 4, 0)


@pytest.mark.parametrize(("name", "parameters"), [("mvitv2_small", 34870216), ("mvitv2_large", 217992952)])
def test_info_counts_the_published_parameters(name, parameters, capsys):
    assert main(["info", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = model_config(name)
    assert found["name"] == name and found["parameters"] == parameters
    assert openmvit.MViTConfig.from_dict(found["config"]) == config
    blocks = config.blocks()
    assert [b["heads"] for b in found["blocks"]] == [b.num_heads for b in blocks]
    assert [tuple(b["stride_kv"]) for b in found["blocks"]] == [b.stride_kv for b in blocks]
    norm = 2 * config.num_features
    parts = sum(b["parameters"] for b in found["blocks"]) + found["stem"]["parameters"] + found["head"]["parameters"]
    assert parts + norm == parameters


def test_info_prints_one_line_per_block(capsys):
    assert main(["info", "mvitv2_tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1 + 10 + 1 + 1
    wanted = "1 2 56x56 > 28x28 96 > 192 2 2x2 2x2 3x3 3x3 55 55 421,728"
    assert " ".join(lines[3].split()) == wanted
    assert lines[-1] == "mvitv2_tiny: 24,173,320 parameters in 10 blocks, input 224x224"


def test_info_of_a_network_for_clips(capsys):
    assert main(["info", "mvitv2_small_16x4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["input_size"] == [16, 224, 224] and len(found["blocks"][0]["grid"]) == 3


def test_info_of_a_run_shows_its_card(tmp_path, capsys):
    run = train_run(tmp_path, write_data(tmp_path / "data", train=2, val=1), epochs=1, warmup_epochs=0)
    for target in (run, run / "weights" / "best.safetensors"):
        capsys.readouterr()
        assert main(["info", str(target)]) == 0
        out = capsys.readouterr().out
        assert (
            "classes: 3 (ant, bee, cat)" in out and "19,507 parameters in 2 blocks" in out and "score: name=top1" in out
        )


def test_models_lists_architectures_with_released_weights(capsys):
    assert main(["models", "mvitv2_s*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["name"] == "mvitv2_small" and rows[0]["parameters"] == 34870216
    assert rows[0]["weights"][0]["published"] == {"top1": 83.6} and rows[0]["weights"][0]["licence"] == "Apache-2.0"
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in openmvit.list_models()) and "top1 82.3" in out and "Apache-2.0" in out
    assert main(["models", "nothing*"]) == 2


@pytest.mark.parametrize(("source", "wrapped"), [("mvit", True), ("timm", False)])
def test_convert_reads_other_projects(source, wrapped, tmp_path, capsys):
    torch.manual_seed(0)
    config = model_config("mvitv2_tiny", num_classes=5)
    model = MViT(config).eval()
    foreign = from_native(source, config, model.state_dict())
    file = tmp_path / "theirs.pth"
    torch.save({"model_state": foreign, "epoch": 3} if wrapped else foreign, file)
    assert main(["convert", str(file)]) == 0
    assert "mvitv2_tiny" in capsys.readouterr().out
    read, card = checkpoint.read_model(tmp_path / "theirs.safetensors")
    assert card["model"] == "mvitv2_tiny" and card["preprocessing"]["imgsz"] == 224
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in read.state_dict().items())
    # Every verb takes the foreign file itself too.
    assert main(["info", str(file)]) == 0
    assert main(["convert", str(file), "--model", "mvitv2_small", "--to", str(tmp_path / "x.safetensors")]) == 2
    assert not (tmp_path / "x.safetensors").exists()


def test_data_check(tmp_path, capsys):
    write_data(tmp_path / "data")
    assert main(["data", "check", str(tmp_path / "data"), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert (
        "unreadable: 0" in out
        and out.splitlines()[-1] == "data check images=30 unreadable=0 duplicates=0 conflicts=0 faults=0"
    )
    (tmp_path / "data" / "train" / "ant" / "0.png").write_bytes(b"")
    picture(tmp_path / "data" / "val" / "ant" / "9.png", 3)
    assert main(["data", "check", str(tmp_path / "data"), "--workers", "0", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["unreadable"]) == 1 and len(found["duplicates"]) == 1
    assert main(["data", "chek", str(tmp_path)]) == 2
    assert "Did you mean 'check'" in capsys.readouterr().err


def test_doctor_tries_the_decoders(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["decoders"]["JPEG"] == "works" and found["decoders"]["video frames"] == "works"
    readers = {name.split()[1]: state for name, state in found["decoders"].items() if name.startswith("video")}
    assert readers["pyav"] == "works" and set(readers) == {"pyav", "torchcodec", "frames"}
    assert sum(name.endswith("(auto)") for name in found["decoders"]) == 1
    assert readers["torchcodec"] == "works" or "FFmpeg" in readers["torchcodec"]
    assert found["devices"][0]["name"] == "cpu" and all(value > 0 for value in found["disk_gb"].values())
    assert main(["doctor"]) == 0
    assert "decode PNG" in capsys.readouterr().out


def test_bench_goes_to_the_benchmark(capsys):
    assert main(["bench", "mvitv2_smal"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_reader_that_leaves_is_no_error():
    """As in `openmvit info X --json | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "openmvit", "info", "mvitv2_large", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""
