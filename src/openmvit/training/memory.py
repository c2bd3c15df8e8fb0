"""Memory of a training step: an estimate before the first, the largest batch that fits, a message when it did not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from openmvit.errors import UserError
from openmvit.nn.fast import precision
from openmvit.training.layers import blocks_of
from openmvit.training.recipe import Recipe

MAX_AUTO_BATCH = 1024
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad alloc", "Cannot allocate memory")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process.

    Args:
        fixed: weights, gradients, optimiser state and average.
        per_sample: activations that one sample keeps for the backward pass.
    """

    fixed: int
    per_sample: int

    def total(self, batch: int) -> float:
        """GB for a batch."""
        return (self.fixed + batch * self.per_sample) / 1e9


Probe = Callable[[int], Tensor]
"""Forward of so many samples of the training size on the network's device, as training runs it."""


def estimate(model: nn.Module, probe: Probe, recipe: Recipe, shards: int = 1) -> MemoryEstimate:
    """Estimate from one real forward pass of one sample; kernels' work space and fragmentation come on top.

    Args:
        model: in train mode.
        probe: runs `model`.
        shards: processes that share weights and optimiser state.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    slots = 1 + (2 if recipe.optimizer == "adamw" else 1)
    fixed = weights + trained * slots + (weights if recipe.ema else 0)
    return MemoryEstimate(fixed // shards, saved_bytes(model, probe, recipe))


def saved_bytes(model: nn.Module, probe: Probe, recipe: Recipe) -> int:
    """Bytes that autograd keeps for the backward pass of one sample's forward, the network's own tensors left out."""
    device = next(model.parameters()).device
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            # Holding the tensor keeps its address from being given to another.
            kept[place] = tensor.detach()
        return tensor

    devices = [] if device.type == "cpu" else [device]
    with (
        torch.random.fork_rng(devices, device_type=device.type),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(device, recipe),
    ):
        hooks = [b.register_forward_pre_hook(_keep_inputs(pack)) for b in blocks_of(model)]
        probe(1)
        for hook in hooks:
            hook.remove()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def _keep_inputs(pack: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[object, ...]], None]:
    # With recomputation a block's input is all that stays, and autograd's hooks do not see it.
    def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                pack(value)

    return hook


def autocast(device: torch.device, recipe: Recipe) -> AbstractContextManager[object]:
    """Mixed precision as the recipe wants it."""
    if recipe.amp == "off":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if recipe.amp == "bf16" else torch.float16)


def available(device: torch.device) -> int:
    """Bytes that are free now, on the device or in main memory; 0 if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits: list[int] = []
    table = Path("/proc/meminfo")
    if table.exists():
        rows = dict(line.split(":", 1) for line in table.read_text().splitlines())
        limits.append(int(rows["MemAvailable"].split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (text := (group / "memory.max").read_text().strip()).isdigit():
        limits.append(int(text) - int((group / "memory.current").read_text()))
    return min(limits, default=0)


def largest_batch(limit: int, fits: Callable[[int], bool], multiple: int = 1) -> int:
    """The largest of `multiple` times 1, 2, 4, ... up to `limit` for which `fits` says yes.

    Raises:
        UserError: if not even the smallest fits.
    """
    size = multiple
    if not fits(size):
        raise UserError(f"Not even a batch of {size} fits in memory", "Use --grad-ckpt, a smaller --imgsz or model")
    while size * 2 <= limit and fits(size * 2):
        size *= 2
    return size


def real_step_fits(model: nn.Module, probe: Probe, recipe: Recipe, batch: int) -> bool:
    """Whether a forward and backward pass of `batch` samples runs on the device without running out of memory."""
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device], device_type=device.type), autocast(device, recipe):
            probe(batch).float().sum().backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.get_device_module(device).empty_cache()


def explain_memory(error: BaseException, batch: int | str) -> UserError | None:
    """The sentence for an error that says that memory ran out; None for any other error."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    ):
        return None
    options = "Options that help: a smaller --batch with a larger --accumulate, --grad-ckpt, a smaller --imgsz"
    # On CPUs that are slower in bf16 networks stay in float32 whatever is asked for. A card raises neither of these.
    of_cpu = isinstance(error, MemoryError) or "CPUAllocator" in text
    narrows = precision.BF16_IS_FAST or not of_cpu
    return UserError(f"Out of memory with --batch {batch}", options + (", --amp bf16" if narrows else ""))
