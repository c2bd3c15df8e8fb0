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
from openmvit.data.generated_detection import write_digit_scenes
from openmvit.data.video import open_video
from openmvit.errors import UserError, did_you_mean
from openmvit.predict import Prediction, draw_labels, load, predictions_text
from openmvit.validate import results_text, validate

Train = Callable[[str, dict[str, Any]], Path]
"""Trains a shipped recipe with some options changed and returns the run folder."""

_MOVING, _SCENES, _CASCADE = "demo/moving_digits", "demo/digit_scenes", "demo/digit_scenes_cascade"
_CLIPS = {"train": 1600, "val": 160}
_SHOWN_PER_CLASS = 2
_SCENES_SHOWN = 12


def run_demo(job: str, train: Train, *, out: str = "runs/demo", device: str = "auto", seed: int = 0) -> float:
    """Train a small network on data that the package brings, and score it on held-out samples.

    `image`: handwritten digits, with predictions for unseen ones. `video`: moving digits whose motion is the class,
    and the control: the same network given one repeated frame of each clip, which must stay near chance.
    `detection`: digits among other marks in pictures, found by a Mask R-CNN and, beside it, a Cascade Mask R-CNN; both
    start from the weights of the image demo, which is run first where it has not been.
    Data, runs and pictures are written below `out`.

    Args:
        job: image, video or detection.
        train: trains a recipe.
        out: folder to write to.
        device: auto, cpu, mps, cuda or cuda:N.
        seed: of the weights, the order and the augmentation.
    Returns:
        Held-out top-1, 0..1; of `detection` AP50 of boxes.
    Raises:
        UserError: if there is no such demo, or the folder cannot be written.
    """
    jobs = {"image": _image, "video": _video, "detection": _detection}
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
    control = _free(folder / "still" / "video")
    words = {**changes, "out_dir": str(folder / "still"), "name": control.name, "still": "true"}
    with _beside(_MOVING, words, folder / "still.txt", "control") as control_ends:
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


def _detection(train: Train, folder: Path, device: str, seed: int) -> float:
    backbone = _image_run(train, folder, device, seed)
    start = time.monotonic()
    data = write_digit_scenes(folder / "digit_scenes")
    changes: dict[str, Any] = {"data": str(data), "weights": str(backbone), "device": device, "seed": seed}
    cascade = _free(folder / "cascade" / "detection")
    words = {**changes, "out_dir": str(folder / "cascade"), "name": cascade.name}
    with _beside(_CASCADE, words, folder / "cascade.txt", "cascade") as cascade_ends:
        run = train(_SCENES, changes | {"out_dir": str(folder)})
        one = validate(run, workers=0, device=device)
        print(results_text(one))
        predictor = load(run, device)
        found = predictor.predict(sorted((data / "val").iterdir())[:_SCENES_SHOWN])
        predictor.draw(found, folder / "detections")
        print(f"{len(found)} held-out pictures with what was found in them: {folder / 'detections'}", flush=True)
        cascade_ends()
    print("The Cascade Mask R-CNN on the same data:")
    three = validate(cascade, workers=0, device=device)
    print(results_text(three))
    scores = f"box_ap50={one['box']['AP50']:.2f} mask_ap50={one['mask']['AP50']:.2f}"
    scores += f" cascade_ap75={three['box']['AP75']:.2f}"
    print(f"demo detection {scores} seconds={time.monotonic() - start:.0f}", flush=True)
    return one["box"]["AP50"]


def _image_run(train: Train, folder: Path, device: str, seed: int) -> Path:
    """The newest run of the image demo that has weights; made first if there is none."""
    runs = sorted(p.parents[1] for p in (folder / "image").glob("*/weights/best.safetensors"))
    if not runs:
        print("The backbone starts from the image demo's weights, which are made first:", flush=True)
        _image(train, folder, device, seed)
        return _image_run(train, folder, device, seed)
    newest = max(runs, key=lambda run: (run / "weights" / "best.safetensors").stat().st_mtime)
    print(f"The backbone starts from {newest}", flush=True)
    return newest


def _free(parent: Path) -> Path:
    """A run folder that does not exist yet."""
    return next(p for n in count(1) if not (p := parent / f"exp{n}").exists())


@contextmanager
def _beside(recipe: str, options: dict[str, Any], log: Path, what: str) -> Iterator[Callable[[], None]]:
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
        print(f"Waiting for the {what}, which trains in a process of its own: {log}", flush=True)
        if child.wait():
            raise UserError(f"The {what} run failed with exit code {child.returncode}", f"See {log}")

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
    report.plot_clips(rows, folder / "clips.png", "truth: found, probability")
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
