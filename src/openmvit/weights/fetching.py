"""Where weights lie on this machine, and how they come there: cards, addresses, hub ids, mirrors."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from openmvit.errors import UserError
from openmvit.weights.card import WeightCard
from openmvit.weights.download import check_file, download
from openmvit.weights.naming import is_address, is_hub_id

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]*")
_HUB_ID = re.compile(rf"({_NAME.pattern}/{_NAME.pattern})(?:@({_NAME.pattern}))?")
# What repositories call their weights, the safer kind first.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_OTHERWISE = "Give --weights FILE, or --weights none to start from random weights"


def fetch(card: WeightCard) -> Path:
    """The card's file on this machine: from the cache of torch.hub or of the hub, else downloaded there.

    With OPENMVIT_MIRROR set, from there instead: an address, or a folder, that holds `host/path` of the original.

    Raises:
        UserError: if it cannot be had: not released for this network, to be fetched by hand, offline, or gone.
    """
    if not card.loadable:
        raise UserError(f"{card.name} is listed only. {card.note}".rstrip(". "), "See openmvit models")
    if is_hub_id(card.url):
        return fetch_hub(card.url, card.name)
    path = _cache() / _file_name(card.url)
    if path.is_file():
        return path
    if card.by_hand:
        raise UserError(
            f"The weights {card.name} lie on a page, {card.url}",
            f"Download by hand, then openmvit convert FILE (or store it as {path})",
        )
    mirror = os.environ.get("OPENMVIT_MIRROR", "").strip().rstrip("/")
    if mirror and not mirror.startswith(("http://", "https://")):
        return _from_folder(Path(mirror), card)
    return _get(card.url, path, card.sha256, card.name, mirror)


def fetch_url(url: str) -> Path:
    """The file of any address on this machine; each address has a folder of its own in the cache of torch.hub.

    Raises:
        UserError: if the address is none of a file, or the file cannot be had.
    """
    own = hashlib.sha256(url.encode()).hexdigest()[:12]
    path = _cache() / "openmvit" / own / _file_name(url)
    return path if path.is_file() else _get(url, path, "", url, mirror="")


def fetch_hub(address: str, name: str = "") -> Path:
    """The weights of a repository, from the hub library's own cache or downloaded there.

    Args:
        address: `hub:owner/name`, `hf:owner/name`, with `@revision` if wanted.
        name: for messages.
    Raises:
        UserError: if the address is malformed, or there are no weights behind it.
    """
    text = address.partition(":")[2]
    found = _HUB_ID.fullmatch(text)
    if found is None or ".." in text:
        raise UserError(f"{address!r} is no repository", "Write hf:owner/name, with @revision if wanted")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(f"{address} needs huggingface_hub", "pip install huggingface_hub") from error
    offline = _offline()
    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(found[1], file, revision=found[2], local_files_only=bool(offline)))
        except LocalEntryNotFoundError as error:
            if offline and file != _HUB_FILES[-1]:
                continue
            raise _unreachable(name or address, address, offline or "the hub does not answer") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise _unreachable(
                name or address, address, (str(error).strip() or type(error).__name__).splitlines()[0]
            ) from error
    raise UserError(f"{address} holds neither {' nor '.join(_HUB_FILES)}", "Name a repository of weights")


def locate(text: str) -> Path | None:
    """The file that an address or hub id means; None if `text` is neither.

    Raises:
        UserError: if it cannot be had.
    """
    if is_hub_id(text):
        return fetch_hub(text)
    return fetch_url(text) if is_address(text) else None


def _unreachable(name: str, address: str, why: str) -> UserError:
    return UserError(f"The weights {name} cannot be had from {address} ({why})", _OTHERWISE)


def _cache() -> Path:
    """Where torch.hub, timm and torchvision keep downloaded weights; TORCH_HOME moves it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _offline() -> str:
    """The variable that forbids the network, as words; empty if none does."""
    for name in ("OPENMVIT_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off"):
            return f"{name} is set"
    return ""


def _file_name(url: str) -> str:
    """Last part of an address, if it is a plain name of a file.

    Raises:
        UserError: if it is not: no name taken from an address may leave the cache.
    """
    parts = urlsplit(url)
    name = unquote(parts.path).rpartition("/")[2]
    if "drive.google.com" in parts.netloc:
        name = f"drive-{parts.path.split('/')[3]}.pyth"
    if parts.scheme not in ("http", "https") or ".." in unquote(parts.path) or not _NAME.fullmatch(name):
        raise UserError(f"{url!r} is no address of a weight file", "Give http or https and a file name")
    return name


def _get(url: str, path: Path, sha256: str, name: str, mirror: str) -> Path:
    if offline := _offline():
        raise UserError(
            f"The weights {name} are not on this machine and {offline}",
            f"Store the file of {url} as {path}, or allow the network. {_OTHERWISE}",
        )
    parts = urlsplit(url)
    source = f"{mirror}/{parts.netloc}{parts.path}" if mirror else url
    try:
        download(source, path, sha256=sha256)
    except UserError as error:
        raise UserError(f"The weights {name} cannot be had: {error.cause}", f"{error.fix}. {_OTHERWISE}") from error
    except OSError as error:
        raise UserError(f"The weights {name} cannot be stored as {path} ({error})", "Check the folder") from error
    return path


def _from_folder(mirror: Path, card: WeightCard) -> Path:
    """A mirror that is a folder, such as `wget -x` makes: read in place."""
    parts = urlsplit(card.url)
    file = mirror / parts.netloc / parts.path.lstrip("/")
    if not file.is_file():
        raise UserError(f"The weights {card.name} are not in OPENMVIT_MIRROR: there is no {file}", _OTHERWISE)
    check_file(file, card.sha256)
    return file
