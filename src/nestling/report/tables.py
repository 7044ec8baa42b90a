"""The tables of measured models as values: at full size, at smaller sizes, compared, by slice, and their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import polars as pl

from nestling.config.names import FUSED, PRETRAINED
from nestling.report.format import SIGNIFICANT, label, p_equation, p_value, percent, points, size
from nestling.report.table import Cell, Table, number_cell, row

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


def full_size_table(
    rows: Sequence[Row],
    *,
    caption: str,
    gains: Sequence[str] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
    proofs: Mapping[tuple[str, str], float] = MappingProxyType({}),
) -> Table:
    """Return the table of `full_size` for a page: each measure with its interval below it.

    Args:
        gains: the measures whose gain stands beside them.
        notes: small print below a variant's name.
        proofs: the p of a gain, by variant and measure.
    """
    measures = list(rows[0].figures) if rows else []
    columns = ["variant", "dims"]
    for measure in measures:
        columns += [label(measure), *(["gain"] if measure in gains else [])]
    body = []
    for each in rows:
        cells = [Cell(each.variant, notes.get(each.variant, "")), number_cell(each.dim, "" if each.dim else "–")]
        for measure in measures:
            figure = each.figures[measure]
            cells.append(figure_cell(figure, bounds(figure)))
            if measure in gains:
                p = proofs.get((each.variant, measure))
                cells.append(Cell(percent(figure.change), "" if p is None else p_equation(p), figure.change))
        body.append(cells)
    return Table(caption, columns, [("", body)])


def narrow_full_size_table(rows: Sequence[Row], *, caption: str, regressions: Sequence[str] = ()) -> Table:
    """Return the table of `full_size` for a terminal; `regressions` are variants to mark so, by their figures on dev.

    The first two measures have the gain beside the value and the interval below; the others the value alone.
    """
    measures = list(rows[0].figures) if rows else []
    detailed = measures[:2]
    shown = [each.figures[measure] for each in rows for measure in detailed]
    gain = "  gain" if any(figure.change is not None for figure in shown) else ""
    below = "; below each value its 95% interval" if any(bounds(figure) for figure in shown) else ""
    body = []
    for each in rows:
        mark = "REGRESSION on dev" if each.variant in regressions else ""
        cells = row(Cell(each.variant, mark), str(each.dim or "-"))
        for measure, figure in each.figures.items():
            value = f"{figure.value:.4f}"
            if measure in detailed:
                cells.append(Cell(f"{value} {percent(figure.change):>7}".rstrip(), bounds(figure)))
            else:
                cells.append(Cell(value))
        body.append(cells)
    columns = ["variant", "dims", *(label(measure) + (gain if measure in detailed else "") for measure in measures)]
    words = (0, *range(2, 2 + len(detailed)))
    return Table(caption, columns, [("", body)], title=f"Models at full size{below}", words=words)


def by_dim_table(rows: Sequence[Row], measure: str) -> Table:
    """Return the table of one measure of `by_dim`: a line a variant, a column a size, fusions last."""
    dims = sorted({each.dim for each in rows}, reverse=True)
    body = []
    for variant in unfused_first(list(dict.fromkeys(each.variant for each in rows))):
        figures = {each.dim: each.figures[measure] for each in rows if each.variant == variant}
        cells = [
            figure_cell(figures[dim], percent(figures[dim].change)) if dim in figures else Cell("") for dim in dims
        ]
        body.append([Cell(variant), *cells])
    caption = "Below each value the change against the same model's full size."
    columns, title = ["variant", *map(str, dims)], f"{label(measure)} by embedding size"
    return Table(caption, columns, [("", body)], title=title)


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
    return Table(COMPARED, columns, groups, title=f"Differences{inside}{against}")


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
    return Table(" ".join(told), columns, groups, title=title)


def training_table(trainings: Mapping[str, Mapping[str, Any]], regressions: Mapping[str, str]) -> Table:
    """Return what each training cost and what it did on dev.

    Args:
        trainings: variant -> a training's summary.
        regressions: variant -> what it ended below on dev.
    """
    body = []
    for name, found in trainings.items():
        before, after = found["before"]["dev_recall@10"], found["after"]["dev_recall@10"]
        notes = [*([f"below {regressions[name]}"] if name in regressions else []), *found.get("left_out", ())]
        body.append(
            [
                Cell(name, "; ".join(notes)),
                number_cell(found["examples"]),
                number_cell(found["steps"]),
                number_cell(found["seconds"], f"{found['seconds']:,.1f}"),
                number_cell(found["pairs_per_second"], f"{found['pairs_per_second']:,.0f}"),
                number_cell(found["peak_memory"], size(found["peak_memory"])),
                number_cell(after, f"{before:.4f} → {after:.4f}", found["precision"]),
            ]
        )
    columns = ["variant", "examples", "steps", "seconds in steps", "pairs/s", "peak memory", "dev recall@10"]
    caption = (
        "What training took, and recall@10 on dev before and after; below it the precision of the arithmetic. "
        "Below a variant's name: the steps left out of it, as dev was lower for them."
    )
    return Table(caption, columns, [("", body)])


def reference_of(variants: Sequence[tuple[str, str, str]]) -> str | None:
    """Return the variant that gains are counted from: the first pretrained one, of the first variant's base if it can.

    Args:
        variants: (name, recipe, base) in the order of the experiment.
    """
    untouched = [(name, base) for name, recipe, base in variants if recipe == PRETRAINED]
    trained = [base for _, recipe, base in variants if recipe != PRETRAINED]
    same = [name for name, base in untouched if trained and base == trained[0]]
    return (same or [name for name, _ in untouched] or [None])[0]  # type: ignore[list-item]


def bounds(figure: Figure) -> str:
    """Return an interval in few characters, as in `.8012-.8345`; nothing where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return "-".join(f"{bound:.4f}".removeprefix("0") for bound in (figure.low, figure.high))


def figure_cell(figure: Figure, below: str) -> Cell:
    """Return a value's cell, with `below` in small print."""
    return Cell(f"{figure.value:.4f}", below, figure.value)


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
