"""Bad input gets one sentence with cause and fix, exit code 2, and nothing that was there is lost.

Every row is (command, damage, fragment of the sentence); it runs in a copy of one folder that holds `data` (three
classes), `run` (a finished run) and `half` (a run stopped in its second epoch).
"""

import hashlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colours import CLASSES, TINY, picture, write_data
from openmvit.cli import main

FAST = ["--weights", "none", "--batch", "4", "--workers", "0", "--device", "cpu", "--imgsz", "32"]
FAST += ["plots=false", "warmup_epochs=0", "erase=0"]
TRAIN = ["train", "--model", "tiny.json", "--data", "data", *FAST]
ONE = [*TRAIN, "--epochs", "1"]
STEPS = 6


def child(argv, log):
    """Body of a forked process: one command line with its own output file."""
    os.setsid()
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(argv, log="child.log"):
    """A real process without the seconds of importing torch again."""
    process = get_context("fork").Process(target=child, args=(argv, log))
    process.start()
    return process


def wait_for_losses(process, run, count):
    """Until the run has noted so many losses."""
    path = Path(run) / "losses.txt"
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.001)
    pytest.fail(f"the run ended before loss {count}: {Path('child.log').read_text()[-600:]}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_data(folder / "data")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*ONE, "--name", "whole"]) == 0
        shutil.move("runs/image/whole", "run")
        process = start([*TRAIN, "--epochs", "40", "--val-every", "1", "--name", "half"])
        wait_for_losses(process, "runs/image/half", STEPS + 2)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
        shutil.move("runs/image/half", "half")
        shutil.rmtree("runs")
        Path("child.log").unlink()
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def work(base, tmp_path, monkeypatch):
    """A fresh copy of the folder, and the current directory."""
    folder = tmp_path / "work"
    shutil.copytree(base, folder)
    monkeypatch.chdir(folder)
    return folder


def hashes(folder, pattern="**/*"):
    files = [p for p in sorted(folder.glob(pattern)) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Bomb:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return (Path("exploded").touch, ())


def remove(path):
    shutil.rmtree(path)


def loose(_):
    shutil.rmtree("data")
    for i in range(3):
        picture(Path("data") / f"{i}.png", i)


def one_class(_):
    for name in CLASSES[1:]:
        shutil.rmtree(f"data/train/{name}")
        shutil.rmtree(f"data/val/{name}")


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path, keep):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * keep)])


def rows_csv(*extra):
    rows = [f"data/train/{name}/{i}.png,{name},train" for name in CLASSES for i in range(8)]
    write("list.csv", "\n".join(["path,label,split", *rows, *extra]) + "\n")


def other_header(path):
    """Tensors of one architecture under the header of another."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    card = json.loads(metadata["openmvit"])
    card["architecture"]["depths"] = [1, 2]
    save_file(load_file(path), path, metadata={"openmvit": json.dumps(card)})


def all_unreadable(_):
    for path in Path("data/train/bee").iterdir():
        path.write_bytes(b"no picture")


def other_classes(_):
    for name in CLASSES:
        for split in ("train", "val"):
            Path(f"data/{split}/{name}").rename(f"data/{split}/not_{name}")


def settings(**changes):
    write("bad.json", json.dumps(TINY | changes))


BAD_JSON = ["train", "--model", "bad.json", "--data", "data", *FAST, "--epochs", "1"]

# name: (command, damage, fragment)
ROWS = {
    "missing folder": (["train", "--data", "nowhere"], None, "nowhere does not exist"),
    "no data": (["train"], None, "Give --data DIR"),
    "no class folders": (ONE, loose, "no class folders in data"),
    "one class": (ONE, one_class, "one class only ('ant')"),
    "empty class": (ONE, lambda w: (remove("data/train/bee"), Path("data/train/bee").mkdir()), "class 'bee'"),
    "no image at all": (
        [*ONE, "--data", "texts"],
        lambda w: (write("texts/a/x.txt", "x"), write("texts/b/y.txt", "y")),
        "no image in the 2 folders",
    ),
    "class in val that train lacks": (ONE, lambda w: picture(Path("data/val/dog/0.png"), 1), "class 'dog'"),
    "label in val that train lacks": (
        [*ONE, "--data", "list.csv"],
        lambda w: rows_csv("data/val/ant/0.png,dog,val"),
        "line 26 of list.csv: label 'dog'",
    ),
    "row without its file": ([*ONE, "--data", "list.csv"], lambda w: rows_csv("gone.png,ant,train"), "gone.png"),
    "row without label": (
        [*ONE, "--data", "list.csv"],
        lambda w: rows_csv("data/val/ant/0.png,,val"),
        "line 26 of list.csv has no label",
    ),
    "no CSV": ([*ONE, "--data", "tiny.json"], None, "neither a folder nor a .csv file"),
    "too many unreadable images": (ONE, all_unreadable, "files cannot be read, the first is"),
    "unreadable checkpoint": (["predict", "x.pth", "data"], lambda w: write("x.pth", os.urandom(500)), "x.pth"),
    "cut checkpoint": (
        ["val", "run"],
        lambda w: cut("run/weights/best.safetensors", 0.5),
        "run/weights/best.safetensors",
    ),
    "run without weights": (["val", "run"], lambda w: remove("run/weights"), "has no weights/best.safetensors"),
    "checkpoint of another architecture": (
        [*ONE, "--model", "mvitv2_micro", "--weights", "run/weights/best.safetensors"],
        None,
        "tensors do not fit this network",
    ),
    "header of another architecture": (
        ["predict", "run", "data"],
        lambda w: other_header("run/weights/best.safetensors"),
        "does not fit the architecture in its own header",
    ),
    "pickle with code": (
        ["predict", "evil.pth", "data"],
        lambda w: write("evil.pth", pickle.dumps({"model_state": Bomb()})),
        "nothing in it was run",
    ),
    "zipped pickle with code": (
        [*ONE, "--weights", "evil.pth"],
        lambda w: torch.save({"model_state": Bomb()}, "evil.pth"),
        "nothing in it was run",
    ),
    "pickle without weights": (
        ["info", "list.pth"],
        lambda w: torch.save([1, 2], "list.pth"),
        "list.pth holds no state dict",
    ),
    "weights of no network here": (
        ["convert", "other.pth"],
        lambda w: torch.save({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, "other.pth"),
        "are those of no network here",
    ),
    "convert onto a file": (
        ["convert", "run/weights/best.safetensors", "--to", "tiny.json"],
        None,
        "tiny.json exists. Give another file with --to",
    ),
    "image smaller than the stem": ([*ONE, "--imgsz", "2"], None, "smaller than"),
    "test image smaller than the stem": (["val", "run", "--imgsz", "2", "--workers", "0"], None, "smaller than"),
    "classes of another data set": (
        ["val", "run", "--data", "data", "--workers", "0"],
        other_classes,
        "the model does not know",
    ),
    "split that is not there": (["val", "run", "--split", "test"], None, "has no split 'test'"),
    "file to predict missing": (["predict", "run", "gone.jpg"], None, "There is no file or folder gone.jpg"),
    "no picture to predict": (
        ["predict", "run", "a.png", "b.png"],
        lambda w: (write("a.png", b""), write("b.png", "text")),
        "None of the 2 files can be read",
    ),
    "folder without pictures": (["predict", "run", "empty"], lambda w: Path("empty").mkdir(), "holds no images"),
    "result that cannot be written": (
        ["predict", "run", "data/val", "--json", "tiny.json/x.json"],
        None,
        "Cannot write tiny.json/x.json",
    ),
    "unknown verb": (["trian", "--data", "data"], None, "Did you mean 'train'"),
    "unknown key": ([*ONE, "--epoch", "3"], None, "no option --epoch. Did you mean --epochs"),
    "unknown key with an equals sign": ([*ONE, "lrr=3"], None, "Did you mean --lr"),
    "unknown key in a recipe": (
        ["train", "r.yaml", "--data", "data"],
        lambda w: write("r.yaml", "epoch: 3\n"),
        "no option 'epoch'. Did you mean 'epochs'",
    ),
    "broken recipe": (["train", "r.yaml"], lambda w: write("r.yaml", "epochs: [3\n"), "r.yaml, line 2"),
    "unknown recipe": (["train", "imagenet/mvitv2_tinny"], None, "Did you mean 'imagenet/mvitv2_tiny'"),
    "option without value": (["train", "--lr", "--data", "data"], None, "--lr has no value"),
    "wrong type": ([*ONE, "--lr", "fast"], None, "lr is 'fast'. Accepted: a number"),
    "half an epoch": ([*ONE, "--epochs", "1.5"], None, "epochs is '1.5'. Accepted: a whole number"),
    "wrong choice": ([*ONE, "--amp", "bf15"], None, "Did you mean 'bf16'"),
    "wrong range": ([*ONE, "--crop-ratio", "1.5"], None, "crop_ratio is 1.5. Accepted: 0 to 1"),
    "two means": ([*ONE, "--mean", "0.5,0.5"], None, "mean is 0.5,0.5. Give 3 numbers"),
    "wrong type in a recipe": (
        ["train", "--config", "r.yaml", "--data", "data"],
        lambda w: write("r.yaml", "batch: many\n"),
        "batch is 'many'",
    ),
    "token pool without token": (BAD_JSON, lambda w: settings(global_pool="token"), "cls_token is false"),
    "unknown field of a network": (BAD_JSON, lambda w: settings(dephts=[1]), "Did you mean 'depths'"),
    "freeze more than there is": ([*ONE, "--freeze", "99"], None, "Accepted: backbone, or a number 0..2"),
    "freeze and tune": ([*ONE, "--freeze", "1", "--tune", "head"], None, "tune head and freeze 1 are both given"),
    "resume and weights": (["train", "--resume", "half", "--weights", "x"], None, "Leave --weights out"),
    "resume no run": (["train", "--resume", "data"], None, "data is no run folder"),
    "resume a finished run": (["train", "--resume", "run"], None, "is finished"),
    "resume a damaged state": (
        ["train", "--resume", "half"],
        lambda w: cut("half/weights/last/state.pt", 0.5),
        "state",
    ),
    "resume on other data": (["train", "--resume", "half"], lambda w: picture(Path("data/train/ant/9.png"), 9), "25"),
    "name that is taken": (
        [*ONE, "--name", "a"],
        lambda w: write("runs/image/a/kept.txt", "x"),
        "runs/image/a exists. Choose another --name",
    ),
    "out_dir that is a file": ([*ONE, "--out-dir", "tiny.json"], None, "Choose another out_dir"),
    "half precision on a CPU": ([*ONE, "--amp", "fp16"], None, "amp fp16"),
    "device that is not there": ([*ONE, "--device", "cuda:99"], None, "cuda:99"),
    "unknown model": (["train", "--model", "mvitv2_tinny", "--data", "data"], None, "Did you mean 'mvitv2_tiny'"),
    "weights that were never released": (
        ["train", "--model", "mvitv2_micro", "--data", "data"],
        None,
        "No weights of mvitv2_micro were released. Give --weights none to start from random ones, or --weights FILE.",
    ),
    "settings without weights": (
        [word for word in ONE if word not in ("--weights", "none")],
        None,
        "No weights of tiny.json were released. Give --weights none",
    ),
    "unknown demo": (["demo", "imag"], None, "Did you mean 'image'"),
}


def complain(argv, capsys, fragment):
    """Run a command that must fail with one sentence."""
    capsys.readouterr()
    with warnings.catch_warnings():
        # A library's warning would be a second line on stderr; here it would be a failure.
        warnings.simplefilter("error")
        code = main(argv)
    out, err = capsys.readouterr()
    assert code == 2, out + err
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert fragment in lines[0] and lines[0].endswith("."), err
    assert lines[0].count(". ") >= 1, f"no fix in {err}"
    assert "Traceback" not in out + err


@pytest.mark.parametrize("row", ROWS)
def test_bad_input(row, work, capsys):
    argv, damage, fragment = ROWS[row]
    if damage is not None:
        damage(work)
    before = hashes(work)
    complain(argv, capsys, fragment)
    after = hashes(work)
    logs = {"half/log.txt", "half/losses.txt"}
    assert {name: after.get(name) for name in before if name not in logs} == {
        name: value for name, value in before.items() if name not in logs
    }
    assert not Path("exploded").exists()


def test_there_are_enough_rows():
    assert len(ROWS) >= 25


def test_debug_shows_the_traceback(work, capsys):
    assert main(["--debug", "train", "--data", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: nowhere does not exist")


def test_weights_that_cannot_be_had(work, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(work / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    complain(["train", "--data", "data"], capsys, "--weights FILE, or --weights none")
    assert not Path("runs").exists()


def test_a_loss_that_is_not_finite(work, capsys):
    """The run stops, names the batch, and keeps best and last as they were."""
    args = Path("half/args.yaml")
    args.write_text(re.sub(r"^lr: .*", "lr: 1.0e+30", args.read_text(), flags=re.MULTILINE))
    before = hashes(work, "half/weights/**/*")
    complain(["train", "--resume", "half"], capsys, "no longer finite")
    assert hashes(work, "half/weights/**/*") == before and len(before) >= 3
    named = Path("half/bad_batch.txt").read_text().splitlines()
    assert len(named) == 4 and all(Path(name).is_file() for name in named)


@pytest.mark.parametrize(
    ("argv", "limit", "fragment"),
    [
        (["train", "--resume", "half"], 60_000, "takes no more data"),
        ([*ONE, "--name", "new"], 60_000, "Free"),
        (
            ["convert", "run/weights/best.safetensors", "--to", "copy.safetensors"],
            60_000,
            "takes no more data",
        ),
    ],
)
def test_full_disk(argv, limit, fragment, work, capsys):
    """A file-size limit stands in for a full disk: the write fails in the middle of a file."""
    before = hashes(work, "*/weights/**/*")
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        complain(argv, capsys, fragment)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    after = hashes(work, "*/weights/**/*")
    assert after == before
    assert not [path for path in work.rglob("*.tmp") if path.is_file() and path.suffix != ".txt"]
    if "half" in argv:
        process = start(argv)
        wait_for_losses(process, "half", STEPS + 6)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)


def hungry(argv, log):
    """As `child`, with 300 MB of address space left."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
    child(argv, log)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is used")
def test_memory_that_runs_out(work):
    argv = ["val", "run", "--imgsz", "3000", "--batch", "6", "--workers", "0", "--device", "cpu"]
    process = get_context("fork").Process(target=hungry, args=(argv, "child.log"))
    process.start()
    process.join(120)
    assert process.exitcode == 2, Path("child.log").read_text()
    assert Path("child.log").read_text() == "error: Memory ran out. Use a smaller --batch or --imgsz.\n"


def test_ctrl_c(work):
    """A real process gets a real SIGINT, saves, says how to go on, and ends with 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "openmvit", *TRAIN, "--epochs", "400", "--name", "long"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    losses, deadline = Path("runs/image/long/losses.txt"), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if losses.exists() and losses.read_bytes().count(b"\n") > STEPS:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "openmvit train --resume runs/image/long" in out.splitlines()[-1]
    assert "Traceback" not in out + err
    assert Path("runs/image/long/weights/last/state.pt").is_file()


def test_kill_at_five_random_steps(work):
    """Killed again and again, the run ends with the losses of an uninterrupted one, bit for bit."""
    argv = [*TRAIN, "--epochs", "4", "--save-every", "2"]
    process = start([*argv, "--name", "calm"])
    process.join(120)
    assert process.exitcode == 0, Path("child.log").read_text()
    # From the third step on there is a state to resume from; the last epoch is left to finish.
    kills = sorted(random.Random(0).sample(range(3, 3 * STEPS), 5))
    command = [*argv, "--name", "killed"]
    for step in kills:
        process = start(command)
        wait_for_losses(process, "runs/image/killed", step)
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        command = ["train", "--resume", "runs/image/killed"]
    process = start(command)
    process.join(120)
    assert process.exitcode == 0, Path("child.log").read_text()
    calm, killed = (Path(f"runs/image/{name}") for name in ("calm", "killed"))
    assert (killed / "losses.txt").read_bytes() == (calm / "losses.txt").read_bytes()
    assert len((calm / "losses.txt").read_bytes().splitlines()) == 4 * STEPS
    best = [load_file(run / "weights" / "best.safetensors") for run in (calm, killed)]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])
