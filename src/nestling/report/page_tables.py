"""The page's tables as values: captions, headings, and cells with what they are sorted by."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from nestling.report import tables
from nestling.report.grid_view import size
from nestling.report.page_data import PageData
from nestling.report.table import Cell, Table
from nestling.report.tables import (
    bounds,
    figure_cell,
    full_size,
    is_fused,
    label,
    number_cell,
    percent,
    unfused_first,
)

SLICED_VARIANTS = 6
"""Columns of the table of slices at most."""


def full_size_table(data: PageData) -> Table:
    """Return the models at their own full size: each measure with its interval, and the gain over the reference."""
    rows = full_size(data.results, reference=data.reference)
    measures = list(rows[0].figures) if rows else []
    gained = list(data.measures) if data.reference is not None else []
    columns = ["variant", "dims"]
    for measure in measures:
        columns += [label(measure), *(["gain"] if measure in gained else [])]
    body = []
    for row in rows:
        worse = data.regressions.get(row.variant)
        cells = [
            Cell(row.variant, f"on dev below {worse}" if worse else ""),
            Cell(f"{row.dim:,}" if row.dim else "–", "", float(row.dim)),
        ]
        for measure in measures:
            figure = row.figures[measure]
            cells.append(figure_cell(figure, bounds(figure)))
            if measure in gained:
                cells.append(Cell(percent(figure.change), "", figure.change))
        body.append(cells)
    gain = f" Gains are over {data.reference}." if data.reference else ""
    caption = f"Models at full size, on test. Below each value its interval of 95 % over queries.{gain}"
    return Table(caption, columns, [False] + [True] * (len(columns) - 1), [("", body)])


def lengths_table(data: PageData) -> Table:
    """Return text lengths in tokens."""
    body = []
    for name, key in (("query", "query_lengths"), ("document", "document_lengths")):
        found = data.study["inspection"][key]
        cut = f"{found['cut']:.1%} cut at {found['limit']:,}" if found["cut"] else f"none beyond {found['limit']:,}"
        figures = [Cell(f"{found[at]:,.4g}") for at in ("median", "mean", "p95", "longest")]
        body.append([Cell(name), *figures, Cell(cut)])
    columns = ["text", "median", "mean", "95% up to", "longest", "cut"]
    numeric = [False, True, True, True, True, False]
    return Table("Tokens a text, special tokens included.", columns, numeric, [("", body)], sortable=False)


def training_table(data: PageData) -> Table:
    """Return what each training cost and what it did on dev."""
    body = []
    for name, found in data.study["training"].items():
        before, after = found["before"]["dev_recall@10"], found["after"]["dev_recall@10"]
        worse = data.regressions.get(name)
        body.append(
            [
                Cell(name, "; ".join([*([f"below {worse}"] if worse else []), *found.get("left_out", ())])),
                number_cell(found["examples"]),
                number_cell(found["steps"]),
                Cell(f"{found['seconds']:,.1f}", "", found["seconds"]),
                Cell(f"{found['pairs_per_second']:,.0f}", "", found["pairs_per_second"]),
                Cell(size(found["peak_memory"]), "", found["peak_memory"]),
                Cell(f"{before:.4f} → {after:.4f}", found["precision"], after),
            ]
        )
    columns = ["variant", "examples", "steps", "seconds in steps", "pairs/s", "peak memory", "dev recall@10"]
    caption = (
        "What training took, and recall@10 on dev before and after; below it the precision of the arithmetic. "
        "Below a variant's name: the steps left out of it, as dev was lower for them."
    )
    return Table(caption, columns, [False] + [True] * (len(columns) - 1), [("", body)])


def slices_table(data: PageData) -> Table | None:
    """Return the first measure by group of queries, a column a variant; None where there are no slices."""
    if data.slices is None or data.slices.is_empty():
        return None
    found = data.slices.filter(pl.col("measure") == data.measures[0])
    shown = _shown(unfused_first(found["variant"].unique(maintain_order=True).to_list()), data)
    first = data.reference if data.reference in shown else None
    return tables.slices_table(found, shown=shown, first=first, rest="in slices.parquet")


def _shown(every: Sequence[str], data: PageData) -> list[str]:
    """Return the variants that matter most, in their order: models, the stronger BM25, the pick's fusion."""
    models = [name for name in every if not is_fused(name, every) and name in data.dims and data.dims[name][0]]
    extra = [name for name in (data.lexical, data.fused(data.pick)) if name in every]
    first = [name for name in (data.reference, data.pick) if name in models]
    chosen = list(dict.fromkeys([*first, *extra, *models]))[:SLICED_VARIANTS]
    return [name for name in every if name in chosen]
