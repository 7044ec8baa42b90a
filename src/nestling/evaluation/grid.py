"""The long table of results: one model's embeddings, searched in every cell of the grid and measured by query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from nestling.errors import InputError
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell
from nestling.evaluation.measures import Measure, Ranking
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.significance import interval
from nestling.retrieval.fusion import Top

CELL = {
    "dim": pl.Int64,
    "precision": pl.String,
    "rotation": pl.String,
    "oversampling": pl.Int64,
    "bytes": pl.Int64,
}
"""Columns that say which cell a row is of; `dim` and `bytes` are 0 where no embedding is stored, as for BM25."""
SCHEMA = {
    "variant": pl.String,
    **CELL,
    "measure": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "queries": pl.Int64,
}
RANKED = {
    "dim": pl.Int64,
    "query_id": pl.String,
    "rank": pl.Int64,
    "document_id": pl.String,
    "score": pl.Float64,
}
SHOWN = 10
"""Documents of a ranking that are kept for people to look at."""
NOT_MEASURES = ("variant", *CELL, "query_id", "query")


class System(NamedTuple):
    """What is measured of one system: a model, its fusion with BM25, or a ranking without embeddings.

    Attributes:
        per_query: the columns of `CELL`, then `query_id`, `query`, and one a measure; a row for each cell and query.
        ranked: the documents on top in the plain float32 cells, rows of `RANKED`.
    """

    per_query: pl.DataFrame
    ranked: pl.DataFrame


def sizes_of(full: int, dims: Sequence[int] | None) -> tuple[int, ...]:
    """Return the sizes of a model of `full` dims: its own, then those of `dims` below it.

    Args:
        dims: by default a half, a quarter and an eighth of the model's own, rounded down, of 1 or more.

    Raises:
        InputError: one of `dims` is larger than the model's embedding.
    """
    if dims is None:
        dims = [full // part for part in (2, 4, 8) if full >= part]
    larger = [dim for dim in dims if dim > full]
    if larger:
        raise InputError(f"size {larger[0]} is larger than the model's {full} dims; give sizes of {full} or less")
    return (full, *(dim for dim in dims if dim < full))


def measure_cells(
    vectors: Vectors, qrels: Qrels, cells: Sequence[Cell], measures: Sequence[Measure], fitted: Fitted
) -> System:
    """Search in every cell and measure each query.

    Args:
        vectors: embeddings of the queries and documents of `qrels`.
        fitted: what rotations and codecs are fitted with.
    """
    deepest = max(measure.k for measure in measures)
    tops = ((cell, CellSearch.make(cell, vectors, fitted).top(deepest)) for cell in cells)
    return measure_tops(tops, qrels, measures)


def measure_tops(tops: Iterable[tuple[Cell | None, Top]], qrels: Qrels, measures: Sequence[Measure]) -> System:
    """Measure what cells (None: without embeddings) found, each query by itself."""
    tables, ranked_tables = [], [pl.DataFrame(schema=RANKED)]
    for cell, top in tops:
        tables.append(by_query(cell, top[0], qrels, measures))
        if cell is None or cell == Cell(cell.dim):
            ranked_tables.append(ranked(cell, top, qrels))
    return System(pl.concat(tables), pl.concat(ranked_tables))


def by_query(cell: Cell | None, ranking: Ranking, qrels: Qrels, measures: Sequence[Measure]) -> pl.DataFrame:
    """Return one ranking's figures by query, in the columns of `System.per_query`.

    Args:
        cell: how documents were stored; None where there are no embeddings.
        ranking: (n_queries, depth) int64, as `Measure.per_query` takes it.
    """
    values = {str(measure): measure.per_query(ranking, qrels) for measure in measures}
    where = (cell.dim, cell.precision, cell.rotation, cell.oversampling, cell.bytes) if cell else (0, "", "none", 0, 0)
    return pl.DataFrame({"query_id": list(qrels.query_ids), "query": list(qrels.queries), **values}).select(
        *(pl.lit(value, dtype=kind).alias(name) for value, (name, kind) in zip(where, CELL.items(), strict=True)),
        pl.all(),
    )


def ranked(cell: Cell | None, top: Top, qrels: Qrels) -> pl.DataFrame:
    """Return the first `SHOWN` documents of each query as rows of `RANKED`; ranks count from 1."""
    indices, scores = top[0][:, :SHOWN], top[1][:, :SHOWN]
    rows, places = np.nonzero(indices >= 0)
    return pl.DataFrame(
        {
            "dim": np.full(len(rows), cell.dim if cell else 0, dtype=np.int64),
            "query_id": np.array(qrels.query_ids, dtype=object)[rows].tolist(),
            "rank": places + 1,
            "document_id": np.array(qrels.document_ids, dtype=object)[indices[rows, places]].tolist(),
            "score": scores[rows, places].astype(np.float64),
        },
        schema=RANKED,
    )


def measures_in(per_query: pl.DataFrame) -> list[str]:
    """Return the names of the measures that a table by query holds."""
    return [name for name in per_query.columns if name not in NOT_MEASURES]


def summarise(variant: str, per_query: pl.DataFrame) -> pl.DataFrame:
    """Return means over queries and their bootstrap intervals of 95 %, as rows of `SCHEMA` in the order given."""
    measures = measures_in(per_query)
    cells, values = [], []
    for cell, table in per_query.group_by(list(CELL), maintain_order=True):
        cells.append((cell, table.height))
        values.append(table.select(measures).to_numpy().T)
    low, high = interval(np.concatenate(values))
    bounds = iter(zip(low.tolist(), high.tolist(), strict=True))
    rows = [
        (variant, *cell, measure, float(figures.mean()), *next(bounds), n_queries)
        for (cell, n_queries), table in zip(cells, values, strict=True)
        for measure, figures in zip(measures, table, strict=True)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
