"""The whole job on data that comes with the package: write it, train, score, predict, draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openmvit.data.generated import write_digits
from openmvit.errors import UserError, did_you_mean
from openmvit.predict import draw_labels, load, predictions_text
from openmvit.validate import results_text, validate

JOBS = ("image",)
RECIPE = "demo/digits"


def run_demo(
    job: str, train: Callable[[dict[str, Any]], Path], *, out: str = "runs/demo", device: str = "auto", seed: int = 0
) -> float:
    """Train a small network on handwritten digits, score it on held-out ones, and label unseen ones.

    Everything is written below `out`: `digits/`, the run in `image/`, and `pictures/`.

    Args:
        job: what to demonstrate: image.
        train: trains RECIPE with some options changed and returns the run folder.
        out: folder to write to.
        device: auto, cpu, mps, cuda or cuda:N.
        seed: of the weights, the order and the augmentation.
    Returns:
        Held-out top-1, 0..1.
    Raises:
        UserError: if there is no such demo, or the folder cannot be written.
    """
    if job not in JOBS:
        raise UserError(f"There is no demo {job!r}", did_you_mean(job, JOBS))
    start = time.monotonic()
    folder = Path(out)
    try:
        data = write_digits(folder / "digits")
    except OSError as error:
        raise UserError(f"Cannot write to {folder} ({error.strerror or error})", "Choose another --out") from error
    changes = {"data": str(data), "out_dir": str(folder), "device": device, "seed": seed}
    with _one_thread():
        run = train(changes)
        results = validate(run, workers=0, device=device)
        predictions = load(run, device).predict(data / "unseen", top=2)
    print(results_text(results))
    print(predictions_text(predictions))
    draw_labels(predictions, folder / "pictures")
    right = sum(one.labels[:1] == (Path(one.path).name[0],) for one in predictions)
    print(f"{right} of {len(predictions)} unseen digits are right, pictures in {folder / 'pictures'}")
    print(f"demo image top1={results['top1']:.3f} seconds={time.monotonic() - start:.0f}", flush=True)
    return results["top1"]


@contextmanager
def _one_thread() -> Iterator[None]:
    """The layers are so small that several threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
