"""The demo trains on real scans and ends with the line that the README promises."""

import re

import pytest
import torch

from openmvit.cli import main


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_demo_image(tmp_path, capsys, two_threads):
    assert main(["demo", "image", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    last = re.fullmatch(r"demo image top1=(0\.\d{3}|1\.000) seconds=(\d+)", lines[-1])
    assert last, lines[-1]
    assert float(last[1]) >= 0.97 and int(last[2]) <= 240
    pictures = sorted((tmp_path / "demo" / "pictures").iterdir())
    assert len(pictures) == 20 and pictures[0].name.startswith("0_")
    assert (tmp_path / "demo" / "image" / "exp" / "weights" / "best.safetensors").is_file()
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_demo_video(tmp_path, capsys):
    assert main(["demo", "video", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    last = re.fullmatch(
        r"demo video top1=(\d\.\d\d) still_top1=(\d\.\d\d) classes=8 seconds=(\d+)",
        capsys.readouterr().out.splitlines()[-1],
    )
    assert last
    assert float(last[1]) >= 0.95 and abs(float(last[2]) - 1 / 8) <= 0.10
    assert (tmp_path / "demo" / "pictures" / "clips.png").is_file()


@pytest.mark.slow
def test_demo_detection(tmp_path, capsys):
    assert main(["demo", "detection", "--out", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    last = re.fullmatch(
        r"demo detection box_ap50=(\d\.\d\d) mask_ap50=(\d\.\d\d) cascade_ap75=(\d\.\d\d) seconds=(\d+)",
        capsys.readouterr().out.splitlines()[-1],
    )
    assert last
    assert float(last[1]) >= 0.75 and float(last[2]) >= 0.70 and float(last[3]) > 0.3
    assert len(list((tmp_path / "demo" / "detections").iterdir())) >= 12
    assert (tmp_path / "demo" / "detection" / "exp" / "samples.png").is_file()
