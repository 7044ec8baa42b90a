"""Models x dims -> one long table of results, each model encoding corpus and queries once for all its sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from nestling.errors import InputError
from nestling.evaluation.embed import embed, truncate
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.retrieve import top_k

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SCHEMA = {
    "variant": pl.String,
    "dim": pl.Int64,
    "precision": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
    "queries": pl.Int64,
}

Progress = Callable[[int, int], None]
"""Told (texts encoded, texts in all)."""


@dataclass(frozen=True)
class Measured:
    """One model's figures.

    Attributes:
        full: the model's own embedding size.
        per_query: columns `dim`, `query_id`, `query`, then one a measure; a row for each size and query.
        texts: how many distinct texts were encoded, in `seconds`.
    """

    full: int
    per_query: pl.DataFrame
    texts: int
    seconds: float


def sizes_of(full: int, dims: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes to measure a model of `full` dims at: its own, then those of `dims` below it.

    Raises:
        InputError: one of `dims` is larger than the model's embedding.
    """
    larger = [dim for dim in dims if dim > full]
    if larger:
        raise InputError(f"size {larger[0]} is larger than the model's {full} dims; give sizes of {full} or less")
    return (full, *(dim for dim in dims if dim < full))


def measure_model(
    model: SentenceTransformer,
    qrels: Qrels,
    dims: Sequence[int],
    measures: Sequence[Measure],
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Measured:
    """Measure a model at its full size and at each of `dims` (truncated, then normalised again), in float32.

    Args:
        qrels: queries, corpus and what is relevant.
        dims: sizes of at most the model's.

    Raises:
        InputError: a size is larger than the model's.
    """
    full = int(model.get_embedding_dimension() or 0)
    sizes = sizes_of(full, dims)
    deepest = max(measure.k for measure in measures)
    n_queries, n_documents = len(set(qrels.queries)), len(set(qrels.documents))
    total = n_queries + n_documents
    start = time.perf_counter()
    queries = embed(
        model,
        qrels.queries,
        kind="query",
        batch_size=batch_size,
        progress=progress and (lambda done, _: progress(done, total)),
    )
    documents = embed(
        model,
        qrels.documents,
        kind="document",
        batch_size=batch_size,
        progress=progress and (lambda done, _: progress(n_queries + done, total)),
    )
    seconds = time.perf_counter() - start
    tables = []
    for dim in sizes:
        ranking, _ = top_k(truncate(queries, dim), truncate(documents, dim), deepest)
        values = {str(measure): measure.per_query(ranking, qrels) for measure in measures}
        tables.append(
            pl.DataFrame({"query_id": list(qrels.query_ids), "query": list(qrels.queries), **values}).select(
                pl.lit(dim, dtype=pl.Int64).alias("dim"), pl.all()
            )
        )
    return Measured(full, pl.concat(tables), total, seconds)


def summarise(variant: str, per_query: pl.DataFrame) -> pl.DataFrame:
    """Return the means over queries as rows of `SCHEMA`: sizes falling, measures in the order of the columns."""
    measures = [name for name in per_query.columns if name not in ("dim", "query_id", "query")]
    rows = [
        {
            "variant": variant,
            "dim": int(dim),
            "precision": "float32",
            "measure": measure,
            "value": float(table[measure].mean()),  # type: ignore[arg-type]
            "queries": table.height,
        }
        for (dim,), table in per_query.group_by("dim", maintain_order=True)
        for measure in measures
    ]
    return pl.DataFrame(rows, schema=SCHEMA)
