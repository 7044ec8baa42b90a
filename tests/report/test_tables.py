"""The two tables: gains and losses worked out by hand, and what is shown at 80 columns."""

from __future__ import annotations

import polars as pl
import pytest
from rich.console import Console

from nestling.evaluation.grid import SCHEMA
from nestling.report.render.terminal import terminal
from nestling.report.table import Table
from nestling.report.tables import (
    by_dim,
    by_dim_table,
    full_size,
    full_size_table,
    is_fused,
    narrow_full_size_table,
    reference_of,
    unfused_first,
)

ROWS = [
    ("pretrained", 384, "recall@10", 0.50),
    ("pretrained", 48, "recall@10", 0.25),
    ("tuned", 384, "recall@10", 0.60),
    ("tuned", 48, "recall@10", 0.54),
    ("large", 768, "recall@10", 0.55),
    ("large", 48, "recall@10", 0.11),
]


def long(rows: list[tuple[object, ...]], *, cell: tuple[object, ...] = ("float32", "none", 0)) -> pl.DataFrame:
    """Rows of (variant, dim, measure, value), all in one kind of cell, with intervals of 0.01 to each side."""
    full = [
        (variant, dim, *(cell if dim else ("", "none", 0)), 4 * dim, measure, value, value - 0.01, value + 0.01, 100)
        for variant, dim, measure, value in rows
    ]
    return pl.DataFrame(full, schema=SCHEMA, orient="row")


@pytest.fixture
def results() -> pl.DataFrame:
    return long(ROWS)


def shown(table: Table) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(terminal(table))
    return captured.get()


def test_gains_are_percent_of_the_reference_each_at_its_own_full_size(results: pl.DataFrame):
    rows = full_size(results, reference="pretrained")
    figures = {row["variant"]: (row["dim"], row["value"], row["change"]) for row in rows.to_dicts()}
    assert figures["pretrained"] == (384, 0.50, None)
    assert figures["tuned"] == (384, 0.60, pytest.approx(20.0))
    assert figures["large"] == (768, 0.55, pytest.approx(10.0))


def test_a_variant_whose_measures_come_in_another_order_has_each_in_its_column():
    rows = [("a", 8, "recall@10", 0.5), ("a", 8, "mrr@10", 0.4), ("b", 8, "mrr@10", 0.1), ("b", 8, "recall@10", 0.9)]
    full = full_size(long(rows), reference=None)
    for table in (full_size_table(full, caption=""), narrow_full_size_table(full, caption="")):
        ((_, (a, b)),) = table.groups
        assert [(cell.text[:6], other.text[:6]) for cell, other in zip(a[2:], b[2:], strict=True)] == [
            ("0.5000", "0.9000"),
            ("0.4000", "0.1000"),
        ]


def test_without_a_reference_there_are_no_gains(results: pl.DataFrame):
    assert full_size(results, reference=None)["change"].to_list() == [None] * 3


def test_losses_are_percent_of_the_same_variants_full_size(results: pl.DataFrame):
    changes = {(row["variant"], row["dim"]): row["change"] for row in by_dim(results).to_dicts()}
    assert changes["pretrained", 384] is None
    assert changes["pretrained", 48] == pytest.approx(-50.0)
    assert changes["tuned", 48] == pytest.approx(-10.0)
    assert changes["large", 48] == pytest.approx(-80.0)


def test_a_reference_of_zero_gives_no_percentage(results: pl.DataFrame):
    zero = results.with_columns(pl.when(pl.col("variant") == "pretrained").then(0.0).otherwise("value").alias("value"))
    assert full_size(zero, reference="pretrained")["change"].to_list() == [None] * 3


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
    assert "REGRESSION" in shown(narrow_full_size_table(rows, caption="", regressions=["tuned"]))
    assert "REGRESSION" not in shown(narrow_full_size_table(rows, caption=""))


def test_names_cannot_inject_markup(results: pl.DataFrame):
    hostile = results.with_columns(pl.col("variant").str.replace("tuned", "[red]x[/red]"))
    rows = full_size(hostile, reference=None)
    assert "│ [red]x[/red] │" in shown(narrow_full_size_table(rows, caption=""))
    assert "gain over [b]" in shown(narrow_full_size_table(rows, caption="gain over [b]"))
    assert "│ [red]x[/red] │" in shown(by_dim_table(by_dim(hostile), "recall@10"))


OTHER_CELLS = [("int8", "none", 0), ("float32", "pca", 0), ("float32", "none", 4)]


@pytest.mark.parametrize("cell", OTHER_CELLS)
def test_only_plain_cells_are_in_the_tables(results: pl.DataFrame, cell: tuple[object, ...]):
    # Larger and better, so that it would be taken for the full size.
    other = long([("tuned", 768, "recall@10", 0.9), ("tuned", 384, "recall@10", 0.8)], cell=cell)
    both = pl.concat([other, results])
    figures = full_size(both, reference=None).select("variant", "dim", "value").rows()
    assert figures == [("pretrained", 384, 0.50), ("tuned", 384, 0.60), ("large", 768, 0.55)]
    sizes = by_dim(both).filter(variant="tuned").select("dim", "value").rows()
    assert sizes == [(384, 0.60), (48, 0.54)]


def test_a_variant_without_a_plain_cell_is_left_out(results: pl.DataFrame):
    both = pl.concat([results, long([("coded", 384, "recall@10", 0.7)], cell=("int8", "none", 0))])
    assert "coded" not in full_size(both, reference="coded")["variant"]


def test_bm25_has_no_size_and_is_not_in_the_table_by_size(results: pl.DataFrame):
    both = pl.concat([results, long([("bm25", 0, "recall@10", 0.40)])])
    rows = full_size(both, reference="pretrained")
    last = rows.row(-1, named=True)
    assert (last["variant"], last["dim"]) == ("bm25", 0)
    assert [last[name] for name in ("value", "change", "low", "high")] == pytest.approx([0.40, -20.0, 0.39, 0.41])
    line = next(line for line in shown(narrow_full_size_table(rows, caption="")).splitlines() if "bm25" in line)
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["bm25", "-", "0.4000  -20.0%"]
    assert "bm25" not in by_dim(both)["variant"]


def test_the_reference_may_be_bm25(results: pl.DataFrame):
    rows = full_size(pl.concat([results, long([("bm25", 0, "recall@10", 0.40)])]), reference="bm25")
    assert rows["change"].to_list() == [*map(pytest.approx, (25.0, 50.0, 37.5)), None]


def test_the_first_two_measures_have_their_interval_below_the_value(results: pl.DataFrame):
    measures = [results.with_columns(pl.lit(name).alias("measure")) for name in ("recall@10", "mrr@10", "ndcg@10")]
    lines = shown(
        narrow_full_size_table(full_size(pl.concat(measures), reference="pretrained"), caption="")
    ).splitlines()
    first = next(number for number, line in enumerate(lines) if "tuned" in line)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines[first : first + 2]]
    assert rows == [
        ["tuned", "384", "0.6000  +20.0%", "0.6000  +20.0%", "0.6000"],
        ["", "", ".5900-.6100", ".5900-.6100", ""],
    ]
    assert "below each value its 95% interval" in lines[0]


def test_without_intervals_and_gains_the_table_names_neither(results: pl.DataFrame):
    bare = results.with_columns(pl.lit(None, pl.Float64).alias("low"), pl.lit(None, pl.Float64).alias("high"))
    text = shown(narrow_full_size_table(full_size(bare, reference=None), caption=""))
    assert "interval" not in text
    assert "gain" not in text


def test_the_table_of_a_whole_study_fits_80_columns():
    names = ["pretrained", "mnrl+matryoshka", "all-mpnet-base-v2"]
    rows = [
        (name, dim, measure, 0.5)
        for name in [*names, *(f"{name}+bm25" for name in names)]
        for measure in ("recall@10", "mrr@10", "ndcg@10")
        for dim in (768, 384, 192, 96, 48)
    ]
    results = long([*rows, *(("bm25-stemmed", 0, measure, 0.4) for measure in ("recall@10", "mrr@10", "ndcg@10"))])
    text = shown(narrow_full_size_table(full_size(results, reference="pretrained"), caption="", regressions=["mnrl"]))
    assert "│ all-mpnet-base-v2+bm25 │  768 │" in text
    assert "│ all-mpnet-base-v2+bm25 │ 0.5000 │" in shown(by_dim_table(by_dim(results), "recall@10"))
    assert max(map(len, text.splitlines())) <= 80


def test_a_fusion_is_known_by_the_name_of_its_model_and_stands_behind_the_others():
    variants = ["a", "a+bm25", "odd+bm25", "b", "b+bm25", "bm25"]
    assert [name for name in variants if is_fused(name, variants)] == ["a+bm25", "b+bm25"]
    assert unfused_first(variants) == ["a", "odd+bm25", "b", "bm25", "a+bm25", "b+bm25"]


def test_no_rows_make_an_empty_table():
    assert "variant" in shown(narrow_full_size_table(full_size(long([]), reference=None), caption=""))
    assert by_dim(long([("bm25", 0, "recall@10", 0.40)])).is_empty()
