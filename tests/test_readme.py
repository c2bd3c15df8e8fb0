"""The pages that are read first say what runs: Python blocks run, commands and options exist, links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]


def blocks(page: str, *languages: str) -> list[str]:
    """Bodies of the fenced blocks in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands() -> list[str]:
    """Every `openmvit ...` line of the shell blocks, without its comment."""
    lines = [line for page in PAGES for body in blocks(page, "sh", "bash") for line in body.splitlines()]
    return sorted({line.split("#")[0].strip() for line in lines if line.startswith("openmvit ")})


@cache
def help_text(*words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from openmvit.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )


def test_python_blocks_run(tmp_path):
    script = "\n".join(blocks("README.md", "python"))
    assert "create_model" in script
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", commands())
def test_commands_exist(line):
    words = shlex.split(line)[1:]
    verb = words[:2] if words[0] == "data" else words[:1]
    shown = help_text(*verb)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", shown.stdout), f"{' '.join(verb)} has no {option}"


def test_recipes_named_on_the_pages_exist():
    from openmvit.training.recipe_file import list_recipes

    families = {name.partition("/")[0] for name in list_recipes()}
    text = (ROOT / "README.md").read_text()
    words = {word for line in commands() for word in shlex.split(line)[1:]} | set(re.findall(r"`(\w+/\w+)`", text))
    named = {word for word in words if "/" in word and "." not in word and word.partition("/")[0] in families}
    assert {"imagenet", "kinetics", "video"} <= {name.partition("/")[0] for name in named}
    assert named <= set(list_recipes())


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        text = "\n".join([*blocks(page, "sh", "bash"), *re.findall(r"`([^`\n]+)`", (ROOT / page).read_text())])
        assert set(re.findall(r"\bmake ([\w-]+)", text)) <= targets, page


def test_parameter_counts_are_those_of_the_models():
    import torch

    from openmvit import create_model, list_models

    text = (ROOT / "README.md").read_text()
    rows = {
        name: int(count.replace(",", ""))
        for name, count in re.findall(r"^\| (\w*mvit\w+).*?\| ([\d,]+) \|", text, re.M)
    }
    assert set(rows) == set(list_models())
    for name, count in rows.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in create_model(name).parameters()) == count, name


def test_published_scores_are_those_of_the_weight_cards_and_recipes():
    from openmvit.training.recipe_file import recipe_header
    from openmvit.weights import cards

    text = (ROOT / "README.md").read_text()
    published = dict(re.findall(r"^\| (\w*mvit\w+).*?\| ([\d./ ]+) \| published by the authors \|", text, re.M))
    assert len(published) >= 5
    carded = {card.model: card.published for card in reversed(cards())}
    for name in set(published) - {"mvitv1_base_24"}:
        if name in carded:
            keys = ("box_AP", "mask_AP") if "rcnn" in name else ("top1",)
            assert [float(value) for value in published[name].split("/")] == [carded[name][k] for k in keys], name
        else:
            assert f"top-1 {published[name]} " in recipe_header(f"imagenet/{name}").expected


def test_every_figure_says_who_measured_it():
    table = re.search(r"\| model \| parameters.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    for row in table[0].strip().splitlines()[2:]:
        assert re.search(r"\| measured here \|", row), row
        assert re.search(r"(published by the authors|measured here|not measured) \|$", row), row


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_files_named_in_the_reading_order_exist():
    for name in ["config.py", "nn/attention.py", "nn/block.py", "model.py", "recipes/imagenet/mvitv2_small.yaml"]:
        assert name in (ROOT / "README.md").read_text()
        assert (ROOT / "src/openmvit" / name).is_file()
