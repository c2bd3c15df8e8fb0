"""Predictions on videos: the card's views, every kind of source, timelines, overlays, cameras, what is broken."""

import csv
import functools
import http.server
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import openmvit
from clipcolours import CLASSES, SAMPLING, clip_model, coloured, write_clip
from openmvit.cli import main
from openmvit.data.clips import ClipSampling
from openmvit.data.video import open_video
from openmvit.data.video_transforms import clip_test_transform_from
from openmvit.predict import Predictor
from openmvit.predict.timeline import Window, stretches
from openmvit.predict.windows import StoredVideo

RED, GREEN, BLUE = range(3)
SPAN = 16 / 30


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network, three short videos, a folder of frames and a long video of three colours."""
    folder = tmp_path_factory.mktemp("clips")
    clip_model(folder / "model.safetensors", clips=2, crops=3)
    write_clip(folder / "in" / "a.mp4", [(RED, 40)])
    write_clip(folder / "in" / "b.mkv", [(GREEN, 31)], fps=25, size=(48, 80))
    write_clip(folder / "in" / "sub" / "c.MP4", [(BLUE, 5)])
    for i in range(1, 21):
        path = folder / "in" / "frames" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coloured(i, GREEN)).save(path)
    write_clip(folder / "long.mp4", [(RED, 90), (GREEN, 60), (BLUE, 30)], size=(128, 96))
    return folder


@pytest.fixture
def predictor(place):
    return openmvit.load(place / "model.safetensors", device="cpu")


def test_the_views_of_the_card_are_averaged(place, predictor):
    path = write_clip(place / "mixed.mp4", [(RED, 30), (BLUE, 30)], size=(96, 48))
    assert predictor.kind.views == 6 and predictor.classes == CLASSES
    transform = clip_test_transform_from(predictor.card["preprocessing"])
    rows = []
    with open_video(path) as video:
        for clip in range(2):
            frames = video.frames(SAMPLING.test_indices(video.num_frames, video.fps, clip, 2))
            rows += [predictor.model(transform(frames, crop)[None]).softmax(1)[0] for crop in range(3)]
    expected = torch.stack(rows).mean(0)
    (found,) = predictor.predict(path)
    by_name = dict(zip(found.labels, found.probabilities, strict=True))
    assert [by_name[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)
    assert 0.3 < by_name["ant"] < 0.7 and 0.3 < by_name["cat"] < 0.7, "one clip lies in each half"
    assert found.kind == "video" and found.timeline == () and found.error == ""


def test_every_kind_of_source_in_order(place, predictor, monkeypatch):
    monkeypatch.chdir(place)
    array = np.stack([coloured(i, BLUE) for i in range(20)])
    sources = [Path("in/a.mp4"), "in", "in/*.mkv", "in/frames", array]
    found = predictor.predict(sources, top=1)
    assert [(one.path, *one.labels) for one in found] == [
        ("in/a.mp4", "ant"),
        *(("in/a.mp4", "ant"), ("in/b.mkv", "bee"), ("in/frames", "bee"), ("in/sub/c.MP4", "cat")),
        *(("in/b.mkv", "bee"), ("in/frames", "bee"), ("video 7", "cat")),
    ]


def test_a_gif_is_a_video_and_so_is_a_folder_of_them(place, predictor, tmp_path):
    for name, colour in (("a", RED), ("b", BLUE)):
        first, *rest = (Image.fromarray(coloured(i, colour)) for i in range(20))
        first.save(tmp_path / f"{name}.gif", save_all=True, append_images=rest, duration=40)
    found = predictor.predict([tmp_path, tmp_path / "b.gif"], top=1)
    assert [(Path(one.path).name, *one.labels) for one in found] == [
        ("a.gif", "ant"),
        ("b.gif", "cat"),
        ("b.gif", "cat"),
    ]
    for i in range(20):
        still = tmp_path / "frames" / f"{i}.gif"
        still.parent.mkdir(exist_ok=True)
        Image.fromarray(coloured(i, GREEN)).save(still)
    (one,) = predictor.predict(tmp_path / "frames", top=1)
    assert (one.path, *one.labels) == (str(tmp_path / "frames"), "bee")


def test_batch_size_changes_nothing(place, predictor):
    for source in (place / "in", place / "long.mp4"):
        one, many = (predictor.predict(source, batch=size, timeline=True) for size in (1, 32))
        for a, b in zip(one, many, strict=True):
            assert a.labels == b.labels and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
            assert [(w.start, w.end) for w in a.timeline] == [(w.start, w.end) for w in b.timeline]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that knows no ranges and says nothing."""

    def log_message(self, format, *args):
        pass


def test_an_address_gives_what_the_file_gives(place, predictor):
    handler = functools.partial(Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        here, missing, long = predictor.predict([f"{base}/in/a.mp4", f"{base}/none.mp4", f"{base}/long.mp4"])
        server.shutdown()
    (local,) = predictor.predict(place / "in" / "a.mp4")
    assert here.labels == local.labels and here.probabilities == pytest.approx(local.probabilities, abs=1e-6)
    assert missing.labels == () and missing.error
    (file,) = predictor.predict(place / "long.mp4")
    assert long.timeline and long.timeline == file.timeline


def test_broken_files_do_not_stop_the_others(place, predictor, tmp_path, capsys):
    good = write_clip(tmp_path / "z.mp4", [(GREEN, 20)])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.avi").write_text("no video at all\n" * 50)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:700])
    sound = tmp_path / "sound.m4v"
    with av.open(str(sound), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    model, table = str(place / "model.safetensors"), tmp_path / "out.json"
    assert main(["predict", model, str(tmp_path), "--device", "cpu", "--json", str(table)]) == 0
    rows = json.loads(table.read_text())
    assert [(Path(row["path"]).name, row["labels"][:1]) for row in rows] == [
        *(("cut.mp4", []), ("empty.mp4", []), ("sound.m4v", []), ("text.avi", []), ("z.mp4", ["bee"]))
    ]
    assert [bool(row.get("error")) for row in rows] == [True] * 4 + [False]
    assert rows[1]["error"] == "the file is empty" and "audio only" in rows[2]["error"]
    assert capsys.readouterr().out.count("unreadable: ") == 4
    assert main(["predict", model, str(tmp_path / "empty.mp4"), "--device", "cpu"]) == 2
    assert "The file cannot be read as a video" in capsys.readouterr().err


def test_a_long_video_has_a_timeline(place, predictor):
    (found,) = predictor.predict(place / "long.mp4", top=2)
    starts = [window.start for window in found.timeline]
    assert starts[0] == 0 and found.timeline[-1].end == pytest.approx(6.0, abs=0.02)
    assert np.diff(starts).max() <= SPAN / 2 + 0.04 and np.diff(starts).min() > 0
    assert all(window.end - window.start == pytest.approx(SPAN) for window in found.timeline)
    parts = stretches(found.timeline)
    assert [part.label for part in parts] == ["ant", "bee", "cat"]
    assert parts[0].start == 0 and [p.end for p in parts] == pytest.approx([3, 5, 6], abs=SPAN / 2)
    mean = sum(dict(zip(w.labels, w.probabilities, strict=True)).get("ant", 0) for w in found.timeline)
    assert found.labels[0] == "ant" and found.probabilities[0] == pytest.approx(mean / len(starts), abs=0.02)


def test_the_hop_is_that_of_the_user(place, predictor):
    (found,) = predictor.predict(place / "in" / "a.mp4", hop=0.2, timeline=True)
    assert [window.start for window in found.timeline] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    (long,) = predictor.predict(place / "long.mp4", hop=100)
    assert [window.start for window in long.timeline] == pytest.approx([0, 6 - SPAN], abs=0.04)
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(openmvit.UserError, match="hop is"):
            predictor.predict(place / "long.mp4", hop=bad)


@pytest.mark.parametrize("rule", ["span", "segments"])
@pytest.mark.parametrize(("fps", "hop"), [(30, 0.17), (25, 0.5), (12, 0.01), (30, 2.0)])
def test_windows_hold_the_frames_of_the_rule(tmp_path, rule, fps, hop):
    """Read once from front to back, they are those that a reader gives by number."""
    path = write_clip(tmp_path / "x.mp4", [(RED, 50), (GREEN, 27)], fps=fps)
    sampling = ClipSampling(4, 7, rule)
    windows = list(StoredVideo(lambda: open_video(path), sampling, lambda frames: frames, 0, hop).windows())
    seconds = 4 * 7 / 30
    with open_video(path) as video:
        for number, (start, end, frames) in enumerate(windows):
            first = round(start * fps)
            inside = min(math.ceil(seconds * fps), 77 - first)
            wanted = [first + i for i in sampling.test_indices(inside, fps)]
            assert torch.equal(frames, video.frames(wanted)), (number, wanted)
            assert end - start == pytest.approx(seconds, abs=1 / fps)
    assert len(windows) >= (77 / fps - seconds) / max(hop, 1 / fps)


def test_a_file_that_ends_too_early_gives_what_it_has(place, predictor, tmp_path):
    whole = write_clip(tmp_path / "cut.mkv", [(BLUE, 300)])
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    (found,) = predictor.predict(whole, batch=5)
    assert "truncated" in found.error and found.labels[0] == "cat"
    assert 3.0 < found.timeline[-1].end < 6.5
    written = openmvit.predict.draw_labels([found], tmp_path / "out")
    with av.open(str(written[1])) as container:
        assert 90 < sum(1 for _ in container.decode(video=0)) < 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_length(place, tmp_path):
    """The frames of all 120 windows would be 160 MB."""
    for name, count in (("short", 60), ("long", 1800)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = 426, 256, "yuv420p"
            frame = av.VideoFrame.from_ndarray(coloured(0, RED, 426, 256), format="rgb24")
            for i in range(count):
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    code = "import re, sys, openmvit, torch\ntorch.set_num_threads(1)\n"
    code += "predictor, peaks = openmvit.load(sys.argv[1], 'cpu'), []\n"
    code += "for path in sys.argv[2:]:\n    (one,) = predictor.predict(path, timeline=True, hop=0.5)\n"
    code += "    peaks.append(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]))\n"
    code += "print(len(one.timeline), (peaks[1] - peaks[0]) / 1024)"
    argv = [str(place / "model.safetensors"), str(tmp_path / "short.mp4"), str(tmp_path / "long.mp4")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=300)
    windows, growth = done.stdout.split()
    assert int(windows) >= 119 and float(growth) < 100, done.stdout + done.stderr


def test_the_command_writes_timeline_and_overlay(place, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["predict", str(place / "model.safetensors"), str(place / "long.mp4"), str(place / "in" / "a.mp4")]
    assert main([*argv, "--device", "cpu", "--top", "2", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines[1:4]] == ["ant", "bee", "cat"] and " s  " in lines[1]
    assert sorted(path.name for path in out.rglob("*.*")) == ["a.mp4", "long.mp4", "long_timeline.csv"]
    rows = list(csv.DictReader((out / "long_timeline.csv").open()))
    assert list(rows[0]) == ["start", "end", "label", "probability", "label_2", "probability_2"]
    assert {row["label"] for row in rows} == set(CLASSES) and float(rows[-1]["end"]) == pytest.approx(6, abs=0.02)
    with av.open(str(out / "long.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        frames = list(container.decode(video=0))
    assert len(frames) == 180 and frames[-1].time == pytest.approx(179 / 30, abs=0.01)
    assert (frames[0].width, frames[0].height) == (320, 240 + 16 + 10 + 10)
    first, last = (frames[i].to_ndarray(format="rgb24").astype(int) for i in (10, 175))
    assert first[:240].mean((0, 1)).argmax() == RED and last[:240].mean((0, 1)).argmax() == BLUE
    for picture in (first, last):
        assert picture[252:].min() < 90 and np.median(picture[252:]) > 240, "dark text on white"
    third = [first[243:247, column].mean(0) for column in (80, 220, 300)]
    assert min(np.abs(a - b).max() for a, b in pairwise(third)) > 60, "one colour per label"
    assert np.abs(first[240:250, 14:24] - last[240:250, 14:24]).max() > 60, "the cursor has moved"


def test_a_camera_is_followed_until_the_time_is_up(predictor):
    """FFmpeg's own source of pictures is a device like any other."""
    said = []
    source = "camera:lavfi:color=c=0x2020ff:size=96x64:rate=25"
    (found,) = predictor.predict(source, top=1, seconds=2, hop=0.4, on_window=lambda *what: said.append(what))
    assert found.labels == ("cat",) and found.path == source
    assert said == [(source, window) for window in found.timeline]
    assert [window.start for window in found.timeline] == pytest.approx([0, 0.4, 0.8, 1.2])
    (brief,) = predictor.predict(source, top=1, seconds=0.2)
    assert brief.labels == ("cat",) and len(brief.timeline) == 1


def test_a_live_window_holds_the_frames_of_its_time(predictor):
    """Red for one second, then green."""
    source = "camera:lavfi:color=c=red:size=64x64:rate=30:duration=1[a];color=c=0x20c020:size=64x64:rate=30[b];"
    source += "[a][b]concat=n=2:v=1"
    (found,) = predictor.predict(source, top=1, seconds=3)
    for window in found.timeline:
        if window.end <= 1 or window.start >= 1:
            assert window.labels == (("ant",) if window.end <= 1 else ("bee",)), window
    assert found.timeline[-1].labels == ("bee",)


def test_ctrl_c_ends_a_camera_and_keeps_what_was_seen(place, tmp_path):
    argv = [sys.executable, "-m", "openmvit", "predict", str(place / "model.safetensors")]
    argv += ["camera:lavfi:testsrc=size=64x48:rate=30,realtime", "--device", "cpu", "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert first.split()[1] == "s" and "camera:lavfi:testsrc" in rest
    (written,) = (tmp_path / "out").iterdir()
    assert written.name.endswith("_timeline.csv") and len(written.read_text().splitlines()) >= 2


def test_a_missing_camera_is_one_sentence(place, capsys):
    assert main(["predict", str(place / "model.safetensors"), "camera:97", "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: camera:97 cannot be opened (") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("photo.jpg", "photo.jpg is an image and this network takes clips"),
        (Image.new("RGB", (8, 8)), "A picture was given"),
        (np.zeros((8, 8, 3), np.uint8), "is no video"),
        (np.zeros((2, 8, 8, 3), np.float32), "is no video"),
        ("empty", "holds no videos"),
        ("none.mp4", "There is no file or folder"),
        ("camera:nonsense:x", "camera:nonsense:x cannot be opened"),
    ],
)
def test_what_is_no_video_is_refused(predictor, tmp_path, monkeypatch, source, cause):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.jpg")
    Path("empty").mkdir()
    with pytest.raises(openmvit.UserError, match=cause):
        predictor.predict(source)


def test_a_card_without_sampling_is_refused(predictor):
    with pytest.raises(openmvit.UserError, match="lacks 'num_frames'"):
        Predictor(predictor.model, {"preprocessing": {"imgsz": 32}})


def test_stretches_meet_between_the_centres():
    windows = [Window(i, i + 4, (name,), (p,)) for i, (name, p) in enumerate([("a", 0.6), ("a", 0.8), ("b", 0.5)])]
    first, second = stretches(windows)
    assert (first.start, first.end, second.start, second.end) == (0, 3.5, 3.5, 6)
    assert first.probability == pytest.approx(0.7) and stretches([]) == []
