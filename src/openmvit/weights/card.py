"""Weight cards: what was released, where it lies, what is inside, what it expects, and what is still unsure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from openmvit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class WeightCard:
    """One released file.

    `preprocessing` has the keys of a checkpoint's card: of images imgsz, mean, std, crop_ratio and interpolation, of
    clips num_frames, stride, sampling, clips, crops, short_side and stored_side besides the first three, of detectors
    short_side and long_side.
    """

    model: str
    tag: str
    source: str
    """Project that released it."""
    task: str
    """`image`, `video`, `detection` or `action`."""
    url: str
    """Where it lies: https, `hub:owner/name`, or with `by_hand` a page to download it from."""
    key: str
    """Where the file keeps the state dict; empty: the file is the state dict."""
    licence: str
    num_classes: int
    """0: the file has no classifier."""
    profile: str
    """Name of `preprocessing`."""
    preprocessing: dict[str, Any]
    published: dict[str, float] = field(default_factory=dict)
    """Score as published, by its name; empty where none was given."""
    protocol: str = ""
    """What `published` was measured with."""
    ours: str = "not measured"
    sha256: str = ""
    """Of the file, or its beginning; empty where none was published."""
    size_mb: float | None = None
    """In units of 2**20 bytes, where known before download."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration, beside the classes, that differ from the architecture's."""
    by_hand: bool = False
    """It lies on a page that only a person can download from."""
    loadable: bool = True
    """False for a network that is not here: listed only."""
    note: str = ""
    question: str = ""
    """What nobody can tell before looking into the file."""

    @property
    def name(self) -> str:
        """`model.tag`."""
        return f"{self.model}.{self.tag}"

    @property
    def how(self) -> str:
        """How the file is had, where fetching is not all."""
        if not self.loadable:
            return "listed only: this network is not supported"
        return "download by hand, then openmvit convert FILE" if self.by_hand else ""

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the configuration that the file was made for: classes, where it has some, and `changes`."""
        return ({"num_classes": self.num_classes} if self.num_classes else {}) | self.changes


@cache
def cards() -> tuple[WeightCard, ...]:
    """Every weight card, in the order of weights.yaml."""
    import yaml

    text = (resources.files("openmvit") / "weights.yaml").read_text(encoding="utf-8")
    content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    profiles, found = content["profiles"], []
    for group in content["groups"]:
        shared = {key: value for key, value in group.items() if key != "cards"}
        for row in group["cards"]:
            fields = shared | row
            profile = fields["preprocessing"]
            url = fields.pop("base") + fields.pop("file")
            fields |= {"url": url, "profile": profile, "preprocessing": profiles[profile]}
            if fields.get("published"):
                fields.setdefault("protocol", _protocol(fields))
            found.append(WeightCard(**fields))
    return tuple(found)


def _protocol(fields: dict[str, Any]) -> str:
    """What a published score was measured with, in words."""
    p, task = fields["preprocessing"], fields["task"]
    if task == "action":
        return "AVA 2.2 validation, mAP at 0.5"
    if task == "detection":
        data = "LVIS 1.0 validation" if fields["tag"].endswith("lvis") else "COCO val2017"
        return f"{data}, short side {p['short_side']}, long side at most {p['long_side']}"
    if task == "video":
        return f"{p['clips']} clips x {p['crops']} crops of {p['imgsz']} pixels, {p['sampling']}"
    cut = f"centre crop, ratio {p['crop_ratio']}" if p["crop_ratio"] else "squashed"
    return f"ImageNet-1K validation, {p['imgsz']} pixels, {cut}"


def find_card(model: str, tag: str | None = None) -> WeightCard:
    """The card of a model, by its tag, the end of its tag (`in1k`), or by default its first that can be fetched.

    Raises:
        UserError: if the model has no released weights, or none under this tag.
    """
    own = [card for card in cards() if card.model == model]
    if not own:
        raise UserError(f"No weights of {model} were released", "Give a file, or start with weights none")
    # A file that can be fetched comes before one of a page, wherever a name means both.
    ready = sorted(own, key=lambda card: card.by_hand)
    if tag is None:
        return ready[0]
    found = [card for card in own if card.tag == tag] or [card for card in ready if card.tag.endswith(f"_{tag}")]
    if not found:
        raise UserError(f"{model} has no weights {tag!r}", did_you_mean(tag, [card.tag for card in own]))
    return found[0]


def card_of_file(name: str, model: str | None = None) -> WeightCard | None:
    """The card whose file has this name, such as `model_final_1a1c30.pkl`; None if there is none."""
    own = (card for card in cards() if model in (None, card.model))
    return next((card for card in own if card.url.rpartition("/")[2] == name), None)
