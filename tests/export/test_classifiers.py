"""Exported classifiers of images and clips: real runs, real files, and ONNX Runtime against the network."""

import dataclasses
import errno
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.export import Dim

import openmvit
from clipcolours import clip_model, write_clip
from colours import CLASSES, train_run, write_data
from openmvit import checkpoint
from openmvit.cli import main
from openmvit.errors import UserError
from openmvit.export import export, formats, run
from openmvit.export.agreement import check_agreement
from openmvit.export.plan import Plan, worst_difference
from openmvit.export.run import file_for, write
from openmvit.exported import ExportedClassifier
from openmvit.validate import validate
from openmvit.zoo import load_model, load_network


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A trained run that the command has exported."""
    folder = tmp_path_factory.mktemp("export")
    train_run(folder, write_data(folder / "data"), name="run")
    (folder / "runs" / "image" / "run").rename(folder / "run")
    assert main(["export", str(folder / "run")]) == 0
    return folder


@pytest.fixture(scope="module")
def file(place):
    return place / "run" / "weights" / "best.onnx"


def card_of(file):
    return json.loads({p.key: p.value for p in onnx.load(file).metadata_props}["openmvit"])


def test_one_file_lies_beside_the_weights_and_says_what_it_is(place, file):
    assert sorted(path.name for path in file.parent.glob("best*")) == ["best.onnx", "best.safetensors"]
    onnx.checker.check_model(str(file), full_check=True)
    own, card = card_of(file), checkpoint.read(place / "run")[1]
    assert own.pop("export") == {"precision": "fp32", "multiple": 8} and own == card
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(file).graph.input]
    assert shapes == [["batch", 3, "height", "width"]]


def test_val_of_the_graph_is_val_of_the_run(place, file):
    ours, theirs = (validate(target, workers=0, device="cpu") for target in (place / "run", file))
    assert ours == theirs and ours["top1"] > 0.5


def test_predict_with_the_graph_is_predict_with_the_run(place, file):
    ours, theirs = (openmvit.load(target).predict(place / "data" / "val") for target in (place / "run", file))
    assert [one.labels for one in ours] == [one.labels for one in theirs] and len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 3, 48, 24), (1, 3, 16, 80), (2, 3, 32, 32), (1, 3, 104, 56)])
def test_other_sizes_and_batches_agree(place, file, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_model(place / "run")[0](x)
    assert worst_difference([expected], [load_network(file)[0](x)]) < 1e-5


def test_a_size_that_the_graph_does_not_take_is_named(file):
    network, _ = load_network(file)
    assert isinstance(network, ExportedClassifier)
    with pytest.raises(UserError, match=r"multiples of 8 and got 1 x 3 x 44 x 32.*--fixed"):
        network(torch.zeros(1, 3, 44, 32))
    with pytest.raises(UserError, match=r"takes batch x 3 x height x width and got 1 x 1 x 32 x 32"):
        network(torch.zeros(1, 1, 32, 32))


def test_a_size_of_no_multiple_is_exported_alone_with_constant_tables(place, tmp_path, capsys):
    out = tmp_path / "odd.onnx"
    assert main(["export", str(place / "run"), "--imgsz", "36", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "36 x 36 (36 is no multiple of 8)" in said and re.search(r"export sizes=4 worst=\de-\d\d\n$", said)
    assert not {"Range", "Gather", "Resize"} & {node.op_type for node in onnx.load(out).graph.node}
    assert card_of(out)["preprocessing"]["imgsz"] == 36
    ours = validate(place / "run", workers=0, device="cpu", imgsz=36)
    assert validate(out, workers=0, device="cpu") == ours
    with pytest.raises(UserError, match=r"takes batch x 3 x 36 x 36 and got"):
        validate(out, workers=0, device="cpu", imgsz=32)


ALONE = """
import json, sys
sys.modules["openmvit"] = None  # any import of it fails
import torch
extra = {"openmvit": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
with torch.no_grad():
    torch.save(program.module()(torch.load(sys.argv[2])), sys.argv[3])
print(json.loads(extra["openmvit"])["classes"])
"""


def test_a_program_of_torch_loads_without_this_package(place, tmp_path):
    out = tmp_path / "run.pt2"
    done = export(place / "run", "torch", out)
    assert done.sizes == 4 and done.worst < 1e-5
    x = torch.randn(3, 3, 40, 64)
    torch.save(x, tmp_path / "in.pt")
    words = [sys.executable, "-c", ALONE, out, tmp_path / "in.pt", tmp_path / "out.pt"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == str(list(CLASSES))
    with torch.no_grad():
        expected = load_model(place / "run")[0](x)
    assert worst_difference([expected], [torch.load(tmp_path / "out.pt")]) < 1e-5
    with pytest.raises(UserError, match="exported graph"):
        openmvit.load(out)


def test_int8_prints_its_score_beside_that_of_the_run(place, capsys):
    data = str(place / "data")
    assert main(["export", str(place / "run"), "--int8", "--data", data, "--workers", "0", "--fixed"]) == 0
    out = place / "run" / "weights" / "best.int8.onnx"
    said = capsys.readouterr().out.splitlines()
    top1 = validate(place / "run", data, workers=0, device="cpu")["top1"]
    small = validate(out, data, workers=0, device="cpu")["top1"]
    assert re.search(r"^export sizes=4 worst=\de-\d\d int8=\de-\d\d$", said[-2])
    assert said[-1] == f"int8 top1 fp32={top1:.4f} int8={small:.4f} samples=6" and small > 0.5
    stored = {t.data_type for t in onnx.load(out).graph.initializer if len(t.dims) == 2}
    assert onnx.TensorProto.INT8 in stored and card_of(out)["export"]["precision"] == "int8"


@pytest.mark.slow
def test_clips_are_exported_too(tmp_path):
    weights = clip_model(tmp_path / "clips.safetensors")
    done = export(weights)
    assert done.path == tmp_path / "clips.onnx" and "4 frames of" in done.note and done.worst < 1e-5
    video = write_clip(tmp_path / "a.mp4", [(1, 40)])
    (ours,), (theirs,) = (openmvit.load(target).predict(video) for target in (weights, done.path))
    assert ours.labels == theirs.labels and ours.labels[0] == "bee"
    assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    for name, colour in (("ant", 0), ("bee", 1), ("cat", 2)):
        for split in ("train", "val"):
            write_clip(tmp_path / "data" / split / name / "a.mp4", [(colour, 40)])
    scores = [validate(target, tmp_path / "data", workers=0, device="cpu") for target in (weights, done.path)]
    assert scores[0] == scores[1] and scores[0]["samples"] == 3 and scores[0]["top1"] > 0.5


class Counting(nn.Module):
    """Gives something else at every call, which no graph does."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 2e-4])
def test_a_difference_that_is_no_small_number_is_refused(difference):
    x = torch.ones(2, 3)
    plan = Plan(nn.Identity(), (x,), ({},), (["x"], ["y"]), ([{}], [{}]), [(x,)], {}, "", lambda own, found: difference)
    with pytest.raises(UserError, match=r"differs by .* at 2 x 3"):
        check_agreement(plan, lambda inputs: inputs)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_a_graph_that_disagrees_leaves_no_file(tmp_path, form):
    x, path = torch.ones(2, 3), tmp_path / "out" / ("a.onnx" if form == "onnx" else "a.pt2")
    axes = ([{0: "batch"}], [{0: "batch"}])
    plan = Plan(Counting(), (x,), ({0: Dim("batch", min=1)},), (["x"], ["y"]), axes, [(x,), (x,)], {}, "")
    with pytest.raises(UserError, match=r"differs by .* at 2 x 3"):
        write(plan, form, path)
    assert list(path.parent.iterdir()) == []


def one_layer():
    """A plan of a layer of 4 MB."""
    x = torch.ones(2, 1000)
    return Plan(nn.Linear(1000, 1000), (x,), ({},), (["x"], ["y"]), ([{}], [{}]), [(x,)], {"export": {}}, "")


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_file_that_cannot_be_is_found_before_the_trace(tmp_path, form, suffix):
    (tmp_path / "file.txt").write_text("x")
    never = dataclasses.replace(one_layer(), module=Counting(), inputs=())  # which no trace takes
    for name, reason in (
        ("file.txt/a", "Not a directory"),
        ("file.txt/b/a", "Not a directory"),
        ("a" * 300, "name too long"),
    ):
        with pytest.raises(UserError, match=rf"Cannot write .*{reason}\)\. Choose another file with --out"):
            write(never, form, tmp_path / (name + suffix))
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    with pytest.raises(UserError, match="name too long"):
        write(never, form, file_for("mvitv2_tiny", suffix, tmp_path / ("a" * 300 + suffix)))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_is_read_only_is_one_sentence(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UserError, match=r"Cannot write .*Permission denied\)\. Choose another file with --out"):
        write(one_layer(), "onnx", tmp_path / "closed" / "a.onnx")


def test_a_folder_that_takes_no_file_is_one_sentence(tmp_path, monkeypatch):
    """The same for a superuser, to whom nothing is closed."""

    def closed(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(run, "TemporaryDirectory", closed)
    with pytest.raises(UserError, match=r"Cannot write .*\(Read-only file system\)\. Choose another file with --out"):
        write(one_layer(), "onnx", tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_disk_that_takes_no_more_is_one_sentence(tmp_path, form, suffix):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*\(File too large\)"):
            write(one_layer(), form, tmp_path / f"a{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"int8": True}, {"format": "torch"}])
def test_a_file_has_the_rights_that_the_umask_leaves(place, tmp_path, options):
    before = os.umask(0o027)
    try:
        path = export(place / "run", out=tmp_path / ("a.pt2" if "format" in options else "a.onnx"), **options).path
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_other_files_of_the_folder_stay(tmp_path):
    own = [tmp_path / name for name in ("a.part.onnx", "a.part8.onnx", "a.int8")]
    for path in own:
        path.write_text("mine")
    done = write(one_layer(), "onnx", tmp_path / "a.onnx", int8=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", *(path.name for path in own)}
    assert all(path.read_text() == "mine" for path in own) and done.worst < 1e-5
    assert card_of(done.path)["export"] == {"precision": "int8"}
    assert done.int8 is not None and 1e-5 < done.int8 < 0.1
    weights = [onnx.numpy_helper.to_array(one) for one in onnx.load(str(done.path)).graph.initializer]
    narrow = [weight for weight in weights if weight.dtype == np.int8 and weight.ndim == 2]
    assert narrow and all(32 < abs(weight.astype(int)).max() <= 64 for weight in narrow), "7 bits"


def test_8_bits_that_give_no_numbers_leave_no_file(tmp_path, monkeypatch):
    def broken(source, path, card):
        model = onnx.load(source)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(run, "quantise", broken)
    with pytest.raises(UserError, match=r"differs by inf .*Leave out --int8; no file is left"):
        write(one_layer(), "onnx", tmp_path / "a.onnx", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_differences_are_relative_and_a_nan_is_no_agreement():
    assert worst_difference([torch.tensor([10.0, 1.0])], [torch.tensor([10.0, 1.1])]) == pytest.approx(0.01, rel=1e-4)
    assert worst_difference([torch.zeros(2)], [torch.zeros(3)]) == float("inf")
    assert worst_difference([torch.ones(2)], [torch.tensor([1.0, float("nan")])]) == float("inf")


def test_a_file_in_the_way_stays(file):
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists"):
        export(file.parent.parent)
    with pytest.raises(UserError, match=r"would be a \.onnx file"):
        export(file.parent.parent, out=file.with_suffix(".pb"))
    assert file.read_bytes() == before


def test_damaged_and_strange_files_are_named(file, tmp_path):
    def written(content, name="a.onnx"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    whole = file.read_bytes()
    for content in (b"", b"no graph", whole[: len(whole) // 2]):
        with pytest.raises(UserError, match=r"Cannot read .*export it again"):
            openmvit.load(written(content))
    model = onnx.load(file)
    for value, reason in (("{", "no card"), ("[]", "no card"), ('{"preprocessing": {}}', "names no architecture")):
        model.metadata_props[-1].value = value
        with pytest.raises(UserError, match=reason):
            openmvit.load(written(model.SerializeToString()))
    del model.metadata_props[:]
    with pytest.raises(UserError, match="does not say which network"):
        openmvit.load(written(model.SerializeToString()))
    with pytest.raises(UserError, match="no file"):
        openmvit.load(tmp_path / "none.onnx")
    assert main(["info", str(file)]) == 2


@pytest.mark.parametrize("name", ["best.onnx", "none.pt2"])
def test_a_graph_is_not_exported_again(file, capsys, name):
    assert main(["export", str(file.with_name(name))]) == 2
    said = capsys.readouterr().err
    assert f"{name} is an exported graph already. Name the run or the weights that it was made of." in said


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_missed_before_the_target(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"Writing ONNX needs {missing}\. Install it"):
        export("no-such-run")
    with pytest.raises(UserError, match="is no model, run folder or file"):
        export("no-such-run", "torch")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--data", "none"], "none"),
        (["--split", "test"], "has no split 'test'"),
        (["--workers", "-1"], "workers is -1"),
    ],
)
def test_int8_looks_at_the_data_first(place, tmp_path, capsys, options, reason):
    words = ["export", str(place / "run"), "--int8", "--out", str(tmp_path / "a.onnx")]
    assert main([*words, *(["--workers", "0"] if "--workers" not in options else []), *options]) == 2
    assert reason in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "x"}, r"format is 'x'\. Accepted: a whole number"),
        ({"format": 99}, "newer version"),
        ({"export": []}, r"export is '\[\]'"),
        ({"export": {"multiple": "x"}}, "multiple is 'x'"),
        ({"export": {"multiple": -8}}, "multiple is '-8'"),
        ({"export": {"multiple": True}}, "multiple is 'True'"),
        ({"classes": 5}, "classes is '5'"),
        ({"classes": ["red", None, "blue"]}, r"classes is .* a list of texts"),
        ({"classes": ["red"]}, "names 1 classes of a network with 3"),
        ({"recipe": []}, "recipe is"),
        ({"preprocessing": {"imgsz": "x"}}, "imgsz is 'x'"),
        ({"preprocessing": {"mean": [0.5]}}, r"mean is .* three numbers"),
        ({"preprocessing": {"std": 1}}, r"std is .* three numbers"),
        ({"architecture": {"num_classes": 1}}, "has 3 classes and its metadata 1"),
        ({"architecture": {"in_chans": 1}}, "has 3 channels and its metadata 1"),
        ({"task": "detection", "architecture": {"backbone": {}}}, r"takes 4 axes, and by its metadata"),
    ],
)
def test_metadata_that_cannot_be_are_one_sentence(file, tmp_path, changes, reason):
    path = changed_card(file, tmp_path / "a.onnx", lambda card: merged(card, changes))
    with pytest.raises(UserError, match=reason):
        load_network(path)


def test_a_graph_of_images_is_none_of_clips(file, tmp_path):
    clips = load_model(clip_model(tmp_path / "clips.safetensors"))[0].config.to_dict()
    path = changed_card(file, tmp_path / "a.onnx", lambda card: card | {"architecture": clips})
    with pytest.raises(UserError, match="takes 4 axes, and by its metadata 5 axes"):
        load_network(path)


def merged(card, changes):
    """A card with changed values; of a record those that are named, and of a detector no fields of a classifier."""
    keep = "task" not in changes
    both = {k: card[k] | v if isinstance(v, dict) and keep else v for k, v in changes.items()}
    return card | both


def changed_card(file, path, change):
    """A copy of an exported file with another card."""
    model = onnx.load(file)
    formats.write_card(model, change(card_of(file)))
    onnx.save(model, str(path))
    return path


def test_only_the_cpu_runs_it(file):
    with pytest.raises(UserError, match="runs on the CPU"):
        load_network(file)[0].on("cuda")


@pytest.mark.parametrize(("missing", "what"), [("onnxruntime", "Running an ONNX file"), ("onnx", "Writing ONNX")])
def test_a_missing_library_is_one_sentence(place, file, tmp_path, monkeypatch, missing, what):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"{what} needs {missing}.*pip install 'openmvit\[export\]'"):
        openmvit.load(file) if missing == "onnxruntime" else export(place / "run", out=tmp_path / "a.onnx", fixed=True)


def test_weights_that_one_file_cannot_hold_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LIMIT", 1000)
    with pytest.raises(UserError, match=r"holds 2\. Export with --format torch"):
        export(place / "run", out=tmp_path / "a.onnx", fixed=True)


def test_options_of_int8_alone_are_refused(place, capsys):
    assert main(["export", str(place / "run"), "--data", "x"]) == 2
    assert "--data is for the scores of --int8" in capsys.readouterr().err
