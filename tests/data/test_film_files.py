"""Films of every usual ending are read frame by frame, and a GIF is a film or a picture by the company it keeps."""

import av
import numpy as np
import pytest
from clipfiles import number_of, picture
from PIL import Image

from openmvit.data.check_videos import check_videos, prepare_videos
from openmvit.data.images import open_images, read_image
from openmvit.data.video import open_video
from openmvit.data.videos import VIDEOS, holds_videos, open_videos
from openmvit.errors import UserError
from openmvit.training.inputs import infer_task
from openmvit.training.recipe import Recipe

FRAMES = 50
# ending: codec, container where the ending does not say it
FILES = {
    ".gif": ("gif", None),
    ".avi": ("mpeg4", None),
    ".mp4": ("libx264", None),
    ".m4v": ("libx264", None),
    ".mov": ("mjpeg", None),
    ".mkv": ("libx264", None),
    ".webm": ("libvpx-vp9", None),
    ".mpg": ("mpeg2video", None),
    ".mpeg": ("mpeg1video", None),
    ".mpe": ("mpeg1video", "mpeg"),
    ".vob": ("mpeg2video", None),
    ".m2v": ("mpeg2video", None),
    ".wmv": ("wmv2", None),
    ".asf": ("msmpeg4v3", "asf"),
    ".flv": ("flv1", None),
    ".f4v": ("libx264", None),
    ".3gp": ("mpeg4", None),
    ".3g2": ("mpeg4", None),
    ".ts": ("libx264", None),
    ".mts": ("libx264", None),
    ".m2ts": ("mpeg2video", "mpegts"),
    ".ogv": ("libvpx", "ogg"),
    ".mxf": ("mpeg2video", None),
    ".y4m": ("wrapped_avframe", None),
}
FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def write_film(path, codec, container=None, start=0):
    """Frames that carry their number, 25 a second."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, FORMATS.get(codec, "yuv420p")
        if codec not in ("gif", "wrapped_avframe"):
            stream.bit_rate, stream.gop_size = 4_000_000, 12
        for i in range(FRAMES):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(start + i), format="rgb24")))
        file.mux(stream.encode())
    return path


def write_gif(path, count, *, still=False, start=0, **options):
    """A GIF of so many frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.fromarray(picture(start + (0 if still else i))) for i in range(count))
    first.save(path, save_all=count > 1, append_images=rest, **({"duration": 100} if count > 1 else {}) | options)
    return path


def folders(root, count=4, **kinds):
    """Class folders; what each holds is written by a function of path and number."""
    for name, write in kinds.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            write(root / name, i)
    return root


def moving(folder, i):
    write_gif(folder / f"{i}.gif", 3 + i, start=10 * len(folder.name))


def standing(folder, i):
    write_gif(folder / f"{i}.gif", 1, start=i + 10 * len(folder.name))


def scan(folder, i):
    Image.fromarray(picture(i + 10 * len(folder.name))).save(folder / f"{i}.png")


@pytest.mark.parametrize("ending", FILES)
def test_frames_of_every_ending_are_found_by_number(tmp_path, ending):
    path = write_film(tmp_path / f"film{ending.upper()}", *FILES[ending])
    assert VIDEOS.takes(path.name)
    with open_video(path) as video:
        # A program stream says when few of its frames are shown, so its end is known to the half second only.
        lost = 13 if ending in (".mpg", ".mpeg", ".mpe", ".vob") else 0
        assert FRAMES - lost <= video.num_frames <= FRAMES and video.size == (96, 64)
        assert video.fps == pytest.approx(25.0)
        order = [30, 3, video.num_frames - 1, 0, 25, 24]
        assert [number_of(frame.numpy()) for frame in video.frames(order)] == order
        assert [number_of(video.frames([i])[0].numpy()) for i in (34, 1)] == [34, 1]


def test_every_ending_of_films_has_a_test():
    assert set(FILES) == VIDEOS.suffixes | VIDEOS.moving_suffixes


def test_a_folder_of_every_ending_is_one_of_films(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    for i, (ending, how) in enumerate(FILES.items()):
        write_film(tmp_path / "ab"[i % 2] / f"{i}{ending}", *how, start=i)
    assert holds_videos(tmp_path)
    report = check_videos(tmp_path, val_fraction=0.2)
    assert sum(report.files.values()) == len(FILES) and report.clean, report.lines()


def test_gif_frames_are_whole_pictures_at_their_own_times(tmp_path):
    path = write_gif(tmp_path / "a.gif", 20, duration=[70] * 10 + [230] * 10)
    with open_video(path) as video:
        assert (video.num_frames, video.duration) == (20, 3.0)
        middles = [(i + 0.5) / video.fps for i in range(20)]
        shown = [int(t / 0.07) if t < 0.7 else 10 + int((t - 0.7) / 0.23) for t in middles]
        assert [number_of(frame.numpy()) for frame in video.frames(range(20))] == shown
    clear = [np.dstack([picture(i), np.full((64, 96), 255, np.uint8)]) for i in range(4)]
    for frame in clear:
        frame[40:, 50:, 3] = 0
    first, *rest = map(Image.fromarray, clear)
    first.save(tmp_path / "clear.gif", save_all=True, append_images=rest, duration=100, disposal=2)
    with open_video(tmp_path / "clear.gif") as video:
        frames = video.frames(range(4)).numpy()
        assert [number_of(frame) for frame in frames] == [0, 1, 2, 3]
        assert (frames[:, 41:, 51:] == 255).all()  # transparency lies on white, as in pictures
        assert np.abs(frames[0].astype(int) - np.asarray(read_image(tmp_path / "clear.gif"))).max() <= 1


@pytest.mark.parametrize(
    ("kinds", "films"),
    [
        ({"a": moving, "bb": moving}, True),
        ({"a": standing, "bb": standing}, False),
        ({"a": scan, "bb": moving}, False),
        ({"a": moving, "bb": scan}, False),
        ({"a": lambda f, i: (moving, scan)[i % 2](f, i), "bb": moving}, False),
        ({"a": lambda f, i: (moving, standing)[i == 0](f, i), "bb": moving}, True),
        ({"a": lambda f, i: (standing, moving)[i == 0](f, i), "bb": standing}, False),
        ({"a": lambda f, i: write_film(f / f"{i}.avi", "mpeg4", start=i), "bb": moving}, True),
        ({"a": moving, "bb": lambda f, i: write_film(f / f"{i}.avi", "mpeg4", start=i)}, True),
    ],
    ids=[
        "films",
        "stills",
        "scans and films",
        "films and scans",
        "mixed",
        "a still",
        "a film",
        "before AVI",
        "behind AVI",
    ],
)
def test_gifs_are_films_where_most_move_and_no_pictures_are_beside_them(tmp_path, kinds, films):
    root = folders(tmp_path / "set", **kinds)
    assert holds_videos(root) is films
    assert infer_task(Recipe(data=str(root))) == ("video" if films else "image")
    data = (open_videos if films else open_images)(root, val_fraction=0.25)
    assert sum(map(len, data.splits.values())) == 8 and len(data.splits["val"]) == 2


def test_a_gif_among_pictures_is_a_picture_by_its_first_frame(tmp_path):
    write_gif(tmp_path / "a.gif", 5, start=7)
    assert number_of(np.asarray(read_image(tmp_path / "a.gif"))) == 7
    root = folders(tmp_path / "set", a=moving, bb=scan)
    with pytest.raises(UserError, match=r"class 'bb' in .* has no video"):
        open_videos(root)


def test_still_gifs_in_running_order_are_frames_of_a_film(tmp_path):
    for name in "ab":
        for k in range(3):
            for i in range(4):
                write_gif(tmp_path / name / f"clip{k}" / f"{i}.gif", 1, start=i + 10 * k + 100 * (name == "b"))
    data = open_videos(tmp_path, val_fraction=0.3)
    assert sorted(data.splits["train"].path(i).suffix for i in range(len(data.splits["train"]))) == [""] * 4
    with open_video(data.splits["train"].path(0)) as video:
        assert video.num_frames == 4


def test_lists_name_gifs_too(tmp_path):
    folders(tmp_path, a=moving, bb=moving, c=standing, dd=scan)
    lists = {"films": ("a/{}.gif", "bb/{}.gif"), "mixed": ("a/{}.gif", "dd/{}.png"), "stills": ("c/{}.gif", "c/{}.gif")}
    for name, patterns in lists.items():
        rows = [f"{pattern.format(i)},{label}" for label, pattern in enumerate(patterns) for i in range(4)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]))
    assert [holds_videos(tmp_path / f"{name}.csv") for name in lists] == [True, False, False]
    numbered = [f"{name}/{i}.gif {label}" for label, name in enumerate(("a", "bb")) for i in range(4)]
    (tmp_path / "numbered.txt").write_text("\n".join(numbered))
    for name in ("films.csv", "numbered.txt"):
        assert len(open_videos(tmp_path / name).splits["train"]) == 6


def test_check_and_prepare_take_gifs(tmp_path):
    root = folders(tmp_path / "set", a=moving, bb=moving)
    report = check_videos(root, val_fraction=0.25)
    assert report.clean and report.sizes["width"] == [96, 96, 96] and report.files == {"train": 6, "val": 2}
    done = prepare_videos(root, tmp_path / "out")
    assert (done.written, done.renamed, done.failed) == (8, 8, [])
    with open_video(tmp_path / "out" / "a" / "2.mp4") as video:
        assert [number_of(frame.numpy()) for frame in video.frames(range(5))] == [10, 11, 12, 13, 14]
