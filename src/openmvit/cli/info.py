"""The verbs `models`, `info` and `doctor`: what there is."""

from __future__ import annotations

import json
from functools import partial

from openmvit import screen
from openmvit.cli.arguments import Arguments
from openmvit.errors import UserError


def models(given: Arguments) -> int:
    """List architectures with their released weights."""
    from openmvit.info import models_table, models_text

    with screen.listening():
        rows = models_table(given.positional.get("pattern") or "*")
    print(json.dumps(rows, indent=1) if given.options()["json"] else models_text(rows))
    return 0


def info(given: Arguments) -> int:
    """Print a network block by block."""
    from openmvit.info import describe, info_text, operations, operations_text, shapes, shapes_text

    options = given.options()
    if options["ops"] and options["shapes"]:
        raise UserError("--ops and --shapes are both given", "Ask for one of them")
    if not (options["ops"] or options["shapes"]) and (options["imgsz"] is not None or options["frames"] is not None):
        raise UserError("--imgsz and --frames are for operations and shapes", "Add --ops or --shapes")
    with screen.listening():
        found = describe(given.positional["target"])
    text = partial(info_text, found)
    if options["ops"]:
        found["operations"] = operations(found, options["imgsz"], options["frames"])
        text = partial(operations_text, found, found["operations"])
    if options["shapes"]:
        found["shapes"] = shapes(found, options["imgsz"], options["frames"])
        text = partial(shapes_text, found["shapes"])
    print(json.dumps(found, indent=1) if options["json"] else text())
    return 0


def doctor(given: Arguments) -> int:
    """Print what this machine offers."""
    from openmvit.doctor import examine, report_text

    found = examine()
    print(json.dumps(found, indent=1) if given.options()["json"] else report_text(found))
    return 0
