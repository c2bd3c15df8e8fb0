"""A whole training run: from a recipe to a run folder with weights, scores and pictures."""

from __future__ import annotations

import dataclasses
import functools
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from openmvit import processes, report, screen
from openmvit.device import pick_device
from openmvit.errors import UserError
from openmvit.screen import clock
from openmvit.training import memory, presets, state
from openmvit.training.early import resumed_folder
from openmvit.training.folder import RunFolder, new_folder
from openmvit.training.heartbeat import Heartbeat
from openmvit.training.job import Interrupted, Job, Parts
from openmvit.training.loading import EpochLoader
from openmvit.training.optim import lr_scale
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import dump_recipe, load_recipe
from openmvit.training.start_task import open_task
from openmvit.training.tasks import Task


def train(recipe: Recipe) -> Path:
    """Train as the recipe says, or go on with the run that `recipe.resume` names; returns the run folder.

    Under torchrun every process calls it with the same recipe.

    Raises:
        UserError: if the input cannot be used, memory or disk runs out, or the loss is no longer finite.
        KeyboardInterrupt: after the state was saved, when the user or the system asked to stop.
    """
    run = resumed_folder(recipe.resume) if recipe.resume else None
    if run is not None:
        recipe = dataclasses.replace(load_recipe(run / "args.yaml"), resume=str(run))
    _check(recipe)
    device = find_device(recipe)
    processes.join(device)
    path = _train(recipe, run, device)
    processes.leave()
    return path


def find_device(recipe: Recipe) -> torch.device:
    """The device of this process.

    Raises:
        UserError: if it is not there, or cannot do the recipe's mixed precision.
    """
    device = pick_device(recipe.device)
    if device.type == "cuda" and device.index is None:
        return pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    if device.type != "cuda" and recipe.amp == "fp16":
        raise UserError(f"amp fp16 and device {device} do not go together", "Use --amp bf16, or a CUDA device")
    return device


def _check(recipe: Recipe) -> None:
    """Combinations of options that cannot work."""
    if recipe.strategy == "fsdp" and not processes.launched():
        raise UserError("strategy is fsdp and there is one process", "Start it with torchrun --nproc-per-node N")
    if recipe.strategy == "fsdp" and recipe.amp == "fp16":
        raise UserError("strategy fsdp and amp fp16 do not go together", "Use --amp bf16")
    if not recipe.updates and (recipe.decay_at is not None or recipe.warmup_updates):
        raise UserError("decay_at and warmup_updates count updates, and updates is 0", "Give --updates N")
    if recipe.device.startswith("cuda:") and processes.launched():
        raise UserError(f"device {recipe.device} is one device and there are several processes", "Use --device cuda")


def _train(recipe: Recipe, run: Path | None, device: torch.device) -> Path:
    folder, heartbeat, job = None, _start_heartbeat(), None
    try:
        folder, parts = _prepare(recipe, run, device, heartbeat)
        with heartbeat.still() if heartbeat is not None else nullcontext():
            parts.train.start()
            parts.val.start()
        job = Job(parts)
        _describe(job)
        _fit(job)
        _finish(job)
    except Interrupted:
        assert folder is not None
        screen.wipe(echo=True)
        more = f"Stopped. Continue with: openmvit train --resume {shlex.quote(str(folder.path))}"
        saved = (folder.weights / "last").exists()
        folder.say(more if saved else "Stopped before anything was saved; the same command begins anew")
        if heartbeat is not None:
            heartbeat.stop()
        raise KeyboardInterrupt("the run has said so") from None
    except BaseException as error:
        problem = error if isinstance(error, UserError) else _explain(error, recipe, folder)
        if folder is not None:
            folder.log(f"error: {problem or repr(error)}")
        if heartbeat is not None:
            heartbeat.fail(str(problem or ""), lost=problem is None and isinstance(error, Exception))
        if problem is None or problem is error:
            raise
        raise problem from error
    finally:
        if job is not None:
            job.parts.train.close()
            job.parts.val.close()
        if folder is not None:
            folder.leave()
    if heartbeat is not None:
        processes.barrier()
        heartbeat.stop()
    return parts.folder.path


def _start_heartbeat() -> Heartbeat | None:
    if processes.world_size() == 1:
        return None
    heartbeat = Heartbeat(lambda sentence: print(f"error: {sentence}", file=sys.stderr, flush=True))
    heartbeat.start()
    return heartbeat


def _explain(error: BaseException, recipe: Recipe, folder: RunFolder | None) -> UserError | None:
    """The sentence for what is no bug: memory, disk, a killed worker."""
    problem = memory.explain_memory(error, recipe.batch)
    if problem is None and folder is not None and state.is_disk_full(error):
        problem = state.disk_full(folder.weights if folder.weights.exists() else folder.path)
    if problem is None and isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        problem = UserError(
            f"A process that loads data ended unexpectedly ({str(error).splitlines()[0]})",
            "It may have run out of memory; use fewer --workers, or --workers 0 to see its error",
        )
    return problem


def _prepare(
    recipe: Recipe, run: Path | None, device: torch.device, heartbeat: Heartbeat | None
) -> tuple[RunFolder, Parts]:
    """Say what starts, open data and network, and make the run folder last, when nothing can be wrong any more."""
    writes, resumed = processes.rank() == 0, state.read(run / "weights") if run is not None else None
    first_line = _say_start(recipe, run, resumed[0]["progress"] if resumed else {}, writes)
    task = open_task(recipe, resumed[0]["about"] if resumed else None)
    frozen = task.freeze()
    recipe, derived, loaders = _complete(recipe, task, device)
    if resumed is not None:
        loaders[0].order.load_state_dict(resumed[1]["sampler"])
    else:
        # Each rank has its own dropout; the weights were drawn before, the same on all.
        torch.manual_seed(recipe.seed + 1_000_003 * (processes.rank() + 1))
    path = run or processes.broadcast(new_folder(recipe.out_dir, task.name, recipe.name) if writes else None)
    assert path is not None
    folder = RunFolder(path, writes)
    if run is None and writes:
        dump_recipe(recipe, path / "args.yaml")
        folder.write_environment()
    folder.log(first_line)
    for line in derived:
        folder.say(line)
    task.write_split(folder)
    parts = Parts(
        recipe=recipe,
        task=task,
        folder=folder,
        train=loaders[0],
        val=loaders[1],
        frozen=frozen,
        device=device,
        bad_files=task.bad_files(path / "bad_files.txt"),
        heartbeat=heartbeat,
        resumed=resumed,
    )
    return folder, parts


def _complete(
    recipe: Recipe, task: Task, device: torch.device
) -> tuple[Recipe, list[str], tuple[EpochLoader, EpochLoader]]:
    """The recipe with nothing left open, lines about what was derived, and the loaders of training and validation."""
    recipe, derived = presets.derive(_choose_batch(recipe, task, device), task.facts())
    task.use(recipe)
    pin = device.type == "cuda"
    loaders = task.train_loader(int(recipe.batch), pin), task.val_loader(int(recipe.batch), pin)
    if recipe.updates:
        per_epoch = -(-loaders[0].steps // recipe.accumulate)
        recipe = dataclasses.replace(recipe, epochs=-(-recipe.updates // per_epoch))
        task.use(recipe)
    return recipe, derived, loaders


def _say_start(recipe: Recipe, run: Path | None, progress: dict[str, Any], writes: bool) -> str:
    """Print the first line, what the run starts from, and return it for the log."""
    if progress.get("finished"):
        raise UserError(
            f"The run {run} is finished ({progress['epoch']} epochs)",
            f"Use it: openmvit predict {run} IMAGES; or start a new run with --weights {run}",
        )
    words = {"default": "the default released weights", "none": "random weights"}
    line = f"New run from {words.get(recipe.weights, recipe.weights)}"
    if run is not None:
        line = f"Resuming {run} at epoch {progress['epoch'] + 1}/{recipe.epochs}, step {progress['step']}"
    if writes:
        print(line, flush=True)
    return line


def _choose_batch(recipe: Recipe, task: Task, device: torch.device) -> Recipe:
    """Resolve `batch: auto`: on CUDA by real steps, elsewhere by the estimate against half of the free memory."""
    if recipe.batch != "auto":
        return recipe
    samples = task.samples() // processes.world_size()
    # At least eight updates per epoch: larger batches would only slow learning down.
    limit = max(min(memory.MAX_AUTO_BATCH, samples // (8 * recipe.accumulate)), recipe.repeats)
    model = task.model.train()
    model.set_grad_checkpointing(recipe.grad_ckpt or None)
    if device.type == "cuda":
        model.to(device)
        fits = functools.partial(memory.real_step_fits, model, task.probe, recipe)
        batch = memory.largest_batch(limit, fits, recipe.repeats)
    else:
        guess = memory.estimate(model, task.probe, recipe)
        free = memory.available(device) / 2 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not free:
            raise UserError("batch is auto and this system does not say how much memory is free", "Give --batch N")
        batch = memory.largest_batch(limit, lambda n: guess.total(n) * 1e9 <= free, recipe.repeats)
    return dataclasses.replace(recipe, batch=min(processes.gather(batch)))


def _describe(job: Job) -> None:
    """Data, network, learning rate and memory, before the first step."""
    r, task, say = job.recipe, job.task, job.folder.tell
    model, world = task.model, processes.world_size()
    for line in task.describe():
        say(line)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"Model {task.model_name}: {sum(p.numel() for p in model.parameters())} parameters, {trainable} trainable")
    samples = int(r.batch) * r.accumulate * world
    say(
        f"Learning rate {r.lr:.3e} per {r.lr_batch or samples} samples -> {r.lr * lr_scale(r, samples):.3e} for "
        f"{samples} samples per update (batch {r.batch} x accumulate {r.accumulate} x processes {world})"
    )
    if not r.updates and r.warmup_epochs >= r.epochs:
        say(f"The warm-up of {r.warmup_epochs:g} epochs is as long as the run or longer: the peak is not reached")
    model.train()
    model.set_grad_checkpointing(r.grad_ckpt or None)
    shards = world if r.strategy == "fsdp" else 1
    guess = memory.estimate(model, task.probe, r, shards)
    free = memory.available(job.parts.device)
    say(
        f"Memory about {guess.total(int(r.batch)):.2f} GB per process at batch {r.batch} "
        f"({guess.fixed / 1e9:.2f} GB weights and optimiser, {guess.per_sample / 1e6:.1f} MB per sample)"
        + (f", {free / 1e9:.1f} GB free" if free else "")
    )
    say(f"Writing to {job.folder.path}, {job.parts.train.steps} steps per epoch, device {job.parts.device}")


def _fit(job: Job) -> None:
    screen.doing("starting the trainer")
    from openmvit.training.engine import fit

    with _signals(job):
        job.folder.cut_losses(job.progress.step)
        fit(job)


@contextmanager
def _signals(job: Job) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the job to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, job.ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(job: Job) -> None:
    """Curves, and the lines that say what to do next."""
    folder, progress = job.folder, job.progress
    if not folder.writes:
        return
    if job.recipe.plots:
        report.plot_results(folder.path / "results.csv", folder.path / "results.png")
    early = " (no improvement for a while)" if progress.epoch < job.recipe.epochs else ""
    folder.say(f"Finished {progress.epoch} epochs in {clock(progress.seconds)}{early}")
    if len(job.parts.bad_files):
        folder.say(f"{len(job.parts.bad_files)} unreadable files are listed in {folder.path / 'bad_files.txt'}")
    best = folder.weights / "best.safetensors"
    folder.say(f"Best {job.task.metric} {progress.best:.4f} (epoch {progress.best_epoch}): {best}")
    if pictures := sorted(path.name for path in folder.path.glob("*.png")):
        folder.tell(f"Pictures in {folder.path}: {', '.join(pictures)}")
    folder.say("\n".join(["Next:", *(f"  {shlex.join(words)}" for words in next_commands(folder.path))]))


def next_commands(run: Path) -> list[list[str]]:
    """Command lines for a finished run, ready to be pasted: `predict` takes the first file that was held out."""
    held_out = (run / "val.txt").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    form = [] if find_spec("onnx") and find_spec("onnxruntime") else ["--format", "torch"]
    name = str(run)
    commands = [["val", name], ["predict", name, *held_out[:1]], ["export", name, *form]]
    return [["openmvit", *words] for words in commands]
