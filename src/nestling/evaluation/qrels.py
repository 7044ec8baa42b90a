"""Qrels: which documents are relevant to which queries, as rows and columns that retrieval and measures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.judgments.table import Judgments, is_relevant

Protocol = Literal["per-query", "per-pair"]
PROTOCOLS: tuple[Protocol, ...] = ("per-query", "per-pair")


@dataclass(frozen=True, eq=False)
class Qrels:
    """Queries (rows), a corpus (columns), and the judgments between them in compressed sparse rows.

    Row i's relevant documents are `relevant_columns[relevant_indptr[i]:relevant_indptr[i + 1]]`, in ascending order,
    and so for the judged ones. Columns order as document ids do, so a tie that breaks by column breaks by id.

    Documents of equal normalised text are one column: a model gives them one score, so which of them comes first would
    be chance. It has the first of their ids, and for each query the highest of their scores.

    Attributes:
        protocol: "per-query": records with the same normalised query are one query with all its relevant documents.
            "per-pair": each positive record is a query of its own, with that document alone judged.
        query_ids: unique; in "per-pair" the query's id, a slash and the document's id.
        gains: (n judged pairs,) float64: score minus the lowest score of the scale.
        column_of: the column of each document id of the table, those of merged documents too.
    """

    protocol: Protocol
    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: list[str]
    relevant_indptr: NDArray[np.int64]
    relevant_columns: NDArray[np.int64]
    judged_indptr: NDArray[np.int64]
    judged_columns: NDArray[np.int64]
    gains: NDArray[np.float64]
    column_of: dict[str, int]

    @classmethod
    def from_judgments(cls, judgments: Judgments, *, threshold: float, protocol: Protocol = "per-query") -> Qrels:
        """Build the qrels of a table; a document is relevant when its score is above the threshold.

        A query without a relevant document is no row; its documents stay in the corpus. Rows are sorted by normalised
        query, then (in "per-pair") by document id. InputError: no score is above the threshold.
        """
        if protocol not in PROTOCOLS:
            raise InputError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
        documents = (
            judgments.frame.select("document_id", "document", judgments.document_keys.alias("text"))
            .unique("document_id", keep="first", maintain_order=True)
            .sort("document_id")
        )
        corpus = documents.unique("text", keep="first", maintain_order=True).with_row_index("column")
        corpus = corpus.with_columns(pl.col("column").cast(pl.Int64))
        columns = documents.select("document_id", "text").join(
            corpus.select("text", "column", first="document_id"), on="text", maintain_order="left"
        )
        records = (
            judgments.frame.select("query_id", "query", "document_id", "score")
            .with_columns(judgments.query_keys.alias("key"))
            .join(columns.drop("text"), on="document_id", maintain_order="left")
            .with_columns(pl.col("score").max().over("key", "column"))
            .unique(["key", "column"], keep="first", maintain_order=True)
            .with_columns(
                pl.col("first").alias("document_id"),
                (pl.col("score") - judgments.scale[0]).alias("gain"),
                is_relevant(pl.col("score"), threshold).alias("relevant"),
            )
        )
        if not records["relevant"].any():
            low, high = judgments.scale
            best = float(judgments.frame["score"].to_numpy().max())
            raise InputError(
                f"{judgments.source}: none of {len(judgments)} records scores above the threshold {threshold:g} (the "
                f"highest score is {best:g}, the scale {low:g} to {high:g}), so no query has a relevant document; "
                "give a lower threshold"
            )
        if protocol == "per-pair":
            kept = records.filter("relevant").sort("key", "column", maintain_order=True).with_row_index("row")
            heads = kept.with_columns(pl.concat_str("query_id", "document_id", separator="/").alias("query_id"))
        else:
            heads = (
                records.filter(pl.col("relevant").any().over("key"))
                .unique("key", keep="first", maintain_order=True)
                .sort("key")
                .with_row_index("row")
            )
            kept = records.join(heads.select("key", "row"), on="key").sort("row", "column", maintain_order=True)

        n_queries = heads.height
        relevant = kept.filter("relevant")
        return cls(
            protocol=protocol,
            query_ids=_unique_ids(heads["query_id"].to_list()),
            queries=heads["query"].to_list(),
            document_ids=corpus["document_id"].to_list(),
            documents=corpus["document"].to_list(),
            relevant_indptr=_indptr(relevant["row"], n_queries),
            relevant_columns=relevant["column"].to_numpy(),
            judged_indptr=_indptr(kept["row"], n_queries),
            judged_columns=kept["column"].to_numpy(),
            gains=kept["gain"].to_numpy(),
            column_of=dict(columns.select("document_id", "column").iter_rows()),
        )

    @property
    def n_queries(self) -> int:
        """Number of rows."""
        return len(self.queries)

    @property
    def n_documents(self) -> int:
        """Number of columns."""
        return len(self.documents)

    @property
    def n_merged(self) -> int:
        """Number of document ids whose text is that of another."""
        return len(self.column_of) - self.n_documents

    @property
    def n_relevant(self) -> NDArray[np.int64]:
        """Relevant documents of each row, (n_queries,) int64, at least one."""
        return np.diff(self.relevant_indptr)

    @property
    def relevant(self) -> list[NDArray[np.int64]]:
        """Columns of each row's relevant documents."""
        return np.split(self.relevant_columns, self.relevant_indptr[1:-1])

    def ceiling(self, k: int) -> float:
        """Return the highest mean recall@k that any ranking can reach."""
        return float(np.mean(np.minimum(k, self.n_relevant) / self.n_relevant))


def _indptr(rows: pl.Series, n_rows: int) -> NDArray[np.int64]:
    counts = np.bincount(rows.to_numpy(), minlength=n_rows)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _unique_ids(ids: Sequence[str]) -> list[str]:
    # A source may give one id to queries that differ in text; as keys of a dict they would merge.
    taken = set(ids)
    unique: dict[str, None] = {}
    for name in ids:
        candidate, n = name, 1
        while candidate in unique or (n > 1 and candidate in taken):
            n += 1
            candidate = f"{name}#{n}"
        unique[candidate] = None
    return list(unique)
