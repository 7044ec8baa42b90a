"""TREC runs and qrels, so that any engine's ranking can be measured here and ours by trec_eval and its like.

A run has lines `query Q0 document rank score tag`, a qrels file `query 0 document relevance`; fields are separated by
white space, files are UTF-8, plain or gzipped.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from nestling import atomic
from nestling.errors import InputError
from nestling.evaluation.qrels import Qrels
from nestling.judgments.files import read_bytes

RUN_FIELDS = ("query_id", "Q0", "document_id", "rank", "score", "tag")
QRELS_FIELDS = ("query_id", "0", "document_id", "relevance")
DEPTH = 100
LARGEST_FACTOR = 1000
LEVELS = 10_000
"""trec_eval keeps a counter for each relevance up to the highest, so a million of them would cost it its speed."""

# What trec_eval splits at, and all that some reader may split at or stumble over.
_SPACE = r"[ \t\r\x0b\x0c]"
_UNFIT = r"[\s\x00-\x1f\x7f-\x9f\x{feff}]|^$"


@dataclass(frozen=True, eq=False)
class RunRanking:
    """A run as a ranking of the corpus, and what of it the qrels do not know.

    Attributes:
        ranking: (n_queries, depth) int64, document columns, best first, for `Measure.per_query`. -1 pads a row, and
            stands between documents where the run has one outside the corpus: not relevant, but it takes its place.
        unknown_queries: queries of the run that the qrels lack; they are dropped.
        missing_queries: queries of the qrels that the run lacks; their rows are empty, and every measure of them is 0,
            as with trec_eval -c.
        unknown_documents: distinct documents of the run, for queries that the qrels have, that the corpus lacks.
    """

    ranking: NDArray[np.int64]
    unknown_queries: int
    missing_queries: int
    unknown_documents: int


def read_run(path: Path) -> pl.DataFrame:
    """Read a run and rank it anew, as trec_eval does: its rank column is not looked at.

    The order is by falling score, in single precision; equal scores break by falling document id, compared by code
    points.

    Returns:
        query_id, document_id, rank (Int64 from 1), score (Float64), tag. Queries in the order of the file, best first.

    Raises:
        InputError: there is no such file, a line is malformed, a score is not a finite number, or a document is twice
            in one query's list.
    """
    frame = _read(path, RUN_FIELDS)
    scores = frame["score"].cast(pl.Float64, strict=False)
    _refuse(path, frame, ~scores.is_finite().fill_null(False), "score", "not a finite number")
    frame = frame.with_columns(scores.alias("score"), pl.col("number").min().over("query_id").alias("first"))
    frame = frame.sort(
        "first", pl.col("score").cast(pl.Float32), "document_id", descending=[False, True, True], nulls_last=True
    )
    return frame.select(
        "query_id",
        "document_id",
        (pl.int_range(pl.len(), dtype=pl.Int64).over("query_id") + 1).alias("rank"),
        "score",
        "tag",
    )


def write_run(
    ranking: NDArray[np.int64], qrels: Qrels, path: Path, *, scores: ArrayLike | None = None, tag: str = "nestling"
) -> None:
    """Write a ranking as a run, gzipped where the path ends in .gz, so that every reader finds the same order.

    Readers sort by score, and trec_eval breaks ties by falling document id where rankings here break them by rising id.
    Scores are therefore rounded to single precision, and one that does not fall below the one before it is lowered to
    the next number that does.

    Args:
        ranking: (n_queries, depth) int64, document columns of `qrels`, best first; -1 pads a row at its end.
        scores: the same shape, finite, not rising along a row; by default depth, depth - 1, ... 1.
        tag: the name of the system, without white space.

    Raises:
        InputError: an id or the tag is empty or holds white space or a control character.
        ValueError: shapes do not fit, a column is outside the corpus, -1 stands between documents, or scores rise
            along a row or do not fit single precision.
    """
    if ranking.ndim != 2 or len(ranking) != qrels.n_queries:
        raise ValueError(f"a ranking of shape {ranking.shape} does not fit {qrels.n_queries} queries")
    if ranking.min(initial=-1) < -1 or ranking.max(initial=-1) >= qrels.n_documents:
        raise ValueError(f"the ranking names a document outside the {qrels.n_documents} of the corpus")
    real = ranking >= 0
    if (real[:, 1:] & ~real[:, :-1]).any():
        raise ValueError("the ranking has -1 before a document; a run has no line for an empty place")
    if scores is None:
        given = np.broadcast_to(np.arange(ranking.shape[1], 0, -1, dtype=np.float64), ranking.shape)
    else:
        given = np.asarray(scores, dtype=np.float64)
    falling = _falling(given, real)
    rows, places = np.nonzero(real)
    queries = pl.Series(qrels.query_ids, dtype=pl.String)
    documents = pl.Series(qrels.document_ids, dtype=pl.String)
    frame = pl.DataFrame(
        {
            "query_id": queries.gather(rows),
            "Q0": pl.repeat("Q0", len(rows), eager=True),
            "document_id": documents.gather(ranking[rows, places]),
            "rank": places + 1,
            "score": falling[rows, places],
            "tag": pl.repeat(tag, len(rows), eager=True),
        }
    )
    _write(frame, path)


def run_to_ranking(run: pl.DataFrame, qrels: Qrels, *, depth: int = DEPTH) -> RunRanking:
    """Put a run into the rows and columns of qrels, so that it is measured as a ranking of ours.

    Documents of equal text are one in qrels: the first of them in the run counts, and the others take no place.

    Where the corpus has fewer documents than a measure's k, the measure looks no deeper than the corpus is large, so
    documents outside the corpus can there push others out that trec_eval still counts.

    Args:
        run: query_id, document_id and rank (from 1, none twice in a query), as `read_run` returns them.
        qrels: with the query ids that the run was made for.
        depth: how many places to keep; at least the largest k of the measures.

    Raises:
        InputError: no query of the run is in the qrels.
        ValueError: `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, got {depth}")
    rows = pl.DataFrame({"query_id": qrels.query_ids, "row": np.arange(qrels.n_queries)})
    columns = pl.DataFrame(
        {"document_id": list(qrels.column_of), "column": list(qrels.column_of.values())},
        schema={"document_id": pl.String, "column": pl.Int64},
    )
    known = run.join(rows, on="query_id").join(columns, on="document_id", how="left")
    if known.is_empty():
        asked = f"it has {run['query_id'][0]!r}" if run.height else "it is empty"
        raise InputError(
            f"none of the run's queries is in the qrels: {asked}, they have {qrels.query_ids[0]!r}; "
            "make the run for the query ids of these qrels"
        )
    again = pl.col("column").is_not_null() & pl.struct("row", "column").is_first_distinct().not_()
    known = known.sort("row", "rank").filter(~again)
    known = known.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).over("row").alias("rank"))
    ranking = np.full((qrels.n_queries, depth), -1, dtype=np.int64)
    top = known.filter(pl.col("rank") <= depth)
    ranking[top["row"].to_numpy(), top["rank"].to_numpy() - 1] = top["column"].fill_null(-1).to_numpy()
    asked_queries = known["row"].n_unique()
    return RunRanking(
        ranking,
        unknown_queries=run["query_id"].n_unique() - asked_queries,
        missing_queries=qrels.n_queries - asked_queries,
        unknown_documents=known.filter(pl.col("column").is_null())["document_id"].n_unique(),
    )


def read_qrels(path: Path) -> pl.DataFrame:
    """Read a qrels file: query_id, document_id, relevance (Int64, at times negative), in the order of the file.

    Raises:
        InputError: there is no such file, a line is malformed, a relevance is not an integer, or a pair is
            judged twice.
    """
    frame = _read(path, QRELS_FIELDS)
    relevance = frame["relevance"].cast(pl.Int64, strict=False)
    _refuse(path, frame, relevance.is_null(), "relevance", "not an integer")
    return frame.select("query_id", "document_id", relevance)


def write_qrels(qrels: Qrels, path: Path, *, graded: bool = False) -> int:
    """Write the judged pairs as a qrels file, gzipped where the path ends in .gz.

    Binary: 1 for a relevant document, 0 for another judged one. Graded: the gain (score minus the lowest score of the
    scale) times the smallest integer that makes all gains integers, such as 3 for thirds and 100 for two decimals;
    where none does, they are rounded to `LEVELS` equal steps. nDCG does not change when all gains grow by one factor,
    so trec_eval's ndcg_cut of the graded file is `ndcg@k` here. Its other measures want the binary file, or the graded
    one and the returned level.

    Returns:
        The lowest relevance of a relevant document, which no other document reaches: trec_eval's `-l`.

    Raises:
        InputError: an id is empty or holds white space or a control character; or, graded, a document of the lowest
            score is relevant, which trec_eval cannot be told.
    """
    rows = np.repeat(np.arange(qrels.n_queries), np.diff(qrels.judged_indptr))
    relevant_rows = np.repeat(np.arange(qrels.n_queries), qrels.n_relevant)
    relevant = np.isin(
        rows * qrels.n_documents + qrels.judged_columns, relevant_rows * qrels.n_documents + qrels.relevant_columns
    )
    relevance = _integers(qrels.gains, relevant, path) if graded else relevant.astype(np.int64)
    frame = pl.DataFrame(
        {
            "query_id": pl.Series(qrels.query_ids, dtype=pl.String).gather(rows),
            "0": pl.repeat("0", len(rows), eager=True),
            "document_id": pl.Series(qrels.document_ids, dtype=pl.String).gather(qrels.judged_columns),
            "relevance": relevance,
        }
    )
    _write(frame, path)
    return int(relevance[relevant].min())


def _integers(gains: NDArray[np.float64], relevant: NDArray[np.bool_], path: Path) -> NDArray[np.int64]:
    if gains[relevant].min() <= 0:
        raise InputError(
            f"{path}: cannot grade documents of which some of the lowest score are relevant, as 0 is never relevant to "
            "trec_eval; write binary qrels or raise the threshold"
        )
    distinct = np.unique(gains)
    finest = LEVELS / distinct[-1]
    # Thirds come from files as 0.33333 and the like.
    slack = 1e-5 * min(1.0, distinct[-1])
    factors = range(1, int(min(LARGEST_FACTOR, finest)) + 1)
    factor = next((n for n in factors if np.abs(distinct * n - np.rint(distinct * n)).max() < slack), finest)
    integers = np.rint(gains * factor).astype(np.int64)
    # Two gains on either side of the threshold may round to one number.
    highest_other = int(integers[~relevant].max(initial=0))
    integers[relevant] += max(0, highest_other + 1 - int(integers[relevant].min()))
    return integers


def _falling(scores: NDArray[np.float64], real: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Round scores to float32, lowered where needed so that each is below the one before it in its row."""
    if scores.shape != real.shape:
        raise ValueError(f"scores of shape {scores.shape} do not fit a ranking of shape {real.shape}")
    with np.errstate(over="ignore"):
        single = np.where(real, scores, 0).astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError("a score is NaN, infinite or too large for single precision")
    if (np.where(real, scores, -np.inf)[:, 1:] > np.where(real, scores, -np.inf)[:, :-1]).any():
        raise ValueError("scores rise along a row, against the order of the ranking")
    # As integers, the floats of one sign stand in order, one apart; the negative ones are turned to join them.
    bits = single.view(np.int32).astype(np.int64)
    steps = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    places = np.arange(steps.shape[1])
    steps = np.minimum.accumulate(steps + places, axis=1) - places
    turned = np.where(steps < 0, -steps | -0x80000000, steps)
    return turned.astype(np.int32).view(np.float32)


def _read(path: Path, fields: tuple[str, ...]) -> pl.DataFrame:
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
        raise InputError(f"{path}: holds no lines; a line reads {' '.join(fields)}")
    parts = lines.select("number", pl.col("line").str.split_exact(" ", len(fields)).struct.unnest())
    frame = parts.rename({f"field_{i}": name for i, name in enumerate(fields)})
    wrong = parts[f"field_{len(fields) - 1}"].is_null() | parts[f"field_{len(fields)}"].is_not_null()
    if wrong.any():
        number, line = lines.filter(wrong).row(0)
        raise InputError(
            f"{path}, line {number}: {line[:60]!r} has {len(line.split(' '))} fields, not the {len(fields)} of "
            f"{' '.join(fields)}"
        )
    again = frame.select(pl.struct("query_id", "document_id").is_first_distinct().not_()).to_series()
    _refuse(path, frame, again, "document_id", "there for the second time under its query")
    return frame


def _refuse(path: Path, frame: pl.DataFrame, wrong: pl.Series, field: str, why: str) -> None:
    if wrong.any():
        number, value = frame.filter(wrong).select("number", field).row(0)
        raise InputError(f"{path}, line {number}: the {field} {value[:40]!r} is {why}; mend or remove the line")


def _write(frame: pl.DataFrame, path: Path) -> None:
    for name in frame.columns:
        if frame.schema[name] == pl.String:
            unfit = frame[name].unique(maintain_order=True)
            unfit = unfit.filter(unfit.str.contains(_UNFIT))
            if len(unfit):
                raise InputError(
                    f"{path}: the {name} {unfit[0][:40]!r} is empty or holds white space or a control character, which "
                    "a TREC file cannot; give other names"
                )
    with atomic.new_file(path) as temporary:
        if path.suffix == ".gz":
            # No name and no time in the header, so that equal contents make equal files.
            with (
                temporary.open("wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
            ):
                frame.write_csv(cast("IO[bytes]", packed), include_header=False, separator=" ", quote_style="never")
        else:
            frame.write_csv(temporary, include_header=False, separator=" ", quote_style="never")
