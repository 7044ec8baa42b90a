"""Paired comparisons of variants as a terminal table: differences in points, their intervals, and what they prove."""

from __future__ import annotations

import polars as pl
from rich.markup import escape
from rich.table import Table

from nestling.report.tables import label

SIGNIFICANT = 0.05
FINEST = 1e-4
CAPTION = (
    "difference in points of 100, below it its 95% interval over queries; p of a paired randomisation test, "
    "corrected for the number of comparisons (Holm); wins: queries on which the variant is better"
)


def comparison_table(compared: pl.DataFrame) -> Table:
    """Return the terminal table of comparisons, in the order given; measures, if several, one below the other.

    Args:
        compared: columns as `evaluation.significance.SCHEMA`, values in 0..1.
    """
    measures = compared["measure"].unique(maintain_order=True).to_list()
    references = compared["a"].unique(maintain_order=True).to_list()
    inside = f" in {escape(label(measures[0]))}" if len(measures) == 1 else ""
    against = f" against {escape(references[0])}" if len(references) == 1 else ""
    table = Table(title=f"Differences{inside}{against}", caption=CAPTION, title_justify="left", caption_justify="left")
    table.add_column("variant", overflow="fold")
    table.add_column("difference", no_wrap=True)
    table.add_column("p", no_wrap=True)
    for name in ("wins", "ties", "losses"):
        table.add_column(name, justify="right")
    for measure in measures:
        if not inside:
            table.add_section()
            table.add_row(escape(label(measure)), style="bold")
        for row in compared.filter(pl.col("measure") == measure).iter_rows(named=True):
            verdict = "" if row["p_holm"] < SIGNIFICANT else "\nnot significant"
            table.add_row(
                escape(row["b"]) + ("" if against else f"\nagainst {escape(row['a'])}"),
                f"{points(row['difference'])}\n{points(row['low'])} to {points(row['high'])}",
                p_value(row["p_holm"]) + verdict,
                *(f"{row[name]:,}" for name in ("wins", "ties", "losses")),
            )
    return table


def points(difference: float) -> str:
    """Return a difference of values in 0..1 as signed points of 100, with two decimals."""
    return f"{100 * difference:+.2f}"


def p_value(p: float) -> str:
    """Return a p as the field prints it: `.012`, `.0004`, `<.0001`; never rounded across the level of .05."""
    if p < FINEST:
        return "<.0001"
    decimals = 3 if p >= 10 * FINEST else 4
    while decimals < 8 and (round(p, decimals) < SIGNIFICANT) != (p < SIGNIFICANT):
        decimals += 1
    return f"{p:.{decimals}f}".removeprefix("0")
