"""The pages in benchmarks/ and the README say what the tables say, and the scripts that make them run."""

import importlib.util
import re
import shlex
import subprocess
import sys

import pytest

from openmvit.benchmark import make_case
from openmvit.benchmark.command import _parser
from pages import ROOT

FOLDER = ROOT / "benchmarks"
SECTION = """## `openmvit bench mvitv2_small --against timm --precision fp32 --step infer --mode {mode}`

mvitv2_small, fp32, {mode}, infer, batch 8, 15 pairs, wall time, Chip (AVX512), threads: 2, torch 2.15.0, timm 1.0.

| side | variant | ms per step | images/s | GFLOP/s | share of matrix rate | memory above idle, MiB |
|---|---|---|---|---|---|---|
| ours | eager | 400.0 | 20.0 | 280 | {share} | 240 |
| timm | eager | 800.0 | 10.0 | 140 | 40% | 300 |
| matrix products alone | none | 300.0 | 26.7 | 373 | 90% | - |

Largest ratio that the matrix products of the step leave room for: 2.67.

`bench mvitv2_small ratio={ratio} low=1.80 high=2.10 ours=20.0 peer=10.0`

"""


def script(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # records of the module look themselves up by its name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def targets():
    return script("targets")


def test_the_pages_are_those_of_the_tables(targets):
    readme = (ROOT / "README.md").read_text()
    assert len(targets.MARKED.findall(readme)) == 1
    assert targets.refreshed(readme) == readme, "run: python benchmarks/targets.py"
    assert (FOLDER / "targets.md").read_text() == targets.page(), "run: python benchmarks/targets.py"


def test_ratios_are_held_against_the_targets(targets, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "FOLDER", tmp_path)
    sections = SECTION.format(mode="eager", ratio="1.95", share="74%")
    sections += SECTION.format(mode="best", ratio="1.50", share="76%")
    (tmp_path / "image_fp32_infer.md").write_text("# image_fp32_infer\n\n" + sections)
    (tmp_path / "memory_training.md").write_text("| mvitv2_small | 16 | fp32 | 2.60 | timm | 3.40 | 76% |\n")
    judged = {row[1]: row[2:] for row in [*targets.speed_rows(), *targets.memory_rows()] if row[-1]}
    assert judged == {
        "image fp32 inference, eager mode, ratio": [">= 1.8", "1.95 [1.80-2.10]", "2.67", "met"],
        "image fp32 inference, best mode, ratio": [">= 1.7", "1.50 [1.80-2.10]", "2.67", "missed"],
        "image fp32 inference, best mode, share of the matrix rate": [">= 75%", "76%", "", "met"],
        "memory: training step of mvitv2_small at batch 16, of timm's": ["<= 70%", "76%", "", "missed"],
    }
    assert targets.page().endswith("`targets met=2 missed=2 not_measured=16`\n")
    block = targets.readme_block()
    assert "--mode eager` | 1.95 | 1.80-2.10 | 20.0 | 10.0 |" in block
    assert block.endswith("wall time, Chip (AVX512), threads: 2, torch 2.15.0.\n")


def test_every_comparison_of_the_tables_can_be_asked_for(targets):
    tables = script("tables")
    for arguments in (one for table in tables.TABLES.values() for one in table):
        options = {key: value for key, value in vars(_parser().parse_args(shlex.split(arguments))).items() if value}
        assert make_case(options.pop("name"), **options).pairs >= 15
    for kind, step, precision in targets.FLOORS:
        wanted = f"{targets.SMALL[kind]} --against"
        found = [one for one in tables.TABLES[f"{kind}_{precision}_{step}"] if one.startswith(wanted)]
        assert [re.findall(r"--mode (\w+)", one)[0] for one in found] == ["eager", "best"]


def test_a_table_that_does_not_exist_is_an_error():
    done = subprocess.run([sys.executable, FOLDER / "tables.py", "nothing"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no table named nothing" in done.stderr


def test_the_page_of_the_folder_names_every_table():
    text = (FOLDER / "README.md").read_text()
    tables = script("tables")
    for name in (*tables.TABLES, *tables.MEMORY):
        assert f"`{name}`" in text, name
    assert set(re.findall(r"\((\w+\.md)\)", text)) <= {page.name for page in FOLDER.glob("*.md")}
