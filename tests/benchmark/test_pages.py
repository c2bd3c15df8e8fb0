"""The pages in benchmarks/ and the README say what the tables say, and the scripts that make them run."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from openmvit.benchmark import Result, Side, make_case, report
from openmvit.benchmark.command import _parser
from openmvit.measuring import processor
from pages import ROOT

FOLDER = ROOT / "benchmarks"


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


def section(mode, ratio, share):
    """A part of a table as the benchmark itself writes it."""
    case = make_case("mvitv2_small", mode=mode, device="cpu")
    ours, peer = (Side(seconds, case.operations, 2.0**28) for seconds in (0.4, 0.4 * ratio))
    rate = case.operations / 0.4 / share
    result = Result(ours, peer, (ratio - 0.1, ratio, ratio + 0.1), 1e-6, rate, 0.3)
    arguments = f"mvitv2_small --against timm --precision fp32 --step infer --mode {mode}"
    return script("tables").section(arguments, report(case, result))


def test_ratios_are_held_against_the_targets(targets, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "FOLDER", tmp_path)
    sections = [section("eager", 1.95, 0.74), section("best", 1.5, 0.76)]
    (tmp_path / "amd_avx2").mkdir()
    (tmp_path / "amd_avx2/image_fp32_infer.md").write_text("\n\n".join(["# image_fp32_infer", *sections]))
    (tmp_path / "memory_training.md").write_text("| mvitv2_small | 16 | fp32 | 2.60 | timm | 3.40 | 76% |\n")
    judged = {row[1]: row[2:] for row in [*targets.speed_rows("amd_avx2"), *targets.memory_rows()] if row[-1]}
    assert not [row for row in targets.speed_rows("amd_avx512") if row[-1]]
    assert judged == {
        "image fp32 inference, eager mode, ratio": [">= 1.8", "1.95 [1.87-2.03]", "2.60", "68%", "met"],
        "image fp32 inference, best mode, ratio": [">= 1.7", "1.50 [1.42-1.58]", "2.00", "87%", "missed"],
        "image fp32 inference, best mode, share of the matrix rate": [">= 75%", "76%", "", "", "met"],
        "memory: training step of mvitv2_small at batch 16, of timm's": ["<= 70%", "76%", "", "", "missed"],
    }
    tallies = [line for line in targets.page().splitlines() if line.startswith("`")]
    assert tallies == [
        "`amd_avx512 met=0 missed=0 not_measured=16`",
        "`intel_avx512 met=0 missed=0 not_measured=16`",
        "`amd_avx2 met=2 missed=1 not_measured=13`",
        "`memory met=0 missed=1 not_measured=3`",
    ]
    block = targets.readme_block()
    assert "--mode eager` | 1.95 | 1.87-2.03 | 20.0 | 10.3 |" in block
    assert re.search(r"^wall time, .*threads: \d+, torch \d+\.\d+[^,]*:\n\n", block), block


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("AMD EPYC (AVX512)", "amd_avx512"),
        ("Intel(R) Xeon(R) Processor (AVX512)", "intel_avx512"),
        ("Intel(R) Xeon(R) Platinum 8488C (AVX512-AMX)", "intel_avx512_amx"),
        ("11th Gen Intel(R) Core(TM) i7 (AVX2)", "intel_avx2"),
        ("Neoverse-V1 (SVE256)", "other"),
    ],
)
def test_tables_lie_by_maker_and_instructions(name, folder):
    text = f"mvitv2_small, fp32, eager, infer, batch 8, 15 pairs, wall time, {name}, threads: 2, torch 2.15.0"
    assert script("tables").processor(text) == folder


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


def test_a_table_lies_with_those_of_its_processor(targets):
    tables = script("tables")
    maker = re.search(r"AMD|Intel", processor(torch.device("cpu")))
    assert tables.processor(section("eager", 1.2, 0.5)).startswith(maker[0].lower() if maker else "other")
    for page in (page for name in targets.PROCESSORS for page in FOLDER.glob(f"{name}/*.md")):
        sections = page.read_text().split("## `openmvit bench ")[1:]
        if page.stem == "exported":  # one measurement, whose first line names the processor
            sections = [page.read_text().replace("; ", " time, ")]
        assert sections and {tables.processor(one) for one in sections} == {page.parent.name}, page


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_script_can_be_imported(name):
    assert script(name).__doc__


@pytest.mark.parametrize("channels", [False, True])
def test_memory_of_a_backbone_is_measured_in_both_forms(channels):
    """In a process of its own, as the script does: freed memory hides a peak."""
    code = f"import memory; print(memory.peak(memory.Row('tiny', False, 256, False, {channels})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 1e6


def test_operators_of_a_step_are_watched(capsys, monkeypatch):
    operators = script("operators")
    options = "mvitv2_tiny --against timm --batch 1 --rounds 1 --step train"
    monkeypatch.setattr(sys, "argv", ["operators.py", *options.split()])
    monkeypatch.setattr(operators, "ROWS", 1000)  # which take longest depends on what else the machine does
    assert operators.main() == 0
    table = capsys.readouterr().out
    assert "| convolution_backward |" in table
    found = re.search(r"in_operators=(\d+) products=(\d+) pages=", table)
    assert found is not None and 0 < int(found[2]) < int(found[1])


def test_blocks_of_two_states_of_the_code_take_turns(tmp_path):
    """The other state is a copy whose network says that it is the one that was built."""
    before = tmp_path / "src" / "openmvit"
    shutil.copytree(ROOT / "src" / "openmvit", before, ignore=shutil.ignore_patterns("__pycache__"))
    model = before / "model.py"
    model.write_text(model.read_text() + "\nimport sys\n\nprint('the other state', file=sys.stderr)\n")

    def run(source):
        command = [sys.executable, FOLDER / "blocks.py", "mvitv2_micro", source, "--batch", "1", "--rounds", "2"]
        return subprocess.run([*map(str, command)], capture_output=True, text=True)

    done = run(before.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the other state") == 1
    assert re.search(r"\nblocks mvitv2_micro ratio=\d\.\d{3} before=\d+ now=\d+\n", done.stdout)
    counts = [int(row.split("|")[2]) for row in done.stdout.splitlines() if re.match(r"\| \d", row)]
    assert sum(counts) == 5
    wrong = run(tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == f"error: {tmp_path} has no package openmvit. Give the src folder of a checkout.\n"
