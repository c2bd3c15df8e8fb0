"""What this machine offers: versions, devices, decoders that work, memory and disk."""

from __future__ import annotations

import io
import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = (
    *("openmvit", "torch", "torchvision", "lightning", "av", "faster-coco-eval", "safetensors"),
    *("huggingface_hub", "jsonargparse", "rich", "matplotlib", "pillow", "numpy", "pyyaml", "timm", "torchcodec"),
)
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")


def examine() -> dict[str, Any]:
    """Everything as plain data. Decoders are tried by decoding, not by importing."""
    cache = Path(torch.hub.get_dir())
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "system": platform.platform(),
        "devices": _devices(),
        "decoders": {name: _outcome(lambda name=name: _try_image(name)) for name in _IMAGE_FORMATS}
        | {f"video {name}": found for name, found in _video_readers().items()},
        "ffmpeg": shutil.which("ffmpeg") or "not installed",
        "memory_gb": _memory(),
        "disk_gb": {str(path): _free(path) for path in (Path.cwd(), cache)},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[dict[str, Any]]:
    cpu = {"name": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    gpus = [
        {
            "name": f"cuda:{i}",
            "model": torch.cuda.get_device_name(i),
            "memory_gb": round(torch.cuda.get_device_properties(i).total_memory / 1e9, 1),
            "bf16": torch.cuda.is_bf16_supported(),
        }
        for i in range(torch.cuda.device_count())
    ]
    return [cpu, *gpus, *([{"name": "mps"}] if torch.mps.is_available() else [])]


def _outcome(trial: Callable[[], None]) -> str:
    """`works`, or why not."""
    try:
        trial()
    except Exception as error:  # whatever a missing or broken decoder raises is the finding
        return f"fails: {' '.join(str(error).split())[:100] or type(error).__name__}"
    return "works"


def _try_image(name: str) -> None:
    """Encode a small picture and decode it again."""
    from PIL import Image

    from openmvit.data.images import read_image

    stream = io.BytesIO()
    Image.new("RGB", (16, 8), (200, 30, 30)).save(stream, name)
    stream.seek(0)
    if read_image(f"trial.{name.lower()}", stream).size != (16, 8):
        raise ValueError("decoded to another size")


def _video_readers() -> dict[str, str]:
    """Every video reader with `works` or why not; the preferred one is marked."""
    from openmvit.data.video import available_readers

    found = available_readers()
    auto = "torchcodec" if found["torchcodec"] == "works" else "pyav"
    return {f"{name} (auto)" if name == auto else name: _hint(name, state) for name, state in found.items()}


def _hint(reader: str, state: str) -> str:
    """A reader's state, and what to do about it."""
    if state == "works":
        return state
    if reader == "torchcodec":
        # Its wheel has no FFmpeg inside, unlike PyAV's.
        fix = "pip install torchcodec, and FFmpeg" if state == "not installed" else "FFmpeg 4 to 8 as shared libraries"
        return f"{state if state == 'not installed' else f'fails: {state}'} (optional; needs {fix})"
    return f"fails: {state}"


def _memory() -> dict[str, float]:
    """Total and available main memory; empty where the system does not tell."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return {}
    rows = (line.split() for line in info.read_text().splitlines())
    values = {row[0].rstrip(":"): round(int(row[1]) / 1e6, 1) for row in rows}
    return {"total": values["MemTotal"], "available": values["MemAvailable"]}


def _free(path: Path) -> float:
    """Free space of the disk that holds a folder, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return round(shutil.disk_usage(path).free / 1e9, 1)


def report_text(found: dict[str, Any]) -> str:
    """`examine` as text."""
    lines = [f"{name:<18}{value}" for name, value in found["versions"].items()]
    lines.append(f"{'system':<18}{found['system']}")
    for device in found["devices"]:
        rest = "  ".join(f"{key} {value}" for key, value in device.items() if key != "name")
        lines.append(f"{'device ' + device['name']:<18}{rest}")
    lines += [f"{'decode ' + name:<31}{outcome}" for name, outcome in found["decoders"].items()]
    lines.append(f"{'ffmpeg command':<31}{found['ffmpeg']}")
    lines += [f"{'memory ' + name:<22}{value} GB" for name, value in found["memory_gb"].items()]
    lines += [f"free disk {value} GB in {path}" for path, value in found["disk_gb"].items()]
    return "\n".join(lines)
