"""Figures by group of queries as a terminal table: a line a group, a column a variant, changes from the first."""

from __future__ import annotations

import polars as pl
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from nestling.report.tables import label, percent, unfused_first

MOST = 4
"""Variants that fit beside each other in 80 columns."""


def slices_table(found: pl.DataFrame, *, most: int = MOST) -> Table:
    """Return the terminal table of slices: groups of one kind below its name, each with its number of queries.

    Args:
        found: what `evaluation.slices.slice_table` returns, of one measure and of every variant at one size; its
            first variant is what changes are counted from.
        most: show so many variants, the first ones, fusions after all others; the caption says how many are left out.

    Raises:
        ValueError: there are several measures, or a variant has two values for a group.
    """
    measures = found["measure"].unique(maintain_order=True).to_list()
    if len(measures) > 1:
        raise ValueError(f"slices of {len(measures)} measures ({', '.join(measures)}) do not go into one table")
    if found.select("slice", "label", "variant").is_duplicated().any():
        raise ValueError("a variant has two values for the same group; filter its sizes down to one")
    variants = unfused_first(found["variant"].unique(maintain_order=True).to_list())
    shown, left_out = variants[:most], len(variants) - most
    caption = f"below each value the change against {escape(shown[0])}" if len(shown) > 1 else ""
    caption += f"; {left_out} more variants left out" if left_out > 0 else ""
    measure = f"{escape(label(measures[0]))} " if measures else ""
    table = Table(
        title=f"{measure}by group of queries",
        caption=caption or None,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("group")
    table.add_column("queries", justify="right", no_wrap=True)
    for variant in shown:
        # Names grow by +PART, and are best broken there.
        table.add_column(escape(variant.replace("+", "\n+").strip()), justify="right", overflow="fold", min_width=7)
    for (kind,), groups in found.group_by("slice", maintain_order=True):
        table.add_section()
        table.add_row(escape(str(kind)), style="bold")
        for (name, queries), group in groups.group_by("label", "queries", maintain_order=True):
            values = dict(group.select("variant", "value").iter_rows())
            first = values.get(shown[0])
            cells = [_cell(values.get(variant), first if variant != shown[0] else None) for variant in shown]
            table.add_row(Padding(escape(str(name)), (0, 0, 0, 2)), f"{queries:,}", *cells)
    return table


def _cell(value: float | None, first: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f"\n{percent(100 * (value / first - 1))}" if first else "")
