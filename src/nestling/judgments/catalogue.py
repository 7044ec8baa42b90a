"""From where a catalogue comes: the documents of any source of judgments, or a text file with one document a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError
from nestling.judgments import files
from nestling.judgments.columns import Raw, as_names
from nestling.judgments.identity import VISIBLE
from nestling.judgments.sources import read_raw
from nestling.judgments.table import longest_texts, with_ids

TEXT_FILES = (".txt", ".txt.gz")
OWN = ("document_id", "document")


@dataclass(frozen=True)
class Catalogue:
    """Documents, each once, in the order in which the source first names them."""

    frame: pl.DataFrame
    """Columns `document_id` and `document` (strings, none empty), then the fields, strings too."""
    source: str = "memory"
    notes: tuple[str, ...] = ()
    """A line for each thing about the reading, and each kind of row or id not taken as it is."""

    def __len__(self) -> int:
        return self.frame.height

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(name for name in self.frame.columns if name not in OWN)


def load_catalogue(
    source: str | Path,
    *,
    document: str | Sequence[str] | None = None,
    document_id: str | None = None,
    fields: Sequence[str] | None = None,
    split: str | None = None,
    revision: str | None = None,
    max_unpacked: int = MAX_UNPACKED,
) -> Catalogue:
    """Read the documents of a source.

    Args:
        source: as `load_judgments` takes it, judged or not; or a text file (.txt, .txt.gz) with one document a line.
        document: the column with the text, or several, joined by newlines; by default one with a usual name.
        document_id: the column with the id; by default one with a usual name, else ids are derived from the texts.
        fields: columns to keep beside the text; by default all others that say one thing of a document (so no queries
            and scores), and the parts of a text that was joined.
        split, revision: of a hub data set.
        max_unpacked: MiB that a packed file may unpack to.
    """
    is_text = str(source).lower().endswith(TEXT_FILES)
    raw = _lines(str(source), max_unpacked) if is_text else read_raw(source, split, revision, max_unpacked)
    chosen = raw.choose({"document": as_names(document), "document_id": as_names(document_id)}, "document_id")
    names, key = chosen["document"], chosen["document_id"]
    kept = raw.columns("--fields", fields or ())
    if fields is None:
        kept = tuple(raw.fields((*OWN, *key, *(names if len(names) == 1 else ()))))
    ids = raw.text(*key).str.strip_chars() if key else pl.Series([""]).new_from_index(0, raw.frame.height)
    every = raw.table({"document_id": ids, "document": raw.joined(names)}, kept)
    frame = every.filter(pl.col("document").str.contains(VISIBLE))
    if frame.is_empty():
        what = f"none of its {every.height} rows has a text"
        raise InputError(f"{raw.name}: {what}; give a catalogue with at least one document")
    documents, retitled = _each_once(with_ids(frame), keep_all=fields is not None)
    counted = (
        (every.height - frame.height, "rows without a text, left out"),
        (retitled, "ids with several texts, of which the longest stands"),
    )
    return Catalogue(documents, raw.name, (*raw.notes, *(f"{count:,} {what}" for count, what in counted if count)))


def _lines(source: str, max_unpacked: int) -> Raw:
    _, data = files.unpack(source, files.read_bytes(Path(source), source), source, max_unpacked=max_unpacked)
    lines = files.decode(data, source)[0].removeprefix("\ufeff").splitlines()
    return Raw(pl.DataFrame({"document": pl.Series(lines, dtype=pl.String)}), source)


def _each_once(frame: pl.DataFrame, *, keep_all: bool) -> tuple[pl.DataFrame, int]:
    """Return one row a document, with fields that say one thing of it or all, and how many ids had several texts."""
    first = frame["document_id"].is_first_distinct()
    if first.all():
        return frame, 0
    fields = [name for name in frame.columns if name not in OWN]
    if not keep_all:
        counts = frame.group_by("document_id").agg(pl.col(name).n_unique() for name in fields)
        fields = [name for name in fields if counts[name].max() == 1]
    longest, retitled = longest_texts(frame)
    rows = frame.filter(first).select("document_id", *fields).join(longest, on="document_id", maintain_order="left")
    return rows.select(*OWN, *fields), retitled
