"""What the screen shows: on terminals of several widths, in a file, at Ctrl-C; figures that give way."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from colours import write_data, write_model
from openmvit import screen
from openmvit.cli import main
from openmvit.screen import Figures
from openmvit.training.progress import Meter, epoch_figures, step_figures
from terminal import on_terminal, screen_of, shown

FAST = ["--weights", "none", "--imgsz", "32", "--batch", "2", "--workers", "2", "--device", "cpu"]
TRAIN = ["train", "--model", "tiny.json", "--data", "data", *FAST]
STEP = re.compile(r"(epoch )?\d+/\d+ +(step )?\d+/\d+ .*")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), train=28, val=4)
    write_model("tiny.json")


@pytest.mark.parametrize("columns", [40, 80, 130])
def test_lines_of_training_fit_the_terminal(work, columns):
    code, output = on_terminal([*TRAIN, "--epochs", "4"], columns)
    rows, lines = screen_of(output, columns), shown(output)
    assert code == 0, output
    steps = [line for line in lines if STEP.fullmatch(line)]
    assert len(steps) >= 3
    for line in steps:
        assert len(line) <= columns - 3  # room for ^C
        assert re.search(r"[\d.]+ ?GB? ", line + " ") and "eta" in line and re.search(r"loss \d", line), line
    epochs = [row for row in rows if row.startswith("epoch ")]
    assert [re.match(r"epoch (\d)/4 +loss", row)[1] for row in epochs] == list("1234")
    assert not any(row.endswith("\\") for row in epochs) and all("top1 0." in row or "top1 1." in row for row in epochs)
    assert not any(STEP.fullmatch(row) for row in rows), "a progress line was left on the screen"
    assert ("lr " in epochs[0]) < (columns < 130) or columns == 130
    logged = Path("runs/image/exp/log.txt").read_text()
    assert "\r" not in logged and logged.count("samples/s") == 4
    waits = [int(share) for share in re.findall(r"wait (\d+) %", logged + "\n".join(lines))]
    assert len(waits) >= 4 and max(waits) < 100


def test_what_comes_next_can_be_pasted(work):
    code, output = on_terminal([*TRAIN, "--epochs", "1", "--name", "my run"], 130)
    rows = [row for row in screen_of(output, 130) if row]
    assert code == 0 and "Pictures in runs/image/my run: confusion.png, results.png" in rows
    commands = [shlex.split(row) for row in rows[rows.index("Next:") + 1 :]]
    assert [words[:2] for words in commands] == [["openmvit", verb] for verb in ("val", "predict", "export")]
    for words in commands[:2]:
        assert main([*words[1:], "--device", "cpu"]) == 0


def test_a_file_has_plain_lines(work):
    words = [sys.executable, "-m", "openmvit", *TRAIN, "--epochs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "\r" not in done.stdout and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Recipe image/small, since the data are images")
    assert lines[1] == "New run from random weights"
    assert max(len(line) for line in lines if line.startswith("epoch ")) < 80


@pytest.mark.parametrize("moment", [b"eta", b"New run"])
def test_ctrl_c_has_lines_of_its_own(work, moment):
    typed = []

    def press(fd, output):
        if moment in output and not typed:
            typed.append(os.write(fd, b"\x03"))

    code, output = on_terminal([*TRAIN, "--epochs", "200"], 80, press)
    rows = [row for row in screen_of(output, 80) if row]
    assert code == 130 and typed and "^C" in output
    assert rows[-1] == "interrupted"
    if moment == b"eta":
        assert rows[-3] == "Stopping after this update; Ctrl-C again ends at once"
        assert rows[-2] == "Stopped. Continue with: openmvit train --resume runs/image/exp"
        assert not any("^C" in row or STEP.fullmatch(row) for row in rows)


def test_verbs_say_what_they_do_and_leave_nothing_of_it(work):
    assert main([*TRAIN, "--epochs", "1", "--plots", "false"]) == 0
    for words, said in {
        ("val", "runs/image/exp", "--device", "cpu"): ("starting", "reading runs/image/exp", "scoring batches"),
        ("export", "runs/image/exp", "--format", "torch"): ("tracing the network", "comparing inputs"),
        ("predict", "runs/image/exp", "data/val", "--device", "cpu"): ("classifying images",),
    }.items():
        code, output = on_terminal(words, 80)
        assert code == 0, output
        rows, lines = screen_of(output, 80), shown(output)
        for word in said:
            assert any(line.startswith(word) for line in lines), (word, output)
            assert not any(word in row for row in rows)


def test_scripts_hear_nothing(capsys):
    screen.doing("working", long=True)
    assert list(screen.counted([1, 2], 2, "counting things")) == [1, 2]
    assert capsys.readouterr() == ("", "")
    with screen.listening():
        screen.doing("working", long=True)
        screen.doing("in a moment")
    assert capsys.readouterr() == ("", "working\n")


def widths(figures: Figures):
    return [(columns, figures.fit(columns)) for columns in range(30, 180)]


def test_figures_give_way_in_their_order():
    meter = Meter(samples=100, steps=10, wait=0.5)
    step = step_figures("100/300", "1234/5005", 6.9078, "top1 0.1234", 1.2e-4, meter, 12.345, "12:34:56")
    row = {"loss": 6.9, "val_loss": 6.8, "top1": 0.1, "top5": 0.2, "lr": 1e-4, "samples_per_s": 12.0, "wait": 0.999}
    epoch = epoch_figures(
        "100/300", row | {"memory_gb": 12.3, "seconds": 4000.0}, ("val_loss", "top1", "top5"), "top1", ("0.1000", 9)
    )
    assert "wait 99 %" in str(epoch)
    for figures in (step, epoch):
        lines = widths(figures)
        assert all(len(line) <= columns for columns, line in lines) and lines[-1][1] == str(figures)
    for columns, line in widths(step):
        if columns >= 37:
            assert re.match(r"(epoch )?100/300 +(step )?1234/5005 +(loss )?6.9", line) and "12:34:56" in line
            assert re.search(r"12\.3+4?5? ?G", line), line
        if columns >= 77:
            assert "memory" in line or "12.35 GB" in line
    assert all("top1 0.1000" in line and "100/300" in line for columns, line in widths(epoch) if columns >= 36)


def test_no_terminal_is_eighty_columns():
    assert screen.columns(io.StringIO()) == 79 and not screen.is_terminal(io.StringIO())
    assert screen.wrapped("word " * 60) == "word " * 60
