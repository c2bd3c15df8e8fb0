"""The wheel as a user gets it: built, installed into an environment of its own, used from outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; its standard output."""
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env=clean | {"OMP_NUM_THREADS": "2"} | environment,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy without the checkout's ignored files."""
    source, out = tmp_path_factory.mktemp("source") / "openmvit", tmp_path_factory.mktemp("dist")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    build = f"import os; os.chdir({str(source)!r}); from hatchling.build import build_wheel; build_wheel({str(out)!r})"
    run(sys.executable, "-c", build, cwd=source)
    (built,) = out.glob("openmvit-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel) -> Path:
    """Interpreter of an environment that holds this wheel and sees the dependencies of the tests' environment.

    The dependencies (gigabytes) are not installed again: a path file shows them, after the wheel's own folder. The
    checkout's editable install is a path file too, and path files are read in site folders alone, so it stays unseen.
    """
    folder = tmp_path_factory.mktemp("user") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_holds_code_and_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "openmvit"
    wanted = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {f"openmvit/{p.relative_to(package).as_posix()}" for p in wanted} <= names
    assert "openmvit/recipes/imagenet/mvitv2_small.yaml" in names
    assert "openmvit/weights.yaml" in names and "openmvit/data/digits.npz" in names
    licences = {Path(name).name for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_installed_package_builds_a_model_and_reads_a_recipe(environment, tmp_path):
    code = """
import openmvit, torch
from openmvit.training.recipe_file import load_recipe
recipe = load_recipe("imagenet/mvitv2_tiny")
model = openmvit.create_model(recipe.model, num_classes=3, img_size=64, drop_path_rate=recipe.drop_path)
print(tuple(model(torch.randn(1, 3, 64, 64)).shape), recipe.epochs)
print(openmvit.__file__)
"""
    shape, home = run(environment, "-c", code, cwd=tmp_path).splitlines()
    assert shape == "(1, 3) 300"
    assert Path(home).is_relative_to(environment.parents[1])


def test_installed_command_trains_from_a_named_recipe(environment, tmp_path):
    """One epoch of two updates of a published recipe, from outside the checkout, on images made here."""
    from PIL import Image

    for split, count in (("train", 4), ("val", 1)):
        for label, colour in (("dark", 40), ("light", 200)):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 40), (colour, colour + i, colour)).save(folder / f"{i}.png")
    main = "import sys; from openmvit.cli import main; sys.exit(main())"
    options = "--imgsz 32 --epochs 1 --warmup-epochs 0 --batch 4 --workers 0 --device cpu --plots false"
    words = ["train", "imagenet/mvitv2_tiny", "--data", "images", *options.split()]
    run(environment, "-c", main, *words, cwd=tmp_path)
    (best,) = tmp_path.glob("runs/image/*/weights/best.safetensors")
    assert best.stat().st_size > 1_000_000
