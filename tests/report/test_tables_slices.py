"""The table of slices: groups in order with their sizes, and the change against the first variant."""

from __future__ import annotations

import polars as pl
import pytest
from rich.console import Console

from nestling.report.render.terminal import terminal
from nestling.report.table import Table
from nestling.report.tables import slices_table

SCHEMA = ["slice", "label", "queries", "variant", "measure", "value", "low", "high"]


def shown(table: Table) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as captured:
        console.print(terminal(table))
    return captured.get().splitlines()


def found(*variants: str, measure: str = "recall@10") -> pl.DataFrame:
    groups = [
        ("query length", "1-2 words", 1200, 0.50),
        ("query length", "3 or more words", 135, 0.0),
        ("word overlap", "half of the words or more", 7, 0.80),
    ]
    rows = [
        (kind, label, queries, variant, measure, value * (1 + n / 10), 0.0, 1.0)
        for kind, label, queries, value in groups
        for n, variant in enumerate(variants)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def rows_of(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


def test_groups_stand_below_their_kind_with_queries_values_and_changes():
    lines = shown(slices_table(found("base", "tuned")))
    assert lines[0].strip() == "recall@10 by group of queries"
    assert rows_of(lines) == [
        ["query length", "", "", ""],
        ["1-2 words", "1,200", "0.5000", "0.5500"],
        ["", "", "", "+10.0%"],
        # Of nothing there is no percentage.
        ["3 or more words", "135", "0.0000", "0.0000"],
        ["word overlap", "", "", ""],
        ["half of the words or more", "7", "0.8000", "0.8800"],
        ["", "", "", "+10.0%"],
    ]
    assert "Below each value the change against base." in lines[-1]


def test_labels_are_indented_below_their_kind_on_every_line():
    lines = [line for line in shown(slices_table(found(*"abcd"))) if "words" in line]
    assert all(line.startswith("│   ") for line in lines)


def test_at_most_four_variants_are_shown_and_fusions_last():
    lines = shown(slices_table(found("a", "a+bm25", "b", "b+bm25", "c", "bm25")))
    header = [cell.strip() for cell in lines[2].strip("┃").split("┃")]
    assert header == ["group", "queries", "a", "b", "c", "bm25"]
    assert lines[-1].strip().endswith("2 more variants are left out.")


def test_a_variant_without_a_value_for_a_group_has_an_empty_cell():
    table = found("base", "tuned").filter((pl.col("variant") == "base") | (pl.col("label") != "1-2 words"))
    assert rows_of(shown(slices_table(table)))[1] == ["1-2 words", "1,200", "0.5000", ""]


def test_four_long_names_fit_80_columns_and_inject_no_markup():
    names = ["all-mpnet-base-v2", "mnrl+matryoshka-long+x", "[red]hostile-name[/red]", "[b]"]
    lines = shown(slices_table(found(*names)))
    assert max(map(len, lines)) <= 80
    assert "[b]" in "".join(lines)
    assert "[red]" in "".join(lines)
    assert "0.5500" in "".join(lines)


def test_two_measures_or_two_sizes_are_refused():
    with pytest.raises(ValueError, match="2 measures"):
        slices_table(pl.concat([found("a"), found("a", measure="mrr@10")]))
    with pytest.raises(ValueError, match="two values"):
        slices_table(pl.concat([found("a"), found("a")]))


def test_an_empty_table_can_be_shown():
    assert "group" in "".join(shown(slices_table(found())))
