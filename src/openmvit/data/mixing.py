"""MixUp and CutMix of a batch with itself in reverse order, with label smoothing inside the soft targets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openmvit.errors import UserError


@dataclass(frozen=True)
class Mix:
    """One draw for a whole batch.

    Args:
        share: weight of a sample's own target, 0..1; the partner has the rest. After CutMix, from the real box.
        box: top, bottom, left, right of the pasted rectangle in pixels; None for MixUp.
    """

    share: float
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Mixing:
    """Called with images `[B, C, *size]`, targets and a generator, gives (images, soft targets `[B, num_classes]`).

    One mode and one share per batch; the partner of sample i is sample B - 1 - i, so any batch size will do. The last
    two axes are spatial: a clip gets the same rectangle in all frames. An unmixed batch still has smoothed targets.

    Args:
        mixup_alpha, cutmix_alpha: of Beta(alpha, alpha); 0 switches the mode off.
        prob: probability that a batch is mixed.
        switch_prob: probability of CutMix when both modes are on.
        label_smoothing: share of the target that goes to all classes evenly; towards 0.5 for multi-label targets.
        num_classes: number of classes.
    Source: MixUp (Zhang et al., 2018), CutMix (Yun et al., 2019), combined as in facebookresearch/mvit.
    """

    mixup_alpha: float
    cutmix_alpha: float
    prob: float
    switch_prob: float
    label_smoothing: float
    num_classes: int

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0.0:
                raise UserError(f"{name} is {getattr(self, name)}", "Give 0 (off) or a positive number")
        for name in ("prob", "switch_prob", "label_smoothing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}", "Give a number between 0 and 1")

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix a batch; `targets` are class numbers int64 `[B]`, or float `[B, K]` of zeros and ones (multi-label).

        `generator` lives on the CPU, wherever the images do.
        """
        mix = self.draw((images.shape[-2], images.shape[-1]), generator)
        return self.mix_images(images, mix), self.mix_targets(targets, mix)

    def draw(self, size: tuple[int, int], generator: torch.Generator) -> Mix:
        """Draw mode, share and rectangle for images of `size` (height, width)."""
        chance, switch, u_top, u_left = torch.rand(4, dtype=torch.float64, generator=generator).tolist()
        alphas = (self.mixup_alpha, self.cutmix_alpha)
        if chance >= self.prob or alphas == (0.0, 0.0):
            return Mix(1.0, None)
        cut = switch < self.switch_prob if all(alphas) else self.cutmix_alpha > 0.0
        share = _beta(alphas[int(cut)], generator)
        if not cut:
            return Mix(share, None)
        height, width = size
        box = cut_box(size, share, (int(u_top * height), int(u_left * width)))
        top, bottom, left, right = box
        return Mix(1.0 - (bottom - top) * (right - left) / (height * width), box)

    def mix_images(self, images: Tensor, mix: Mix) -> Tensor:
        """Images `[B, C, *size]` with their partners, as a new tensor unless nothing is mixed."""
        if mix.share == 1.0:
            return images
        if mix.box is None:
            return images * mix.share + images.flip(0) * (1.0 - mix.share)
        top, bottom, left, right = mix.box
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right].flip(0)
        return mixed

    def mix_targets(self, targets: Tensor, mix: Mix) -> Tensor:
        """Soft targets, float32 `[B, num_classes]`."""
        smoothing = self.label_smoothing
        if targets.is_floating_point():
            soft = targets.float() * (1.0 - smoothing) + 0.5 * smoothing
        else:
            soft = F.one_hot(targets, self.num_classes).float() * (1.0 - smoothing) + smoothing / self.num_classes
        return soft if mix.share == 1.0 else soft * mix.share + soft.flip(0) * (1.0 - mix.share)


def cut_box(size: tuple[int, int], share: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the CutMix rectangle around `centre`, clipped at the border.

    Its sides are sqrt(1 - share) of the image's, rounded down, with floor(side / 2) pixels on each side of the centre
    as in the released code; newer timm gives an odd side its last pixel back.
    """
    ratio = math.sqrt(1.0 - share)
    spans: list[int] = []
    for length, middle in zip(size, centre, strict=True):
        half = int(length * ratio) // 2
        spans += [max(middle - half, 0), min(middle + half, length)]
    return spans[0], spans[1], spans[2], spans[3]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A Beta(alpha, alpha) number; numpy draws it, from a seed that the generator gives."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
