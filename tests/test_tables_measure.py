"""Measured tables: rows that exist, reasons of those that were not run, and memory that follows the work."""

import dataclasses
import json
import os

import pytest
import torch

from openmvit.cli import main
from openmvit.config import MViTConfig
from openmvit.counting import count_detector
from openmvit.errors import UserError
from openmvit.measuring import in_own_process, peak_above_idle
from openmvit.tables import measure as measure_module
from openmvit.tables.compare import config_of
from openmvit.tables.measure import (
    ROUNDS,
    Measurement,
    _by_times,
    _left_out,
    _share,
    build,
    choose,
    make_inputs,
    measure_table,
    position_rows,
)
from openmvit.tables.measured import measured_data, measured_line, table_text
from openmvit.tables.rows import Setting
from openmvit.tables.speeds import SPEED_TABLES, SWIN_BASE, SpeedRow, SpeedTable

MICRO = Setting("mvitv2_micro")
PRINTED = {"train": "2.0", "test": "4.0", "memory": "1.0"}
HEAVY = {"train": "1.0", "test": "2.0", "memory": "5.0"}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(*rows, size=(64, 64), batch=8):
    return SpeedTable("x", "A table in small", rows[0].name, size, batch, rows, ("A remark.",))


@pytest.fixture(scope="module")
def measured():
    """A row, the same twice as wide, and one that is not there."""
    table = small(
        SpeedRow("light", MICRO, PRINTED),
        SpeedRow("heavy", MICRO(embed_dim=96), HEAVY),
        SpeedRow("missing", None, PRINTED, "nobody published it"),
    )
    return table, measure_table(table, seconds=1.5, device="cpu")


@pytest.mark.slow
def test_every_quantity_of_every_row_is_measured_or_says_why(measured):
    table, found = measured
    assert [(one.quantity, one.row) for one in found] == [
        (quantity, row) for quantity in ("train", "test", "memory") for row in ("light", "heavy", "missing")
    ]
    for one in found:
        assert (one.value is None) == (one.row == "missing")
        assert one.reason == ("nobody published it" if one.row == "missing" else "")
        assert one.is_reference == (one.row == "light")
    ratios = {(one.quantity, one.row): (one.ratio, one.paper_ratio) for one in found}
    for quantity in table.quantities:
        assert ratios[quantity, "light"] == (1.0, 1.0)
    assert [ratios[quantity, "heavy"][1] for quantity in table.quantities] == [0.5, 0.5, 5.0]


@pytest.mark.slow
def test_twice_the_width_takes_about_twice_the_memory(measured):
    ratios = {one.quantity: one.ratio for one in measured[1] if one.row == "heavy"}
    assert 1.5 < ratios["memory"] < 4.0
    light = next(one for one in measured[1] if (one.row, one.quantity) == ("light", "memory"))
    # Gradients and two moments per parameter are held in any case.
    assert light.value > 12 * sum(p.numel() for p in build(MICRO).parameters())


@pytest.mark.slow
def test_a_ratio_is_the_median_of_the_rounds(measured):
    times = {"light": [1.0, 2.0, 1.0, 3.0, 1.0], "heavy": [2.0, 2.0, 4.0, 12.0, 1.25], "missing": "no"}
    light, heavy, missing = _by_times(measured[0], "test", times)
    assert light.value == 8.0 and heavy.value == 4.0 and missing.reason == "no"
    assert heavy.ratio == 0.5 and heavy.spread == pytest.approx((0.25, 0.92))
    lost = _by_times(measured[0], "test", times | {"light": "no"})
    assert [one.ratio for one in lost] == [None] * 3 and lost[1].value == 4.0


@pytest.mark.slow
def test_the_page_has_all_rows_and_the_count(measured):
    table, found = measured
    text = table_text(table, found)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines] == ["row", "---", "light", "heavy", "missing"]
    assert {len(line) for line in lines} == {12}
    assert lines[4][1:5] == ["not run (nobody published it)", "-", "-", "1.00"]
    assert lines[3][4] == "0.50" and lines[3][11] == "5.00"
    assert "1 of 1 pairs of rows in its order" in text and text.rstrip().endswith("- A remark.")
    assert measured_line(found).startswith("measured values=6 near=") and measured_line(found).endswith("not_run=3")
    assert json.loads(json.dumps(measured_data([(table, found)], "cpu")))["tables"][0]["rows"][2]["reason"]


@pytest.mark.slow
def test_near_and_order_are_those_of_the_ratios(measured):
    table, found = measured
    faked = [
        dataclasses.replace(one, ratio=one.paper_ratio * 1.31, value=9e9) if one.row == "heavy" else one
        for one in found
    ]
    assert measured_line(faked) == "measured values=6 near=0 not_run=3"
    faked = [dataclasses.replace(one, ratio=one.paper_ratio * 1.29) if one.row == "heavy" else one for one in faked]
    assert measured_line(faked) == "measured values=6 near=3 not_run=3"
    rounds = faked[0].rounds
    wanted = f"Training ({rounds} rounds): 1 of 1 ratios within 30% of the paper's, 0 of 1 pairs"
    assert rounds >= ROUNDS[0] and wanted in table_text(table, faked)


def test_what_does_not_fit_says_so_and_is_not_timed():
    # 2 ** 45 bytes of pixels: no allocator gives them.
    table = small(SpeedRow("huge", MICRO, PRINTED), size=(2**20, 2**20), batch=8)
    found = measure_table(table, seconds=0.1, device="cpu")
    assert {one.reason for one in found} == {"out of memory"}
    assert measured_line(found) == "measured values=0 near=0 not_run=3"


def faked(row, printed, ratio, spread):
    return Measurement(row, "test", printed, float(printed) / 2, row == "a", ratio, ratio, spread, rounds=5)


def test_rows_whose_spreads_overlap_are_no_pair():
    found = [
        faked("a", "2.0", 1.0, (1.0, 1.0)),
        faked("b", "3.0", 1.5, (1.3, 1.7)),
        faked("c", "4.0", 1.4, (1.2, 1.6)),
        faked("d", "5.0", 0.9, (0.8, 0.95)),
    ]
    text = table_text(small(*(SpeedRow(one.row, MICRO, {"test": one.printed}) for one in found)), found)
    # a < b and a < c are in the paper's order, a < d, b < d and c < d are not, and b and c overlap.
    assert "2 of 5 pairs of rows in its order; 1 overlap and are left out." in text
    assert "- Inference (5 rounds): " in text


def test_rows_of_joint_tables_are_left_out_where_they_do_not_fit(monkeypatch):
    rows = {row.name[:3]: row for row in SPEED_TABLES["A.6"].rows}
    config = config_of(rows["(7)"].setting, {})
    first = config.blocks()[0]
    # One block by hand: 8 x 56 x 56 queries on 8 x 7 x 7 keys, 96 channels of four bytes.
    assert (first.q_grid, first.kv_grid, first.head_dim) == ((8, 56, 56), (8, 7, 7), 96)
    alone = 8 * 56 * 56 * 8 * 7 * 7 * 96 * 4
    assert alone < position_rows(config) < 4 * alone
    assert position_rows(config_of(rows["(5)"].setting, {})) == 0
    monkeypatch.setattr(measure_module, "free_memory", lambda device: 1.9 * position_rows(config))
    assert _left_out(rows["(7)"], CPU).startswith("its position rows take 12.1 GB in training, more than half of")
    assert [_left_out(row, CPU) for name, row in rows.items() if name != "(7)"] == [""] * 6
    monkeypatch.setattr(measure_module, "free_memory", lambda device: 2.1 * position_rows(config))
    assert _left_out(rows["(7)"], CPU) == ""


def _die():
    os.kill(os.getpid(), 9)


def test_a_killed_process_is_a_reason(monkeypatch):
    import openmvit.tables.measure as measure

    monkeypatch.setattr(measure, "_peak", _dying_peak)
    found = measure_table(small(SpeedRow("row", MICRO, {"memory": "1.0"})), device="cpu")
    assert found[0].value is None and "killed" in found[0].reason


def _dying_peak(table, row, device):
    _die()


def _peaks():
    return [peak_above_idle(CPU, lambda m=m: torch.ones(m * 2**18), calls=1) / 2**20 for m in (160, 40)]


def test_peak_memory_is_that_of_the_call_and_not_of_an_earlier_one():
    large, small_one = in_own_process(_peaks)
    assert 155 < large < 180 and 35 < small_one < 60


def test_rows_share_the_weights_that_they_have_in_common():
    pool = {}
    first, second = _share(build(MICRO), pool), _share(build(MICRO(relative_position="joint")), pool)
    assert second.head.projection.weight is first.head.projection.weight
    tables = {name for name, _ in first.named_parameters()} ^ {name for name, _ in second.named_parameters()}
    assert tables and all("rel_pos" in name for name in tables)
    parameters = [*first.parameters(), *second.parameters()]
    assert {id(p) for p in pool.values()} == {id(p) for p in parameters} and len(pool) < len(parameters)


@pytest.mark.slow
def test_a_micro_detector_is_measured():
    row = SpeedRow("detector", Setting("mask_rcnn_mvitv2_micro"), {"train": "1.0", "test": "1.0"})
    table = small(row, size=(64, 96), batch=1)
    found = measure_table(table, seconds=1.5, device="cpu")
    assert all(one.value > 0 and one.ratio == 1.0 for one in found)
    model = build(row.setting)
    pictures, targets = make_inputs(table, model, CPU)
    assert pictures[0].shape == (3, 64, 96) and targets[0]["masks"].shape == (7, 64, 96)
    assert targets[0]["masks"].flatten(1).any(1).all()
    x0, y0, x1, y1 = targets[0]["boxes"].unbind(1)
    assert (x0 < x1).all() and (y0 < y1).all() and x1.max() <= 96 and y1.max() <= 64


def test_the_tables_of_the_paper_hold_networks_that_can_be():
    assert list(SPEED_TABLES) == ["4a", "4b", "6", "8", "8b", "A.4", "A.6"]
    assert [len(table.rows) for table in SPEED_TABLES.values()] == [9, 10, 5, 3, 3, 6, 7]
    for table in SPEED_TABLES.values():
        assert table.reference in {row.name for row in table.rows}
        for row in table.rows:
            assert set(row.printed) == set(table.quantities)
            if row.setting is None:
                assert (table.name, row.name, row.note) == ("8b", "Swin-B", "Swin-B is built for classification only")
            elif row.setting.base != SWIN_BASE:
                config = config_of(row.setting, {})
                assert not isinstance(config, MViTConfig) or config.input_size == table.size
    assert ROUNDS[0] >= 2


def test_heads_keep_their_share_at_half_size():
    half = next(row for row in SPEED_TABLES["6"].rows if row.name.startswith("(4)")).setting
    whole = count_detector(config_of(Setting("mask_rcnn_mvitv2_small"), {})).parts
    parts = count_detector(config_of(half, {}), SPEED_TABLES["6"].size).parts
    for name in ("box heads", "mask head"):
        assert sum(parts[name].by_kind.values()) * 4 == pytest.approx(sum(whole[name].by_kind.values()))


def test_the_command(capsys):
    assert main(["tables", "--measure", "--table", "9"]) == 2
    assert "No speed or memory of a table '9' is measured" in capsys.readouterr().err
    assert main(["tables", "--table", "8"]) == 2
    assert "Add --measure" in capsys.readouterr().err
    assert main(["tables", "--measure", "--set", "mvitv2_small.depths=1,2,10,2"]) == 2
    assert "--set changes counts" in capsys.readouterr().err
    assert main(["tables", "--measure", "--seconds", "0"]) == 2
    assert "--seconds is 0" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"Did you mean 'A\.4'"):
        choose("A4")


def test_the_command_prints_a_page(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(SPEED_TABLES, "8", small(SpeedRow("row", MICRO, {"test": "1.0"}), batch=1))
    assert main(["tables", "--measure", "--table", "8", "--seconds", "0.5", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# Speed and memory")
    assert "`OMP_NUM_THREADS=1 openmvit tables --measure --table 8 --seconds 0.5 --device cpu` on " in lines[2]
    assert f"There are {ROUNDS[0]} to {ROUNDS[1]} rounds" in "\n".join(lines[:12])
    assert lines[-1] == "`measured values=1 near=0 not_run=0`"
    monkeypatch.setitem(SPEED_TABLES, "8", small(SpeedRow("row", None, {"test": "1.0"}, "not here")))
    assert main(["tables", "--measure", "--table", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tables"][0]["rows"][0]["reason"] == "not here" and found["torch"] == torch.__version__
