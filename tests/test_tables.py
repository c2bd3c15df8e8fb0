"""The paper's tables: every cell is computed, and nothing is computed from the cells."""

import csv
import importlib
import json
from collections import Counter
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

import openmvit
from openmvit.cli import main
from openmvit.errors import UserError
from openmvit.tables import compare, parse_changes, summary, summary_line, tables_text
from openmvit.tables import compare as compare_cells
from openmvit.tables.compare import counts_of
from openmvit.tables.rows import EXPLAINED, NOT_COMPUTABLE, ROWS

FILE = Path(openmvit.__file__).parent / "paper_tables.csv"
LAST_LINE = "tables cells=172 exact=133 unit=18 explained=21 wrong=0 not_computable=6"


@pytest.fixture(scope="module")
def cells():
    return compare()


def test_the_verdicts(cells):
    assert summary_line(cells) == LAST_LINE
    assert len(cells) == 172 + 6


def test_every_printed_row_has_a_configuration_and_the_other_way_round():
    with FILE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["table"], line["row"]) for line in lines} == set(ROWS)
    keys = Counter((line["table"], line["row"], line["quantity"]) for line in lines)
    assert max(keys.values()) == 1
    assert not {cell[:3] for cell in NOT_COMPUTABLE} & set(keys)


def test_tables_come_in_the_order_of_the_paper(cells):
    order = list(dict.fromkeys(cell.table for cell in cells))
    assert order == ["1", "2", "3", "4a", "5a", "5b", "9", *map(str, range(10, 15)), "A.1", "A.2", "A.3", "A.6", "A.7"]


def test_our_counts_are_those_that_the_file_notes(cells):
    with FILE.open(newline="") as file:
        noted = {(r["table"], r["row"], r["quantity"]): r["tolerance_note"] for r in csv.DictReader(file)}
    for cell in cells:
        if cell.ours is not None:
            calculated = float(noted[cell.table, cell.row, cell.quantity].split("calc ")[1].split(";")[0])
            assert cell.ours == pytest.approx(calculated, rel=2e-4), cell
            if cell.quantity == "params_m":
                assert round(cell.ours, 3) == pytest.approx(calculated, abs=1e-3), cell


def test_cells_that_cannot_be_computed_say_why(cells):
    missing = [cell for cell in cells if cell.verdict == "not_computable"]
    assert len(missing) == 6
    assert all(cell.ours is None and cell.difference is None and len(cell.note) > 40 for cell in missing)
    text = tables_text(cells)
    assert all(cell.note in text for cell in missing)
    assert text.endswith(LAST_LINE)


def test_every_explained_cell_has_a_reason_that_we_count(cells):
    explained = {(cell.table, cell.row, cell.quantity): cell for cell in cells if cell.verdict == "explained"}
    assert set(explained) == set(EXPLAINED)
    for key, reason in EXPLAINED.items():
        counts, printed = counts_of(reason), Decimal(explained[key].printed)
        unit = Decimal(1).scaleb(int(printed.as_tuple().exponent))
        # Rounded, or cut off: the first form is what was printed.
        assert printed in {Decimal(counts[0]).quantize(unit, way) for way in (ROUND_HALF_UP, ROUND_DOWN)}, key
        assert explained[key].note == reason.text.format(*(f"{count:.3f}" for count in counts))
    assert {key[:2] for key, reason in EXPLAINED.items() if not reason.settled} == {
        ("3", "MViTv2-L up384"),
        ("10", "MViTv1, 16x4 (baseline)"),
    }


def test_the_forms_of_reasons_fit_both_cells_of_their_rows_where_they_say_so():
    for (table, row, _), reason in EXPLAINED.items():
        if "fits both cells" in reason.text:
            own = next(line for line in printed_lines() if line[:3] == (table, row, "params_m"))
            assert f"{counts_of(reason)[1]:.1f}" == own[3]


def printed_lines():
    with FILE.open(newline="") as file:
        return [(line["table"], line["row"], line["quantity"], line["value"]) for line in csv.DictReader(file)]


CHANGES = [
    "mvitv2_small.depths=1,2,10,2",
    "mvitv2_small.adaptive_kv_stride=2,2",
    "mvitv2_base_32x3.adaptive_kv_stride=1,4,4",
    "mask_rcnn_mvitv2_small.global_kv_stride_factor=1",
    "cascade_mask_rcnn_mvitv2_base.rpn_convs=1",
    "vit_base.embed_dim=384",
]


@pytest.mark.parametrize("change", CHANGES)
def test_one_changed_setting_is_seen(change):
    name = change.split(".")[0]
    rows = {key for key, settings in ROWS.items() if name in {s.base for s in settings}}
    changed = compare(parse_changes(change))
    assert summary(changed)["wrong"] > 0
    assert {(cell.table, cell.row) for cell in changed if cell.verdict == "wrong"} <= rows


def test_the_printed_values_take_no_part(tmp_path, monkeypatch, cells):
    module = importlib.import_module("openmvit.tables.compare")
    text = FILE.read_text().replace(",flops_g,4.7,calc 4.704", ",flops_g,9.9,calc 9.904")
    other = tmp_path / "tables.csv"
    other.write_text(text)
    monkeypatch.setattr(module, "_FILE", other)
    found = compare_cells()
    assert [cell.ours for cell in found] == [cell.ours for cell in cells]
    assert summary(found)["wrong"] == 3


def test_only_a_confirmed_difference_is_explained(tmp_path, monkeypatch):
    module = importlib.import_module("openmvit.tables.compare")
    other = tmp_path / "tables.csv"
    text = FILE.read_text()
    # A note that names a difference, but not our count; and our count, but no difference.
    other.write_text(
        text.replace("calc 140.468; differs", "calc 141.468; differs").replace("differs +9.31%; see", "see")
    )
    monkeypatch.setattr(module, "_FILE", other)
    wrong = [(cell.table, cell.row) for cell in compare_cells() if cell.verdict == "wrong"]
    assert wrong == [("3", "MViTv2-L up384"), ("12", "MViTv2-B, 32x3")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depths=1,2", "Write NAME.FIELD=VALUE"),
        ("mvitv2_smal.depths=1,2,10,2", "Did you mean 'mvitv2_small'"),
        ("mvitv2_small.depth=1,2,10,2", "Did you mean 'depths'"),
        ("mvitv2_small.depths=many", "depths is 'many'"),
        ("mvitv2_small.input_size=64,64", "img_size"),
        ("mvitv2_small.depths=[1,", "cannot read"),
    ],
)
def test_a_bad_change_says_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        compare(parse_changes(text))


def test_several_changes_at_once():
    found = parse_changes("mvitv2_small.depths=1,2,10,2; mvitv2_tiny.cls_token=true")
    assert found == {"mvitv2_small": {"depths": [1, 2, 10, 2]}, "mvitv2_tiny": {"cls_token": True}}


def test_the_command(capsys):
    assert main(["tables"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == LAST_LINE
    assert main(["tables", "--json", "--set", "mvitv2_small.depths=1,2,10,2"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["wrong"] > 0 and len(found["cells"]) == 178
    wrong = next(cell for cell in found["cells"] if cell["verdict"] == "wrong")
    assert wrong["difference"] == pytest.approx(wrong["ours"] - float(wrong["printed"]))
    assert main(["tables", "--set", "mvitv2_small"]) == 2
    assert "Write NAME.FIELD=VALUE" in capsys.readouterr().err


def test_info_shows_operations(capsys):
    assert main(["info", "mvitv2_small", "--ops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "34,870,216 parameters, 6.998 G operations, 6.960 G without norms, input 224x224" in lines[-1]
    assert [line.split()[0] for line in lines[1:-1]].count("block") == 16
    assert main(["info", "mvitv2_small_16x4", "--ops", "--frames", "8", "--imgsz", "112", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["operations"]
    assert found["input"] == [8, 112, 112]
    assert sum(part["total"] for part in found["parts"].values()) == found["total"]["total"]
    for name, operations in (("mask_rcnn_mvitv2_tiny", 278.664), ("vit_base", 17.582), ("mask_rcnn_vit_base", 879.262)):
        assert main(["info", name, "--ops"]) == 0
        assert f"{operations:.3f} G operations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--imgsz", "64"], "Add --ops"),
        (["--ops", "--frames", "4"], "takes images"),
        (["--ops", "--imgsz", "0"], "at least 1"),
        (["--ops", "--imgsz", "3"], "smaller than patch_stride"),
    ],
)
def test_info_says_what_it_cannot_count(words, message, capsys):
    assert main(["info", "mvitv2_tiny", *words]) == 2
    assert message in capsys.readouterr().err
