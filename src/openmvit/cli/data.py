"""The actions of `openmvit data`: check, bench, prepare."""

from __future__ import annotations

import json

from openmvit import screen
from openmvit.cli.arguments import Arguments
from openmvit.errors import UserError


def check(given: Arguments) -> int:
    """Print what is in a data set; 1 if it has faults."""
    from openmvit.data.check import check_images
    from openmvit.data.check_detection import check_detection
    from openmvit.data.check_videos import check_videos
    from openmvit.training.inputs import infer_task
    from openmvit.training.recipe import Recipe

    options = given.options()
    as_json, task = options.pop("json"), options.pop("task")
    root = given.positional["dir"]
    task = infer_task(Recipe(task=task, data=root))
    checks = {"image": check_images, "video": check_videos, "detection": check_detection}
    with screen.listening():
        report = checks[task](root, **options)
    if as_json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        print("\n".join([*report.lines(), report.last_line()]))
    return 0 if report.clean else 1


def bench(given: Arguments) -> int:
    """Print how fast clips are read, and whether a network waits for them."""
    from openmvit.bottleneck import bench_data
    from openmvit.data.detection_layouts import holds_detection

    if holds_detection(given.positional["dir"]):
        raise UserError(f"{given.positional['dir']} holds annotated pictures", "data bench measures videos only")
    o = given.options()
    with screen.listening():
        found = bench_data(
            given.positional["dir"],
            o["model"],
            sampling=(o["frames"], o["stride"]),
            imgsz=o["imgsz"],
            clips=o["clips"],
            workers=o["workers"],
            reader=o["reader"],
            compute=(o["device"], o["amp"], o["batch"]),
        )
    print("\n".join(found.lines()))
    return 0


def prepare(given: Arguments) -> int:
    """Encode the videos of a folder again; 1 if some cannot be decoded."""
    from openmvit.data.check_videos import prepare_videos

    options = given.options()
    out = options.pop("out")
    if out is None:
        raise UserError("data prepare has no place to write", "Give --out DIR")
    with screen.listening():
        done = prepare_videos(given.positional["dir"], out, **options)
    for path, reason in done.failed:
        print(f"left out: {path}: {reason}")
    if done.renamed:
        what = "1 video ends" if done.renamed == 1 else f"{done.renamed} videos end"
        print(f"note: {what} in .mp4 now; correct the lists that name the old endings")
    counts = f"written={done.written} kept={done.kept} failed={len(done.failed)}"
    print(f"data prepare {counts} copied={done.copied} renamed={done.renamed}")
    return 1 if done.failed else 0
