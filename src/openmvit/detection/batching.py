"""Pictures of different sizes as one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from openmvit.errors import UserError

ImageSize = tuple[int, int]


def make_batch(
    images: Sequence[Tensor], mean: Tensor, std: Tensor, divisor: int, square: int = 0
) -> tuple[Tensor, list[ImageSize]]:
    """Normalise pictures and pad them at the right and bottom with zeros.

    Args:
        images: RGB, uint8 or float 0..255, `[3, h, w]` each.
        mean, std: of the channels, `[3]`; their device is the batch's.
        divisor: the batch's sides are multiples of it.
        square: smallest side of the batch, before that; 0 takes the largest picture's.
    Returns:
        float32 `[B, 3, H, W]`, and the height and width of every picture.
    Raises:
        UserError: if there is no picture, or one has another shape or is larger than the square.
    """
    check_images(images)
    sizes = [(int(x.shape[1]), int(x.shape[2])) for x in images]
    height, width = (max(square, *(size[axis] for size in sizes)) for axis in (0, 1))
    if square and max(height, width) > square:
        raise UserError(
            f"A picture of {height} x {width} does not fit the square of {square} that this detector pads to",
            f"Resize pictures to a long side of {square} first",
        )
    height, width = (-(-n // divisor) * divisor for n in (height, width))
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    parts = [(x.to(mean.device, torch.float32) - mean) / std for x in images]
    return torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in parts]), sizes


def check_images(images: Sequence[Tensor]) -> None:
    """Raise a UserError that says what a detector wants."""
    wanted = "Give a list of pictures [3, h, w], RGB 0..255"
    if isinstance(images, Tensor) or not len(images):
        raise UserError(f"The detector got {'a tensor' if isinstance(images, Tensor) else 'no picture'}", wanted)
    for image in images:
        if not isinstance(image, Tensor) or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            shape = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise UserError(f"The detector got a picture of shape {shape}", wanted)
