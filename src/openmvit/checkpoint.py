"""Our file: one safetensors file that knows what it is. Save, read, load into a network, report."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from openmvit.config import MViTConfig, Size
from openmvit.convert import cards
from openmvit.convert.bounds import HEADER_BYTES, check_architecture, check_card_text, check_header, check_length
from openmvit.convert.cards import FORMAT
from openmvit.errors import UserError
from openmvit.model import MViT
from openmvit.nn.position import resize_grid, resize_table

_M = TypeVar("_M", bound=nn.Module)

HEADER = "openmvit"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GRAPHS = (".onnx", ".pt2")
"""Endings of exported files."""
_WRAPPER_KEYS = ("model_state", "state_dict", "model")  # where other projects keep the state dict in their files

NEEDED = 0.95
"""Share of the trunk's tensors that weights must fill; less is an error whatever was asked for."""


@dataclass
class LoadReport:
    """What became of every tensor when weights were put into a network."""

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    """`key from -> to` of tensors adapted to another size."""
    reinitialised: list[str] = field(default_factory=list)
    """Keys of the network that kept their initial values."""
    ignored: list[str] = field(default_factory=list)
    """Keys of the file that the network has no place for."""
    reason: str = ""
    """What told which network another project's file holds."""
    source: str = ""
    """What the weights are: a card's name, a path or an address."""
    share: float = 1.0
    """Of the trunk's tensors that the file has to fill, those that it did fill, 0..1."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def with_file(self, dropped: list[str], reason: str) -> LoadReport:
        """This report with what became of the file before its tensors had our names."""
        self.ignored, self.reason = [*dropped, *self.ignored], reason
        return self

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors"]
        for word in ("resized", "reinitialised", "ignored"):
            keys: list[str] = getattr(self, word)
            if keys:
                parts.append(f"{word} {len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})")
        return "; ".join([*parts, *[self.reason] * bool(self.reason)])


def save(path: Path, state_dict: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write one self-sufficient file; the old file at `path` stays whole until the new one is complete.

    Args:
        card: plain data; keys in ARCHITECTURE.md, "Checkpoint".
    Raises:
        UserError: if the disk refuses the file. Nothing half-written is left, and an older file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps({"format": FORMAT, **card})
    if 2 * len(text) > HEADER_BYTES:
        raise UserError(f"The card of {path} has {len(text) >> 20} MiB", "Leave long lists out of it")
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    try:
        save_file(tensors, temporary, metadata={HEADER: text})
        usual_rights(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        full = any(f"rror {code}" in str(error) for code in _DISK_FULL) or getattr(error, "errno", 0) in _DISK_FULL
        cause = f"The disk of {path.parent} takes no more data" if full else f"Cannot write {path}"
        raise UserError(f"{cause} ({error})", "Free space on the disk or choose another folder") from error


def usual_rights(path: Path) -> None:
    """Give a file of safetensors, which writes for its owner alone, the rights that any new file beside it gets."""
    twin = path.with_name(f"{path.name}.{os.getpid()}")
    twin.touch()
    path.chmod(twin.stat().st_mode & 0o777)
    twin.unlink()


def find(target: str | Path) -> Path:
    """The weight file that a path means: a file, or the best weights of a run folder.

    Raises:
        UserError: if there is none.
    """
    path = Path(target)
    if path.is_dir():
        file = path / "weights" / "best.safetensors"
        if not file.is_file():
            raise UserError(f"The folder {path} has no weights/best.safetensors", "Name a run folder or a weight file")
        return file
    if not path.is_file():
        raise UserError(f"There is no file or run folder {path}", "Check the path")
    return path


@dataclass(frozen=True)
class Content:
    """What a weight file holds."""

    state: dict[str, Tensor]
    card: dict[str, Any] | None = None
    """Of our own files."""
    settings: str | None = None
    """YAML text that the authors' files carry beside the weights; written by others, so read it with care."""


def read(target: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """State dict and card of a run folder or file; the card is None for a file of another project.

    Raises:
        UserError: if the file is missing, damaged, claims more than it holds, or is a pickle that holds more than
            tensors and plain data.
    """
    content = read_content(target)
    return content.state, content.card


def read_content(target: str | Path) -> Content:
    """All that a run folder or file says about weights.

    Raises:
        UserError: see `read`.
    """
    check_no_graph(target)
    path = find(target)
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file starts with the length of its JSON header; all the others are pickles or zip archives.
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickle(path)
    state = content
    for key in _WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            state = content[key]
            break
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()) or not state:
        raise UserError(f"The file {path} holds no state dict", "Give a file that holds the weights of a network")
    if not all(isinstance(key, str) for key in state):
        raise UserError(f"The tensors of {path} have no names", "Give a file that holds the weights of a network")
    settings = content.get("cfg")
    return Content(dict(state), settings=settings if isinstance(settings, str) else None)


def check_no_graph(target: str | Path) -> None:
    """Refuse an exported file where weights are wanted, by its ending.

    Raises:
        UserError: if it is one.
    """
    if Path(target).suffix in GRAPHS:
        raise UserError(f"{target} is an exported graph and holds no network", "Name the run or the weights instead")


def _read_safetensors(path: Path) -> Content:
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER)
            if text is not None:
                check_card_text(path, text)
            card = None if text is None else json.loads(text)
            # Copied to aligned memory: kernels chosen by alignment would change the last bit of the outputs.
            state = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        words = str(error)[:200]
        raise UserError(f"Cannot read {path} ({words})", cards.HEADER.damaged) from error
    if text is not None:
        cards.check_card(path, card, cards.HEADER)
    return Content(state, card)


def read_pickle(path: Path) -> Any:
    """Content of a `.pth`, `.pyth`, `.bin` or `.pkl` file; only tensors, arrays and plain data are ever unpickled.

    Raises:
        UserError: if the file is damaged, claims more than it holds, or names anything that would run code.
    """
    from openmvit.convert.torchfiles import check_torch_file, is_torch_file

    size = check_length(path)
    with path.open("rb") as file:
        if not is_torch_file(file.read(32)):
            return _read_plain(path)
        check_torch_file(path, file, size)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
            raise UserError(
                f"Refused to read {path}: it is damaged or holds more than weights {reason[:120]}".rstrip(),
                "Give a file of tensors; nothing in it was run",
            ) from error
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"Cannot read {path} ({first[:120]})", "The file is damaged; fetch it again") from error


def _read_plain(path: Path) -> Any:
    from openmvit.convert.pickles import read_array_pickle

    return read_array_pickle(path)


def read_model(target: str | Path) -> tuple[MViT, dict[str, Any]]:
    """The classifier of one of our files or run folders, in eval mode, with its card.

    Raises:
        UserError: if the file is not ours, or its architecture does not fit its tensors.
    """
    return read_into(target, lambda card: MViT(MViTConfig.from_dict(architecture_of(card, target))))


def architecture_of(card: Mapping[str, Any], target: object) -> dict[str, Any]:
    """The architecture that a card names, if a network can be that large.

    Raises:
        UserError: if there is none, or a number in it is beyond all networks.
    """
    fields = card.get("architecture")
    if not isinstance(fields, dict):
        raise UserError(f"The card of {target} names no architecture", "Train it again, or convert it again")
    check_architecture(target, fields)
    return fields


def read_into(target: str | Path, build: Callable[[dict[str, Any]], _M]) -> tuple[_M, dict[str, Any]]:
    """The network that `build` makes of a file's card, with the file's tensors, in eval mode, and the card.

    Raises:
        UserError: if the file is not ours, or its tensors or classes are not those of the network.
    """
    state, card = read(target)
    if card is None:
        raise UserError(
            f"{target} does not say which network it holds", "Name the model too: --model NAME --weights FILE"
        )
    architecture_of(card, target)
    with torch.device("meta"):
        model = build(card)
    expected = model.state_dict()
    wrong = [k for k in expected.keys() | state.keys() if k not in state or k not in expected]
    wrong += [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    if wrong:
        raise UserError(
            f"{target} does not fit the architecture in its own header: {sorted(wrong)[:3]}", "Train it again"
        )
    config: Any = model.config
    cards.check_classes(target, card, config.num_classes, cards.HEADER)
    # Whoever prepares inputs names what is missing there.
    card.setdefault("preprocessing", {})
    model.load_state_dict(state, assign=True)
    model.load_report = LoadReport(loaded=list(state), source=str(target))  # type: ignore[assignment]
    return model.eval().requires_grad_(True), card


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: MViTConfig,
    *,
    strict: bool = True,
    may_start_fresh: tuple[str, ...] = (),
    heads: tuple[str, ...] = ("head.",),
) -> LoadReport:
    """Put native weights into a network, adapting what can be adapted; the report stays at `model.load_report`.

    Position tables are resized, the stem is adapted to other input channels, and a head for other classes keeps its
    fresh values.

    Args:
        model: an `MViT` or a detector.
        source: configuration of the trunk that `state` was made for.
        strict: a mismatch anywhere else is an error; otherwise it is reported.
        may_start_fresh: ends of keys that may keep their initial values all the same.
        heads: beginnings of the keys whose shape goes by the classes.
    Raises:
        UserError: naming the first keys that do not fit, or if less than 95 % of the trunk's tensors do.
    """
    own = model.state_dict()
    place, trunk = next((name, module) for name, module in model.named_modules() if isinstance(module, MViT))
    report = _merge(own, state, source, trunk.config)
    stray = [k for k in report.reinitialised if not k.endswith(may_start_fresh)] + report.ignored
    stray = [k for k in stray if not k.startswith(heads)]
    if strict and stray:
        raise UserError(
            f"{len(stray)} tensors do not fit this network, such as {', '.join(sorted(stray)[:3])}",
            "Choose the model that the weights were made for",
        )
    wanted = [k for k in own if k.startswith(place) and not k.endswith(may_start_fresh) and not k.startswith(heads)]
    _require(report, wanted)
    model.load_state_dict(own)
    model.load_report = report  # type: ignore[assignment]
    return report


def _require(report: LoadReport, wanted: list[str]) -> None:
    """Refuse weights that leave more than a few of the wanted tensors as they were."""
    lost = set(report.reinitialised) & set(wanted)
    report.share = 1.0 - len(lost) / max(len(wanted), 1)
    if report.share < NEEDED:
        raise UserError(
            f"Only {len(wanted) - len(lost)} of the {len(wanted)} tensors of the trunk fit, such as not {min(lost)}",
            "Choose the model that the weights were made for; nothing was loaded",
        )


def _merge(own: dict[str, Tensor], state: Mapping[str, Tensor], source: MViTConfig, config: MViTConfig) -> LoadReport:
    """Replace in `own` every tensor that `state` has a value for."""
    report = LoadReport(ignored=[key for key in state if key not in own])
    for key, target in own.items():
        value = state.get(key)
        value = None if value is None else _adapt(key, value, target, source, config)
        if value is None:
            report.reinitialised.append(key)
            continue
        if value.shape == state[key].shape:
            report.loaded.append(key)
        else:
            report.resized.append(f"{key} {list(state[key].shape)} -> {list(value.shape)}")
        own[key] = value.to(target.dtype)
    return report


def _adapt(
    key: str, value: Tensor, target: nn.Parameter | Tensor, source: MViTConfig, config: MViTConfig
) -> Tensor | None:
    """`value` in the shape of `target`, or None when there is no honest way."""
    if value.shape == target.shape:
        return value
    leaf = key.rpartition(".")[2]
    if leaf.startswith("rel_pos_") and value.shape[1:] == target.shape[1:]:
        return resize_table(value, target.shape[0])
    if leaf.startswith("pos_embed") and value.shape[-1] == target.shape[-1]:
        return _adapt_position(leaf, value, source, config)
    if (
        key.endswith("patch_embed.proj.weight")
        and value.shape[0] == target.shape[0]
        and value.shape[2:] == target.shape[2:]
    ):
        return _adapt_channels(value, target.shape[1])
    return None


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Stem for other input channels: the old ones in turn, scaled so that a grey input gives the old activations."""
    old = weight.shape[1]
    picked = weight[:, [i % old for i in range(channels)]] if channels != 1 else weight.sum(1, keepdim=True)
    return picked if channels == 1 else picked * (old / channels)


def _adapt_position(leaf: str, table: Tensor, source: MViTConfig, config: MViTConfig) -> Tensor | None:
    old, new = source.patch_grid, config.patch_grid
    if len(old) != len(new):
        return None
    if leaf == "pos_embed_temporal":
        return resize_grid(table, new[:1])
    if leaf == "pos_embed_spatial":
        return _resize_rows(table, old[1:], new[1:])
    if source.cls_token != config.cls_token:
        return None
    rows = int(source.cls_token)
    return torch.cat([table[:, :rows], _resize_rows(table[:, rows:], old, new)], dim=1)


def _resize_rows(table: Tensor, old: Size, new: Size) -> Tensor:
    return resize_grid(table.unflatten(1, old), new).flatten(1, -2)
