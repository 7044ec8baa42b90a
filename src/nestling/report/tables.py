"""The tables of measured models: at full size, at smaller sizes, compared, by slice, and their training."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from nestling.config.names import FUSED, PRETRAINED
from nestling.report.format import SIGNIFICANT, bounds, label, p_value, percent, points, size
from nestling.report.table import Cell, Table, number_cell, row
from nestling.training.result import RECALL as DEV_RECALL

MOST = 4
"""Variants that fit beside each other in 80 columns."""
COMPARED = (
    "In points of 100, below each difference its interval of 95 % over queries; p of a paired randomisation test, "
    "corrected for the number of comparisons (Holm). Wins are queries on which the variant is better."
)


def full_size(results: pl.DataFrame, *, reference: str | None) -> pl.DataFrame:
    """Select each variant's plain cell at its own full size from `results` (columns as `evaluation.grid.SCHEMA`).

    Returns:
        The rows, with `change` from the reference in percent; null for itself, and where it has 0 or is missing.
    """
    full = plain(results).filter(pl.col("dim") == pl.col("dim").max().over("variant"))
    return _with_change(full, pl.col("variant") == pl.lit(reference, pl.String), "measure")


def by_dim(results: pl.DataFrame) -> pl.DataFrame:
    """Select each variant's plain cells, with `change` against its own full size; what has no sizes is left out."""
    sized = plain(results).filter(pl.col("dim") > 0)
    return _with_change(sized, pl.col("dim") == pl.col("dim").max().over("variant"), "variant", "measure")


def _with_change(rows: pl.DataFrame, reference: pl.Expr, *group: str) -> pl.DataFrame:
    """Add the change in percent against the row of the same group that is the reference."""
    marked = rows.with_columns(reference.alias("reference"))
    base = pl.col("value").filter(pl.col("reference")).first().over(group)
    change = pl.when(~pl.col("reference"), base != 0).then(100 * (pl.col("value") / base - 1))
    return marked.with_columns(change.alias("change")).drop("reference")


def plain(results: pl.DataFrame) -> pl.DataFrame:
    """Select the rows of plain cells (float32, neither rotated nor rescored) and of what stores no embedding."""
    stored = (pl.col("precision") == "float32") & (pl.col("rotation") == "none") & (pl.col("oversampling") == 0)
    return results.filter(stored | (pl.col("dim") == 0))


def unfused_first(variants: Sequence[str]) -> list[str]:
    """Return variants in their order, but the fusions of others with BM25 last."""
    return sorted(variants, key=lambda name: is_fused(name, variants))


def is_fused(variant: str, variants: Collection[str]) -> bool:
    """Return whether a variant is the fusion of another one with BM25, by its name."""
    return variant.endswith(FUSED) and variant.removesuffix(FUSED) in variants


def full_size_table(
    full: pl.DataFrame,
    *,
    caption: str,
    gains: Sequence[str] = (),
    notes: Mapping[str, str] = {},
    proofs: Mapping[tuple[str, str], str] = {},
) -> Table:
    """Return the table of `full_size` for a page: below each measure its interval, beside each of `gains` its gain.

    Args:
        notes: small print below a variant's name.
        proofs: what stands below a gain, by variant and measure: its p.
    """
    columns, measures = ["variant", "dims"], _distinct(full, "measure")
    for measure in measures:
        columns += [label(measure), *(["gain"] if measure in gains else [])]
    body = []
    for (variant, dim), rows in full.group_by("variant", "dim", maintain_order=True):
        cells = [Cell(str(variant), notes.get(str(variant), "")), number_cell(dim, "" if dim else "–")]
        # Runs that are compared may have their measures in other orders.
        for each in sorted(rows.iter_rows(named=True), key=lambda row: measures.index(row["measure"])):
            cells.append(value_cell(each, bounds(each["low"], each["high"])))
            if each["measure"] in gains:
                proof = proofs.get((each["variant"], each["measure"]), "")
                cells.append(Cell(percent(each["change"]), proof, each["change"]))
        body.append(cells)
    return Table(caption, columns, [("", body)])


def narrow_full_size_table(
    full: pl.DataFrame,
    *,
    caption: str,
    title: str = "Models at full size",
    regressions: Collection[str] = (),
    proofs: Mapping[tuple[str, str], str] = {},
) -> Table:
    """Return the same in 80 columns of a terminal, the first two measures with gain, interval and p in one cell."""
    measures = _distinct(full, "measure")
    detailed = measures[:2]
    shown = full.filter(pl.col("measure").is_in(detailed))
    gain = "  gain" if shown["change"].count() else ""
    below = "; below each value its 95% interval" if shown["low"].count() else ""
    body = []
    for (variant, dim), rows in full.group_by("variant", "dim", maintain_order=True):
        cells = row(Cell(str(variant), "REGRESSION on dev" if variant in regressions else ""), str(dim or "-"))
        for each in sorted(rows.iter_rows(named=True), key=lambda row: measures.index(row["measure"])):
            if each["measure"] in detailed:
                text = f"{each['value']:.4f} {percent(each['change']):>7}".rstrip()
                proof = proofs.get((each["variant"], each["measure"]), "")
                cells.append(Cell(text, f"{bounds(each['low'], each['high'])} {proof}".strip()))
            else:
                cells.append(value_cell(each, ""))
        body.append(cells)
    columns = ["variant", "dims", *(label(measure) + (gain if measure in detailed else "") for measure in measures)]
    words = (0, *range(2, 2 + len(detailed)))
    return Table(caption, columns, [("", body)], title=title + below, words=words)


def by_dim_table(rows: pl.DataFrame, measure: str) -> Table:
    """Return the table of one measure of `by_dim`: a line a variant, a column a size, fusions last."""
    dims = sorted(_distinct(rows, "dim"), reverse=True)
    cells = {
        (each["variant"], each["dim"]): value_cell(each, percent(each["change"]))
        for each in rows.filter(measure=measure).iter_rows(named=True)
    }
    variants = unfused_first(_distinct(rows, "variant"))
    body = [[Cell(variant), *(cells.get((variant, dim), Cell("")) for dim in dims)] for variant in variants]
    caption = "Below each value the change against the same model's full size."
    columns, title = ["variant", *map(str, dims)], f"{label(measure)} by embedding size"
    return Table(caption, columns, [("", body)], title=title)


def comparison_table(compared: pl.DataFrame) -> Table:
    """Return the table of comparisons, rows of `significance.SCHEMA`; several measures are a group each."""
    measures, references = _distinct(compared, "measure"), _distinct(compared, "a")
    inside = f" in {label(measures[0])}" if len(measures) == 1 else ""
    against = f" against {references[0]}" if len(references) == 1 else ""
    groups = []
    for measure in measures:
        body = []
        for each in compared.filter(measure=measure).iter_rows(named=True):
            p, interval = each["p_holm"], f"{points(each['low'])} to {points(each['high'])}"
            cells = [
                Cell(each["b"], "" if against else f"against {each['a']}"),
                Cell(points(each["difference"]), interval, each["difference"]),
                Cell(p_value(p), "" if p < SIGNIFICANT else "not significant", p),
            ]
            body.append([*cells, *(number_cell(each[name]) for name in ("wins", "ties", "losses"))])
        groups.append(("" if inside else label(measure), body))
    columns = ["variant", "difference", "p", "wins", "ties", "losses"]
    return Table(COMPARED, columns, groups, title=f"Differences{inside}{against}")


def slices_table(
    slices: pl.DataFrame,
    *,
    variants: Sequence[str] | None = None,
    reference: str | None = None,
    rest: str = "left out",
) -> Table:
    """Return the table of slices: groups of one kind below its name, each with its number of queries.

    Args:
        slices: what `evaluation.slices.slice_table` returns, of one measure and of every variant at one size.
        variants: the columns; by default the first `MOST`, fusions last, and changes against the first.
        rest: where the variants without a column are.

    Raises:
        ValueError: there are several measures, or a variant has two values for a group.
    """
    measures = _distinct(slices, "measure")
    if len(measures) > 1:
        raise ValueError(f"slices of {len(measures)} measures ({', '.join(measures)}) do not go into one table")
    if slices.select("slice", "label", "variant").is_duplicated().any():
        raise ValueError("a variant has two values for the same group; filter its sizes down to one")
    every = unfused_first(_distinct(slices, "variant"))
    if variants is None:
        variants, reference = every[:MOST], next(iter(every), None)
    changed = _with_change(slices, pl.col("variant") == pl.lit(reference, pl.String), "slice", "label")
    groups = []
    for (kind,), rows in changed.group_by("slice", maintain_order=True):
        body = []
        for (name, queries), group in rows.group_by("label", "queries", maintain_order=True):
            cells = {each["variant"]: value_cell(each, percent(each["change"])) for each in group.iter_rows(named=True)}
            body.append([Cell(str(name)), number_cell(queries), *(cells.get(who, Cell("")) for who in variants)])
        groups.append((str(kind), body))
    notes = [f"Below each value the change against {reference}."] if reference and len(variants) > 1 else []
    notes += [f"{len(every) - len(variants)} more variants are {rest}."] if len(every) > len(variants) else []
    title = f"{label(measures[0])} by group of queries" if measures else "by group of queries"
    return Table(" ".join(notes), ["group", "queries", *variants], groups, title=title)


def training_table(trainings: Mapping[str, Mapping[str, Any]], regressions: Mapping[str, str]) -> Table:
    """Return what each training cost and what it did on dev, of summaries and of what each ended below, by variant."""
    body = []
    for name, training in trainings.items():
        before, after = training["before"][DEV_RECALL], training["after"][DEV_RECALL]
        notes = [*([f"below {regressions[name]}"] if name in regressions else []), *training.get("left_out", ())]
        cells = [
            Cell(name, "; ".join(notes)),
            number_cell(training["examples"]),
            number_cell(training["steps"]),
            number_cell(training["seconds"], f"{training['seconds']:,.1f}"),
            number_cell(training["pairs_per_second"], f"{training['pairs_per_second']:,.0f}"),
            number_cell(training["peak_memory"], size(training["peak_memory"])),
            number_cell(after, f"{before:.4f} → {after:.4f}", training["precision"]),
        ]
        body.append(cells)
    columns = ["variant", "examples", "steps", "seconds in steps", "pairs/s", "peak memory", "dev recall@10"]
    caption = (
        "What training took, and recall@10 on dev before and after; below it the precision of the arithmetic. "
        "Below a variant's name: the steps left out of it, as dev was lower for them."
    )
    return Table(caption, columns, [("", body)])


def reference_of(variants: Sequence[tuple[str, str, str]]) -> str | None:
    """Return the variant, of (name, recipe, base), that gains are counted from.

    It is the first pretrained one, of the first trained variant's base where there is such a one.
    """
    untrained = [(name, base) for name, recipe, base in variants if recipe == PRETRAINED]
    bases = [base for _, recipe, base in variants if recipe != PRETRAINED][:1]
    return min(untrained, key=lambda one: one[1] not in bases, default=(None, ""))[0]


def value_cell(figure: Mapping[str, Any], below: str) -> Cell:
    """Return the cell of a row's value, with `below` in small print."""
    return Cell(f"{figure['value']:.4f}", below, figure["value"])


def _distinct(rows: pl.DataFrame, column: str) -> list[Any]:
    return rows[column].unique(maintain_order=True).to_list()
