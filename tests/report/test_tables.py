"""The two tables: gains and losses worked out by hand, and what is shown at 80 columns."""

from __future__ import annotations

import polars as pl
import pytest
from rich.console import Console

from nestling.report.tables import by_dim, by_dim_table, full_size, full_size_table, label, percent, reference_of

ROWS = [
    ("pretrained", 384, "recall@10", 0.50),
    ("pretrained", 48, "recall@10", 0.25),
    ("tuned", 384, "recall@10", 0.60),
    ("tuned", 48, "recall@10", 0.54),
    ("large", 768, "recall@10", 0.55),
    ("large", 48, "recall@10", 0.11),
]


@pytest.fixture
def results() -> pl.DataFrame:
    return pl.DataFrame(ROWS, schema=["variant", "dim", "measure", "value"], orient="row")


def shown(table: object) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_gains_are_percent_of_the_reference_each_at_its_own_full_size(results: pl.DataFrame):
    rows = full_size(results, reference="pretrained")
    figures = {row.variant: (row.dim, row.figures["recall@10"].value, row.figures["recall@10"].change) for row in rows}
    assert figures["pretrained"] == (384, 0.50, None)
    assert figures["tuned"] == (384, 0.60, pytest.approx(20.0))
    assert figures["large"] == (768, 0.55, pytest.approx(10.0))


def test_without_a_reference_there_are_no_gains(results: pl.DataFrame):
    assert all(row.figures["recall@10"].change is None for row in full_size(results, reference=None))


def test_losses_are_percent_of_the_same_variants_full_size(results: pl.DataFrame):
    changes = {(row.variant, row.dim): row.figures["recall@10"].change for row in by_dim(results)}
    assert changes["pretrained", 384] is None
    assert changes["pretrained", 48] == pytest.approx(-50.0)
    assert changes["tuned", 48] == pytest.approx(-10.0)
    assert changes["large", 48] == pytest.approx(-80.0)


def test_a_reference_of_zero_gives_no_percentage(results: pl.DataFrame):
    zero = results.with_columns(pl.when(pl.col("variant") == "pretrained").then(0.0).otherwise("value").alias("value"))
    assert full_size(zero, reference="pretrained")[1].figures["recall@10"].change is None


def test_the_reference_is_the_untouched_model_that_the_trained_ones_start_from():
    variants = [("big", "pretrained", "mpnet"), ("base", "pretrained", "minilm"), ("tuned", "mnrl", "minilm")]
    assert reference_of(variants) == "base"
    assert reference_of(variants[2:]) is None
    assert reference_of(variants[:1]) == "big"


def test_a_variant_without_a_size_has_an_empty_cell(results: pl.DataFrame):
    text = shown(by_dim_table(by_dim(results), "recall@10"))
    line = next(line for line in text.splitlines() if "tuned" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["tuned", "", "0.6000", "0.5400"]


def test_a_regression_is_said_in_the_table(results: pl.DataFrame):
    rows = full_size(results, reference="pretrained")
    assert "REGRESSION" in shown(full_size_table(rows, caption="", regressions=["tuned"]))
    assert "REGRESSION" not in shown(full_size_table(rows, caption=""))


def test_names_cannot_inject_markup(results: pl.DataFrame):
    hostile = results.with_columns(pl.col("variant").str.replace("tuned", "[red]x[/red]"))
    assert "[red]x[/red]" in shown(full_size_table(full_size(hostile, reference=None), caption=""))


def test_percentages_carry_a_sign():
    assert (percent(1.25), percent(-0.04), percent(None)) == ("+1.2%", "-0.0%", "")


def test_measures_are_written_as_the_field_writes_them():
    assert [label(name) for name in ("mrr@10", "ndcg@5", "recall@10")] == ["MRR@10", "nDCG@5", "recall@10"]
