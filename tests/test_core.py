"""How far one has to walk to read the network: files, functions and lines that a forward pass runs through."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import openmvit
from openmvit.config import MViTConfig
from openmvit.model import MViT

ROOT = Path(openmvit.__file__).parent
IMAGE = {
    "input_size": (32, 48), "depths": (1, 1), "embed_dim": 24, "patch_kernel": (3, 3), "patch_stride": (2, 2),
    "patch_padding": (1, 1), "num_classes": 3,
}  # fmt: skip
CLIP = {
    "input_size": (4, 32, 48), "depths": (1, 1), "embed_dim": 24, "patch_kernel": (3, 7, 7), "patch_stride": (2, 4, 4),
    "patch_padding": (1, 3, 3), "kernel_qkv": (3, 3, 3), "stride_q": (1, 2, 2), "adaptive_kv_stride": (1, 4, 4),
    "cls_token": True, "num_classes": 3,
}  # fmt: skip
CASES = {"image": IMAGE, "clip": CLIP}
LIMITS = {True: (10, 70, 220), False: (15, 95, 320)}
"""Plain or not -> most files, functions and lines."""

PLAIN_FILES = [
    "model.py",
    *(f"nn/{name}.py" for name in ("attention", "block", "pooling", "position", "relative", "grid", "ops")),
]
QUESTIONS = re.compile(
    r"\.device\.type|is_cuda|\.dtype\s*[=!]=|\.dtype in|get_num_threads|environ|is_grad_enabled|is_autocast"
    r"|torch\.autocast|is_compiling|is_dynamo|is_export|is_tracing|SymInt|_hooks|torch\.compiler|torch\.jit|cpu_capability|checkpoint\("
)


def walk(model, x, training):
    """Every function of the package that a forward enters, with its lines that run."""
    functions = defaultdict(set)

    def watch(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event != "call" or ROOT not in path.parents:
            return None
        lines = functions[str(path.relative_to(ROOT)), frame.f_code.co_qualname]
        lines.add(frame.f_lineno)

        def line(inner, kind, _):
            lines.add(inner.f_lineno)
            return line

        return line

    model.train(training)
    before = sys.gettrace()
    sys.settrace(watch)
    try:
        with torch.set_grad_enabled(training):
            model(x)
    finally:
        sys.settrace(before)
    return functions


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "default"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES)
def test_a_forward_is_a_short_walk(case, training, plain, monkeypatch):
    monkeypatch.setenv("OPENMVIT_PLAIN", str(int(plain)))
    model, x = MViT(MViTConfig(**CASES[case])), torch.randn(1, 3, *CASES[case]["input_size"])
    functions = walk(model, x, training)
    files = {path for path, _ in functions}
    lines = {path: set().union(*(own for (f, _), own in functions.items() if f == path)) for path in files}
    found = len(files), len(functions), sum(map(len, lines.values()))
    assert all(a <= most for a, most in zip(found, LIMITS[plain], strict=True)), (found, sorted(files))
    assert not files & {"config.py", "block_config.py"}, "a configuration is read when the network is built"
    if plain:
        assert sum(len((ROOT / path).read_text().splitlines()) for path in files) <= 1300


@pytest.mark.parametrize("path", PLAIN_FILES)
def test_plain_files_do_not_ask_what_machine_this_is(path):
    asked = [
        f"{path}:{number}: {line.strip()}"
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if QUESTIONS.search(line)
    ]
    assert not asked, "\n".join(asked)


@pytest.mark.parametrize(
    "line",
    ["if x.device.type == 'cpu':", "torch.compiler.is_compiling()", "if q.dtype == torch.float32:", "os.environ[a]"],
)
def test_a_question_is_seen(line):
    assert QUESTIONS.search(line)


def test_equation_4_stands_on_one_screen():
    """Attention's forward has at most 40 lines, and in them the equations and a shape at each step."""
    text = (ROOT / "nn/attention.py").read_text()
    forward = text[text.index("    def forward(") : text.index("    def pool(")].rstrip().splitlines()
    assert len(forward) <= 40
    for words in (
        "Equation (1)",
        "Equations (3) and (4)",
        "Softmax(Q K^T / sqrt(c) + E) V",
        "Attn(Q, K, V) + Q",
        "[B, *q_grid, h, c]",
    ):
        assert any(words in line for line in forward), words


def test_shapes_are_those_that_go_through(capsys):
    """One line per block: input, pooled queries and keys, output."""
    from openmvit.cli import main
    from openmvit.info import trace

    model = MViT(MViTConfig(**CLIP))
    rows = trace(model, torch.randn(2, 3, *CLIP["input_size"]))
    (x, cls), seen = model.embed(torch.randn(2, 3, *CLIP["input_size"])), []
    for block in model.blocks:
        seen.append(list(x.shape))
        x, cls = block(x, cls)
    assert [row["in"] for row in rows] == seen and rows[-1]["out"] == list(x.shape)
    assert rows[1]["q"][1:4] == rows[1]["out"][1:4] and rows[0]["k"][1:4] == [2, 2, 3]
    assert main(["info", "mvitv2_micro", "--shapes", "--imgsz", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0", "1x16x16x48", "1x16x16x48", "1x4x4x48", "1x16x16x48"] and len(lines) == 7
    assert main(["info", "mvitv2_micro", "--imgsz", "64"]) == 2
