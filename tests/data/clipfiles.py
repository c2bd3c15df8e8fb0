"""Real video files whose frames carry their number as a bar code."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Ten vertical bars, black or white, in the upper half; a corner mark at the top left; grey below."""
    image = np.full((height, width, 3), 90, np.uint8)
    bar = width // BITS
    for bit in range(BITS):
        image[: height // 2, bit * bar : (bit + 1) * bar] = 235 if number >> bit & 1 else 16
    image[-height // 4 :, : width // 4] = (220, 30, 30)
    return image


def number_of(frame: np.ndarray) -> int:
    """The number on an upright frame."""
    height, width = frame.shape[:2]
    bar = width // BITS
    values = [frame[4 : height // 2 - 4, bit * bar + 2 : (bit + 1) * bar - 2].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, value in enumerate(values) if value > 128)


def write_video(
    path: Path,
    frames: int = 60,
    *,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (96, 64),
    gop: int = 12,
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
    audio: bool = False,
) -> Path:
    """H.264 with B-frames; `times` gives every frame its own second (a variable rate)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "threads": "1"} | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if size[0] % 2 == 0 and size[1] % 2 == 0 else "yuv444p"
        stream.gop_size = gop
        sound = container.add_stream("aac", rate=16000) if audio else None
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _silence(container, sound, float(frames / fps))
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """A sound file without pictures."""
    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=16000), seconds)
    return path


def _silence(container, stream, seconds: float) -> None:
    samples = np.zeros((1, int(16000 * seconds)), np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 16000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turn(path: Path, degrees: int) -> Path:
    """Write a rotation flag (clockwise) into the track header of an mp4, as phones do."""
    content = bytearray(path.read_bytes())
    # tkhd version 0: the 3 x 3 matrix begins 40 bytes behind the version field, which follows the name.
    start = content.index(b"tkhd") + 4 + 40
    one = 0x10000
    cosine, sine = {0: (one, 0), 90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, 0x40000000)
    content[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep the beginning of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def garble(path: Path, start: float, size: int) -> Path:
    """Overwrite bytes in the middle with noise."""
    content = bytearray(path.read_bytes())
    at = int(len(content) * start)
    content[at : at + size] = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path
