"""The bridge to Lightning, the only file that imports it: a module that forwards hooks to the job, and the trainer.

The engine lends devices, strategies, precision, accumulation and clipping; everything that a run consists of is in
`job.py` and saved by `state.py`. A resumed run starts a fresh trainer whose first epoch holds the remaining batches
only, so that none of the trainer's own counters matter.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn

from openmvit import processes
from openmvit.training import optim
from openmvit.training.job import Engine, Job
from openmvit.training.layers import blocks_of, unused_parameters
from openmvit.training.loading import Batch, EpochLoader
from openmvit.training.recipe import Recipe


class Bridge(lightning.LightningModule):
    """Steps, parameter groups and sharding of a job."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.network: nn.Module = job.task.model

    def train_dataloader(self) -> EpochLoader:
        return self.job.parts.train

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.network, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optim.make_optimizer(self.job.task.model, self.job.recipe)

    def on_train_start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            # The trainer has put its own in place of ours.
            signal.signal(signal.SIGTERM, self.job.ask_to_stop)
        plugin, strategy = self.trainer.precision_plugin, self.trainer.strategy
        self.job.start(
            Engine(
                network=self.network,
                optimizer=self.trainer.optimizers[0],
                scaler=getattr(plugin, "scaler", None),
                precision=plugin.forward_context,
                to_device=strategy.batch_to_device,
                sharded=isinstance(strategy, ModelParallelStrategy),
                settle=lambda: reshard(self.network),
            )
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.job.before_step()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.job.loss(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.job.before_update()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.job.after_step()
        # The trainer then ends the epoch as if its last batch had been this one.
        self.trainer.should_stop = self.job.all_updates_done

    def on_train_epoch_end(self) -> None:
        self.job.end_epoch()
        self.trainer.should_stop = self.job.progress.finished


def shard(network: nn.Module, mesh: Any) -> None:
    """Split parameters, gradients and optimiser state over the processes, block by block (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def reshard(network: nn.Module) -> None:
    """Give up the gathered parameters that a forward without backward leaves behind; nothing to do without shards."""
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def fit(job: Job) -> None:
    """Train until the job is finished, interrupted or fails."""
    _quieten()
    _trainer(job).fit(Bridge(job))


def _trainer(job: Job) -> lightning.Trainer:
    recipe, device = job.recipe, job.parts.device
    world = processes.world_size()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 else 1
    accelerator = {"cuda": "gpu"}.get(device.type, device.type)
    devices: Any = [device.index or 0] if device.type == "cuda" and world == 1 else local
    return lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=world // local,
        strategy=_strategy(recipe, world, unused=bool(unused_parameters(job.task.model))),
        precision={"off": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[recipe.amp],  # pyright: ignore[reportArgumentType]
        max_epochs=recipe.epochs - job.progress.epoch,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip_grad or None,
        plugins=[TorchElasticEnvironment() if world > 1 else LightningEnvironment()],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(recipe: Recipe, world: int, *, unused: bool) -> Strategy | str:
    if world == 1:
        return "auto"
    if recipe.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    return DDPStrategy(find_unused_parameters=unused)


def _quieten() -> None:
    # Its advice is about loops and loaders of the user's own; ours are made for it.
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    # Depthwise kernels have one input channel, whose stride means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
