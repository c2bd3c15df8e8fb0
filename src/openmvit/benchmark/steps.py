"""The two sides of a comparison as calls that can be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openmvit.architectures import model_config
from openmvit.benchmark.case import Case
from openmvit.convert import to_native
from openmvit.errors import UserError
from openmvit.measuring import Step, give_memory_back, seconds_of
from openmvit.zoo import create_model

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest accepted difference of outputs, as a share of the largest output."""


def build_ours(case: Case) -> nn.Module:
    """Our network with random weights, without dropout and stochastic depth, on the device, in the mode of the step."""
    model = create_model(case.name, drop_path_rate=0.0, drop_rate=0.0)
    return model.to(case.on).train(case.step == "train")


def build_peer(case: Case) -> nn.Module:
    """The other network, likewise; the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.peer.build().to(case.on).train(case.step == "train")


def build(case: Case) -> tuple[nn.Module, nn.Module]:
    """Our network and the peer's, with the same weights where they are the same network.

    Raises:
        UserError: if the peer is not installed.
    """
    peer = build_peer(case)
    if not case.peer.same:
        return build_ours(case), peer
    with torch.device("meta"):
        ours = create_model(case.name, drop_path_rate=0.0, drop_rate=0.0)
    state = to_native(case.peer.package, ours.config, peer.state_dict())
    ours.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, assign=True)
    return ours.to(case.on).train(case.step == "train"), peer


def make_batch(case: Case) -> tuple[Tensor, Tensor]:
    """Random input `[B, 3, *size]` of the nominal size and labels `[B]`, the same at every call."""
    config, generator = model_config(case.name), torch.Generator().manual_seed(1)
    images = torch.randn(case.batch, config.in_chans, *config.input_size, generator=generator)
    labels = torch.randint(config.num_classes, (case.batch,), generator=generator)
    return images.to(case.on), labels.to(case.on)


def make_step(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    """One call: forward; or forward, cross entropy, backward and a fused AdamW update. Returns logits or loss.

    bf16 is autocast, unless the images are bf16 already: then the weights are taken to be, too.
    """
    autocast_on = case.precision == "bf16" and images.dtype == torch.float32
    autocast = torch.autocast(case.on.type, torch.bfloat16, enabled=autocast_on)

    def infer() -> Tensor:
        with torch.no_grad(), autocast:
            return model(images)

    if case.step == "infer":
        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def train() -> Tensor:
        with autocast:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return train


def share_of_scale(first: Tensor, second: Tensor) -> float:
    """Largest difference of two outputs as a share of the largest value of the second."""
    return float((first.float() - second.float()).abs().max() / second.float().abs().max())


def output_difference(case: Case, ours: nn.Module, peer: nn.Module, images: Tensor) -> float:
    """Largest difference of the two outputs as a share of the largest output of the peer.

    Raises:
        UserError: if it is beyond `TOLERANCE`: then a comparison of speed means nothing.
    """
    forward = replace(case, step="infer")
    difference = share_of_scale(*(make_step(forward, model, images, images)() for model in (ours, peer)))
    if not difference <= TOLERANCE[case.precision]:
        raise UserError(
            f"Outputs differ by {difference:.1e} of their scale, more than {TOLERANCE[case.precision]:.0e}",
            "The two networks are not the same; report this with the versions above",
        )
    return difference


Variant = tuple[str, nn.Module, Callable[[], Step]]
"""Name of a way to run a network, the network that holds its weights, and what prepares it."""


def variants(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[Variant]:
    """The ways that a side may choose from in mode `best`; the plain eager one comes first.

    The others are `torch.compile`, for inference on a CPU with frozen weights, on CUDA with CUDA graphs and with tuned
    products besides. Inference in bf16 may hold its weights in bf16 instead of casting them at every call.
    """
    yield "eager", model, partial(make_step, case, model, images, labels)
    infer = case.step == "infer"
    ways: dict[str, dict[str, Any]] = {"compiled": {"options": {"freezing": True}} if infer else {}}
    if case.on.type == "cuda":
        ways = {"CUDA graphs": {"mode": "reduce-overhead"}, "max-autotune": {"mode": "max-autotune"}}
    forms: list[tuple[str, nn.Module, Tensor]] = [("", model, images)]
    if infer and case.precision == "bf16":
        # Made here and not by the side itself: freezing does not touch the weights of the other variants.
        forms.append((", bf16 weights", copy.deepcopy(model).bfloat16(), images.bfloat16()))
        yield "eager, bf16 weights", forms[1][1], partial(make_step, case, *forms[1][1:], labels)
    if case.on.type == "cuda":
        last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        name, own, x = forms[-1]
        own, x = copy.deepcopy(own).to(memory_format=last), x.contiguous(memory_format=last)
        # Compiling takes minutes on a card: only the form that moves the fewest bytes is compiled.
        forms = [(f"{name}, channels last", own, x)]
        yield f"eager{forms[0][0]}", own, partial(make_step, case, own, x, labels)
    for way, arguments in ways.items():
        for form, network, x in forms:
            yield f"{way}{form}", network, _compiled(case, network, x, labels, arguments)


def _compiled(
    case: Case, network: nn.Module, x: Tensor, labels: Tensor, arguments: dict[str, Any]
) -> Callable[[], Step]:
    return lambda: make_step(case, torch.compile(network, **arguments), x, labels)  # type: ignore[arg-type]


def best_step(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Step, str, list[str]]:
    """The fastest variant, warm, by the better of three calls each; its name; and why others were left out.

    A variant is left out if it does not compile, or if its first output (a loss, where it trains) is beyond `TOLERANCE`
    from that of the eager one.
    """
    if case.mode == "eager":
        step = make_step(case, model, images, labels)
        step()
        return step, "eager", []
    found: list[tuple[float, str, Step]] = []
    left_out: list[str] = []
    expected: Tensor | None = None
    start = {key: value.clone() for key, value in model.state_dict().items()} if case.step == "train" else None
    for name, network, prepare in variants(case, model, images, labels):
        if case.without and name.startswith(case.without):
            left_out.append(f"{name}: not tried")
            continue
        try:
            if start is not None:  # those before have trained
                network.load_state_dict(start)
            step = prepare()
            output = step().clone()  # a CUDA graph writes its next output over this one
            step()
        except Exception as error:
            if expected is None:
                raise
            left_out.append(f"{name}: {type(error).__name__}")
            torch._dynamo.reset()
            continue
        if expected is None:
            expected = output
        elif not share_of_scale(output, expected) <= TOLERANCE[case.precision]:
            left_out.append(f"{name}: output differs by {share_of_scale(output, expected):.1e}")
            continue
        found.append((min(seconds_of(case.on, step, case.clock) for _ in range(3)), name, step))
    _, name, step = min(found, key=lambda one: one[0])
    return step, name, left_out


def step_of(case: Case, variant: str, model: nn.Module) -> Step:
    """One call of a variant by its name, compiled before; an optimizer has no state yet."""
    prepare = next(prepare for name, _, prepare in variants(case, model, *make_batch(case)) if name == variant)
    if not variant.startswith("eager"):
        prepare()()
        give_memory_back()
    return prepare()


@contextmanager
def onednn_switch() -> Iterator[None]:
    """oneDNN for the fp32 products of the whole process. Without AMX it computes in fp32, with AMX in less."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
