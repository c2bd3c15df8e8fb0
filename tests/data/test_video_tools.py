"""The check, the bench and the copy of a video folder, on real files."""

import json

import pytest
from clipfiles import cut, number_of, turn, write_audio, write_video
from torch.nn import functional as F

from openmvit.data.bench_videos import bench_videos
from openmvit.data.check_videos import check_videos, prepare_videos
from openmvit.data.clips import ClipSampling
from openmvit.data.video import open_video
from openmvit.data.video_pyav import PyAVReader
from openmvit.data.video_transforms import ClipTrainTransform
from openmvit.data.videos import open_videos
from openmvit.errors import UserError


@pytest.fixture
def root(tmp_path):
    for name in ("jump", "run"):
        for i in range(3):
            write_video(
                tmp_path / "set" / "train" / name / f"{i}.mp4",
                30 + 10 * i,
                options={"crf": str(12 + 3 * i + (name == "run"))},
            )
        write_video(tmp_path / "set" / "val" / name / "9.mkv", 24, fps=24, size=(200, 300))
    return tmp_path / "set"


def test_check(root):
    report = check_videos(root)
    assert report.files == {"train": 6, "val": 2}
    assert report.sizes["width"] == [96, 96, 200]
    assert report.sizes["height"] == [64, 64, 300]
    assert report.sizes["fps"] == [24.0, 30.0, 30.0]
    assert report.sizes["seconds"] == pytest.approx([1.0, 1.167, 1.667], abs=0.01)
    lines = report.lines()
    assert lines[0].endswith("2 classes, one label per video")
    assert "train: 6 videos" in lines
    assert "fps: smallest 24, median 30, largest 30" in lines
    assert report.duplicates == []  # equal files within a split are no leak
    assert report.clean


@pytest.mark.parametrize("workers", [1, 2])
def test_check_finds_damage_and_copies(root, workers):
    train = root / "train" / "jump"
    (train / "0.mp4").write_bytes(b"")
    cut(train / "1.mp4", 0.5)
    write_audio(train / "sound.mp4")
    (root / "val" / "run" / "copy.mp4").write_bytes((root / "train" / "run" / "2.mp4").read_bytes())
    report = check_videos(root, workers=workers)
    assert [(split, path.rpartition("/")[2], reason) for split, path, reason in report.unreadable] == [
        ("train", "0.mp4", "the file is empty"),
        ("train", "1.mp4", "not a video, or cut off or damaged where its index is"),
        ("train", "sound.mp4", "no video stream (audio only)"),
    ]
    assert report.duplicates == [[("train", f"{root}/train/run/2.mp4"), ("val", f"{root}/val/run/copy.mp4")]]
    assert not report.clean
    assert json.loads(json.dumps(report.as_dict()))["sizes"]["fps"][0] == 24.0


def test_bench(root):
    (root / "train" / "jump" / "0.mp4").write_bytes(b"")
    speed = bench_videos(root, ClipSampling(4, 3), ClipTrainTransform(32), clips=30, reader="pyav")
    assert speed.clips + speed.unreadable in (30, 31)
    assert speed.unreadable > 0
    assert set(speed.shares) == {"open", "seek", "decode", "transform"}
    assert sum(speed.shares.values()) == pytest.approx(1.0)
    assert all(share > 0.0 for share in speed.shares.values())
    assert speed.clips_per_second == pytest.approx(1000.0 / speed.milliseconds, rel=2.0)
    assert speed.workers_for(10 * speed.clips_per_second) == pytest.approx(10.0)
    assert "clips/s per worker (open " in speed.lines()[0]
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="31 of 31 videos cannot be read"):
        bench_videos(root, ClipSampling(4, 3), ClipTrainTransform(32), clips=30)


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare(root, tmp_path, workers):
    write_video(root / "train" / "run" / "tall.mp4", 20, size=(120, 160))
    turn(root / "train" / "run" / "tall.mp4", 90)
    times = [0.0, 0.5, 0.6, 0.7, 2.0, 2.1]
    write_video(root / "train" / "run" / "vfr.mp4", 6, times=times, options={"bf": "0"})
    write_video(root / "train" / "run" / "old.avi", 20)
    (root / "train" / "run" / "bad.mp4").write_bytes(b"no")
    cut(write_video(root / "train" / "run" / "cut.mkv", 90), 0.4)
    (root / "list.csv").write_text("path,label\n")
    out = tmp_path / "small"
    report = prepare_videos(root, out, short_side=48, workers=workers)
    assert (report.written, report.kept, report.copied, report.renamed) == (11, 0, 1, 1)
    assert [(path, reason[:12]) for path, reason in report.failed] == [
        ("train/run/bad.mp4", "not a video,"),
        ("train/run/cut.mkv", "ends after 0"),
    ]
    assert (out / "list.csv").read_text() == "path,label\n"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "list.csv", "train/run/tall.mp4", "train/run/vfr.mp4", "train/run/old.mp4", "val/jump/9.mkv", "val/run/9.mkv",
        *(f"train/{name}/{i}.mp4" for name in ("jump", "run") for i in range(3)),
    }  # fmt: skip
    with open_video(out / "train" / "jump" / "2.mp4") as video:
        assert (video.fps, video.num_frames, video.size) == (30.0, 50, (72, 48))
    with open_video(out / "train" / "run" / "tall.mp4") as video:
        assert video.size == (64, 48)
    with open_video(out / "train" / "run" / "old.mp4") as video:
        assert video.num_frames == 20
    with PyAVReader(out / "train" / "run" / "vfr.mp4") as video:
        assert [moment for moment, _ in video.stream()] == pytest.approx(times, abs=0.002)
        assert video.duration >= times[-1]
        picture = video.frames([video.num_frames - 1])[0]
    picture = F.interpolate(picture.permute(2, 0, 1)[None], (64, 96), mode="bilinear")[0].permute(1, 2, 0)
    assert number_of(picture.numpy()) == 5
    again = prepare_videos(root, out, short_side=48)
    assert (again.written, again.kept, len(again.failed)) == (0, 11, 2)
    assert open_videos(out).classes == ("jump", "run")


def test_prepare_refuses(root, tmp_path):
    with pytest.raises(UserError, match="lies in"):
        prepare_videos(root, root / "small")
    with pytest.raises(UserError, match="is no folder"):
        prepare_videos(root / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video below"):
        prepare_videos(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="short_side is 4"):
        prepare_videos(root, tmp_path / "out", short_side=4)
