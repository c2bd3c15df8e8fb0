"""The pages that are read first say what runs: Python blocks run, commands and options exist, links lead somewhere."""

import re
import shlex

import pytest

from pages import ROOT, blocks, check_command, commands, links, run_python

PAGES = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"]


def test_python_blocks_run(tmp_path):
    script = "\n".join(blocks("README.md", "python"))
    assert "create_model" in script
    run_python(script, tmp_path)


@pytest.mark.parametrize("line", commands(PAGES))
def test_commands_exist(line):
    check_command(line)


def test_recipes_named_on_the_pages_exist():
    from openmvit.training.recipe_file import list_recipes

    families = {name.partition("/")[0] for name in list_recipes()}
    text = (ROOT / "README.md").read_text()
    words = {word for line in commands(PAGES) for word in shlex.split(line)[1:]} | set(re.findall(r"`(\w+/\w+)`", text))
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
    for target in links(page):
        assert (ROOT / target).exists(), target


def test_files_named_in_the_reading_order_exist():
    for name in ["config.py", "nn/attention.py", "nn/block.py", "model.py", "recipes/imagenet/mvitv2_small.yaml"]:
        assert name in (ROOT / "README.md").read_text()
        assert (ROOT / "src/openmvit" / name).is_file()
