"""A model card's figures: of the model by size, beside its base and BM25, with intervals and p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nestling.evaluation.significance import compare_all, holm
from nestling.report.page_data import PageData
from nestling.report.page_verdict import Change
from nestling.report.table import Cell, Table
from nestling.report.tables import Figure, bounds, label, p_value, plain, points


@dataclass(frozen=True)
class Rival:
    """What the variant is compared with; changes by (measure, dims of the variant), p corrected over the sizes."""

    name: str
    changes: dict[tuple[str, int], Change]


def figures_of(data: PageData, variant: str) -> dict[tuple[str, int], Figure]:
    rows = plain(data.results).filter(plain(data.results)["variant"] == variant).sort("dim", descending=True)
    found = {
        (measure, dim): Figure(value, None, low, high)
        for measure, dim, value, low, high in rows.select("measure", "dim", "value", "low", "high").iter_rows()
    }
    measures = data.study["experiment"]["evaluation"]["measures"]
    return {(measure, dim): found[measure, dim] for measure in measures for dim in data.dims[variant]}


def rival_of(data: PageData, variant: str, name: str) -> Rival:
    measures, theirs, full = data.study["experiment"]["evaluation"]["measures"], data.dims[name], data.dims[variant][0]
    # Each at its own full size first; what has no sizes, as BM25, stands against every size.
    sizes = {dim: theirs[0] if dim == full or theirs == [0] else dim for dim in data.dims[variant]}
    sizes = {dim: other for dim, other in sizes.items() if other in theirs}
    a, b = (
        np.concatenate([data.values(who, dim, measures) for dim in dims])
        for who, dims in ((name, sizes.values()), (variant, sizes))
    )
    cells = [(measure, dim) for dim in sizes for measure in measures]
    # In one call, since all share the draws; each measure is a question of its own.
    found = compare_all({name: a, variant: b}, measures=[f"{measure} {dim}" for measure, dim in cells], reference=name)
    changes = {}
    for n, measure in enumerate(measures):
        rows = found[n :: len(measures)]
        corrected = holm(rows["p"].to_numpy()).tolist()
        for dim, row, p in zip(sizes, rows.iter_rows(named=True), corrected, strict=True):
            at = cells.index((measure, dim))
            base, value = float(a[at].mean()), float(b[at].mean())
            changes[measure, dim] = Change(measure, base, value, row["low"], row["high"], p)
    return Rival(name, changes)


def results_table(data: PageData, figures: dict[tuple[str, int], Figure], rivals: Sequence[Rival]) -> Table:
    columns = ["dims", "this model"]
    for rival in rivals:
        columns += [rival.name, "difference", "p"]
    groups: dict[str, list[list[Cell]]] = {}
    for (measure, dim), figure in figures.items():
        cells = [Cell(f"{dim:,}"), Cell(f"{figure.value:.4f}", bounds(figure))]
        for rival in rivals:
            change = rival.changes.get((measure, dim))
            if change is None:
                cells += [Cell("–")] * 3
                continue
            interval = f"{points(change.low)} to {points(change.high)}"
            proof = "" if change.outcome != "open" else "not significant"
            cells += [
                Cell(f"{change.base:.4f}"),
                Cell(points(change.value - change.base), interval),
                Cell(p_value(change.p), proof),
            ]
        groups.setdefault(label(measure), []).append(cells)
    test = data.study["test"]
    caption = (
        f"On test: {test['queries']:,} queries, {test['documents']:,} documents, {test['protocol']}. Below each value "
        "its interval of 95 % over queries; differences in points of 100; p of a paired randomisation test, corrected "
        "for the number of sizes (Holm); the p further up is that of the study's report, corrected for its variants."
    )
    return Table(caption, columns, [True] * len(columns), list(groups.items()))
