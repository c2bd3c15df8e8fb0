"""Build the sets of the bench of own data by name.

python -m benchmarks.own_sets.sets --root DIR [NAME ...]    builds them in all sizes, one line and one sheet for each

SOURCES.md lists the packages. The same seed gives the same files; a set that is there is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from benchmarks.own_sets import box_sets, clip_sets, emoji_sets, image_sets
from benchmarks.own_sets.folders import DONE, Splits, once, write_folders
from PIL import Image

from openmvit.errors import UserError

_IMAGES: dict[str, Callable[[Path, int], Splits[Image.Image]]] = {
    "fonts": image_sets.fonts,
    "clipart": image_sets.clipart,
    "mnist": image_sets.mnist,
    "emoji": emoji_sets.emoji,
    "textures": image_sets.textures,
    "digits": image_sets.digits,
}
_CLIPS = {"rollouts": clip_sets.rollouts, "films": clip_sets.films}
IMAGE_SETS = tuple(_IMAGES)
CLIP_SETS = tuple(_CLIPS)
BOX_SETS = ("boxes",)
PRETRAIN = "pretrain"
SIZES: dict[str, tuple[int, ...]] = {
    PRETRAIN: (32,),
    **dict.fromkeys(IMAGE_SETS, (5, 20, 100)),
    **dict.fromkeys(CLIP_SETS, (20, clip_sets.TRAIN)),
    **dict.fromkeys(BOX_SETS, (40, 200)),
}


def build(name: str, root: Path, per_class: int, seed: int = 0) -> Path:
    """Folder of a set with train/ and val/, made now or before.

    Args:
        name: one of IMAGE_SETS, CLIP_SETS, BOX_SETS, or PRETRAIN.
        root: cache folder, which also keeps the downloads.
        per_class: training samples of a class at most; of a box set, all training pictures.
        seed: decides what is in which split and what is drawn. The validation split does not depend on `per_class`,
            and a smaller training split is part of a larger one.
    Raises:
        UserError: no set has this name, or a package cannot be fetched.
    """
    if name not in SIZES:
        raise UserError(f"there is no set {name!r}", f"Name one of {', '.join(SIZES)}")
    return once(
        Path(root) / "sets" / f"{name}-{per_class}-seed{seed}", partial(_fill, name, Path(root), per_class, seed)
    )


def _fill(name: str, root: Path, per_class: int, seed: int, folder: Path) -> str:
    if name in BOX_SETS:
        return box_sets.write_boxes(folder, root, per_class, seed)
    if name in CLIP_SETS:
        return write_folders(folder, _CLIPS[name](root, seed), per_class, clip_sets.save_film, ".mp4")
    return write_folders(folder, _image_splits(name, root, seed), per_class, save_png, ".png")


@lru_cache(maxsize=1)  # the sizes of a set share their sources
def _image_splits(name: str, root: Path, seed: int) -> Splits[Image.Image]:
    return emoji_sets.pretrain(root, seed) if name == PRETRAIN else _IMAGES[name](root, seed)


def save_png(picture: Image.Image, path: Path) -> None:
    picture.save(path)


def sheet(folder: Path, columns: int = 12, rows: int = 20) -> Image.Image:
    """Training samples of a set, a row for each class; of clips, every third frame of one in each row."""
    places = sorted(path for path in (folder / "train").iterdir() if path.is_dir())[:rows]
    lines = [_pictures(place, columns) for place in places]
    if not places:
        found = _pictures(folder / "train", 4 * columns)
        lines = [found[start : start + columns] for start in range(0, len(found), columns)]
    side = lines[0][0].width + 2
    picture = Image.new("RGB", (columns * side, len(lines) * side), "grey")
    for row, line in enumerate(lines):
        for column, one in enumerate(line):
            picture.paste(one, (column * side, row * side))
    return picture


def _pictures(place: Path, count: int) -> list[Image.Image]:
    """The first pictures of a folder, or frames of its first films."""
    clips = sorted(place.glob("*.mp4"))
    if not clips:
        return [Image.open(file).convert("RGB") for file in sorted(place.glob("*.png"))[:count]]
    import av

    with av.open(clips[0]) as container:
        return [frame.to_image() for frame in container.decode(video=0)][:: clip_sets.FRAMES // 8][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the sets of the bench of own data.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SIZES)}; all without any")
    parser.add_argument("--root", type=Path, required=True, help="cache folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.names or SIZES:
        try:
            folders = {size: build(name, arguments.root, size, arguments.seed) for size in SIZES.get(name, (0,))}
        except UserError as error:
            sys.exit(f"error: {error}")
        for size, folder in folders.items():
            print(f"{name}, {size}: {(folder / DONE).read_text().strip()}", flush=True)
        (arguments.root / "sheets").mkdir(exist_ok=True)
        sheet(folders[max(folders)]).save(arguments.root / "sheets" / f"{name}.png")


if __name__ == "__main__":
    main()
