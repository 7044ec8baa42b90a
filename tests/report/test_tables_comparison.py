"""The table of comparisons: points, intervals and p as they are printed, and what is not significant said in words."""

from __future__ import annotations

import polars as pl
from rich.console import Console

from nestling.evaluation.significance import SCHEMA, compare_all
from nestling.report.render.terminal import terminal
from nestling.report.table import Table
from nestling.report.tables import comparison_table


def shown(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(terminal(table))
    return captured.get().splitlines()


def cells(lines: list[str], name: str) -> list[list[str]]:
    """Return the two lines of a variant, as cells."""
    first = next(number for number, line in enumerate(lines) if line.startswith(f"│ {name} "))
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines[first : first + 2]]


def compared(*rows: tuple[object, ...]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA, orient="row")


TUNED = ("base", "tuned", "recall@10", 0.0816, 0.0674, 0.0966, 0.0001, 0.012, 1109, 226, 30)
BM25 = ("base", "bm25", "recall@10", -0.0367, -0.0742, 0.0015, 0.07, 0.14, 319, 648, 368)


def test_a_difference_is_in_points_with_interval_p_and_counts():
    lines = shown(comparison_table(compared(TUNED, BM25)))
    assert lines[0].strip() == "Differences in recall@10 against base"
    assert cells(lines, "tuned") == [
        ["tuned", "+8.16", ".012", "1,109", "226", "30"],
        ["", "+6.74 to +9.66", "", "", "", ""],
    ]


def test_what_p_does_not_prove_is_called_not_significant():
    lines = shown(comparison_table(compared(TUNED, BM25)))
    assert [row[2] for row in cells(lines, "bm25")] == [".140", "not significant"]


def test_p_corrected_decides_and_not_p_itself():
    lines = shown(comparison_table(compared((*TUNED[:6], 0.04, 0.05, *TUNED[8:]))))
    assert [row[2] for row in cells(lines, "tuned")] == [".050", "not significant"]


def test_several_references_are_named_in_each_line():
    lines = shown(comparison_table(compared(TUNED, ("bm25", "tuned", *TUNED[2:]))))
    assert lines[0].strip() == "Differences in recall@10"
    assert sum("against base" in line for line in lines) == 1
    assert sum("against bm25" in line for line in lines) == 1


def test_several_measures_stand_below_each_other():
    lines = shown(comparison_table(compared(TUNED, (*TUNED[:2], "mrr@10", *TUNED[3:]), BM25)))
    firsts = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert [name for name in firsts if name] == ["recall@10", "tuned", "bm25", "MRR@10", "tuned"]


def test_names_cannot_inject_markup_and_long_ones_fit_80_columns():
    hostile = "[red]" + "x" * 60
    lines = shown(comparison_table(compared(("[b]base", hostile, *TUNED[2:]), (hostile, "[b]base", *TUNED[2:]))))
    assert max(map(len, lines)) <= 80
    assert "[red]" in "".join(lines)
    assert "against [b]base" in "\n".join(lines)


def test_what_compare_all_returns_can_be_shown():
    found = compare_all({"a": [1.0, 0.0, 1.0, 0.0], "b": [1.0, 1.0, 1.0, 1.0]}, measures=("recall@10",))
    assert cells(shown(comparison_table(found)), "b")[0] == ["b", "+50.00", ".500", "2", "2", "0"]


def test_an_empty_table_can_be_shown():
    assert "variant" in "".join(shown(comparison_table(compared())))
