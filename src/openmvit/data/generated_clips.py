"""The demo clips: scanned digits that move, as H.264 files; the motion is the class and no single frame shows it."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from openmvit.data.counter import mix, sample_generator
from openmvit.data.generated import load_digits

MOTIONS = ("left", "right", "up", "down", "clockwise", "counterclockwise", "zoom_in", "zoom_out")
"""Class names; opposite motions stand side by side."""

_SEED = 2021
_FPS = 30
_SCALES = (0.35, 0.8)
"""Side of the digit as a share of the frame, smallest and largest."""
_TRAVEL = (0.5, 0.9)
"""Way through the cycle of place, angle or size in one clip, as a share of the whole cycle."""


def write_moving_digits(
    root: str | Path, *, train: int = 480, val: int = 160, size: int = 64, frames: int = 16, seed: int = _SEED
) -> Path:
    """Write clips of digits that move into class folders of train/ and val/, motions in turn; same bytes every time.

    Place (left-right, up-down, both round the edge), angle and size of the digit are four cycles. Each is entered at
    a uniform random point, and a motion is one of them passing in one direction at constant speed: so every single
    frame has the same distribution for all classes. Any digit shows any motion; train and val share no scan. A flip
    swaps classes, so training must not flip.

    Args:
        root: folder to fill; made if it is missing.
        train, val: clips of each split.
        size: side of the frames in pixels, even.
        frames: per clip, at 30 per second.
        seed: of everything random.
    Returns:
        `root`.
    """
    root, threads = Path(root), torch.get_num_threads()
    scans, _ = load_digits()
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(mix(seed))).numpy()
    limit = round(len(scans) * 0.8)
    torch.set_num_threads(1)  # on tensors this small, several threads wait for each other most of the time
    try:
        for split, count, numbers in (("train", train, order[:limit]), ("val", val, order[limit:])):
            for clip in range(count):
                motion = clip % len(MOTIONS)
                generator = sample_generator(seed, len(split), clip)
                scan = scans[numbers[int(torch.randint(len(numbers), (), generator=generator))]]
                path = root / split / MOTIONS[motion] / f"{clip:05d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(path, moving_digit(scan, motion, size, frames, generator))
    finally:
        torch.set_num_threads(threads)
    return root


def moving_digit(scan: np.ndarray, motion: int, size: int, frames: int, generator: torch.Generator) -> Tensor:
    """One clip, uint8 `[T, size, size]`: dark ink on white.

    Args:
        scan: ink 0..16, `[8, 8]`.
        motion: number in MOTIONS.
        size: side in pixels.
        frames: T.
        generator: of the start in all four cycles and the speed.
    """
    draws = torch.rand(5, dtype=torch.float64, generator=generator).tolist()
    way = _TRAVEL[0] + draws[4] * (_TRAVEL[1] - _TRAVEL[0])
    # A motion to the right or down, anticlockwise or to larger sizes passes its cycle upwards.
    cycle, upwards = ((0, False), (0, True), (1, False), (1, True), (2, False), (2, True), (3, True), (3, False))[
        motion
    ]
    phases = torch.tensor(draws[:4]).repeat(frames, 1)  # [T, 4]
    phases[:, cycle] += torch.linspace(0.0, way if upwards else -way, frames, dtype=torch.float64)
    return _render(scan, phases.remainder(1.0), size)


def _render(scan: np.ndarray, phases: Tensor, size: int) -> Tensor:
    """Draw a digit at phases 0..1 `[T, 4]` of left-right, up-down, angle and size."""
    x, y, angle, scale = phases.to(torch.float32).unbind(1)
    angle = angle * (2.0 * math.pi)
    low, high = _SCALES
    scale = low * (high / low) ** scale
    grid = (torch.arange(size) + 0.5) / size
    # Offset from the digit's centre, the short way round the edge: -0.5..0.5 of the frame.
    across = (grid[None, None, :] - x[:, None, None] + 0.5).remainder(1.0) - 0.5
    down = (grid[None, :, None] - y[:, None, None] + 0.5).remainder(1.0) - 0.5
    cosine, sine = (f(angle)[:, None, None] for f in (torch.cos, torch.sin))
    unit = 2.0 / scale[:, None, None]
    place = torch.stack([(cosine * across - sine * down) * unit, (sine * across + cosine * down) * unit], dim=-1)
    ink = torch.from_numpy(scan.astype(np.float32) / 16.0)[None, None]
    ink = F.pad(F.interpolate(ink, scale_factor=4, mode="bicubic", align_corners=False).clamp(0.0, 1.0), [2] * 4)
    drawn = F.grid_sample(ink.expand(len(phases), -1, -1, -1), place, align_corners=False)[:, 0]
    return (255.0 * (1.0 - drawn)).round().to(torch.uint8)


def _write(path: Path, clip: Tensor) -> None:
    """Grey frames uint8 `[T, H, W]` as H.264."""
    height, width = clip.shape[1:]
    # The slower presets look ahead, and x264's look-ahead on frames this small is not the same every time.
    options = {"crf": "20", "preset": "ultrafast", "threads": "1"}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=_FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in clip.numpy():
            # Luma in its range of 16..235, no colour.
            luma = (16.5 + picture * (219.0 / 255.0)).astype(np.uint8)
            planes = np.concatenate([luma, np.full((height // 2, width), 128, np.uint8)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
