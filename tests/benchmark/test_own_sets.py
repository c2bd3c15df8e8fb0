"""The sets of the bench of own data: what is in which split, twice the same, and readable by the package."""

import importlib
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openmvit.data.detection_layouts import open_detection
from openmvit.errors import UserError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
box_sets, clip_sets, emoji_sets, folders, image_sets, sets, sources = (
    importlib.import_module(f"benchmarks.own_sets.{name}")
    for name in ("box_sets", "clip_sets", "emoji_sets", "folders", "image_sets", "sets", "sources")
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which five vendors drew 64 emoji of each subject, each in a colour of its own."""
    root = tmp_path_factory.mktemp("cache")
    table = []
    for number in range(64 * len(emoji_sets.SUBJECTS)):
        category = list(emoji_sets.SUBJECTS)[number // 64]
        # Every fourth is drawn as a pair with the next: it has the same last word.
        name = f"emoji{number}_twin{'abcdefghijklmnopqrst'[number // 2 % 12]}" if number % 4 < 2 else f"emoji_{number}x"
        table.append({"unified": f"1{number:04X}", "image": f"1{number:04x}.png", "category": category})
        table[-1]["short_name"] = name
    for vendor, package in sources.VENDORS.items():
        base = root / "downloads" / f"{package.name.replace('/', '+')}-{package.version}" / "package"
        place = base / "assets" if vendor == "fluent" else base / "img" / vendor / "64"
        place.mkdir(parents=True)
        (base / "emoji.json").write_text(json.dumps(table))
        for number, entry in enumerate(table):
            name = f"{entry['unified'].lower()}.webp" if vendor == "fluent" else entry["image"]
            Image.new("RGBA", (4, 4), colour_of(number)).save(place / name, lossless=True)
    return root


def colour_of(number: int) -> tuple[int, int, int, int]:
    return (number % 256, number // 256, 77, 255)


def numbers(folder: Path) -> set[int]:
    """Which emoji are in a folder, by their colours."""
    pixels = [Image.open(path).getpixel((0, 0)) for path in folder.rglob("*.png")]
    return {red + 256 * green for red, green, _ in pixels}


def test_emoji_of_a_training_split_nest_and_none_validates(vendors: Path) -> None:
    small, large = (sets.build("emoji", vendors, count) for count in (3, 9))
    assert contents(small / "train").items() < contents(large / "train").items()
    assert contents(small / "val") == contents(large / "val")
    assert len(list(small.glob("train/*/*"))) == 3 * 9
    assert numbers(large / "train") and not numbers(large / "train") & numbers(large / "val")


def test_families_of_emoji_are_in_one_split(vendors: Path) -> None:
    first, groups = emoji_sets.divided(vendors, 0)
    sides = [first, [e for train, _ in groups.values() for e in train], [e for _, val in groups.values() for e in val]]
    kinds = [{(one.subject, emoji_sets.family(one)) for one in side} for side in sides]
    assert all(kinds) and not kinds[0] & kinds[1] and not kinds[1] & kinds[2] and not kinds[0] & kinds[2]


def test_a_repeated_picture_is_left_out(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("c", b"3")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    one, repeated, other = (
        emoji_sets.Emoji(name, "flags", pictures) for name, pictures in (("x", (a,)), ("y", (b, a)), ("z", (c,)))
    )
    assert emoji_sets.unrepeated([one, repeated, other]) == [one, other]


def test_pretrain_holds_a_vendor_out(vendors: Path) -> None:
    folder = sets.build("pretrain", vendors, 5)
    names = sorted(path.name for path in (folder / "train").iterdir())
    assert names == sorted(one.name for one in emoji_sets.divided(vendors, 0)[0])
    splits = emoji_sets.pretrain(vendors, 0)
    for name in names:
        train, val = ({draw.args[0] for draw in side[name]} for side in (splits.train, splits.val))
        assert len(train) == len(sources.VENDORS) - 1 and len(val) == 1 and not train & val


def test_a_seed_gives_the_same_files_and_another_seed_others(vendors: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").symlink_to(vendors / "downloads")
    made = contents(sets.build("emoji", vendors, 3))
    assert contents(sets.build("emoji", tmp_path, 3)) == made
    assert contents(sets.build("emoji", tmp_path, 3, seed=1)) != made


def test_digits(tmp_path: Path) -> None:
    small, large = (sets.build("digits", tmp_path, count) for count in (5, 20))
    assert contents(small / "train").items() < contents(large / "train").items()
    assert contents(small / "val") == contents(large / "val")
    assert len(contents(large / "val")) == 300
    assert not set(contents(large / "train").values()) & set(contents(large / "val").values())


def test_hold_out_takes_whole_families() -> None:
    families = {name: [f"{name}{i}" for i in range(size)] for name, size in zip("abcdefgh", range(1, 9), strict=True)}
    train, val = folders.hold_out(families, 10, random.Random(0))
    assert len(val) == 10 and not {member[0] for member in train} & {member[0] for member in val}
    assert (train, val) == folders.hold_out(dict(reversed(families.items())), 10, random.Random(0))


def test_a_broken_build_is_made_again_and_a_full_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "half.png").touch()
    calls = []
    for _ in range(2):
        folders.once(folder, lambda work: calls.append(work) or "line")
    assert len(calls) == 1 and [path.name for path in folder.iterdir()] == [folders.DONE]


def test_words_of_the_splits_differ() -> None:
    train, val = ({image_sets.word(random.Random(i), held).lower() for i in range(3000)} for held in (False, True))
    assert len(train) > 1000 and len(val) > 1000 and not train & val


def test_series_and_copies_of_cliparts(tmp_path: Path) -> None:
    assert image_sets.series(Path("dog_01_drawn_02.png")) == image_sets.series(Path("dog_05_drawn_01.png"))
    assert image_sets.series(Path("dog_01.png")) != image_sets.series(Path("cat_01.png"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    noise[1] = np.clip(noise[0].astype(int) + 2, 0, 255)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    kept = image_sets.without_copies(paths, lambda path: Image.fromarray(noise[int(path.stem)]))
    assert kept == {paths[0], paths[2]}


def test_halves_of_a_wallpaper_do_not_meet(tmp_path: Path) -> None:
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[:, 400:] = 255
    Image.fromarray(pixels).save(tmp_path / "wall.png")
    left, right = (np.asarray(half) for half in image_sets.halves_of(tmp_path / "wall.png"))
    assert left[:, :-4].max() == 0 and right[:, 4:].min() == 255


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film whose frames are as bright as they are late: 250 frames, from 0 to 249."""
    path = tmp_path_factory.mktemp("film") / "bright.mp4"
    frames = np.broadcast_to(np.arange(250, dtype=np.uint8)[:, None, None, None], (250, 80, 96, 3))
    clip_sets.save_film(frames, path)
    return path


def brightness(film: Path, play: str, split: str = "train") -> np.ndarray:
    frames = clip_sets._window([film, film.with_name("other")], film, play, split, f"key {play}")
    assert frames.shape == (clip_sets.FRAMES, clip_sets.SIDE, clip_sets.SIDE, 3)
    return frames.mean(axis=(1, 2, 3))


def test_ways_to_play_a_film(film: Path) -> None:
    steps = {play: np.diff(brightness(film, play)) for play in ("normal", "fast", "still", "shuffled")}
    assert abs(steps["normal"].mean() - 1) < 0.1 and abs(steps["fast"].mean() - clip_sets.STEP) < 0.2
    assert not steps["still"].any() and steps["shuffled"].min() < -2


def test_parts_of_a_film_do_not_meet(film: Path) -> None:
    plays = ("normal", "fast", "still")
    train, val = (np.concatenate([brightness(film, play, split) for play in plays]) for split in ("train", "val"))
    assert train.max() < val.min() - 3


@pytest.fixture
def scene_parts(vendors: Path, tmp_path: Path) -> tuple[list[Image.Image], list[list]]:
    _, groups = emoji_sets.divided(vendors, 0)
    return [Image.new("RGB", (400, 400), (255, 255, 255))], [groups["animals"][0], groups["food"][0]]


def test_boxes_are_read_and_lie_around_what_is_pasted(scene_parts: tuple, tmp_path: Path) -> None:
    scenes = [box_sets.paste(*scene_parts, f"{i}") for i in range(8)]
    for split in ("train", "val"):
        box_sets.write_coco(tmp_path / split, scenes, ("animals", "food"))
    data = open_detection(tmp_path)
    assert data.classes == ("animals", "food") and not data.faults
    assert sum(data.splits["train"].class_counts(2)) == sum(len(objects) for _, objects in scenes)
    for picture, objects in scenes:
        seen = (np.asarray(picture) < 250).any(axis=2)
        inside = np.zeros_like(seen)
        for _, (left, top, right, bottom) in objects:
            inside[top:bottom, left:right] = True
            part = seen[top:bottom, left:right]
            assert part[:2].any() and part[-2:].any() and part[:, :2].any() and part[:, -2:].any()
        assert seen.any() and not (seen & ~inside).any()


def test_objects_hardly_overlap(scene_parts: tuple) -> None:
    assert box_sets.overlap((0, 0, 10, 10), (5, 0, 25, 10)) == 0.5
    for number in range(30):
        _, objects = box_sets.paste(*scene_parts, f"{number}")
        boxes = [box for _, box in objects]
        assert all(box_sets.overlap(a, b) < 0.1 for i, a in enumerate(boxes) for b in boxes[:i])


def test_an_unknown_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no set 'font'"):
        sets.build("font", tmp_path, 5)


def test_every_package_and_set_has_its_row() -> None:
    page = (ROOT / "benchmarks/own_sets/SOURCES.md").read_text()
    packages = [value for value in vars(sources).values() if isinstance(value, sources.Package)]
    for package in (*packages, *sources.VENDORS.values()):
        assert f"| {package.name} | {package.kind} | {package.version} | {package.licence} |" in page
    assert all(f"| `{name}` |" in page for name in sets.SIZES)
