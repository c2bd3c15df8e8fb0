"""One run from the inside: what happens before and after each step, update and epoch. Knows no training engine."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openmvit import checkpoint, processes
from openmvit.data.badfiles import BadFiles
from openmvit.errors import UserError
from openmvit.screen import Figures
from openmvit.training import optim, state
from openmvit.training.diagnosis import Signs, diagnose, may_have_learnt
from openmvit.training.ema import Ema
from openmvit.training.folder import RunFolder
from openmvit.training.heartbeat import Heartbeat
from openmvit.training.loading import Batch, EpochLoader
from openmvit.training.pictures import Pictures
from openmvit.training.progress import Meter, Reporter, clock, epoch_figures, peak_memory, step_figures
from openmvit.training.recipe import Recipe
from openmvit.training.state import Progress
from openmvit.training.tasks import Task, Validation

SLOW_PHASE = 1800.0
"""Seconds that a validation or a save may take longer on one rank than on another."""


class Interrupted(Exception):
    """The user asked the run to stop; weights/last holds the state, of this instant unless the user insisted."""


@dataclass
class Parts:
    """What a run is made of before the engine has touched it."""

    recipe: Recipe
    task: Task
    folder: RunFolder
    train: EpochLoader
    val: EpochLoader
    frozen: list[nn.Module]
    device: torch.device
    bad_files: BadFiles
    heartbeat: Heartbeat | None
    resumed: tuple[dict[str, Any], dict[str, Any]] | None
    """Shared and own state to continue from."""


@dataclass
class Engine:
    """What the training engine lends to the run."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any | None
    precision: Callable[[], AbstractContextManager[object]]
    to_device: Callable[[Batch], Batch]
    sharded: bool
    settle: Callable[[], None]
    """Called after forwards without a backward: shards go back to their places."""


class Job:
    """Counters, random state, average, learning rate, files and decisions of one run.

    Order of calls: `start`; per batch `before_step`, `loss`, after the last batch of an update `before_update`,
    `after_step`; after the last batch of an epoch `end_epoch`.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.recipe, self.task, self.folder = parts, parts.recipe, parts.task, parts.folder
        shared = parts.resumed[0] if parts.resumed else None
        self.progress = Progress(**shared["progress"]) if shared else Progress()
        self.stop = threading.Event()
        """Set by a signal handler: save after the running update, then end."""
        samples = parts.train.batch * self.recipe.accumulate * processes.world_size()
        self.lr_scale = optim.lr_scale(self.recipe, samples)
        self._updates = -(-parts.train.steps // self.recipe.accumulate)
        if self.all_updates_done:
            # It ended before the last validation was done: no batch is left, in whatever place of the epoch it stood.
            parts.train.order.position = len(parts.train.order)
        self._reporter, self._meter = Reporter(self.folder), Meter()
        self._losses: list[Tensor] = []
        self._batches: list[Batch] = []
        self._rng = parts.resumed[1]["rng"] if parts.resumed else None
        self._asked = 0.0
        self._started, self._earlier = time.monotonic(), self.progress.seconds
        self._lr, self._pace, self._saving = 0.0, 0.0, False
        self._gradient = math.nan
        self._pictures = Pictures(self.folder.path)

    def ask_to_stop(self, number: int = signal.SIGINT, _: object = None) -> None:
        """Signal handler: stop after the running update. A second Ctrl-C ends at once.

        Raises:
            Interrupted: at the second Ctrl-C.
        """
        now = time.monotonic()
        # torchrun passes on the Ctrl-C that the terminal has already sent to every process: that is no second one.
        again = self.stop.is_set() and number == signal.SIGINT and now - self._asked > 1.5
        # A save that is cut off would look like a full disk, and is what the user waits for.
        if again and not self._saving:
            raise Interrupted
        if not self.stop.is_set():
            self._asked = now
            self._reporter.line("Stopping after this update; Ctrl-C again ends at once")
        self.stop.set()

    def start(self, engine: Engine) -> None:
        """Take over the engine's network and optimiser, and put the saved state into them."""
        self._engine = engine
        self._ema = Ema(engine.network, self.recipe.ema) if self.recipe.ema else None
        if self.parts.resumed:
            state.restore(self.parts.resumed[0], engine.network, engine.optimizer, engine.scaler, self._ema)
            self.parts.resumed = None
        self._train_mode()
        # The trainer has fetched the first batch by now: its wait belongs to no meter.
        self._meter, self.parts.train.wait = Meter(), 0.0

    def before_step(self) -> None:
        """Called with the batch in hand, before anything random happens in the network."""
        if self._rng is not None:
            # Only now: setting up the engine and fetching the first batch must not have moved it.
            state.set_rng_state(self.parts.device, self._rng)
            self._rng = None
        self._beat()

    def loss(self, batch: Batch) -> Tensor:
        """Loss of one batch, weighted so that each update averages over its batches."""
        loss = self.task.loss(self._engine.network, batch, self.progress.step)
        self._losses.append(loss.detach())
        self._batches.append({key: batch[key] for key in ("index", "bad")})
        self._beat()
        start = self.progress.step_in_epoch // self.recipe.accumulate * self.recipe.accumulate
        # The engine divides by `accumulate`, also where an epoch ends with fewer batches than that.
        return loss * (self.recipe.accumulate / min(self.recipe.accumulate, self.parts.train.steps - start))

    def before_update(self) -> None:
        """Check and note the losses of the update's batches, and set the learning rate; before the optimiser moves.

        Raises:
            UserError: if a loss is not finite, or too many files are unreadable.
        """
        bad = sum(int((b["bad"] > 0).sum()) for b in self._batches)
        samples = sum(len(b["bad"]) for b in self._batches)
        if self.progress.step_in_epoch + 1 == self.parts.train.steps:
            self._gradient = optim.largest_gradient(self._engine.network)
        flags = torch.tensor([float(self.stop.is_set()), bad, samples], device=self._losses[0].device)
        rows = processes.gather_rows(torch.cat([torch.stack(self._losses).float(), flags])).tolist()
        losses = [list(step) for step in zip(*(row[:-3] for row in rows), strict=True)]
        if any(not math.isfinite(v) for step in losses for v in step):
            self._stop_at_bad_loss(losses)
        if any(row[-2] for row in rows):
            index, bad = (torch.cat([b[key] for b in self._batches]).cpu() for key in ("index", "bad"))
            self._note_bad_files(index, bad, "train")
        if any(row[-3] for row in rows):
            self.stop.set()
        first = self.progress.step - len(losses) + 1
        self.folder.write_losses(first, losses)
        self.progress.loss_sum += sum(sum(step) / len(step) for step in losses)
        self._meter.samples += int(sum(row[-1] for row in rows))
        self._losses, self._batches = [], []
        self._set_learning_rate()
        self._reporter.step(lambda: self._step_figures(sum(losses[-1]) / len(losses[-1])))

    @property
    def all_updates_done(self) -> bool:
        """Whether a run that is measured in updates has done them all, maybe in the middle of an epoch."""
        return 0 < self.recipe.updates <= self.progress.update

    def after_step(self) -> None:
        """Count a batch; after an update also average, save and stop where that is due.

        Raises:
            Interrupted: after the state was saved, if the user asked to stop.
        """
        p, every = self.progress, self.recipe.save_every
        p.step, p.step_in_epoch = p.step + 1, p.step_in_epoch + 1
        self.parts.train.order.advance(self.parts.train.batch)
        self._meter.steps += 1
        if p.step_in_epoch % self.recipe.accumulate and p.step_in_epoch != self.parts.train.steps:
            return
        p.update += 1
        if self._ema is not None:
            self._ema.update(self._engine.network)
        if self.stop.is_set():
            self._pictures.draw(now=True)
            self.save()
            raise Interrupted
        if every and p.update % every == 0 and p.step_in_epoch != self.parts.train.steps:
            self.save()

    def end_epoch(self) -> None:
        """Validate where due, keep the best weights, write the results, save the state."""
        p = self.progress
        last = p.epoch + 1 >= self.recipe.epochs
        row: dict[str, float] = {"epoch": p.epoch + 1, "loss": p.loss_sum / max(p.step_in_epoch, 1)}
        speed = {"lr": self._lr, "samples_per_s": self._meter.speed, "wait": self._share()}
        said: list[str] = []
        validated = (p.epoch + 1) % self.recipe.val_every == 0 or last
        if validated:
            try:
                with self._slow(), self._averaged():
                    row |= self._validate()
                    said = self._diagnose(row, last)
            except Interrupted:
                # Outside the block the network holds its own weights again.
                self.save()
                raise
        p.seconds = self._earlier + time.monotonic() - self._started
        row |= speed | {"memory_gb": peak_memory(self.parts.device), "seconds": p.seconds}
        p.results.append(row)
        self.folder.write_results(p.results)
        self._reporter.line(self._summary(row))
        for sentence in said:
            self._reporter.line(f"Warning: {sentence}.")
        p.epoch, p.step_in_epoch, p.loss_sum = p.epoch + 1, 0, 0.0
        self.parts.train.order.set_epoch(p.epoch)
        p.finished = last or (validated and 0 < self.recipe.patience <= p.epoch - p.improved)
        self._pictures.draw(now=p.finished)
        self.save()
        self._meter, self.parts.train.wait = Meter(), 0.0

    def save(self) -> None:
        """Write `weights/last`. Every process must call it."""
        p, engine = self.progress, self._engine
        p.seconds = self._earlier + time.monotonic() - self._started
        own = {"rng": state.rng_state(self.parts.device), "sampler": self.parts.train.order.state_dict()}
        self._saving = True
        with self._slow():
            shared = state.capture(engine.network, engine.optimizer, engine.scaler, self._ema, p)
            shared["about"] = self.task.about()
            state.write(self.folder.weights, shared, own)
        self._saving = False

    def _validate(self) -> dict[str, float]:
        """Scores of the weights that the network now holds; keeps them as `best` if they are."""
        self._engine.network.eval()
        validation = self.task.validation(self.parts.device)
        left_out = [torch.zeros(0, dtype=torch.int64)]
        with torch.no_grad(), self._engine.precision():
            for batch, counts in self._val_batches():
                output = self.task.outputs(self._engine.network, batch)
                if counts:
                    validation.update(output, batch)
                    left_out.append(batch["index"][batch["bad"] > 0].cpu())
        self._engine.settle()
        self._note_left_out(torch.cat(left_out))
        scores, self._one_class = validation.result(), validation.one_class()
        value, loss = scores[self.task.metric], scores.get("val_loss", math.inf)
        p = self.progress
        if p.best is None or value > p.best:
            p.improved = p.epoch + 1
        if p.best is None or (value, -loss) > (p.best, -p.best_loss):
            p.best, p.best_loss, p.best_epoch = value, loss, p.epoch + 1
            self._keep_best(validation)
        self._train_mode()
        return scores

    def _diagnose(self, row: dict[str, float], last: bool) -> list[str]:
        """What looks wrong: asked once after a few per cent of the updates, and at the end."""
        p, guessing = self.progress, self.task.guessing()
        if not last and (p.diagnosed or not may_have_learnt(self.recipe, p.update, self._updates)):
            return []
        if not last and math.isnan(guessing.loss):
            return []  # a detector's AP rises late
        p.diagnosed = True
        adamw = self.recipe.optimizer == "adamw"
        signs = Signs(
            train_loss=row["loss"],
            val_loss=row.get("val_loss", math.nan),
            score=p.best if last and p.best is not None else row[self.task.metric],
            metric=self.task.metric,
            motion=p.motion if adamw else math.nan,
            gradient=max(processes.gather(self._gradient)),
            one_class=self._one_class,
            guessing=guessing,
        )
        return diagnose(signs)

    def _val_batches(self) -> Any:
        """Validation batches on the device. With shards every rank runs equally often: the last repeats, uncounted."""
        most = max(processes.gather(self.parts.val.steps)) if self._engine.sharded else self.parts.val.steps
        iterator, batch = iter(self.parts.val), None
        for i in range(most):
            if self.stop.is_set() and processes.world_size() == 1:
                raise Interrupted
            batch = next(iterator) if i < self.parts.val.steps else batch
            if batch is None:
                raise UserError("A process has no validation sample", "Use fewer processes or more samples")
            yield self._engine.to_device(batch), i < self.parts.val.steps

    def _keep_best(self, validation: Validation) -> None:
        weights = {name: state.whole(value) for name, value in self._engine.network.state_dict().items()}
        if not self.folder.writes:
            return
        state.check_finite({"model": weights})
        card = self.task.card(
            {"name": self.task.metric, "value": self.progress.best, "epoch": self.progress.best_epoch}
        )
        checkpoint.save(self.folder.weights / "best.safetensors", weights, card)
        self.folder.write_json("model.json", card)
        if self.recipe.plots:
            self._pictures.of(validation)

    def _stop_at_bad_loss(self, losses: list[list[float]]) -> None:
        own = [b for b, loss in zip(self._batches, self._losses, strict=True) if not bool(torch.isfinite(loss))]
        found = processes.gather([i for batch in own for i in batch["index"].tolist()])
        paths = self.task.paths([i for part in found for i in part])
        self.folder.write_text("bad_batch.txt", "".join(path + "\n" for path in paths))
        step = self.progress.step - len(losses) + 1
        step += next(i for i, row in enumerate(losses) if not all(map(math.isfinite, row)))
        raise UserError(
            f"The loss is no longer finite at step {step} (epoch {self.progress.epoch + 1}); the batch's files are "
            f"listed in {self.folder.path / 'bad_batch.txt'}, and weights/ holds the last good state",
            "Lower --lr, lengthen --warmup-epochs, set --clip-grad 1, or use --amp off",
        )

    def _note_left_out(self, index: Tensor) -> None:
        """Validation samples of this process whose files are unreadable."""
        lost = sum(processes.gather(len(index)))
        if not lost:
            return
        self._note_bad_files(index, torch.ones_like(index), "val")
        self._reporter.line(
            f"{lost} validation {self.task.noun} cannot be read and are left out of the scores; "
            f"see {self.parts.bad_files.path}"
        )

    def _note_bad_files(self, index: Tensor, bad: Tensor, split: str) -> None:
        parts, problem = processes.gather((index.tolist(), bad.tolist())), None
        if self.folder.writes:
            index, bad = (torch.tensor([i for part in parts for i in part[k]]) for k in (0, 1))
            try:
                self.task.note_bad(self.parts.bad_files, index, bad, split)
            except UserError as error:
                problem = (error.cause, error.fix)
        problem = processes.broadcast(problem)
        if problem is not None:
            raise UserError(*problem)

    def _set_learning_rate(self) -> None:
        p = self.progress
        epoch = p.epoch + p.step_in_epoch // self.recipe.accumulate / self._updates
        self._lr = optim.scheduled_rate(self.recipe, epoch, p.update, self.lr_scale)
        optim.set_learning_rate(self._engine.optimizer, self._lr)
        p.motion += self._lr

    def _train_mode(self) -> None:
        self._engine.network.train()
        for module in self.parts.frozen:
            module.eval()

    def _averaged(self) -> AbstractContextManager[object]:
        return self._ema.applied(self._engine.network) if self._ema is not None else nullcontext()

    def _beat(self) -> None:
        if self.parts.heartbeat is not None:
            self.parts.heartbeat.at(self.progress.step)

    def _slow(self) -> AbstractContextManager[object]:
        heartbeat = self.parts.heartbeat
        return heartbeat.slow(SLOW_PHASE) if heartbeat is not None else nullcontext()

    def _share(self) -> float:
        self._meter.wait = self.parts.train.wait
        return self._meter.wait_share

    def _step_figures(self, loss: float) -> Figures:
        p, m, steps = self.progress, self._meter, self.parts.train.steps
        left = (self.recipe.epochs - p.epoch) * steps - p.step_in_epoch
        if self.recipe.updates:
            left = (self.recipe.updates - p.update) * self.recipe.accumulate
        self._share()
        if m.steps:
            self._pace = m.seconds / m.steps
        return step_figures(
            epoch=f"{p.epoch + 1}/{self.recipe.epochs}",
            step=f"{p.step_in_epoch + 1}/{steps}",
            loss=loss,
            score=f"{self.task.metric} {p.best:.4f}" if p.best is not None else "",
            rate=self._lr,
            meter=m,
            memory=peak_memory(self.parts.device),
            eta=clock(left * self._pace) if self._pace else "-",
        )

    def _summary(self, row: dict[str, float]) -> Figures:
        p = self.progress
        best = (f"{p.best:.4f}", p.best_epoch) if p.best is not None else None
        return epoch_figures(f"{p.epoch + 1}/{self.recipe.epochs}", row, self.task.shown, self.task.metric, best)
