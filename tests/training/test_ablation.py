"""The paper's tables as rows: their networks, their numbers, how one is trained, and the tables in small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from detection.small import BACKBONE, pictures, target
from detection.small import config as small_detector
from openmvit.architectures import PLAIN, is_detector, model_config
from openmvit.cli import main
from openmvit.config import MViTConfig
from openmvit.counting import count_classifier, count_detector
from openmvit.detection import Detector
from openmvit.errors import UserError
from openmvit.tables.compare import config_of
from openmvit.tables.rows import NOT_COMPUTABLE, ROWS
from openmvit.training.ablation import Ablation, AblationRow, is_ablation, listing, load_ablation, row_recipe
from openmvit.training.quick import SEEDS, SMALL, QuickRow, quick_page, small_config, verdicts
from openmvit.training.recipe import Recipe
from openmvit.training.recipe_file import find_recipe, list_ablations, load_recipe, recipe_header
from pages import ROOT

TABLES = {name.partition("/")[2]: load_ablation(name) for name in list_ablations()}
EVERY_ROW = [(name, row.name) for name, table in TABLES.items() for row in table.rows]

# What the paper prints, retyped: top-1, or AP of boxes (and masks), in the order of its rows.
PRINTED = {
    "attention": [82.0, 80.0, 80.4, 82.1, 81.9, 83.6, 83.2, 82.8, 83.0],
    "attention_detection": [46.6, 43.4, 45.1, 46.1, 47.2, 46.9, 50.8, 50.0, 48.9, 49.9],
    "position": [83.3, 83.5, 83.6, 83.6, 83.7],
    "position_detection": [49.2, 49.3, 49.9, 49.9, 49.8],
    "position_video": [80.1, 80.4, 80.8, 80.6, 81.0, 81.1, None],
    "pretraining_detection": [(49.9, 45.1), (50.2, 45.1), (51.0, 45.7), (51.5, 46.4), (51.8, 46.2), (52.7, 46.8)],
    "pretraining_video": [81.2, 82.2, 82.6, 82.9, 83.3, 84.3, None, None, None, 81.4, 83.4, 84.5, 81.8, 84.4, 85.7],
    "relative_terms": [83.6, 83.4, 83.6, 83.6, 83.7, 83.6, None],
    "relative_terms_detection": [(49.9, 45.0), (49.7, 44.8), (50.0, 45.0), None, None, None],
    "residual": [83.3, 83.6, 83.6, 83.1],
    "residual_detection": [48.5, 49.3, 49.9, 48.5],
    "residual_video": [79.3, 79.7, 79.7, 81.0],
    "single_scale": [(45.1, 40.6), (46.6, 42.3), (47.0, 41.4), (49.9, 45.1)],
}
# Counted independently of this code, in closed form: millions of parameters and billions of operations.
CALCULATED = {
    "attention": {"pooling": (34.870, 6.998), "pooling_stride_8": (34.865, 6.329), "vit_full": (None, 17.583)},
    "attention_detection": {"hybrid_window": (54.38, 326.2), "pooling": (54.38, 652.3),
                            "pooling_stride_8": (None, 391.6)},
    "position": {
        "none": (34.758, 6.950), "absolute": (35.059, 6.950), "joint": (37.598, 7.373), "decomposed": (34.870, 6.998),
        "absolute_decomposed": (35.171, 6.998),
    },
    "position_video": {
        "none": (34.408, 64.162), "absolute": (34.709, 64.162), "time": (34.431, 64.259), "space": (34.515, 64.361),
        "decomposed": (34.538, 64.457), "joint_space": (37.050, 65.159), "joint": (73.702, 71.361),
    },
    "pretraining_detection": {
        "small_in1k": (54.38, 326.2), "base_in1k": (70.98, 391.9), "large_in1k": (237.56, 1096.6),
        "large_in21k": (232.94, 1052.5),
    },
    "pretraining_video": {
        "small_scratch": (34.538, 64.457), "base_scratch": (51.230, 225.170), "large_16x4_in1k": (217.578, 377.789),
        "large_16x4_in21k": (213.220, 362.147), "large_scratch": (213.303, 1088.508), "large_in1k": (217.661, 1127.608),
        "large_312_in1k": (217.748, None), "large_312_in21k": (213.390, 2828.101),
    },
    "residual": {
        "none": (34.856, 6.981), "residual": (34.856, 6.981), "full_q_residual": (34.870, 6.998),
        "full_q": (34.870, 6.998),
    },
    "residual_video": {
        "none": (34.502, 64.139), "full_q": (34.538, 64.457), "residual": (34.502, 64.139),
        "full_q_residual": (34.538, 64.457),
    },
    "single_scale": {"vit_pyramid": (None, 879.2), "single": (None, 276.5), "pyramid": (54.38, 326.2)},
}  # fmt: skip


def test_every_table_of_the_paper_is_here():
    assert set(TABLES) == set(PRINTED)
    assert {table.table for table in TABLES.values()} == {
        *("4a", "4b", "6", "7", "9", "14", "A.4", "A.5", "A.6", "A.7"),
    }


@pytest.mark.parametrize("name", TABLES)
def test_printed_scores(name):
    keys = ("box_ap", "mask_ap") if name.endswith("detection") or name == "single_scale" else ("top1",)
    found = [tuple(float(row.printed[key]) for key in keys if key in row.printed) for row in TABLES[name].rows]
    assert [(one or (None,))[0] if len(one) < 2 else one for one in found] == PRINTED[name]


@pytest.mark.parametrize(("name", "row"), EVERY_ROW)
def test_network_has_the_stated_cost(name, row):
    own = TABLES[name].row(row)
    config = own.config
    cost = (count_classifier(config) if isinstance(config, MViTConfig) else count_detector(config)).total
    digits = 3 if isinstance(config, MViTConfig) else 2
    assert f"{cost.parameters / 1e6:.{digits}f}" == own.counted["params_m"]
    assert f"{cost.operations / 1e9:.{3 if digits == 3 else 1}f}" == own.counted["gflops"]
    parameters, operations = CALCULATED.get(name, {}).get(row, (None, None))
    assert parameters is None or float(own.counted["params_m"]) == parameters
    assert operations is None or float(own.counted["gflops"]) == pytest.approx(operations, rel=1e-3)


def test_rows_are_those_that_the_papers_numbers_are_computed_on():
    known = {(table.table, row.paper): row for table in TABLES.values() for row in table.rows}
    keys = {*ROWS, *((cell[0], cell[1]) for cell in NOT_COMPUTABLE)}
    shared = [key for key in keys if key[0] in {"4a", "9", "A.6", "A.7"}]
    assert len(shared) == 9 + 4 + 7 + 4
    for key in shared:
        if key in ROWS:
            operations, parameters = ROWS[key]
            assert operations == parameters and known[key].config == config_of(operations, {}), key
        else:
            assert known[key].note, key


def start_of(table: Ablation, row: AblationRow) -> MViTConfig | None:
    """The network whose weights a row starts from."""
    if row.pretrain:
        other, _, of = row.pretrain.partition(" ")
        found = load_ablation(other).row(of).config
        assert isinstance(found, MViTConfig)
        return found
    weights = str(row.options.get("weights", load_recipe(table.recipe).weights))
    name = {"runs/image/in21k_small": "mvitv2_small_cls"}.get(weights, weights.partition(".")[0])
    return None if weights == "none" else model_config(name)


def widths(config: MViTConfig) -> list[tuple[int, ...]]:
    return [(b.dim, b.dim_attn, b.dim_out, b.num_heads) for b in config.blocks()]


@pytest.mark.parametrize(
    ("row", "recipe"),
    [
        ("video small_scratch", "kinetics/k400_mvitv2_small_16x4"),
        ("video small_in1k", "kinetics/k400_mvitv2_small_16x4_in1k"),
        ("video small_in21k", "kinetics/k400_mvitv2_small_16x4_in21k"),
        ("video base_scratch", "kinetics/k400_mvitv2_base_32x3"),
        ("video base_in1k", "kinetics/k400_mvitv2_base_32x3_in1k"),
        ("video base_in21k", "kinetics/k400_mvitv2_base_32x3_in21k"),
        ("video large_16x4_in21k", "kinetics/k400_mvitv2_large_16x4_in21k"),
        ("video large_312_in21k", "kinetics/k400_mvitv2_large_40x3_312"),
        ("detection small_in1k", "coco/mask_rcnn_mvitv2_small"),
        ("detection base_in1k", "coco/mask_rcnn_mvitv2_base"),
        ("detection large_in21k", "coco/mask_rcnn_mvitv2_large"),
    ],
)
def test_rows_of_image_weights_are_trained_as_the_recipes(row, recipe, tmp_path):
    kind, _, name = row.partition(" ")
    table, wanted = TABLES[f"pretraining_{kind}"], load_recipe(recipe)
    own = table.row(name)
    found = row_recipe(table, own, {"out_dir": str(tmp_path)} | ({"weights": wanted.weights} if own.pretrain else {}))
    # Views of the test are those of the table: ten clips.
    differ = {key for key, value in vars(wanted).items() if getattr(found, key) != value}
    assert differ <= {"model", "out_dir", "clips", "crops"}
    assert own.base == wanted.model and (kind != "video" or (found.clips, found.crops) == (10, 1))


@pytest.mark.parametrize("name", TABLES)
def test_table_names_a_recipe_and_a_row_to_start_from(name):
    table, header = TABLES[name], recipe_header(f"ablation/{name}")
    assert f"train ablation/{name} --row ROW " in header.command
    assert (f"Table {table.table}," in header.paper_row) and header.status == "not yet run"
    recipe = load_recipe(table.recipe)
    default = table.row(table.default)
    assert recipe.model == default.base and not default.changes and not default.pretrain
    for row in table.rows:
        assert row.paper or row.note
        start, trunk = start_of(table, row), getattr(row.config, "backbone", row.config)
        if isinstance(row.config, MViTConfig):
            assert start is None or widths(start) == widths(trunk), row.name
            continue
        assert start is not None
        # What a classifier gives on: windows and the token are not among its weights, and the K/V stride of the
        # global blocks changes no table.
        same = {"num_classes": 0, "window": None, "window_pattern": "all", "global_blocks": None, "cls_token": False}
        same |= {"global_kv_stride_factor": 1, "drop_path_rate": 0.0}
        assert start.replace(**same) == trunk.replace(**same), row.name


@pytest.mark.parametrize("name", ["attention", "ablation/attention", "recipes/ablation/attention.yaml"])
def test_names_of_a_table(name):
    if name == "attention":
        with pytest.raises(UserError, match="Did you mean 'ablation/attention'"):
            find_recipe(name)
    else:
        assert is_ablation(name) and load_ablation(name).name == "ablation/attention"
    assert not is_ablation("imagenet/mvitv2_small")
    with pytest.raises(UserError, match=r"is a table and no recipe\. Name a row"):
        load_recipe("ablation/attention")


def test_row_is_a_recipe_with_a_network_in_a_file(tmp_path):
    table = TABLES["attention"]
    recipe = row_recipe(table, table.row("hybrid_window"), {"out_dir": str(tmp_path), "epochs": 2, "data": "d"})
    assert recipe == Recipe(**{**vars(load_recipe(table.recipe)), "model": recipe.model, "out_dir": str(tmp_path),
                               "epochs": 2, "data": "d"})  # fmt: skip
    fields = json.loads(Path(str(recipe.model)).read_text())
    assert MViTConfig.from_dict(fields) == model_config(
        "mvitv2_small", window=((28, 28), (14, 14), (7, 7), (7, 7)), window_pattern="hybrid"
    )
    assert [p.name for p in tmp_path.rglob("*.*")] == ["attention_hybrid_window.json"]


def test_what_a_row_refuses(tmp_path):
    table = TABLES["residual_detection"]
    values = {"out_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"has no row 'nune'. Did you mean 'none'"):
        table.row("nune")
    with pytest.raises(UserError, match=r"Train it: openmvit train ablation/residual --row none; then give --weights"):
        row_recipe(table, table.row("none"), values)
    assert row_recipe(table, table.row("none"), values | {"weights": "none"}).weights == "none"
    assert row_recipe(table, table.row("full_q_residual"), values).weights == "mvitv2_small.fb_in1k"
    with pytest.raises(UserError, match="--model names another"):
        row_recipe(table, table.row("none"), values | {"weights": "none", "model": "mvitv2_tiny"})
    with pytest.raises(UserError, match="Did you mean 'epochs'"):
        row_recipe(table, table.row("none"), values | {"weights": "none", "epoch": 1})


OWN = """table: 1
question: does it train?
recipe: demo/digits
default: plain
base: mvitv2_micro
rows:
  plain:
    paper: none
  windows:
    changes: {window: [4, 4], window_pattern: shifted, adaptive_kv_stride: [2, 2]}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("window:", "windo:"), "Row windows of .*: The configuration has no field 'windo'. Did you mean 'window'"),
        (("[4, 4]", "[5, 5]"), "Row windows of .*strides divide"),
        (("base: mvitv2_micro", "base: mvitv2_micra"), "Did you mean 'mvitv2_micro'"),
        (("default: plain", "default: plane"), "no row 'plane'. Did you mean 'plain'"),
        (("question: does it train?\n", ""), "has no question"),
        (("question:", "extra: 1\nquestion:"), "no field 'extra'"),
        (("paper: none", "printed: {top2: 3}"), "the number 'top2'. Did you mean 'top1'"),
        (("paper: none", "printed: {top1: 82.0}"), "Row plain of .* has top1 82.0. Write its digits in quotes"),
        (("    paper: none", "    papers: none"), "no field 'papers'"),
        (
            ("changes: {window: [4, 4], window_pattern: shifted, adaptive_kv_stride: [2, 2]}", "changes: 3"),
            "Row windows of .* has changes 3",
        ),
        ((OWN[OWN.index("  plain:") :], "  3\n"), "has no rows"),
    ],
)  # fmt: skip
def test_broken_tables_name_row_and_fix(tmp_path, change, words):
    path = tmp_path / "own.yaml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(UserError, match=words):
        load_ablation(path)


def test_a_row_trains(tmp_path, digits, capsys):
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    words = ["train", str(path), "--row", "windows", "--data", str(digits), "--out-dir", str(tmp_path / "runs")]
    assert main([*words, "--epochs", "1", "--batch", "16", "--device", "cpu"]) == 0, capsys.readouterr().err
    run = tmp_path / "runs" / "image" / "exp"
    trained = MViTConfig.from_dict(json.loads((run / "model.json").read_text())["architecture"])
    assert (trained.window, trained.window_pattern, trained.adaptive_kv_stride) == ((4, 4), "shifted", (2, 2))
    assert trained == load_ablation(path).row("windows").config.replace(num_classes=trained.num_classes)


def test_command_line_lists_rows_and_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/ablation/attention.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.strip() == listing(TABLES["attention"])
    assert all(row.name in out and (not row.note or row.note in out) for row in TABLES["attention"].rows)
    for words, error in (
        (["ablation/attention", "--row", "hybrid_windo", "--data", "d"], "Did you mean 'hybrid_window'"),
        (["ablation/attention", "--row", "hybrid_window"], "train has no data"),
        (["ablation/attention", "--data", "d"], "No row is named"),
        (["imagenet/mvitv2_small", "--row", "x", "--data", "d"], "--row belongs to a table"),
        (["--quick"], "--quick belongs to a table"),
        (["ablation/attention_detection", "--quick"], "has no quick table"),
        (["ablation/attention", "--quick", "--data", "d"], "--data is given"),
        (["--resume", "r", "--row", "x"], "--row would change it"),
    ):
        assert main(["train", *words]) == 2
        assert error in capsys.readouterr().err


@pytest.mark.parametrize(("name", "row"), [(n, r) for n, r in EVERY_ROW if TABLES[n].quick])
def test_small_network_changes_the_same_fields(name, row):
    own = TABLES[name].row(row)
    small, large = small_config(own).to_dict(), own.config.to_dict()
    plain = MViTConfig(**SMALL[own.base]).to_dict()
    base = MViTConfig(**PLAIN[own.base]) if own.base in PLAIN else model_config(own.base)
    changed = {key for key, value in base.to_dict().items() if large[key] != value}
    assert {key for key, value in plain.items() if small[key] != value} == changed
    sizes = {"window", "global_blocks"}
    assert all(small[key] == large[key] for key in changed - sizes)
    config = small_config(own)
    # Windows keep their share of the map: in all stages but the last, and in the last.
    assert isinstance(own.config, MViTConfig)
    for stages in (slice(0, -1), slice(-1, None)) if len(config.depths) > 1 else (slice(0, None),):
        assert _shares(config, stages) == _shares(own.config, stages)


def _shares(config: MViTConfig, stages: slice) -> set[float]:
    kept = range(len(config.depths))[stages]
    return {b.window[0] / b.grid[0] for b in config.blocks() if b.window and b.stage in kept}


# The networks of the detection tables, small: windows of a quarter of the map, and every second block of ViT global.
SMALL_BACKBONES = {
    "mask_rcnn_mvitv2_small": BACKBONE,
    "mask_rcnn_vit_base": MViTConfig(**PLAIN["mask_rcnn_vit_base"]["backbone"]).replace(
        input_size=(64, 64), depths=(4,), embed_dim=64, num_heads=2
    ),
}
SMALLER = {"window": (2, 2), "global_blocks": (1, 3), "channels": 64}


@pytest.mark.parametrize(("name", "row"), [(n, r) for n, r in EVERY_ROW if is_detector(TABLES[n].row(r).base)])
def test_every_row_of_a_detector_trains_in_small(name, row):
    own = TABLES[name].row(row)
    changes = own.changes | {key: value for key, value in SMALLER.items() if own.changes.get(key)}
    neck = "simple" if own.base == "mask_rcnn_vit_base" else "pyramid"
    start = small_detector(backbone=SMALL_BACKBONES.get(own.base, BACKBONE), neck=neck)
    torch.manual_seed(0)
    model = Detector(start.change(**changes)).train()
    found, losses = model(pictures((50, 70)), [target((50, 70))])
    total = torch.stack(list(losses.values())).sum()
    assert len(found) == 1 and torch.isfinite(total)
    total.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.slow
def test_quick_table_of_a_row(tmp_path, capsys):
    words = ["train", "ablation/residual", "--quick", "--row", "none", "--epochs", "1", "--imgsz", "16"]
    assert main([*words, "--out-dir", str(tmp_path), "--seed", "4"]) == 0, capsys.readouterr().err
    folder = tmp_path / "quick" / "residual"
    page = (folder / "quick.md").read_text()
    assert page.strip() in capsys.readouterr().out
    assert "`openmvit train ablation/residual --quick --row none --epochs 1 --imgsz 16" in page
    row = next(line for line in page.splitlines() if line.startswith("| none |"))
    low, high = (float(x) for x in row.split("|")[6].split(".."))
    assert 10 < low <= float(row.split("|")[5]) <= high <= 100 and "| 83.3 |" in row
    runs = sorted(p.name for p in (folder / "image").iterdir())
    assert runs == ["none-4", "none-5", "none-6"]
    for name in runs:
        recipe = load_recipe(folder / "image" / name / "args.yaml")
        assert (recipe.seed, recipe.epochs, recipe.weights) == (int(name[-1]), 1, "none")
        architecture = json.loads((folder / "image" / name / "model.json").read_text())["architecture"]
        assert not architecture["residual_pooling"] and not architecture["full_q_pooling"]


@pytest.mark.parametrize("name", ["attention", "position", "residual"])
def test_committed_pages_are_of_these_networks(name):
    page = (ROOT / "benchmarks" / f"quick_{name}.md").read_text()
    table = TABLES[name]
    assert f"`openmvit train ablation/{name} --quick`" in page and f"with {SEEDS} seeds" in page
    assert int(re.search(r"(\d+)\s+minutes\s+of\s+processor", page).group(1)) <= 40  # 20 minutes on two cores
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    costs = {row.name: count_classifier(small_config(row)).total for row in table.rows}
    assert [(cells[0].removesuffix(" (default)"), *cells[2:4]) for cells in found[1:]] == [
        (name, f"{cost.parameters:,}", f"{cost.operations / 1e6:.2f}") for name, cost in costs.items()
    ]


def test_sentences_follow_the_ranges_of_the_seeds():
    table = TABLES["attention"]

    def of(name: str, *scores: float) -> QuickRow:
        return QuickRow(table.row(name), 1, 1, scores, 1.0)

    rows = [of("vit_full", 0.5, 0.6, 0.7), of("vit_window", 0.3, 0.4, 0.45), of("vit_pooling", 0.7, 0.8, 0.9)]
    rows += [of("pooling_stride_8", 0.8, 0.9, 0.94), of("pooling", 0.95, 0.96, 0.97)]
    assert verdicts(table, rows) == [
        "Inside the spread of the seeds, so no difference was found here: `vit_pooling` (+20.0) against `vit_full`.",
        "Outside the spread of the seeds: `vit_window` (-21.7) against `vit_full`.",
        "Outside the spread of the seeds: `pooling_stride_8` (-8.0) against `pooling`.",
    ]


def test_page_says_what_was_trained_for_how_long(tmp_path):
    table = TABLES["attention"]
    for place in ("train/0", "train/1", "val/0"):
        (tmp_path / "digits" / place).mkdir(parents=True)
        (tmp_path / "digits" / place / "a.png").touch()
    rows = [QuickRow(row, 1000, 2_000_000, (0.5, 0.6, 0.7), 60.0) for row in table.rows]
    recipe = Recipe(data=str(tmp_path / "digits"), epochs=3)
    page = " ".join(quick_page(table, rows, recipe, {}).split())
    assert "(2 to train on, 1 held out) for 3 epochs (vit_base 8) with 3 seeds" in page
    assert "9 minutes of processor time" in page and "6 blocks from 64 channels on, on 8x8 tokens" in page
    assert "| pooling (default) | 83.6 | 1,000 | 2.00 | 60.0 | 50.0 .. 70.0 |" in page
    page = quick_page(table, rows[:1], recipe, {"epochs": 4, "plots": False, "betas": (0.9, 0.99)})
    assert (
        "`openmvit train ablation/attention --quick --row vit_full --epochs 4 --plots false --betas 0.9,0.99`" in page
    )
    assert "vit_base 8" not in page
