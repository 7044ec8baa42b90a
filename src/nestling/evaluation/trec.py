"""TREC runs of any engine: lines `query Q0 document rank score tag` in UTF-8, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.files import read_bytes

RUN_FIELDS = ("query_id", "Q0", "document_id", "rank", "score", "tag")

# What trec_eval splits at.
_SPACE = r"[ \t\r\x0b\x0c]"


class RunRanking(NamedTuple):
    """A run as a ranking of the corpus, (n_queries, depth) int64, for `Measure.per_query`, and what did not fit.

    -1 pads a row, and stands between documents where the run has one outside the corpus: not relevant, but it takes its
    place. Unknown queries are dropped; every measure of missing ones is 0, as with trec_eval -c.
    """

    ranking: NDArray[np.int64]
    unknown_queries: int
    missing_queries: int
    unknown_documents: int


def read_run(path: Path) -> pl.DataFrame:
    """Read a run and rank it anew, as trec_eval does: by falling score in single precision, then by falling id.

    Columns are query_id, document_id, rank (from 1), score, tag; queries in the order of the file, best first.
    """
    frame = _read(path)
    scores = frame["score"].cast(pl.Float64, strict=False)
    _refuse(path, frame, ~scores.is_finite().fill_null(False), "score", "not a finite number")
    frame = frame.with_columns(scores.alias("score"), pl.col("number").min().over("query_id").alias("first"))
    frame = frame.sort(
        "first", pl.col("score").cast(pl.Float32), "document_id", descending=[False, True, True], nulls_last=True
    )
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("query_id").alias("rank")
    return frame.select("query_id", "document_id", rank, "score", "tag")


def run_to_ranking(run: pl.DataFrame, qrels: Qrels, *, depth: int) -> RunRanking:
    """Put a run of `read_run` into the rows and columns of qrels, `depth` places of it.

    Documents of equal text are one in qrels: the first of them in the run counts, and the others take no place. Where
    the corpus has fewer documents than a measure's k, documents outside it can push others out that trec_eval counts.
    """
    rows = pl.DataFrame({"query_id": qrels.query_ids, "row": np.arange(qrels.n_queries)})
    columns = pl.DataFrame(
        list(qrels.column_of.items()), schema={"document_id": pl.String, "column": pl.Int64}, orient="row"
    )
    known = run.join(rows, on="query_id").join(columns, on="document_id", how="left")
    if known.is_empty():
        queries = f"it has {run['query_id'][0]!r}" if run.height else "it is empty"
        raise InputError(
            f"none of the run's queries is in the qrels: {queries}, they have {qrels.query_ids[0]!r}; "
            "make the run for the query ids of these qrels"
        )
    again = pl.col("column").is_not_null() & pl.struct("row", "column").is_first_distinct().not_()
    known = known.sort("row", "rank").filter(~again)
    known = known.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("row").alias("rank"))
    ranking = np.full((qrels.n_queries, depth), -1, dtype=np.int64)
    top = known.filter(pl.col("rank") <= depth)
    ranking[top["row"].to_numpy(), top["rank"].to_numpy() - 1] = top["column"].fill_null(-1).to_numpy()
    n_known = known["row"].n_unique()
    unknown_documents = known.filter(pl.col("column").is_null())["document_id"].n_unique()
    return RunRanking(ranking, run["query_id"].n_unique() - n_known, qrels.n_queries - n_known, unknown_documents)


def _read(path: Path) -> pl.DataFrame:
    """Return the fields of each line as text, with its `number` in the file; every (query, document) is there once."""
    data = read_bytes(path, str(path))
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: cannot be unpacked as gzip ({error}); fetch or write it again") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: is not UTF-8; convert the file to UTF-8") from None
    lines = pl.DataFrame({"line": pl.Series([text]).str.split("\n").explode()}).with_row_index("number", offset=1)
    lines = lines.with_columns(pl.col("line").str.replace_all(f"{_SPACE}+", " ").str.strip_chars(" "))
    lines = lines.filter(pl.col("line") != "")
    if lines.is_empty():
        raise InputError(f"{path}: holds no lines; a line reads {' '.join(RUN_FIELDS)}")
    parts = lines.select("number", pl.col("line").str.split_exact(" ", len(RUN_FIELDS)).struct.unnest())
    frame = parts.rename({f"field_{i}": name for i, name in enumerate(RUN_FIELDS)})
    wrong = parts[f"field_{len(RUN_FIELDS) - 1}"].is_null() | parts[f"field_{len(RUN_FIELDS)}"].is_not_null()
    if wrong.any():
        number, line = lines.filter(wrong).row(0)
        raise InputError(
            f"{path}, line {number}: {line[:60]!r} has {len(line.split(' '))} fields, not the {len(RUN_FIELDS)} of "
            f"{' '.join(RUN_FIELDS)}"
        )
    again = frame.select(pl.struct("query_id", "document_id").is_first_distinct().not_()).to_series()
    _refuse(path, frame, again, "document_id", "there for the second time under its query")
    return frame


def _refuse(path: Path, frame: pl.DataFrame, wrong: pl.Series, field: str, why: str) -> None:
    if wrong.any():
        number, value = frame.filter(wrong).select("number", field).row(0)
        raise InputError(f"{path}, line {number}: the {field} {value[:40]!r} is {why}; mend or remove the line")
