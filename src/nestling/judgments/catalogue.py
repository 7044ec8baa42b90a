"""From where a catalogue comes: the documents of any source of judgments, or a text file with one document a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError
from nestling.judgments import files
from nestling.judgments.identity import VISIBLE
from nestling.judgments.sources import Raw, as_names, free_name, joined, read_raw
from nestling.judgments.table import longest_texts, with_ids

TEXT_FILES = (".txt", ".txt.gz")
OWN = ("document_id", "document")


@dataclass(frozen=True)
class Catalogue:
    """Documents, each once, in the order in which the source first names them.

    Attributes:
        frame: columns `document_id` and `document` (strings, none empty), then the fields, strings too.
        source: where it came from, as a person would name it.
        empty: rows without a text, left out.
        retitled: ids that came with several texts; the longest stands.
        notes: a line for each thing about the reading that a person should know.
    """

    frame: pl.DataFrame
    source: str = "memory"
    empty: int = 0
    retitled: int = 0
    notes: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """Return the notes, and a line for each kind of row or id that was not taken as it is."""
        counted = (
            (self.empty, "rows without a text, left out"),
            (self.retitled, "ids with several texts, of which the longest stands"),
        )
        return [*self.notes, *(f"{count:,} {what}" for count, what in counted if count)]

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
        fields: columns to keep beside the text; by default all others that say one thing of a document, and the
            parts of a text that was joined. A judged source repeats a document for each query, so its queries and
            scores are no fields.
        split, revision: of a hub data set.
        max_unpacked: MiB that a packed file may unpack to.

    Raises:
        InputError: the source is not there or cannot be read, lacks a column, or holds no document.
    """
    raw = _raw(source, split, revision, max_unpacked)
    wanted = {"document": as_names(document), "document_id": as_names(document_id)}
    chosen = raw.choose(wanted, "document_id")
    names, key = chosen["document"], chosen["document_id"]
    kept = raw.columns("--fields", fields or ())
    if fields is None:
        kept = tuple(raw.fields((*OWN, *key, *(names if len(names) == 1 else ()))))
    ids = raw.text(*key).str.strip_chars() if key else pl.Series([""]).new_from_index(0, raw.frame.height)
    # "document" may be the name of a column of the source, so the parts are put together apart from it.
    columns = {"document_id": ids, "document": joined([raw.text(name) for name in names]).fill_null("")}
    for name in kept:
        columns[free_name(name, columns)] = raw.text(name)
    frame = pl.DataFrame({name: values.alias(name) for name, values in columns.items()})
    return replace(_cleaned(frame, raw.name, keep_all=fields is not None), notes=raw.notes)


def _raw(source: str | Path, split: str | None, revision: str | None, max_unpacked: int) -> Raw:
    text = str(source)
    if text.lower().endswith(TEXT_FILES):
        data = files.read_bytes(Path(text), text)
        if text.lower().endswith(".gz"):
            data = files.gunzip(data, text, max_unpacked)
        lines = files.decode(data, text)[0].removeprefix("\ufeff").splitlines()
        return Raw(pl.DataFrame({"document": pl.Series(lines, dtype=pl.String)}), text)
    return read_raw(source, split, revision, max_unpacked)


def _cleaned(frame: pl.DataFrame, source: str, *, keep_all: bool) -> Catalogue:
    read = frame.height
    frame = frame.filter(pl.col("document").str.contains(VISIBLE))
    if frame.is_empty():
        raise InputError(f"{source}: none of its {read} rows has a text; give a catalogue with at least one document")
    frame = with_ids(frame)
    empty = read - frame.height
    fields = [name for name in frame.columns if name not in OWN]
    first = frame["document_id"].is_first_distinct()
    if first.all():
        return Catalogue(frame, source, empty)
    by_document = frame.group_by("document_id")
    if not keep_all:
        several = by_document.agg(pl.col(name).n_unique() for name in fields)
        fields = [name for name in fields if several[name].max() == 1]
    longest, retitled = longest_texts(frame)
    rows = frame.filter(first).select("document_id", *fields).join(longest, on="document_id", maintain_order="left")
    return Catalogue(rows.select(*OWN, *fields), source, empty, retitled)
