"""Frames by number from real files: healthy, odd and broken; one error type with path and reason."""

import functools
import http.server
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from clipfiles import cut, garble, number_of, picture, turn, write_audio, write_video
from PIL import Image

from openmvit.data.video import available_readers, open_video, probe_video, torchcodec_state
from openmvit.data.video_reader import VideoDecodeError
from openmvit.errors import UserError

READERS = [
    "pyav",
    pytest.param(
        "torchcodec",
        marks=pytest.mark.skipif(torchcodec_state() != "works", reason=f"torchcodec: {torchcodec_state()}"),
    ),
]


def numbers(video, indices):
    return [number_of(frame) for frame in video.frames(indices).numpy()]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov", "ts"])
@pytest.mark.parametrize("gop", [12, 250])
def test_every_frame_by_its_number(tmp_path, reader, suffix, gop):
    path = write_video(tmp_path / f"clip.{suffix}", 90, gop=gop)
    with open_video(path, reader) as video:
        assert video.fps == pytest.approx(30.0)
        assert video.num_frames in (90, 91)
        assert video.duration == pytest.approx(3.0, abs=0.07)
        assert video.size == (96, 64)
        order = [40, 41, 3, 89, 3, 0, 88, 17, 60, 61, 62]
        assert numbers(video, order) == order
        for index in (85, 2, 50, 49, 51):
            assert numbers(video, [index]) == [index]
        frames = video.frames([0, 5])
        assert frames.shape == (2, 64, 96, 3)
        assert frames.dtype == torch.uint8
        assert np.abs(frames[1].numpy().astype(int) - picture(5)).mean() < 6


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 25, 24, Fraction(15, 2), 60])
def test_rates(tmp_path, reader, fps):
    path = write_video(tmp_path / "clip.mp4", 70, fps=fps)
    with open_video(path, reader) as video:
        assert video.fps == pytest.approx(float(fps))
        assert numbers(video, range(70)) == list(range(70))


@pytest.mark.parametrize("reader", READERS)
def test_long_gaps_are_seeked_over(tmp_path, reader):
    path = write_video(tmp_path / "long.mp4", 900, gop=30, size=(80, 32))
    with open_video(path, reader) as video:
        assert numbers(video, [0, 300, 700, 899, 10]) == [0, 300, 700, 899, 10]


@pytest.mark.parametrize("reader", READERS)
def test_variable_rate_follows_the_timestamps(tmp_path, reader):
    # 20 frames in the first second, 5 in each of the next three.
    times = [i / 20 for i in range(20)] + [1 + i / 5 for i in range(15)]
    path = write_video(tmp_path / "vfr.mp4", len(times), times=times, options={"bf": "0"})
    with open_video(path, reader) as video:
        moments = [(i + 0.5) / video.fps for i in range(video.num_frames)]
        expected = [max(k for k, t in enumerate(times) if t <= moment) for moment in moments]
        assert numbers(video, range(video.num_frames)) == expected
        assert video.fps == pytest.approx(35 / 4, rel=0.06)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_flag(tmp_path, reader, degrees):
    path = turn(write_video(tmp_path / "phone.mp4", 10), degrees)
    with open_video(path, reader) as video:
        frame = video.frames([5])[0].numpy()
        assert video.size == (frame.shape[1], frame.shape[0]) == ((64, 96) if degrees % 180 else (96, 64))
    upright = np.rot90(frame, degrees // 90)  # undo the clockwise turn
    assert number_of(upright) == 5
    red = frame[..., 0].astype(int) - frame[..., 1]
    rows, columns = np.nonzero(red > 100)
    corner = (rows.mean() > frame.shape[0] / 2, columns.mean() > frame.shape[1] / 2)
    assert corner == {0: (True, False), 90: (False, False), 180: (False, True), 270: (True, True)}[degrees]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("size", [(97, 65), (101, 64), (64, 96), (80, 34)])
def test_odd_sizes(tmp_path, reader, size):
    with open_video(write_video(tmp_path / "odd.mp4", 12, size=size), reader) as video:
        assert video.size == size
        assert numbers(video, range(12)) == list(range(12))


@pytest.mark.parametrize("reader", READERS)
def test_sound_longer_than_pictures_and_url_like_names(tmp_path, reader):
    path = write_video(tmp_path / "a: b%03d #1.mkv", 30, audio=True)
    with open_video(path, reader) as video:
        assert numbers(video, [0, 29]) == [0, 29]
        assert numbers(video, [video.num_frames - 1])[0] == 29


def test_recording_without_stated_length(tmp_path):
    path = write_video(tmp_path / "live.mkv", 45, options={})
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88")  # Duration, 8 bytes
    content[at : at + 11] = b"\xec\x89" + bytes(9)  # Void of the same length
    path.write_bytes(content)
    with open_video(path, "pyav") as video:
        assert video.num_frames == 45
        assert video.duration == pytest.approx(1.5, abs=0.01)
        assert numbers(video, [44, 0, 20]) == [44, 0, 20]


def broken(tmp_path, kind):
    """A file of each kind of damage."""
    if kind == "missing":
        return tmp_path / "nowhere.mp4"
    if kind == "audio only":
        return write_audio(tmp_path / "sound.mp4")
    path = tmp_path / "clip.mp4"
    if kind == "zero bytes":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 200)
    elif kind == "picture":
        Image.new("RGB", (32, 32)).save(tmp_path / "p.png")
        (tmp_path / "p.png").rename(path)
    elif kind == "mp4 cut":
        cut(write_video(path, 120), 0.5)
    elif kind == "mp4 cut, index in front":
        cut(write_video_faststart(path), 0.5)
    elif kind == "mkv cut":
        path = cut(write_video(tmp_path / "clip.mkv", 120), 0.5)
    elif kind == "garbage":
        garble(write_video(path, 120, gop=120), 0.3, 700)
    elif kind == "no pictures":
        (tmp_path / "frames").mkdir()
        return tmp_path / "frames"
    return path


def write_video_faststart(path):
    import av

    write_video(path, 120)
    with (
        av.open(str(path)) as source,
        av.open(str(path.with_name("front.mp4")), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path.with_name("front.mp4").rename(path)


BROKEN = {
    "missing": "the file does not exist",
    "zero bytes": "the file is empty",
    "text": "not a video, or cut off or damaged where its index is",
    "mp4 cut": "not a video, or cut off or damaged where its index is",
    "mp4 cut, index in front": r"ends after \d\.\d\d s of 4\.00 s, truncated",
    "mkv cut": r"ends after \d\.\d\d s of 4\.00 s, truncated",
    "garbage": r"ends after|damaged from \d\.\d\d s to \d\.\d\d s",
    "audio only": r"no video stream \(audio only\)",
    "no pictures": "the folder has no pictures",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_one_error_with_path_and_reason(tmp_path, reader, kind):
    path = broken(tmp_path, kind)
    with pytest.raises(VideoDecodeError, match=BROKEN[kind]) as caught:
        probe_video(path, reader)
    assert caught.value.path == path
    assert str(path) not in caught.value.reason
    assert str(caught.value) == f"{path}: {caught.value.reason}"


@pytest.mark.parametrize("reader", READERS)
def test_cut_file_gives_what_it_has(tmp_path, reader):
    path = broken(tmp_path, "mkv cut")
    with open_video(path, reader) as video:
        assert video.num_frames == 120
        assert numbers(video, [0, 10, 25]) == [0, 10, 25]
        with pytest.raises(VideoDecodeError, match="truncated"):
            video.frames([10, 110])
        assert numbers(video, [7]) == [7]


@pytest.mark.parametrize("reader", READERS)
def test_little_missing_at_the_end_repeats_the_last_frame(tmp_path, reader):
    path = cut(write_video(tmp_path / "clip.mkv", 120, gop=12), 0.97)
    with open_video(path, reader) as video:
        found = numbers(video, range(105, 120))
    assert found[0] == 105
    assert found == sorted(found)
    assert 108 <= found[-1] < 119
    assert found.count(found[-1]) > 1


@pytest.mark.parametrize("reader", READERS)
def test_small_damage_inside_is_passed_over(tmp_path, reader):
    path = garble(write_video(tmp_path / "clip.mp4", 120, gop=6), 0.45, 60)
    with open_video(path, reader) as video:
        found = numbers(video, range(120))
    wrong = sum(a != b for a, b in zip(found, range(120), strict=True))
    assert wrong <= 6
    assert found[:20] == list(range(20))
    assert found[-20:] == list(range(100, 120))


def test_folder_of_pictures(tmp_path):
    for i in range(12):
        Image.fromarray(picture(i)).save(tmp_path / f"img_{i}.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    with open_video(tmp_path) as video:
        assert (video.fps, video.num_frames, video.size) == (30.0, 12, (96, 64))
        assert numbers(video, [11, 2, 10, 2]) == [11, 2, 10, 2]
    Image.fromarray(picture(3, 48, 32)).save(tmp_path / "img_3.png")
    (tmp_path / "img_5.png").write_bytes(b"")
    with open_video(tmp_path) as video:
        assert numbers(video, [0, 1]) == [0, 1]
        with pytest.raises(VideoDecodeError, match=r"img_3\.png is 48x32 instead of 96x64"):
            video.frames([2, 3])
        with pytest.raises(VideoDecodeError, match=r"img_5\.png: the file is empty"):
            video.frames([5])


def test_url(tmp_path):
    write_video(tmp_path / "clip.mp4", 60)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        with open_video(f"{base}/clip.mp4") as video:
            assert numbers(video, [50, 3]) == [50, 3]
        with pytest.raises(VideoDecodeError, match="404") as caught:
            open_video(f"{base}/gone.mp4")
        server.shutdown()
    assert str(caught.value).startswith(f"{base}/gone.mp4: ")


def test_frames_outside_the_video_are_a_mistake_of_the_caller(tmp_path):
    with open_video(write_video(tmp_path / "clip.mp4", 10)) as video:
        assert numbers(video, [10, 11]) == [9, 9]
        for index in (-1, 12):
            with pytest.raises(IndexError):
                video.frames([index])


def test_reader_names(tmp_path):
    assert available_readers()["pyav"] == "works"
    assert available_readers()["frames"] == "works"
    with pytest.raises(UserError, match=r"video reader is 'decord'\. Accepted: auto, pyav, torchcodec"):
        open_video(tmp_path / "x.mp4", "decord")
    if torchcodec_state() != "works":
        with pytest.raises(UserError, match="torchcodec does not work here"):
            open_video(tmp_path / "x.mp4", "torchcodec")


@pytest.mark.skipif(torchcodec_state() != "works", reason=f"torchcodec: {torchcodec_state()}")
def test_readers_agree_on_pixels(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 60)
    with open_video(path, "pyav") as one, open_video(path, "torchcodec") as other:
        assert (one.fps, one.num_frames) == (other.fps, other.num_frames)
        a, b = one.frames(range(0, 60, 7)).int(), other.frames(range(0, 60, 7)).int()
        assert int((a - b).abs().max()) <= 2
