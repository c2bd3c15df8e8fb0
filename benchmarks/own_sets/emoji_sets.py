"""Sets of emoji as several vendors draw them: by subject, and one class for each emoji to train first weights on."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.own_sets.folders import Draw, Splits, by_family, hold_out
from benchmarks.own_sets.sources import VENDORS, unpacked
from PIL import Image

PRETRAIN_GROUP = 20  # emoji of each subject that `pretrain` takes and the other sets leave alone
FAMILY = 3  # members of a family at most: else one of hearts or clocks could fill a validation split
SUBJECTS = {
    "Activities": "activities",
    "Animals & Nature": "animals",
    "Flags": "flags",
    "Food & Drink": "food",
    "Objects": "objects",
    "People & Body": "people",
    "Smileys & Emotion": "smileys",
    "Symbols": "symbols",
    "Travel & Places": "travel",
}


@dataclass(frozen=True)
class Emoji:
    """One code point (or keycap or flag) and its picture by vendor."""

    name: str
    subject: str
    pictures: tuple[Path, ...]

    def __lt__(self, other: Emoji) -> bool:
        return self.name < other.name


def all_emoji(root: Path) -> list[Emoji]:
    """Emoji that at least three vendors draw, without the joined ones, which are variants of their parts."""
    folders = {name: unpacked(root, package) for name, package in VENDORS.items()}
    table = json.loads((folders["apple"] / "package/emoji.json").read_text())
    found = []
    for entry in table:
        if "200D" in entry["unified"] or entry["category"] not in SUBJECTS:
            continue
        paths = [folders[name] / "package/img" / name / "64" / entry["image"] for name in VENDORS if name != "fluent"]
        paths.append(folders["fluent"] / "package/assets" / f"{entry['unified'].lower().lstrip('0')}.webp")
        paths = [path for path in paths if path.is_file()]
        if len(paths) >= 3:
            found.append(Emoji(entry["short_name"], SUBJECTS[entry["category"]], tuple(paths)))
    return unrepeated(sorted(found))


def unrepeated(emoji: list[Emoji]) -> list[Emoji]:
    """Emoji none of whose pictures is that of an earlier one: some islands fly the flag of another country."""
    seen: set[bytes] = set()
    kept = []
    for one in emoji:
        pictures = {path.read_bytes() for path in one.pictures}
        if not pictures & seen:
            kept.append(one)
        seen |= pictures
    return kept


def family(emoji: Emoji) -> str:
    """What near copies share: all clocks, all hearts, all squares are one family. Faces and flags are not."""
    last = emoji.name.replace("-", "_").rpartition("_")[2].rstrip("0123456789")
    return emoji.name if last in ("", "face") else last


def divided(root: Path, seed: int) -> tuple[list[Emoji], dict[str, tuple[list[Emoji], list[Emoji]]]]:
    """(emoji to train first weights on, subject -> (training, validation)); no emoji and no family is in two."""
    emoji = all_emoji(root)
    first: list[Emoji] = []
    rest = {}
    for subject in SUBJECTS.values():
        rng = random.Random(f"emoji/{seed}/{subject}")
        families = by_family([one for one in emoji if one.subject == subject], family)
        members = [one for group in families.values() for one in group[:FAMILY]]
        drawn_by_all = [one for one in members if len(one.pictures) == len(VENDORS)]
        left, taken = hold_out(by_family(drawn_by_all, family), PRETRAIN_GROUP, rng)
        first += taken
        gone = {family(one) for one in drawn_by_all} - {family(one) for one in left}
        rest[subject] = hold_out(by_family([m for m in members if family(m) not in gone], family), 20, rng)
    return first, rest


def emoji(root: Path, seed: int) -> Splits[Image.Image]:
    """The subject of an emoji, 48 px; an emoji is in one split only, whoever draws it."""
    _, groups = divided(root, seed)
    rng = random.Random(f"emoji/{seed}/vendors")
    splits: Splits[Image.Image] = Splits({}, {}, [f"{package}" for package in VENDORS.values()])
    for subject, sides in groups.items():
        for split, members, most in (("train", sides[0], 100), ("val", sides[1], 30)):
            getattr(splits, split)[subject] = [partial(_whole, path) for path in by_turns(members, rng)[:most]]
    return splits


def by_turns(members: list[Emoji], rng: random.Random) -> list[Path]:
    """A picture of every emoji, then a second one of every emoji by another vendor, and so on."""
    orders = [rng.sample(one.pictures, len(one.pictures)) for one in members]
    return [order[turn] for turn in range(len(VENDORS)) for order in orders if turn < len(order)]


def _whole(path: Path, size: int = 48) -> Image.Image:
    with Image.open(path) as opened:
        picture = opened.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", picture.size, "white")
    square.alpha_composite(picture)
    return square.convert("RGB")


def pretrain(root: Path, seed: int) -> Splits[Image.Image]:
    """One class for each emoji, 32 px, moved, scaled and on a plain ground; one vendor of each is held out."""
    first, _ = divided(root, seed)
    splits: Splits[Image.Image] = Splits({}, {}, [f"{package}" for package in VENDORS.values()])
    for one in sorted(first):
        paths = random.Random(f"pretrain/{seed}/{one.name}").sample(one.pictures, len(one.pictures))
        for split, vendors, count in (("train", paths[1:], 40), ("val", paths[:1], 2)):
            draws: list[Draw[Image.Image]] = [
                partial(_moved, vendors[i % len(vendors)], f"pretrain/{seed}/{split}/{one.name}/{i}")
                for i in range(count)
            ]
            getattr(splits, split)[one.name] = draws
    return splits


def _moved(path: Path, key: str, size: int = 32) -> Image.Image:
    rng = random.Random(key)
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    side = rng.randint(size * 5 // 8, size)
    picture = picture.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.BOX)
    dark = rng.random() < 0.3
    ground = tuple(rng.randint(0, 110) if dark else rng.randint(150, 255) for _ in range(3))
    square = Image.new("RGBA", (size, size), ground)
    square.alpha_composite(picture, (rng.randint(0, size - side), rng.randint(0, size - side)))
    return square.convert("RGB")
