"""Judgments: the one table of (query, document, score) that everything else reads, and the rules that clean it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from nestling.errors import InputError
from nestling.judgments.identity import VISIBLE, normalise

COLUMNS = ("query_id", "query", "document_id", "document", "score")
LARGEST = 1e30
"""Scores that are larger, either side of 0, overflow in means and in float32."""


def is_relevant(scores: Any, threshold: float) -> Any:
    """Return which scores, an array, a column or an expression, are those of relevant documents: the one rule."""
    return scores > threshold


@dataclass(frozen=True)
class Cleaning:
    """Counts of records that the rules of `Judgments.from_frame` dropped or merged."""

    read: int = 0
    empty: int = 0
    out_of_scale: int = 0
    retitled: int = 0
    duplicates: int = 0
    conflicts: int = 0

    @property
    def kept(self) -> int:
        """Records left after cleaning."""
        return self.read - self.empty - self.out_of_scale - self.duplicates

    def rules(self) -> list[tuple[str, int, str]]:
        """Return (what, how many, the rule that was applied) for each kind of flaw, also for those not met."""
        return [
            ("empty query or document", self.empty, "dropped"),
            ("score outside the scale", self.out_of_scale, "dropped"),
            ("document id with several texts", self.retitled, "the longest text stands for all its records"),
            ("duplicate of another pair", self.duplicates, "merged into one record"),
            ("pair with conflicting scores", self.conflicts, "merged, the mean score stands"),
        ]


@dataclass(frozen=True)
class Judgments:
    """Judged (query, document) pairs: clean, one record a pair, in an order that does not depend on the input's.

    Attributes:
        frame: columns `query_id`, `query`, `document_id`, `document` (strings) and `score` (float64), then any
            document fields. Sorted by normalised query, then document id. A pair is (normalised query, document id).
        scale: lowest and highest score that a rater can give.
        notes: a line for each thing about the reading that a person should know.
    """

    frame: pl.DataFrame
    scale: tuple[float, float]
    source: str = "memory"
    cleaning: Cleaning = field(default_factory=Cleaning)
    encoding: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_frame(
        cls,
        frame: pl.DataFrame,
        *,
        scale: tuple[float, float] | None = None,
        source: str = "memory",
        encoding: str | None = None,
        score_name: str = "score",
        notes: tuple[str, ...] = (),
    ) -> Judgments:
        """Clean a table with at least the columns `query`, `document` and `score`.

        A missing or empty `query_id` or `document_id` is derived from the normalised text, `score` may be text that
        reads as numbers (`score_name` names it in messages), further columns are document fields. The scale is by
        default the lowest and highest score seen, or 0 and the score where all scores are the same.
        """
        missing = [name for name in ("query", "document", "score") if name not in frame.columns]
        if missing:
            raise InputError(f"{source}: no column {missing[0]!r}; it has {', '.join(frame.columns) or 'no columns'}")
        if frame.is_empty():
            raise InputError(f"{source}: holds no records; give a file with at least one judged pair")
        numbers = _numbers(frame["score"], source, score_name)
        every = frame.with_columns(numbers, pl.col("query", "document").cast(pl.String).fill_null(""))
        full = every.filter(pl.all_horizontal(pl.col("query", "document").str.contains(VISIBLE)))
        if full.is_empty():
            raise InputError(f"{source}: every one of its {every.height} records has an empty query or document")
        low, high = scale = _scale(full["score"], scale, source)
        frame = full.filter(pl.col("score").is_between(low, high))
        if frame.is_empty():
            what = f"no score lies on the scale {low:g} to {high:g}"
            raise InputError(f"{source}: {what}; give the scale that raters used")
        out_of_scale = full.height - frame.height

        for role in ("query", "document"):
            column = f"{role}_id"
            given = pl.col(column).cast(pl.String).fill_null("") if column in frame.columns else pl.lit("")
            frame = with_ids(frame.with_columns(given.alias(column)), role)
        fields = [name for name in frame.columns if name not in COLUMNS]
        longest, retitled = longest_texts(frame)
        frame = frame.drop("document").join(longest, on="document_id", how="left").select(*COLUMNS, *fields)
        frame, duplicates, conflicts = _one_record_a_pair(frame, fields)
        cleaning = Cleaning(every.height, every.height - full.height, out_of_scale, retitled, duplicates, conflicts)
        return cls(frame, scale, source, cleaning, encoding, notes)

    def __len__(self) -> int:
        return self.frame.height

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the document fields: brand, size and whatever else the source has."""
        return tuple(name for name in self.frame.columns if name not in COLUMNS)

    @property
    def one_score(self) -> bool:
        """Whether every record has the same score, as data of positives alone has."""
        return self.frame["score"].n_unique() == 1

    @cached_property
    def query_keys(self) -> pl.Series:
        """The normalised query of each record: records that share it are one query."""
        return normalised(self.frame["query"])

    @cached_property
    def document_keys(self) -> pl.Series:
        """The normalised document text of each record."""
        return normalised(self.frame["document"])

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any id, text or score does, and not with the order of the input."""
        digest = hashlib.blake2b(digest_size=8)
        for row in self.frame.select(COLUMNS).iter_rows():
            digest.update("\x1f".join(map(str, row)).encode() + b"\x1e")
        return digest.hexdigest()

    def relevant(self, threshold: float) -> np.ndarray:
        """Return which records' documents are relevant, (n_records,) bool: those with a score above the threshold."""
        return np.asarray(is_relevant(self.frame["score"].to_numpy(), threshold))

    def take(self, rows: np.ndarray | Sequence[int]) -> Judgments:
        """Return the records with these row numbers, in the table's own order."""
        return replace(self, frame=self.frame[np.sort(np.asarray(rows, dtype=np.int64))])

    def sample(self, n: int, *, seed: int) -> Judgments:
        """Return `n` records drawn at random without replacement; the same ones whatever the order of the input."""
        if not 1 <= n <= len(self):
            what = f"cannot take {n} of its {len(self)} records"
            raise InputError(f"{self.source}: {what}; give --records 1 to {len(self)}")
        return self.take(np.random.default_rng(seed).permutation(len(self))[:n])

    def above(self, threshold: float) -> Judgments:
        """Return the records whose documents are relevant: the positives."""
        return self.take(np.flatnonzero(self.relevant(threshold)))


def _numbers(scores: pl.Series, source: str, name: str) -> pl.Series:
    numbers = scores.cast(pl.Float64, strict=False).alias("score")
    values = numbers.fill_null(math.nan).to_numpy()
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST))
    if not bad.size:
        return numbers
    row = int(bad[0])
    why = f"beyond {LARGEST:g}" if np.isfinite(values[row]) else "not a number"
    text = "" if scores[row] is None else str(scores[row])
    what = f"is {text[:40]!r}, {why}" if text.strip() else "is empty"
    more = f" ({bad.size} such rows)" if bad.size > 1 else ""
    raise InputError(
        f"{source}, row {row + 1} after the header, column {name!r}: the score {what}{more}; "
        "mend or remove the row, or name the right column with --score"
    )


def _scale(scores: pl.Series, given: tuple[float, float] | None, source: str) -> tuple[float, float]:
    low, high = given or (float(scores.min()), float(scores.max()))  # type: ignore[arg-type]
    if low == high and given is None:
        low = 0.0 if high > 0 else high - 1
    if not -LARGEST <= low < high <= LARGEST:
        raise InputError(f"{source}: {low:g} to {high:g} is no scale; give the lowest score and then the highest")
    return low, high


def normalised(texts: pl.Series) -> pl.Series:
    """Return `normalise` of every text, computed once for each distinct text."""
    distinct = texts.unique()
    keys = pl.Series([normalise(text) for text in distinct], dtype=pl.String)
    return texts.replace_strict(distinct, keys, return_dtype=pl.String)


def with_ids(frame: pl.DataFrame, role: str = "document") -> pl.DataFrame:
    """Return the frame with an id in each row: its own, or where it is empty one derived from the text."""
    column = f"{role}_id"
    if not (frame[column] == "").any():
        return frame
    keys = normalised(frame[role])
    distinct = keys.unique()
    ids = pl.Series([role[0] + hashlib.blake2b(key.encode(), digest_size=8).hexdigest() for key in distinct])
    derived = keys.replace_strict(distinct, ids, return_dtype=pl.String)
    return frame.with_columns(pl.when(pl.col(column) == "").then(derived).otherwise(column).alias(column))


def longest_texts(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return the longest text of each document id, and how many ids came with several texts."""
    texts = (
        frame.select("document_id", "document")
        .unique()
        .sort("document_id", pl.col("document").str.len_chars(), "document", descending=[False, True, False])
    )
    longest = texts.unique("document_id", keep="first", maintain_order=True)
    if longest.height == texts.height:
        return longest, 0
    # Spellings of one normalised text are chosen among, but are no flaw of the data.
    several = texts.with_columns(normalised(texts["document"]).alias("key")).unique(["document_id", "key"])
    return longest, several.filter(pl.len().over("document_id") > 1)["document_id"].n_unique()


def _one_record_a_pair(frame: pl.DataFrame, fields: Sequence[str]) -> tuple[pl.DataFrame, int, int]:
    """Return the table with each pair once, how many records were merged, and how many pairs had several scores."""
    keyed = frame.with_columns(normalised(frame["query"]).alias("__key"))
    # A total order, so that the record that stands for a pair does not depend on the order of the rows.
    keyed = keyed.sort("__key", "document_id", "query_id", "query", "score", *fields)
    merged = keyed.group_by("__key", "document_id", maintain_order=True).agg(
        pl.all().exclude("score").first(), pl.col("score").mean(), pl.col("score").n_unique().alias("__scores")
    )
    conflicts = merged.filter(pl.col("__scores") > 1).height
    return merged.select(*COLUMNS, *fields), frame.height - merged.height, conflicts
