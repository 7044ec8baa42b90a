"""The two tables of the study, as values and as terminal tables: models at full size, and what smaller sizes lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from rich.markup import escape
from rich.table import Table

from nestling.config.names import FUSED, PRETRAINED

LABELS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP"}

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


def full_size_table(rows: Sequence[Row], *, caption: str, regressions: Sequence[str] = ()) -> Table:
    """Return the terminal table of `full_size`; `regressions` are variants to mark so, by their figures on dev.

    The first two measures have the gain beside the value and the interval below; the others the value alone.
    """
    measures = list(rows[0].figures) if rows else []
    detailed = measures[:2]
    shown = [row.figures[measure] for row in rows for measure in detailed]
    gains = any(figure.change is not None for figure in shown)
    below = "; below each value its 95% interval" if any(bounds(figure) for figure in shown) else ""
    table = Table(
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


def bounds(figure: Figure) -> str:
    """Return an interval in few characters, as in `.8012-.8345`; nothing where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return "-".join(f"{bound:.4f}".removeprefix("0") for bound in (figure.low, figure.high))


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
