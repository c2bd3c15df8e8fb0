"""The whole job on data that comes with the package: write it, train, score, predict, draw."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from openmvit import report
from openmvit.data.generated import write_digits
from openmvit.data.generated_clips import MOTIONS, write_moving_digits
from openmvit.data.video import open_video
from openmvit.errors import UserError, did_you_mean
from openmvit.predict import Prediction, draw_labels, load, predictions_text
from openmvit.validate import results_text, validate

Train = Callable[[str, dict[str, Any]], Path]
"""Trains a shipped recipe with some options changed and returns the run folder."""

_MOVING = "demo/moving_digits"
_CLIPS = {"train": 1600, "val": 160}
_SHOWN_PER_CLASS = 2


def run_demo(job: str, train: Train, *, out: str = "runs/demo", device: str = "auto", seed: int = 0) -> float:
    """Train a small network on data that the package brings, and score it on held-out samples.

    `image`: handwritten digits, with predictions for unseen ones. `video`: moving digits whose motion is the class,
    and the control: the same network given one repeated frame of each clip, which must stay near chance.
    Data, runs and pictures are written below `out`.

    Args:
        job: image or video.
        train: trains a recipe.
        out: folder to write to.
        device: auto, cpu, mps, cuda or cuda:N.
        seed: of the weights, the order and the augmentation.
    Returns:
        Held-out top-1, 0..1.
    Raises:
        UserError: if there is no such demo, or the folder cannot be written.
    """
    jobs = {"image": _image, "video": _video}
    if job not in jobs:
        raise UserError(f"There is no demo {job!r}", did_you_mean(job, jobs))
    try:
        with _one_thread():
            return jobs[job](train, Path(out), device, seed)
    except OSError as error:
        raise UserError(f"Cannot write to {out} ({error.strerror or error})", "Choose another --out") from error


def _image(train: Train, folder: Path, device: str, seed: int) -> float:
    start = time.monotonic()
    data = write_digits(folder / "digits")
    run = train("demo/digits", {"data": str(data), "out_dir": str(folder), "device": device, "seed": seed})
    results = validate(run, workers=0, device=device)
    predictions = load(run, device).predict(data / "unseen", top=2)
    print(results_text(results))
    print(predictions_text(predictions))
    draw_labels(predictions, folder / "pictures")
    right = sum(one.labels[:1] == (Path(one.path).name[0],) for one in predictions)
    print(f"{right} of {len(predictions)} unseen digits are right, pictures in {folder / 'pictures'}")
    print(f"demo image top1={results['top1']:.3f} seconds={time.monotonic() - start:.0f}", flush=True)
    return results["top1"]


def _video(train: Train, folder: Path, device: str, seed: int) -> float:
    start = time.monotonic()
    data = write_moving_digits(folder / "moving_digits", **_CLIPS)
    changes: dict[str, Any] = {"data": str(data), "device": device, "seed": seed}
    control = next(p for n in count(1) if not (p := folder / "still" / "video" / f"exp{n}").exists())
    words = {**changes, "out_dir": str(folder / "still"), "name": control.name, "still": "true"}
    with _beside(_MOVING, words, folder / "still.txt") as control_ends:
        run = train(_MOVING, changes | {"out_dir": str(folder)})
        moving = validate(run, workers=0, device=device)
        print(results_text(moving))
        files = [p for name in MOTIONS for p in sorted((data / "val" / name).iterdir())[:_SHOWN_PER_CLASS]]
        predictions = load(run, device).predict(files, top=2)
        print(predictions_text(predictions))
        sheet = _draw_clips(predictions, folder / "pictures")
        print(f"Frames and predictions of {len(files)} held-out clips: {sheet}", flush=True)
        control_ends()
    print("The control, the same network given one frame of each clip all over again:")
    still = validate(control, workers=0, device=device)
    print(results_text(still))
    scores = f"top1={moving['top1']:.2f} still_top1={still['top1']:.2f}"
    print(f"demo video {scores} classes={len(MOTIONS)} seconds={time.monotonic() - start:.0f}", flush=True)
    return moving["top1"]


@contextmanager
def _beside(recipe: str, options: dict[str, Any], log: Path) -> Iterator[Callable[[], None]]:
    """Train in a process of its own meanwhile, on the second core; yields what waits for its end.

    Raises:
        UserError: from the wait, if it failed.
    """
    command = [sys.executable, "-m", "openmvit", "train", recipe, *(f"--{key}={v}" for key, v in options.items())]
    with log.open("w") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def ends() -> None:
        print(f"Waiting for the control, which trains in a process of its own: {log}", flush=True)
        if child.wait():
            raise UserError(f"The control run failed with exit code {child.returncode}", f"See {log}")

    try:
        yield ends
    finally:
        child.terminate()
        child.wait()


def _draw_clips(predictions: list[Prediction], folder: Path) -> Path:
    """A contact sheet: a row per clip with its true and its guessed motion."""
    rows = []
    for one in predictions:
        with open_video(one.path) as video:
            frames = video.frames(list(range(0, video.num_frames, 2)))
        rows.append((f"{Path(one.path).parent.name}: {one.labels[0]} {one.probabilities[0]:.2f}", frames))
    folder.mkdir(parents=True, exist_ok=True)
    report.plot_clips(rows, folder / "clips.png")
    return folder / "clips.png"


@contextmanager
def _one_thread() -> Iterator[None]:
    """The layers are so small that several threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
