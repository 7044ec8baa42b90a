"""The tables of a study as values: models at full size, what smaller sizes lose, comparisons, slices, the split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich import table as rich
from rich.markup import escape

from nestling.config.names import FUSED, PRETRAINED
from nestling.report.table import Cell, Table

LABELS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP"}
SIGNIFICANT = 0.05
FINEST = 1e-4
MOST = 4
"""Variants that fit beside each other in 80 columns."""
COMPARED = (
    "In points of 100, below each difference its interval of 95 % over queries; p of a paired randomisation test, "
    "corrected for the number of comparisons (Holm). Wins are queries on which the variant is better."
)

Interval = tuple[float, float | None, float | None]
"""A value, and the ends of its interval."""


@dataclass(frozen=True)
class Figure:
    """A measure's value, and its change against a reference in percent; None for the reference itself.

    Attributes:
        low, high: the value's interval of 95 % over queries; None where there is none.
    """

    value: float
    change: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One variant at one size: a figure for each measure. `dim` is 0 where no embedding is stored, as for BM25."""

    variant: str
    dim: int
    figures: dict[str, Figure]


def full_size(results: pl.DataFrame, *, reference: str | None) -> list[Row]:
    """Return each variant at its own full size, with the gain over `reference` in percent.

    Args:
        results: long table, columns as `evaluation.grid.SCHEMA`; variants in the order to show. Those without a plain
            cell are left out.
        reference: a variant's name; None leaves gains out.
    """
    results = plain(results)
    full = {name: int(dim) for name, dim in results.group_by("variant").agg(pl.col("dim").max()).iter_rows()}
    values = _values(results)
    rows = []
    for variant in _variants(results):
        figures = {}
        for measure in _measures(results):
            base = None if variant == reference else values.get((reference, full.get(reference or ""), measure))
            figures[measure] = _figure(values[variant, full[variant], measure], base)
        rows.append(Row(variant, full[variant], figures))
    return rows


def by_dim(results: pl.DataFrame) -> list[Row]:
    """Return each variant at each size, with the loss against the same variant's full size in percent.

    Args:
        results: as `full_size` takes it; what has no sizes, as BM25, is left out.
    """
    results = plain(results).filter(pl.col("dim") > 0)
    values = _values(results)
    rows = []
    for variant in _variants(results):
        dims = results.filter(pl.col("variant") == variant)["dim"].unique().sort(descending=True).to_list()
        for dim in dims:
            figures = {
                measure: _figure(
                    values[variant, dim, measure], values[variant, dims[0], measure] if dim != dims[0] else None
                )
                for measure in _measures(results)
            }
            rows.append(Row(variant, dim, figures))
    return rows


def plain(results: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of plain cells (float32, neither rotated nor rescored) and of what stores no embedding."""
    stored = (pl.col("precision") == "float32") & (pl.col("rotation") == "none") & (pl.col("oversampling") == 0)
    return results.filter(stored | (pl.col("dim") == 0))


def unfused_first(variants: Sequence[str]) -> list[str]:
    """Return variants in their order, but the fusions of others with BM25 last."""
    return sorted(variants, key=lambda name: is_fused(name, variants))


def is_fused(variant: str, variants: Sequence[str]) -> bool:
    """Return whether a variant is the fusion of another one with BM25, by its name."""
    return variant.endswith(FUSED) and variant.removesuffix(FUSED) in variants


def full_size_table(rows: Sequence[Row], *, caption: str, regressions: Sequence[str] = ()) -> rich.Table:
    """Return the terminal table of `full_size`; `regressions` are variants to mark so, by their figures on dev.

    The first two measures have the gain beside the value and the interval below; the others the value alone.
    """
    measures = list(rows[0].figures) if rows else []
    detailed = measures[:2]
    shown = [row.figures[measure] for row in rows for measure in detailed]
    gains = any(figure.change is not None for figure in shown)
    below = "; below each value its 95% interval" if any(bounds(figure) for figure in shown) else ""
    table = rich.Table(
        title=f"Models at full size{below}", caption=escape(caption), title_justify="left", caption_justify="left"
    )
    table.add_column("variant", overflow="fold")
    table.add_column("dims", justify="right")
    for measure in measures:
        gain = "  gain" if gains and measure in detailed else ""
        table.add_column(label(measure) + gain, justify="left" if measure in detailed else "right", no_wrap=True)
    for row in rows:
        mark = "\n[bold red]REGRESSION on dev[/]" if row.variant in regressions else ""
        cells = [escape(row.variant) + mark, str(row.dim or "-")]
        for measure in measures:
            figure = row.figures[measure]
            text = f"{figure.value:.4f}"
            if measure in detailed:
                text = f"{text} {percent(figure.change):>7}".rstrip() + f"\n{bounds(figure)}".rstrip()
            cells.append(text)
        table.add_row(*cells)
    return table


def by_dim_table(rows: Sequence[Row], measure: str) -> Table:
    """Return the table of one measure of `by_dim`: a line a variant, a column a size, fusions last."""
    dims = sorted({row.dim for row in rows}, reverse=True)
    body = []
    for variant in unfused_first(list(dict.fromkeys(row.variant for row in rows))):
        figures = {row.dim: row.figures[measure] for row in rows if row.variant == variant}
        cells = [
            figure_cell(figures[dim], percent(figures[dim].change)) if dim in figures else Cell("") for dim in dims
        ]
        body.append([Cell(variant), *cells])
    caption = "Below each value the change against the same model's full size."
    columns, title = ["variant", *map(str, dims)], f"{label(measure)} by embedding size"
    return Table(caption, columns, [False] + [True] * len(dims), [("", body)], title=title)


def comparison_table(compared: pl.DataFrame) -> Table:
    """Return the table of comparisons, in the order given; measures, if several, a group each.

    Args:
        compared: columns as `evaluation.significance.SCHEMA`, values in 0..1.
    """
    measures = compared["measure"].unique(maintain_order=True).to_list()
    references = compared["a"].unique(maintain_order=True).to_list()
    inside = f" in {label(measures[0])}" if len(measures) == 1 else ""
    against = f" against {references[0]}" if len(references) == 1 else ""
    groups = []
    for measure in measures:
        body = [
            [
                Cell(row["b"], "" if against else f"against {row['a']}"),
                Cell(points(row["difference"]), f"{points(row['low'])} to {points(row['high'])}", row["difference"]),
                Cell(p_value(row["p_holm"]), "" if row["p_holm"] < SIGNIFICANT else "not significant", row["p_holm"]),
                *(number_cell(row[name]) for name in ("wins", "ties", "losses")),
            ]
            for row in compared.filter(pl.col("measure") == measure).iter_rows(named=True)
        ]
        groups.append(("" if inside else label(measure), body))
    columns = ["variant", "difference", "p", "wins", "ties", "losses"]
    return Table(COMPARED, columns, [False] + [True] * 5, groups, title=f"Differences{inside}{against}")


def slices_table(
    found: pl.DataFrame,
    *,
    shown: Sequence[str] | None = None,
    first: str | None = None,
    rest: str = "left out",
    most: int = MOST,
) -> Table:
    """Return the table of slices: groups of one kind below its name, each with its number of queries.

    Args:
        found: what `evaluation.slices.slice_table` returns, of one measure and of every variant at one size.
        shown: the variants to show; `most` of them at most, the first ones, fusions last, where None.
        first: what changes are counted from; the first of all where `shown` is None.
        rest: where the variants are that are not shown.

    Raises:
        ValueError: there are several measures, or a variant has two values for a group.
    """
    measures = found["measure"].unique(maintain_order=True).to_list()
    if len(measures) > 1:
        raise ValueError(f"slices of {len(measures)} measures ({', '.join(measures)}) do not go into one table")
    if found.select("slice", "label", "variant").is_duplicated().any():
        raise ValueError("a variant has two values for the same group; filter its sizes down to one")
    every = unfused_first(found["variant"].unique(maintain_order=True).to_list())
    if shown is None:
        shown, first = every[:most], next(iter(every), None)
    groups = []
    for (kind,), rows in found.group_by("slice", maintain_order=True):
        body = []
        for (name, queries), group in rows.group_by("label", "queries", maintain_order=True):
            values = {row[0]: row[1:] for row in group.select("variant", "value", "low", "high").iter_rows()}
            figures = {
                who: _figure(values[who], values.get(first) if first != who else None) for who in shown if who in values
            }
            cells = [
                figure_cell(figures[who], percent(figures[who].change)) if who in figures else Cell("") for who in shown
            ]
            body.append([Cell(str(name)), number_cell(queries), *cells])
        groups.append((str(kind), body))
    told = [f"Below each value the change against {first}."] if first and len(shown) > 1 else []
    told += [f"{len(every) - len(shown)} more variants are {rest}."] if len(every) > len(shown) else []
    title = f"{label(measures[0])} by group of queries" if measures else "by group of queries"
    columns = ["group", "queries", *shown]
    return Table(" ".join(told), columns, [False] + [True] * (len(shown) + 1), groups, title=title)


def split_table(summary: Mapping[str, Any], *, source: str = "") -> Table:
    """Return sizes and shares by side, with the method and what was dropped.

    Args:
        summary: what `summarise` says of a split.
        source: where it is from, to name in the title.
    """
    body = [
        [
            Cell(name),
            *(number_cell(side[count]) for count in ("records", "queries", "documents")),
            Cell(f"{summary['reached'][name]:.1%}", f"asked {summary['asked'][name]:.1%}"),
        ]
        for name, side in summary["sides"].items()
    ]
    dropped = summary["dropped"]
    were = "record was" if dropped == 1 else "records were"
    promise = f"; {summary['promise']}" if "promise" in summary else ""
    method = f"plit by {summary['method']}, seed {summary['seed']}: {summary['reason']}"
    caption = f"{dropped:,} {were} dropped to keep the sides apart{promise}."
    columns = ["side", "records", "queries", "documents", "share"]
    title = f"{source}, s{method}" if source else f"S{method}"
    return Table(caption, columns, [False, True, True, True, True], [("", body)], sortable=False, title=title)


def reference_of(variants: Sequence[tuple[str, str, str]]) -> str | None:
    """Return the variant that gains are counted from: the first pretrained one, of the first variant's base if it can.

    Args:
        variants: (name, recipe, base) in the order of the experiment.
    """
    untouched = [(name, base) for name, recipe, base in variants if recipe == PRETRAINED]
    trained = [base for _, recipe, base in variants if recipe != PRETRAINED]
    same = [name for name, base in untouched if trained and base == trained[0]]
    return (same or [name for name, _ in untouched] or [None])[0]  # type: ignore[list-item]


def label(measure: str) -> str:
    """Return a measure as the field writes it: `MRR@10`, `nDCG@10`, `recall@10`."""
    name, _, k = measure.partition("@")
    return f"{LABELS.get(name, name)}@{k}"


def percent(change: float | None) -> str:
    """Return a signed percentage with one decimal, or nothing for None."""
    return "" if change is None else f"{change:+.1f}%"


def bounds(figure: Figure) -> str:
    """Return an interval in few characters, as in `.8012-.8345`; nothing where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return "-".join(f"{bound:.4f}".removeprefix("0") for bound in (figure.low, figure.high))


def figure_cell(figure: Figure, below: str) -> Cell:
    """Return a value's cell, with `below` in small print."""
    return Cell(f"{figure.value:.4f}", below, figure.value)


def number_cell(value: int) -> Cell:
    """Return a count's cell."""
    return Cell(f"{value:,}", "", float(value))


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


def _figure(own: Interval, reference: Interval | None) -> Figure:
    value, low, high = own
    change = None if reference is None or reference[0] == 0 else 100 * (value / reference[0] - 1)
    return Figure(value, change, low, high)


def _variants(results: pl.DataFrame) -> list[str]:
    return results["variant"].unique(maintain_order=True).to_list()


def _measures(results: pl.DataFrame) -> list[str]:
    return results["measure"].unique(maintain_order=True).to_list()


def _values(results: pl.DataFrame) -> dict[tuple[str | None, int | None, str], Interval]:
    rows = results.select("variant", "dim", "measure", "value", "low", "high").iter_rows()
    return {(variant, dim, measure): (value, low, high) for variant, dim, measure, value, low, high in rows}
