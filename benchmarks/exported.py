"""Exported graphs against the network itself on a CPU: ONNX Runtime in fp32 and int8, OpenVINO where it is installed.

    OMP_NUM_THREADS=1 python benchmarks/exported.py --clock processor --out benchmarks/amd_avx512/exported.md

All sides hold the same random weights, use the same number of threads and take turns in one process. The outputs are
compared first.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from openmvit import create_model
from openmvit.export.classifiers import plan_classifier
from openmvit.export.plan import worst_difference
from openmvit.export.quantise import quantise
from openmvit.export.run import write
from openmvit.exported import ExportedNetwork, open_exported
from openmvit.measuring import outer_deciles, processor, seconds_of

CPU = torch.device("cpu")
CASES = (("mvitv2_tiny", 1), ("mvitv2_tiny", 8), ("mvitv2_small", 1), ("mvitv2_small", 8), ("mvitv2_small_16x4", 1))
Side = Callable[[Tensor], Tensor]


def openvino_side(path: Path) -> Side:
    """The graph of a file, compiled by OpenVINO for this processor in fp32."""
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"})
    compiled = core.compile_model(str(path), "CPU")
    return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy())


def runtime_side(path: Path) -> Side:
    """The graph of a file in ONNX Runtime."""
    network = ExportedNetwork(path, *open_exported(path))
    return lambda x: network.run(x)[0]


def sides_of(name: str, folder: Path) -> tuple[dict[str, Side], dict[str, float], tuple[int, ...]]:
    """The network and its graphs, megabytes of the weights or files, and the shape of one input."""
    torch.manual_seed(0)
    model = create_model(name).eval().requires_grad_(False)
    size = model.config.input_size
    preprocessing = {"imgsz": size[-1]} | ({"num_frames": size[0]} if len(size) == 3 else {})
    sides: dict[str, Side] = {"eager": model}
    megabytes = {"eager": sum(p.numel() for p in model.parameters()) * 4 / 1e6}
    files = {"fp32": folder / f"{name}.onnx", "int8": folder / f"{name}.int8.onnx"}
    if not files["fp32"].exists():
        plan = plan_classifier(model, {"preprocessing": preprocessing}, None, fixed=False)
        write(plan, "onnx", files["fp32"])
        quantise(files["fp32"], files["int8"], plan.card)
    for form, path in files.items():
        sides[f"ONNX Runtime, {form}"] = runtime_side(path)
    if importlib.util.find_spec("openvino"):
        sides["OpenVINO, fp32"] = openvino_side(files["fp32"])
    for side in list(sides)[1:]:
        megabytes[side] = files["int8" if "int8" in side else "fp32"].stat().st_size / 1e6
    return sides, megabytes, (model.config.in_chans, *size)


@torch.inference_mode()
def measure(name: str, batch: int, how: tuple[int, str], folder: Path) -> list[str]:
    """Rows of the table for one case; every round begins with another side. `how` is rounds and clock."""
    rounds, clock = how
    sides, megabytes, shape = sides_of(name, folder)
    x = torch.randn(batch, *shape)
    expected = sides["eager"](x)
    apart = {side: worst_difference([expected], [run(x)]) for side, run in sides.items()}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds):
        order = [*sides][turn % len(sides) :] + [*sides][: turn % len(sides)]
        for side in order:
            times[side].append(seconds_of(CPU, lambda side=side: sides[side](x), clock))
    rows = []
    for side, own in times.items():
        ratios = [eager / one for eager, one in zip(times["eager"], own, strict=True)]
        low, high = outer_deciles(ratios)
        spread = f"{low:.2f} to {high:.2f}" if side != "eager" else ""
        cells = (name, str(batch), side, f"{1e3 * median(own):.0f}", f"{median(ratios):.2f}", spread)
        rows.append(f"| {' | '.join(cells)} | {apart[side]:.0e} | {megabytes[side]:.0f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure all cases; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not importlib.util.find_spec("openvino"):
        print("OpenVINO is not installed and left out. Run: pip install openvino", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row for name, batch in CASES for row in measure(name, batch, (options.rounds, options.clock), Path(folder))
        ]
    packages = [p for p in ("torch", "onnx", "onnxruntime", "openvino") if importlib.util.find_spec(p)]
    about = ", ".join(f"{package} {version(package)}" for package in packages)
    words = f"--clock {options.clock} --rounds {options.rounds}"
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} python benchmarks/exported.py {words}"
    if options.out:
        command += f" --out {options.out}"
    text = f"""# Exported graphs

`{command}`; {about}; {processor(CPU)}.

Ratio: time of the network in eager mode by that of the side, median of {options.rounds} rounds in which all sides take
turns; spread: 10th and 90th percentile. Time is that of the {"wall" if options.clock == "wall" else "processor"}.
Difference: of the outputs, relative to the largest. Weights are random: the difference of int8 says that the arithmetic
is sound, and not what accuracy costs.

| network | batch | side | ms | ratio | spread | difference | MB |
|---|---|---|---|---|---|---|---|
""" + "\n".join(rows)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
