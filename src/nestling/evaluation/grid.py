"""The grid's sizes, and what is measured in its cells: one model's figures by query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.evaluation.measures import Measure, Ranking
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.significance import MEANS
from nestling.retrieval.fusion import Top

CELL = {
    "dim": pl.Int64,
    "precision": pl.String,
    "rotation": pl.String,
    "oversampling": pl.Int64,
    "bytes": pl.Int64,
}
"""Columns that name the cell of a row."""
NO_CELL = (0, "", "none", 0, 0)
"""Values of `CELL` where no embedding is stored, as for BM25."""
SCHEMA = {"variant": pl.String, **CELL, **MEANS}
RANKED = {"dim": pl.Int64, "query_id": pl.String, "rank": pl.Int64, "document_id": pl.String, "score": pl.Float64}
SHOWN = 10
"""Documents of a ranking that are kept for people to look at."""


class System(NamedTuple):
    """Figures of one system: a model, its fusion with BM25, or a ranking without embeddings."""

    per_query: pl.DataFrame
    """The columns of `CELL`, then `query_id`, `query`, and one a measure; a row for each cell and query."""
    ranked: pl.DataFrame
    """The documents on top in the plain float32 cells, columns as `RANKED`."""

    @classmethod
    def of(cls, tops: Iterable[tuple[Cell | None, Top]], qrels: Qrels, measures: Sequence[Measure]) -> System:
        """Measure the best documents that cells (None: without embeddings) give, each query by itself."""
        tables, rankings = [], [pl.DataFrame(schema=RANKED)]
        for cell, top in tops:
            tables.append(by_query(cell, top[0], qrels, measures))
            if cell is None or cell == Cell(cell.dim):
                rankings.append(_ranked(cell, top, qrels))
        return cls(pl.concat(tables), pl.concat(rankings))


def by_query(cell: Cell | None, ranking: Ranking, qrels: Qrels, measures: Sequence[Measure]) -> pl.DataFrame:
    """Return the figures by query of one ranking, as `Measure.per_query` takes it."""
    values = {str(measure): measure.per_query(ranking, qrels) for measure in measures}
    columns = zip(cell.row if cell else NO_CELL, CELL.items(), strict=True)
    return pl.DataFrame({"query_id": qrels.query_ids, "query": qrels.queries, **values}).select(
        *(pl.lit(value, dtype=dtype).alias(name) for value, (name, dtype) in columns), pl.all()
    )


def _ranked(cell: Cell | None, top: Top, qrels: Qrels) -> pl.DataFrame:
    """Return the first `SHOWN` documents of each query; ranks count from 1."""
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


def sizes_of(full: int, dims: Sequence[int] | None) -> tuple[int, ...]:
    """Return the sizes of a model of `full` dims: its own, then those of `dims` (a half, quarter, eighth) below it."""
    if dims is None:
        dims = [full // part for part in (2, 4, 8) if full >= part]
    larger = [dim for dim in dims if dim > full]
    if larger:
        raise InputError(f"size {larger[0]} is larger than the model's {full} dims; give sizes of {full} or less")
    return (full, *(dim for dim in dims if dim < full))
