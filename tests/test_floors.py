"""The house rules that a machine can check: floors of imports, lazy libraries, sizes and names of files."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(importlib.util.find_spec("openmvit").submodule_search_locations[0])

FLOORS: list[set[str]] = [
    {"nn", "config", "fonts"},
    {"model", "architectures", "convert", "data", "evaluation"}
    | {"report", "drawing", "device", "processes", "measuring"},
    {"detection", "checkpoint"},
    {"weights", "counting", "exported"},
    {"zoo"},
    {"validate", "predict", "export", "hub", "doctor", "info", "bottleneck"},
    {"demo", "training", "benchmark", "tables"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms} | {
    "errors": -2,
    "screen": -2,
    "records": -1,
    "block_config": -1,
}
SIDEWAYS = {("nn", "config")}

DELETABLE = ("training", "hub", "detection")
# Rooms and modules that may need a deleted folder at import: those above it which exist to run it.
MAY_NEED = {
    "training": {"cli", "demo"},
    "hub": {"cli"},
    "detection": {"cli", "detection", "detection_scores", "detectors"},
}

# What a module may import when it is imported: the rest is imported by the function that needs it.
PLAIN = {"torch", "torchvision", "safetensors", "numpy", "yaml", "PIL", "av", "openmvit"} | sys.stdlib_module_names
BARE = {"torch", "torchvision", "safetensors", "openmvit"} | sys.stdlib_module_names
ECOSYSTEM = {"transformers", "timm"}  # for whose sake hub/ exists
ENGINE = {"lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"}

FILE_LINES = 400
FUNCTION_LINES = 40
ARGUMENTS = 8
NAMELESS = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}


@cache
def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree, for the whole package."""
    trees = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        trees[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return trees


def path_of(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room(module: str) -> str:
    """First part of the name below the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not in functions, not under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from at_import(node)


def names_imported(module: str, nodes: Iterator[ast.AST], trees: dict[str, ast.Module]) -> Iterator[tuple[str, int]]:
    """(full module name, line) of every import among the nodes, `import_module` of a literal included."""
    is_package = any(name.startswith(f"{module}.") for name in trees) or module == "openmvit"
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in trees else base), node.lineno
                # Importing a module runs the packages above it only formally; a name of the package itself counts.
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def own_imports(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str, int]]:
    """(importing module, imported module of the package, line), imports inside functions included."""
    for module, tree in trees.items():
        for name, line in names_imported(module, ast.walk(tree), trees):
            if name.split(".")[0] == "openmvit":
                yield module, name, line


def floor_faults(trees: dict[str, ast.Module]) -> list[str]:
    """Imports that go up or sideways, and rooms that no floor holds."""
    faults = [f"{module}: room {room(module)!r} is on no floor" for module in trees if room(module) not in FLOOR_OF]
    for module, name, line in own_imports(trees):
        here, there = room(module), room(name)
        if there == "__init__" and here != "__init__" and not takes_version_only(trees[module], line):
            faults.append(f"{module}:{line} imports the package itself")
        elif here in FLOOR_OF and there in FLOOR_OF and here != there and there != "__init__":
            down = FLOOR_OF[there] < FLOOR_OF[here] or (here, there) in SIDEWAYS
            if not down:
                faults.append(f"{module}:{line} (floor {FLOOR_OF[here]}) imports {name} (floor {FLOOR_OF[there]})")
    return faults


def takes_version_only(tree: ast.Module, line: int) -> bool:
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.lineno == line]
    return bool(nodes) and all(alias.name == "__version__" for node in nodes for alias in node.names)


def cycle(trees: dict[str, ast.Module]) -> list[str]:
    """Modules of one circle of imports, or nothing; the package's lazy `__init__` is no part of it."""
    edges: dict[str, set[str]] = {module: set() for module in trees}
    for module, name, _ in own_imports(trees):
        if name in trees and "openmvit" not in (module, name) and name != module:
            edges[module].add(name)
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for name in sorted(edges[module]):
            found = walk(name, [*trail, module])
            if found:
                return found
        done.add(module)
        return []

    return next((found for module in trees if (found := walk(module, []))), [])


def test_imports_go_down():
    assert floor_faults(sources()) == []


def test_no_circular_imports():
    assert cycle(sources()) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("openmvit.nn.extra", "from openmvit.model import MViT"),
        ("openmvit.nn.extra", "def f():\n    import openmvit.zoo"),
        ("openmvit.data.extra", "from openmvit import model"),
        ("openmvit.data.extra", "from openmvit import create_model"),
        ("openmvit.data.extra", "from ..model import MViT"),
        ("openmvit.data.extra", "from importlib import import_module\nimport_module('openmvit.convert')"),
        ("openmvit.errors", "from openmvit.config import MViTConfig"),
        ("openmvit.rooms", "import math"),
    ],
)
def test_an_import_that_is_not_down_is_seen(module, text):
    known = set(floor_faults(sources()))
    assert len(set(floor_faults(sources() | {module: ast.parse(text)})) - known) == 1


def test_a_circle_inside_a_folder_is_seen():
    trees = {"openmvit.nn.a": "def f():\n    from openmvit.nn import b", "openmvit.nn.b": "from openmvit.nn.a import f"}
    assert len(cycle({name: ast.parse(text) for name, text in trees.items()})) == 3  # a, b and a again


def test_the_training_engine_is_known_to_training_alone():
    for module, tree in sources().items():
        found = {name.split(".")[0] for name, _ in names_imported(module, ast.walk(tree), sources())}
        assert room(module) == "training" or not found & ENGINE, module


def test_optional_and_heavy_libraries_are_imported_where_they_are_used():
    for module, tree in sources().items():
        accepted = PLAIN | {"training": ENGINE, "hub": ECOSYSTEM}.get(room(module), set())
        for name, line in names_imported(module, at_import(tree), sources()):
            assert name.split(".")[0] in accepted, f"{module}:{line} imports {name} at module level"


@pytest.mark.parametrize("start", ["openmvit", "openmvit.zoo", "openmvit.model"])
def test_building_a_model_needs_torch_alone(start):
    waiting, seen = [start], set()
    while waiting:
        module = waiting.pop()
        if module in seen or module not in sources():
            continue
        seen.add(module)
        for name, line in names_imported(module, at_import(sources()[module]), sources()):
            assert name.split(".")[0] in BARE, f"{start} reaches {module}:{line}, which imports {name}"
            waiting.append(name)


BARE_STEP = """
import sys
import openmvit
assert "torch" not in sys.modules, "import openmvit loads torch"
model = openmvit.create_model("mvitv2_tiny", num_classes=3, img_size=32)
import torch
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 2])).backward()
optimizer.step()
others = {"lightning", "pytorch_lightning", "torchmetrics", "av", "faster_coco_eval", "huggingface_hub",
          "jsonargparse", "rich", "matplotlib", "yaml", "timm", "sklearn"}
print("loaded", sorted(others & set(sys.modules)))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def test_a_training_step_loads_no_other_library():
    done = python(BARE_STEP, PYTHONPATH=str(PACKAGE.parent))
    assert done.stdout.strip() == "loaded []", done.stdout + done.stderr


IMPORT_ALL = """
import importlib, pathlib, traceback
root = pathlib.Path({root!r})
import openmvit
assert pathlib.Path(openmvit.__file__).parent == root / "openmvit", openmvit.__file__
failed = []
for path in sorted((root / "openmvit").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] == "__main__" or {skipped!r} & set(parts[1:]):
        continue
    try:
        importlib.import_module(name)
    except ImportError:
        failed.append(name + ": " + traceback.format_exc().splitlines()[-1])
print("failed", failed)
"""


@pytest.mark.parametrize("folder", [f for f in DELETABLE if (PACKAGE / f).is_dir()])
def test_the_rest_imports_without(folder, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "openmvit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "openmvit" / folder)
    done = python(IMPORT_ALL.format(root=str(tmp_path), skipped=MAY_NEED[folder]), PYTHONPATH=str(tmp_path))
    assert done.stdout.strip() == "failed []", done.stdout + done.stderr


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_files_are_short_and_named_for_what_they_hold():
    for module in sources():
        path = path_of(module)
        assert lines(path) <= FILE_LINES, f"{path.name} has {lines(path)} lines"
        assert path.name not in NAMELESS, path
        path.read_bytes().decode("ascii")


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def test_functions_are_short():
    sizes = {name: (node.end_lineno or node.lineno) - node.lineno + 1 for name, node in functions()}
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES} == {}


def test_functions_take_few_arguments():
    counts = {}
    for name, node in functions():
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        counts[name] = len([a for a in given if a.arg not in {"self", "cls"}])
    assert {name: count for name, count in counts.items() if count > ARGUMENTS} == {}


def test_floors_are_the_ones_written_down():
    """ARCHITECTURE.md shows the same table."""
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text()
    table = text.split("## Floors")[1].split("```")[1]
    written = {int(row.split()[0]): set(row.split()[1:]) for row in table.strip().splitlines()}
    held = {floor: rooms for floor, rooms in enumerate(FLOORS) if "__init__" not in rooms}
    assert written == held
