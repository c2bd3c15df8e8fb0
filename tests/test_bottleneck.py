"""`openmvit data bench` and `prepare` on real videos: which side is slower, and files that seek quickly."""

import re

import av
import pytest
import torch

from clipcolours import CLASSES, clip_model, write_clip
from openmvit import bottleneck
from openmvit.bottleneck import bench_data, measure_model
from openmvit.cli import main
from openmvit.data.bench_videos import LoaderSpeed
from openmvit.errors import UserError
from openmvit.zoo import load_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for split, count in (("train", 2), ("val", 1)):
        for colour, name in enumerate(CLASSES):
            for i in range(count):
                write_clip(folder / "data" / split / name / f"{i}.mp4", [(colour, 20 + i)], size=(96, 64))
    clip_model(folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bottleneck, "_SECONDS", 0.2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_both_sides_are_measured(place, capsys):
    argv = ["data", "bench", str(place / "data"), "--clips", "6", "--workers", "3", "--device", "cpu"]
    assert main([*argv, "--model", str(place / "model.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = dict(re.findall(r"(\w+)=(\S+)", lines[-1]))
    assert lines[-1].startswith("data bench clips_per_second=")
    shares = [float(found[name]) for name in ("open", "seek", "decode", "transform")]
    assert sum(shares) == pytest.approx(1, abs=0.01) and min(shares) > 0
    assert float(found["supply"]) == pytest.approx(3 * float(found["clips_per_second"]), rel=0.01)
    assert float(found["infer"]) > float(found["train"]) > 0
    slow = "loader" if float(found["supply"]) < float(found["train"]) else "model"
    assert found["bottleneck"] == slow and f"training waits for the {slow}" in lines[-2]
    assert main([*argv, "--frames", "2", "--stride", "8", "--imgsz", "24"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("data bench clips_per_second=") and "bottleneck" not in last


def test_the_slower_side_is_named():
    loader = LoaderSpeed("pyav", 10, 0, 4.0, dict.fromkeys(("open", "seek", "decode", "transform"), 0.25), 250.0)
    for train, slow in ((9.0, "loader"), (7.0, "model")):
        found = bottleneck.DataBench(loader, 2, bottleneck.ModelSpeed("x", "cpu", 30.0, train))
        assert found.supply == 8 and found.lines()[-1].endswith(f"bottleneck={slow}")
        assert f"needs {train / 4:.1f} workers" in found.lines()[-2]


def test_a_step_is_measured_without_a_trace(place):
    network, _ = load_model(place / "model.safetensors")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    speed = measure_model(network, "x", (2, 4, 32), torch.device("cpu"), "bf16")
    assert speed.infer > speed.train > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"model": "mvitv2_tiny"}, "mvitv2_tiny takes images"),
        ({"model": "mvitv2_smal_16x4"}, "mvitv2_smal_16x4"),
        ({"clips": 0}, "clips is 0"),
        ({"sampling": (0, None)}, "num_frames is 0"),
    ],
)
def test_what_cannot_be_measured(place, options, cause):
    with pytest.raises(UserError, match=cause):
        bench_data(place / "data", **options)


def test_prepare_from_the_command_line(place, tmp_path, capsys):
    out = tmp_path / "small"
    argv = ["data", "prepare", str(place / "data"), "--out", str(out), "--short-side", "32", "--workers", "0"]
    assert main(argv) == 0
    line = "data prepare written=9 kept=0 failed=0 copied=0 renamed=0"
    assert capsys.readouterr().out.splitlines()[-1] == line
    with av.open(str(out / "val" / "cat" / "0.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (48, 32)
    assert main(argv) == 0
    assert "written=0 kept=9" in capsys.readouterr().out
    (place / "data" / "train" / "ant" / "x.mp4").touch()
    assert main(argv) == 1
    captured = capsys.readouterr().out
    assert "left out: train/ant/x.mp4: the file is empty" in captured and "failed=1" in captured
    assert main(["data", "check", str(place / "data"), "--workers", "0"]) == 1
    assert re.search(
        r"^data check videos=10 unreadable=1 duplicates=\d+ conflicts=\d+ faults=0$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
