"""The two tables of the study, as values and as terminal tables: models at full size, and what smaller sizes lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from rich.markup import escape
from rich.table import Table

from nestling.training.recipes import PRETRAINED

LABELS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP"}


@dataclass(frozen=True)
class Figure:
    """A measure's value, and its change against a reference in percent; None for the reference itself."""

    value: float
    change: float | None


@dataclass(frozen=True)
class Row:
    """One variant at one size: a figure for each measure."""

    variant: str
    dim: int
    figures: dict[str, Figure]


def full_size(results: pl.DataFrame, *, reference: str | None) -> list[Row]:
    """Return each variant at its own full size, with the gain over `reference` in percent.

    Args:
        results: long table with columns variant, dim, measure, value; variants in the order to show.
        reference: a variant's name; None leaves gains out.
    """
    full = {name: int(dim) for name, dim in results.group_by("variant").agg(pl.col("dim").max()).iter_rows()}
    values = _values(results)
    rows = []
    for variant in results["variant"].unique(maintain_order=True):
        figures = {}
        for measure in _measures(results):
            base = values.get((reference, full[reference], measure)) if reference in full else None
            figures[measure] = _figure(values[variant, full[variant], measure], None if variant == reference else base)
        rows.append(Row(variant, full[variant], figures))
    return rows


def by_dim(results: pl.DataFrame) -> list[Row]:
    """Return each variant at each size, with the loss against the same variant's full size in percent."""
    values = _values(results)
    rows = []
    for variant in results["variant"].unique(maintain_order=True):
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


def full_size_table(rows: Sequence[Row], *, caption: str, regressions: Sequence[str] = ()) -> Table:
    """Return the terminal table of `full_size`; `regressions` are variants to mark so, by their figures on dev."""
    measures = list(rows[0].figures)
    table = Table(title="Models at full size", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("variant", overflow="fold")
    table.add_column("dims", justify="right")
    for measure in measures:
        table.add_column(label(measure), justify="right")
        if measure in measures[:2]:
            table.add_column("gain", justify="right")
    for row in rows:
        mark = "\n[bold red]REGRESSION on dev[/]" if row.variant in regressions else ""
        cells = [escape(row.variant) + mark, str(row.dim)]
        for measure in measures:
            figure = row.figures[measure]
            cells.append(f"{figure.value:.4f}")
            if measure in measures[:2]:
                cells.append(percent(figure.change))
        table.add_row(*cells)
    return table


def by_dim_table(rows: Sequence[Row], measure: str) -> Table:
    """Return the terminal table of one measure of `by_dim`: a line a variant, a column a size."""
    dims = sorted({row.dim for row in rows}, reverse=True)
    table = Table(title=f"{label(measure)} by size, and the loss against full size", title_justify="left")
    table.add_column("variant", overflow="fold")
    for dim in dims:
        table.add_column(str(dim), justify="right")
    for variant in dict.fromkeys(row.variant for row in rows):
        figures = {row.dim: row.figures[measure] for row in rows if row.variant == variant}
        cells = [f"{figures[dim].value:.4f}\n{percent(figures[dim].change)}" if dim in figures else "" for dim in dims]
        table.add_row(escape(variant), *cells)
    return table


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


def _figure(value: float, reference: float | None) -> Figure:
    change = None if reference is None or reference == 0 else 100 * (value / reference - 1)
    return Figure(value, change)


def _measures(results: pl.DataFrame) -> list[str]:
    return results["measure"].unique(maintain_order=True).to_list()


def _values(results: pl.DataFrame) -> dict[tuple[str | None, int, str], float]:
    rows = results.select("variant", "dim", "measure", "value").iter_rows()
    return {(variant, dim, measure): value for variant, dim, measure, value in rows}
