"""The guide says what is so: figures come from the package, code runs, commands exist, links lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

from openmvit.tables import compare, tables_text
from openmvit.tables.speeds import SPEED_TABLES
from openmvit.training.recipe_file import list_ablations, list_recipes, recipe_header
from openmvit.weights import find_card
from pages import ROOT, blocks, check_command, commands, links, run_python

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))
TABLES = [page for page in PAGES if re.search(r"paper/table_\w+\.md$", page)]


@pytest.fixture(scope="module")
def refresh():
    spec = importlib.util.spec_from_file_location("docs_refresh", ROOT / "docs" / "refresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_package(refresh, page):
    text = (ROOT / page).read_text()
    assert refresh.refreshed(text) == text, "run: python docs/refresh.py"
    assert text.count(":begin -->") == text.count(":end -->") == len(refresh.BLOCK.findall(text))


def test_a_changed_figure_is_seen(refresh):
    text = (ROOT / "docs/paper/table_4.md").read_text()
    assert refresh.refreshed(text.replace("6.356", "6.357")) == text
    with pytest.raises(KeyError):
        refresh.refreshed("<!-- nothing:1:begin -->\n<!-- nothing:1:end -->")


def test_every_table_with_cells_and_every_ablation_has_its_place(refresh):
    text = "\n".join((ROOT / page).read_text() for page in TABLES)
    shown = {(kind, what) for _, kind, what, _ in refresh.BLOCK.findall(text)}
    assert {what for kind, what in shown if kind == "tables"} == {cell.table for cell in compare()}
    assert {f"ablation/{what}" for kind, what in shown if kind == "ablation"} == set(list_ablations())
    assert {what for kind, what in shown if kind == "speeds"} == set(SPEED_TABLES)
    index = (ROOT / "docs/paper/README.md").read_text()
    assert all(f"({Path(page).name})" in index for page in TABLES)


@pytest.mark.parametrize("page", TABLES)
def test_no_other_figure_stands_on_the_page_of_a_table(refresh, page):
    text = (ROOT / page).read_text()
    made = "\n".join(found.group() for found in refresh.BLOCK.finditer(text)) + tables_text(refresh._cells())
    prose = re.sub(r"```.*?```", "", refresh.BLOCK.sub("", text), flags=re.DOTALL)
    known = {float(figure) for figure in re.findall(r"\d+\.\d+", made)}
    assert [figure for figure in re.findall(r"\d+\.\d+", prose) if float(figure) not in known] == []


def test_recipes_of_the_pages_have_not_been_run():
    for page in TABLES:
        for name in re.findall(r"<!-- recipes:([^:]+):begin", (ROOT / page).read_text()):
            assert {recipe_header(recipe).status for recipe in name.split(",")} == {"not yet run"}, page


def test_the_differences_are_numbered():
    text = (ROOT / "docs/paper/differences.md").read_text()
    heads = re.findall(r"^### ((\d+)\. .+)$", text, re.M)
    assert [int(number) for _, number in heads] == [*range(1, 29)]
    slugs = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head, _ in heads}
    for page in TABLES:
        named = re.findall(r"\[[^\]]*?(\d*)\]\(differences\.md#([^)]+)\)", (ROOT / page).read_text())
        assert all(slug in slugs and slug.startswith(f"{number}-") for number, slug in named), page
    named = "\n".join((ROOT / page).read_text() for page in TABLES)
    assert {1, 2, 3, 5, 6, 14, 17, 18, 19, 20, 26} <= {int(n) for n in re.findall(r"differences\.md#(\d+)-", named)}


def test_what_the_differences_say_of_cards():
    assert find_card("mvitv2_large_40x3", "fb_ssv2").preprocessing["mean"] == [0.406, 0.456, 0.485]
    assert find_card("mvitv2_small_16x4", "fb_k400").preprocessing["mean"] == [0.45] * 3
    assert find_card("mvitv2_large_40x3", "fb_k400").preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert find_card("cascade_mask_rcnn_mvitv2_base", "fb_in1k_coco").published["mask_AP"] == 46.7


EXPORT = pytest.param("docs/export.md", marks=pytest.mark.slow)


@pytest.mark.parametrize("page", ["docs/detection.md", "docs/weights.md", "docs/hub.md", EXPORT, "docs/speed.md"])
def test_python_blocks_run(page, tmp_path):
    run_python("\n".join([f"REPOSITORY = {str(ROOT)!r}", *blocks(page, "python")]), tmp_path)


@pytest.mark.parametrize("line", commands(PAGES))
def test_commands_exist(line):
    check_command(line)


def test_recipes_and_tables_named_in_commands_exist():
    named = {line.split()[2] for line in commands(PAGES) if re.match(r"openmvit train [^-]", line)}
    assert len(named) > 20
    assert named <= {*list_recipes(), *list_ablations()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(page):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_plain(page):
    assert (ROOT / page).read_text().isascii()
