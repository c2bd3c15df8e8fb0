"""From what the user names to labelled data: class folders, splits or CSV lists."""

from __future__ import annotations

from pathlib import Path

from openmvit.data.classorder import in_order
from openmvit.data.faults import Faults
from openmvit.data.folders import open_folders
from openmvit.data.lists import has_lists, open_lists
from openmvit.data.samples import FileKind, LabelledData
from openmvit.errors import UserError


def open_labelled(
    root: str | Path, kind: FileKind, *, seed: int = 0, val_fraction: float = 0.1, faults: Faults | None = None
) -> LabelledData:
    """Read a folder of class folders, a folder with train/ and val/, or a CSV or JSONL list; decodes no file.

    Classes are sorted by name, unless a file classes.txt in the folder or beside the list names them all, one per line:
    then its order counts.

    Args:
        root: folder, or list: CSV `path,label[;label...]`, or JSONL with `path` and `label` (a word or a list).
        kind: the files that count as samples.
        seed: decides what is held out when there is no validation split.
        val_fraction: share of every class held out then, 0..1.
        faults: takes what is wrong; without it the first fault is raised.
    Raises:
        UserError: if nothing there can be trained on, or classes.txt does not fit, with the reason.
    """
    root, faults = Path(root), faults or Faults()
    if not root.exists():
        raise UserError(f"{root} does not exist", f"Name a folder of {kind.name} class folders or a CSV file")
    if root.is_file() and root.suffix.lower() not in (".csv", ".jsonl"):
        raise UserError(f"{root} is neither a folder nor a .csv file", "Name a folder of class folders or a CSV file")
    if root.is_file() or has_lists(root):
        return in_order(open_lists(root, kind, seed, val_fraction, faults), faults)
    return in_order(open_folders(root, kind, seed, val_fraction, faults), faults)
