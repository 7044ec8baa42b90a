"""The pictures and tables of search and curve: every trial and point is drawn, and both files are written."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import altair as alt
import polars as pl
import pytest
from rich.console import Console

from nestling.config.experiment import Experiment
from nestling.report.charts import save
from nestling.report.render.terminal import terminal
from nestling.report.table import Table
from nestling.study.curve import Curve, Point
from nestling.study.tune.charts import importances, learning_curve, parallel_coordinates
from nestling.study.tune.search import Search, TrialRecord
from nestling.study.tune.space import DEFAULT_SPACE, make_space
from nestling.study.tune.view import curve_table, trials_table

SPACE = make_space(
    {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "max_seq_length": {"choices": [None, 64]}}
)
TRIALS = (
    TrialRecord(0, "complete", 0.5, {"learning_rate": 1e-4, "max_seq_length": None}, {1: 0.5}, 1.0, ""),
    TrialRecord(1, "complete", 0.7, {"learning_rate": 1e-3, "max_seq_length": 64}, {1: 0.7}, 1.0, ""),
    TrialRecord(3, "pruned", 0.4, {"learning_rate": 1e-5, "max_seq_length": 64}, {1: 0.4}, 1.0, "pruned"),
    TrialRecord(4, "pruned", None, {"learning_rate": 1e-5, "max_seq_length": 64}, {}, 1.0, "diverged"),
)


def drawn_texts(chart: alt.LayerChart, folder: Path) -> set[str]:
    chart.save(str(folder / "chart.svg"))
    return texts(folder / "chart.svg")


def texts(svg: Path) -> set[str]:
    return {"".join(e.itertext()) for e in ElementTree.parse(svg).iter() if e.tag.endswith("text")}


def layers(chart: object) -> list[list[dict[str, object]]]:
    """Return the rows of each layer's data, wherever altair has put them."""
    spec = chart.to_dict()
    sets = spec.get("datasets", {})
    return [layer["data"].get("values") or sets[layer["data"]["name"]] for layer in spec["layer"]]


def test_parallel_coordinates_hold_every_trial_at_every_setting(tmp_path: Path):
    chart = parallel_coordinates(TRIALS, SPACE, best=1, subtitle="toolshed")
    drawn = {(row["trial"], row["setting"]): row["at"] for rows in layers(chart) for row in rows if "trial" in row}
    assert {trial for trial, _ in drawn} == {0, 1, 3, 4}
    assert drawn[0, "learning_rate"] == pytest.approx(0.5)
    assert drawn[0, "max_seq_length"] == 0
    assert drawn[3, "dev recall@10"] == 0
    assert drawn[1, "dev recall@10"] == 1
    assert (4, "dev recall@10") not in drawn
    png, svg = save(chart, tmp_path / "trials")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert {"none", "64", "0.0001", "0.700", "≤ 0.500"} <= texts(svg)


def test_one_trial_alone_can_be_drawn(tmp_path: Path):
    assert "0.500" in drawn_texts(parallel_coordinates(TRIALS[:1], SPACE, best=0, subtitle=""), tmp_path)


def test_importances_are_bars_with_their_shares(tmp_path: Path):
    chart = importances({"learning_rate": 0.75, "warmup": 0.25}, subtitle="<b>&")
    assert {"learning_rate", "75%", "25%", "<b>&"} <= drawn_texts(chart, tmp_path)


@pytest.fixture
def found_curve() -> Curve:
    before = {"recall@10": 0.4, "mrr@10": 0.3}
    points = tuple(
        Point(share, seed, records, records // 2, before, {"recall@10": value + seed / 100, "mrr@10": value / 2})
        for share, records, value in ((0.1, 100, 0.45), (0.5, 500, 0.55), (1.0, 1000, 0.6))
        for seed in (0, 1)
    )
    rows = [(p.share, p.seed, p.records, p.queries, m, v) for p in points for m, v in p.after.items()]
    results = pl.DataFrame(rows, schema=["share", "seed", "records", "queries", "measure", "value"], orient="row")
    return Curve("mnrl", points, results, before, 0.05, "More would help.", Path(), ())


def test_the_curve_holds_every_point_and_the_untrained_base(found_curve: Curve, tmp_path: Path):
    chart = learning_curve(found_curve.results, before=found_curve.before, subtitle="")
    rules, lines, points, _ = layers(chart)
    assert len(points) == 12
    assert len(lines) == 6
    assert {row["label"]: row["value"] for row in rules} == {"recall@10": 0.4, "MRR@10": 0.3}
    labels = {"training records (log scale)", "100", "500", "1,000", "MRR@10 before training"}
    assert labels <= drawn_texts(chart, tmp_path)


def lines_of(table: Table) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal(table))
    return console.export_text().splitlines()


def test_the_table_of_trials_fits_80_columns_with_the_default_space():
    space = make_space(DEFAULT_SPACE)
    params = {d.name: (d.choices[-1] if d.choices else d.high) for d in space} | {"schedule": "constant_with_warmup"}
    trials = tuple(TrialRecord(n, "complete", n / 30, params, {}, 1.0, "") for n in range(20))
    lines = lines_of(
        trials_table(Search(Experiment(), "mnrl", "dev_recall@10", trials, trials[-1], 0.5, {}, Path(), ()))
    )
    assert max(map(len, lines)) <= 80
    assert "0.6333" in "".join(lines)
    assert "10 more in trials.parquet" in "".join(lines)


def test_the_table_of_the_curve_has_a_line_a_share_and_the_sentence(found_curve: Curve):
    lines = lines_of(curve_table(found_curve))
    assert max(map(len, lines)) <= 80
    assert any("0.5500 to 0.5600" in line for line in lines)
    assert "More would help." in "".join(lines)
