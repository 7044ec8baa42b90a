"""Groups of test queries (short, exact, unseen ...) and every measure on each, so that no loss hides in a mean."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling.evaluation.qrels import Qrels
from nestling.evaluation.significance import MEANS, means_by
from nestling.judgments.identity import normalise
from nestling.judgments.table import Judgments

FULL = 0.2
"""Share of the queries at which a band of counts is full; a last one of less than half of that joins the one before."""

SEEN = "relevant documents in training"
"""The kind of slice that tells queries apart whose answers training knew."""

SCHEMA = {"query_id": pl.String, "slice": pl.String, "label": pl.String}
_WORD = re.compile(r"\w+")

Groups = tuple[NDArray[np.int64], list[str]]
"""The number of each query's group, (n_queries,), and the names of the groups in order."""


def slices_of(qrels: Qrels, *, train: Judgments | None = None) -> pl.DataFrame:
    """Return the groups that each query belongs to, one of each kind.

    The kinds, each with its labels in order:

    - "query length": words between white space. Bands adapt to the queries, so that each holds a fifth of them or more
      where counts allow: "1-2 words", "3 words", "4 or more words".
    - "relevant documents": how many the query has, in bands as well.
    - "word overlap": share of the query's distinct words (runs of letters and digits of the normalised text, not
      stemmed) that a relevant document holds, mean over its relevant documents. High where BM25 does well.
    - "query in training": "seen" when a training record has the same normalised query, else "new".
    - "relevant documents in training": "all seen", "some seen" or "none seen", by id or by normalised text.

    A kind that puts every query under one label is left out: so the last two on a split whose sides share nothing, and
    the second with protocol "per-pair". Without `train`, the data that models were trained on, the last two are too.
    Columns are as `SCHEMA`, rows in the order of kinds, labels and `qrels`.
    """
    keys = [normalise(query) for query in qrels.queries]
    kinds: dict[str, Groups] = {
        "query length": _bands(np.array([len(key.split()) for key in keys]), "word"),
        "relevant documents": _bands(qrels.n_relevant, "document"),
        "word overlap": (
            _steps(_overlap(keys, qrels), 0.5),
            ["no word", "less than half of the words", "half of the words or more", "every word"],
        ),
    }
    if train is not None:
        known = set(train.query_keys)
        kinds["query in training"] = np.array([key not in known for key in keys], dtype=np.int64), ["seen", "new"]
        ids, texts = set(train.frame["document_id"]), set(train.document_keys)
        corpus = zip(qrels.document_ids, qrels.documents, strict=True)
        seen = np.array([name in ids or normalise(text) in texts for name, text in corpus], dtype=np.float64)
        shares = _mean_over_relevant(seen[qrels.relevant_columns], qrels)
        kinds[SEEN] = 2 - _steps(shares), ["all seen", "some seen", "none seen"]
    rows = [
        (qrels.query_ids[row], kind, labels[groups[row]])
        for kind, (groups, labels) in kinds.items()
        if len(np.unique(groups)) > 1
        for row in np.argsort(groups, kind="stable")
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def slice_table(per_query: pl.DataFrame, slices: pl.DataFrame) -> pl.DataFrame:
    """Return the mean of every measure on every group, with its bootstrap interval over the group's queries.

    `per_query` has a row for each system and query: `query_id`, `query`, one floating-point column a measure, and
    further columns (variant, dim ...) that together name the system. A group without a query in it is left out.
    """
    system = per_query.select(pl.selectors.exclude("query_id", "query", pl.selectors.float()))
    columns: dict[str, Any] = {"slice": pl.String, "label": pl.String, "queries": pl.Int64, **system.schema, **MEANS}
    tables = [pl.DataFrame(schema=columns)]
    for (kind, label), group in slices.group_by("slice", "label", maintain_order=True):
        of_group = per_query.filter(pl.col("query_id").is_in(group["query_id"].implode()))
        if of_group.height:
            named = means_by(of_group, system.columns).with_columns(slice=pl.lit(kind), label=pl.lit(label))
            tables.append(named.select(list(columns)))
    return pl.concat(tables)


def _bands(counts: NDArray[np.int64], noun: str) -> Groups:
    """Put neighbouring counts together until a band is full."""
    bands: list[list[int]] = [[]]
    size = 0
    for count, queries in zip(*(column.tolist() for column in np.unique(counts, return_counts=True)), strict=True):
        if size >= FULL * len(counts):
            bands.append([])
            size = 0
        bands[-1].append(count)
        size += queries
    if len(bands) > 1 and size < FULL / 2 * len(counts):
        last = bands.pop()
        bands[-1] += last
    names = []
    for first, *rest in bands:
        span = f"{first}" if not rest else f"{first} or more" if first == bands[-1][0] else f"{first}-{rest[-1]}"
        names.append(f"{span} {noun}" if span == "1" else f"{span} {noun}s")
    return np.searchsorted([band[0] for band in bands], counts, side="right") - 1, names


def _steps(shares: NDArray[np.float64], *between: float) -> NDArray[np.int64]:
    """Number shares from 0: that of 0, those up to each bound in between, those below 1, and that of 1."""
    # A mean of thirds may miss a bound by rounding.
    slack = 1e-9
    return np.searchsorted([slack, *(bound - slack for bound in (*between, 1.0))], shares).astype(np.int64)


def _overlap(keys: list[str], qrels: Qrels) -> NDArray[np.float64]:
    shares = np.zeros(len(qrels.relevant_columns))
    for row, key in enumerate(keys):
        words = set(_WORD.findall(key))
        for entry in range(qrels.relevant_indptr[row], qrels.relevant_indptr[row + 1]):
            document = _WORD.findall(normalise(qrels.documents[qrels.relevant_columns[entry]]))
            shares[entry] = len(words.intersection(document)) / max(1, len(words))
    return _mean_over_relevant(shares, qrels)


def _mean_over_relevant(entries: NDArray[np.float64], qrels: Qrels) -> NDArray[np.float64]:
    return np.asarray(np.add.reduceat(entries, qrels.relevant_indptr[:-1]) / qrels.n_relevant)
