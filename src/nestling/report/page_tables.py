"""The page's tables as values: captions, headings, and cells with what they are sorted by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from nestling.report.comparison_view import SIGNIFICANT, p_value, points
from nestling.report.grid_view import size
from nestling.report.page_data import PageData
from nestling.report.tables import Figure, bounds, by_dim, full_size, is_fused, label, percent, unfused_first

SLICED_VARIANTS = 6
"""Columns of the table of slices at most."""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, in small print below it what goes with it, and what it is sorted by (its text by default)."""

    text: str
    below: str = ""
    sort: float | None = None


@dataclass(frozen=True)
class PageTable:
    """A table: the first column heads its rows; `numeric` says of each column whether it holds numbers.

    Attributes:
        groups: (title, rows); the title is empty where there is but one group.
    """

    caption: str
    columns: list[str]
    numeric: list[bool]
    groups: list[tuple[str, list[list[Cell]]]]
    sortable: bool = True


def full_size_table(data: PageData) -> PageTable:
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
            cells.append(_figure(figure, below=bounds(figure)))
            if measure in gained:
                cells.append(Cell(percent(figure.change), "", figure.change))
        body.append(cells)
    gain = f" Gains are over {data.reference}." if data.reference else ""
    caption = f"Models at full size, on test. Below each value its interval of 95 % over queries.{gain}"
    return PageTable(caption, columns, [False] + [True] * (len(columns) - 1), [("", body)])


def by_dim_table(data: PageData, measure: str) -> PageTable:
    """Return one measure of each variant at each size, with what is lost against its own full size."""
    rows = by_dim(data.results)
    dims = sorted({row.dim for row in rows}, reverse=True)
    body = []
    for variant in unfused_first(list(dict.fromkeys(row.variant for row in rows))):
        figures = {row.dim: row.figures[measure] for row in rows if row.variant == variant}
        cells = [
            _figure(figures[dim], below=percent(figures[dim].change)) if dim in figures else Cell("") for dim in dims
        ]
        body.append([Cell(variant), *cells])
    caption = f"{label(measure)} by embedding size. Below each value the change against the same model's full size."
    return PageTable(caption, ["variant", *map(str, dims)], [False] + [True] * len(dims), [("", body)])


def split_table(data: PageData) -> PageTable:
    """Return the sizes of train, dev and test."""
    split = data.study["split"]
    body = [
        [
            Cell(name),
            *(_number(side[count]) for count in ("records", "queries", "documents")),
            Cell(f"{split['reached'][name]:.1%}", f"asked {split['asked'][name]:.1%}"),
        ]
        for name, side in split["sides"].items()
    ]
    dropped = split["dropped"]
    caption = (
        f"Split by {split['method']}, seed {split['seed']}: {split['reason']}. "
        f"{dropped:,} {'record was' if dropped == 1 else 'records were'} dropped to keep the sides apart"
        f"{'; ' + split['promise'] if 'promise' in split else ''}."
    )
    columns = ["side", "records", "queries", "documents", "share"]
    return PageTable(caption, columns, [False, True, True, True, True], [("", body)], sortable=False)


def lengths_table(data: PageData) -> PageTable:
    """Return text lengths in tokens."""
    body = []
    for name, key in (("query", "query_lengths"), ("document", "document_lengths")):
        found = data.study["inspection"][key]
        cut = f"{found['cut']:.1%} cut at {found['limit']:,}" if found["cut"] else f"none beyond {found['limit']:,}"
        figures = [Cell(f"{found[at]:,.4g}") for at in ("median", "mean", "p95", "longest")]
        body.append([Cell(name), *figures, Cell(cut)])
    columns = ["text", "median", "mean", "95% up to", "longest", "cut"]
    numeric = [False, True, True, True, True, False]
    return PageTable("Tokens a text, special tokens included.", columns, numeric, [("", body)], sortable=False)


def training_table(data: PageData) -> PageTable:
    """Return what each training cost and what it did on dev."""
    body = []
    for name, found in data.study["training"].items():
        before, after = found["before"]["dev_recall@10"], found["after"]["dev_recall@10"]
        worse = data.regressions.get(name)
        body.append(
            [
                Cell(name, "; ".join([*([f"below {worse}"] if worse else []), *found.get("left_out", ())])),
                _number(found["examples"]),
                _number(found["steps"]),
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
    return PageTable(caption, columns, [False] + [True] * (len(columns) - 1), [("", body)])


def significance_table(data: PageData) -> PageTable:
    """Return the run's comparisons, a group a measure."""
    groups = []
    for measure in data.comparisons["measure"].unique(maintain_order=True).to_list():
        body = []
        for row in data.comparisons.filter(pl.col("measure") == measure).iter_rows(named=True):
            unproven = "" if row["p_holm"] < SIGNIFICANT else "not significant"
            body.append(
                [
                    Cell(row["b"], f"against {row['a']}"),
                    Cell(
                        points(row["difference"]), f"{points(row['low'])} to {points(row['high'])}", row["difference"]
                    ),
                    Cell(p_value(row["p_holm"]), unproven, row["p_holm"]),
                    *(_number(row[name]) for name in ("wins", "ties", "losses")),
                ]
            )
        groups.append((label(measure), body))
    caption = (
        "Differences in points of 100, below each its interval of 95 % over queries; p of a paired randomisation test, "
        "corrected for the number of comparisons (Holm). Wins are queries on which the variant is better."
    )
    columns = ["variant", "difference", "p", "wins", "ties", "losses"]
    return PageTable(caption, columns, [False] + [True] * 5, groups)


def slices_table(data: PageData) -> PageTable | None:
    """Return the first measure by group of queries, a column a variant; None where there are no slices."""
    if data.slices is None or data.slices.is_empty():
        return None
    found = data.slices.filter(pl.col("measure") == data.measures[0])
    every = unfused_first(found["variant"].unique(maintain_order=True).to_list())
    shown = _shown(every, data)
    first = data.reference if data.reference in shown else None
    groups = []
    for (kind,), rows in found.group_by("slice", maintain_order=True):
        body = []
        for (name, queries), group in rows.group_by("label", "queries", maintain_order=True):
            values = {row[0]: row[1:] for row in group.select("variant", "value", "low", "high").iter_rows()}
            cells = []
            for variant in shown:
                value, low, high = values[variant]
                base = values[first][0] if first and variant != first else 0
                change = 100 * (value / base - 1) if base else None
                cells.append(_figure(Figure(value, change, low, high), below=percent(change)))
            body.append([Cell(str(name)), _number(queries), *cells])
        groups.append((str(kind), body))
    left_out = f" {len(every) - len(shown)} more variants are in slices.parquet." if len(every) > len(shown) else ""
    change = f" Below each value the change against {first}." if first else ""
    caption = f"{label(data.measures[0])} by group of queries.{change}{left_out}"
    return PageTable(caption, ["group", "queries", *shown], [False] + [True] * (len(shown) + 1), groups)


def _shown(every: Sequence[str], data: PageData) -> list[str]:
    """Return the variants that matter most, in their order: models, the stronger BM25, the pick's fusion."""
    models = [name for name in every if not is_fused(name, every) and name in data.dims and data.dims[name][0]]
    extra = [name for name in (data.lexical, data.fused(data.pick)) if name in every]
    first = [name for name in (data.reference, data.pick) if name in models]
    chosen = list(dict.fromkeys([*first, *extra, *models]))[:SLICED_VARIANTS]
    return [name for name in every if name in chosen]


def _figure(figure: Figure, *, below: str) -> Cell:
    return Cell(f"{figure.value:.4f}", below, figure.value)


def _number(value: int) -> Cell:
    return Cell(f"{value:,}", "", float(value))
