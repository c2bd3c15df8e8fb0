"""Videos of noise in three colours, and a clip network that has learnt them: real files, seconds."""

from pathlib import Path

import av
import numpy as np
import torch

from openmvit import checkpoint
from openmvit.config import MViTConfig
from openmvit.data.clips import ClipSampling
from openmvit.data.video_transforms import ClipTestTransform, clip_preprocessing
from openmvit.model import MViT

CLASSES = ("ant", "bee", "cat")
"""Brightest in red, green and blue."""
TINY = {
    "input_size": (4, 32, 32),
    "depths": (1, 1),
    "embed_dim": 16,
    "num_classes": 3,
    "patch_kernel": (1, 7, 7),
    "patch_stride": (1, 4, 4),
    "patch_padding": (0, 3, 3),
    "kernel_qkv": (1, 3, 3),
    "stride_q": (1, 2, 2),
    "adaptive_kv_stride": (1, 2, 2),
}
SAMPLING = ClipSampling(num_frames=4, stride=4)
"""A span of 16 frames at 30 per second."""


def coloured(number: int, colour: int, width: int = 64, height: int = 48) -> np.ndarray:
    """One frame of noise, uint8 `[height, width, 3]`, in blocks that H.264 keeps."""
    rng = np.random.default_rng((number, colour))
    blocks = rng.integers(0, 110, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    blocks[..., colour] += 120
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width]


def write_clip(path: Path, colours: list[tuple[int, int]], fps: int = 30, size: tuple[int, int] = (64, 48)) -> Path:
    """An H.264 file: so many frames of each colour, one after the other; a container by the ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=flags) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16", "threads": "1", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 30
        number = 0
        for colour, count in colours:
            for _ in range(count):
                frame = av.VideoFrame.from_ndarray(coloured(number, colour, *size), format="rgb24")
                container.mux(stream.encode(frame))
                number += 1
        container.mux(stream.encode())
    return path


def clip_model(path: Path, clips: int = 2, crops: int = 1) -> Path:
    """A file of our own with a network that tells the colours apart, trained on the spot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads wait for each other where other work runs
    torch.manual_seed(0)
    model = MViT(MViTConfig(**TINY))
    transform = ClipTestTransform(imgsz=32, crops=crops)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.zeros(())
    for step in range(60):
        labels = torch.arange(6) % 3
        frames = [
            np.stack([coloured(100 + 7 * step + i + t, c) for t in range(4)]) for i, c in enumerate(labels.tolist())
        ]
        x = torch.stack([transform(torch.from_numpy(clip), 0) for clip in frames])
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    assert 0 < loss.item() < 0.05, loss.item()
    card = {
        "architecture": model.config.to_dict(),
        "model": "tiny_4x4",
        "task": "video",
        "classes": list(CLASSES),
        "preprocessing": clip_preprocessing(SAMPLING, transform, clips),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, model.state_dict(), card)
    return path
