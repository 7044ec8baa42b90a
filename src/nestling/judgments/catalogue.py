"""From where a catalogue comes: the documents of any source of judgments, or a text file with one document a line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nestling.config.names import MAX_UNPACKED
from nestling.errors import InputError
from nestling.judgments import files
from nestling.judgments.identity import VISIBLE
from nestling.judgments.sources import KNOWN, RECORD_NUMBER, Raw, is_binary, joined, nearest, read_raw
from nestling.judgments.table import normalised

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
    names = (document,) if isinstance(document, str) else tuple(dict.fromkeys(document or ()))
    raw = _raw(source, split, revision, max_unpacked)
    there = raw.frame.columns
    names = tuple(raw.aliases.get(name, name) if name not in there else name for name in names)
    for option, asked in (("--document", names), ("--document-id", (document_id,)), ("--fields", fields or ())):
        for name in asked:
            if name is not None and name not in there:
                what = f"no column {files.listed([name])!r}{nearest(name, there)}"
                raise InputError(f"{raw.name}: {what}; give {option} one of: {files.listed(there)}")
    names = names or raw.columns.document or usual("document", there)
    if not names:
        what = "cannot tell which column is the document"
        raise InputError(f"{raw.name}: {what}; give --document one of: {files.listed(there)}")
    key = document_id or raw.columns.document_id or next(iter(usual("document_id", there)), None)
    kept = fields if fields is not None else _fields(raw.frame, (key, *(names if len(names) == 1 else ())))
    # "document" may be the name of a column of the source, so the parts are put together apart from it.
    parts = [raw.text(name) for name in names]
    ids = raw.text(key) if key else pl.Series("id", [""] * raw.frame.height, dtype=pl.String)
    columns = {"document_id": ids.str.strip_chars(), "document": joined(parts).fill_null("")}
    columns |= {_free(name, columns): raw.text(name) for name in kept}
    frame = pl.DataFrame({name: values.alias(name) for name, values in columns.items()})
    return replace(_cleaned(frame, raw.name, keep_all=fields is not None), notes=raw.notes)


def _raw(source: str | Path, split: str | None, revision: str | None, max_unpacked: int) -> Raw:
    text = str(source)
    if text == "toolshed":
        from nestling.judgments.toolshed import generate

        made = generate()
        return Raw(made.frame, made.source)
    if text.lower().endswith(TEXT_FILES):
        data = files.read_bytes(Path(text), text)
        if text.lower().endswith(".gz"):
            data = files.gunzip(data, text, max_unpacked)
        lines = files.decode(data, text)[0].removeprefix("\ufeff").splitlines()
        return Raw(pl.DataFrame({"document": pl.Series(lines, dtype=pl.String)}), text)
    return read_raw(source, split, revision, max_unpacked)


def with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Return documents with an id each: their own, or where it is empty one that is derived from the text."""
    if not (frame["document_id"] == "").any():
        return frame
    keys = normalised(frame["document"])
    distinct = keys.unique()
    ids = pl.Series([f"d{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}" for key in distinct])
    derived = keys.replace_strict(distinct, ids, return_dtype=pl.String)
    own = pl.when(pl.col("document_id") == "").then(derived).otherwise("document_id")
    return frame.with_columns(own.alias("document_id"))


def usual(role: str, there: Sequence[str]) -> tuple[str, ...]:
    """Return the column with a usual name for a role, alone in a tuple; nothing where there is none."""
    free = {re.sub(r"[\s-]+", "_", name.casefold()): name for name in reversed(there)}
    return next(((free[name],) for name in KNOWN[role].split() if name in free), ())


def _fields(frame: pl.DataFrame, taken: Sequence[str | None]) -> list[str]:
    return [
        name
        for name in frame.columns
        if name not in (*taken, *OWN) and not RECORD_NUMBER.fullmatch(name) and not is_binary(frame[name])
    ]


def _free(name: str, taken: dict[str, pl.Series]) -> str:
    while name in taken or name.startswith("__") or name == "*" or re.fullmatch(r"\^.*\$", name):
        name = f"{name.lstrip('_')}_"
    return name


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
    texts = by_document.agg(pl.col("document").n_unique())
    longest = (
        frame.select(OWN)
        .sort(pl.col("document").str.len_chars(), "document", descending=[True, False])
        .unique("document_id", keep="first")
    )
    rows = frame.filter(first).select("document_id", *fields).join(longest, on="document_id", maintain_order="left")
    return Catalogue(rows.select(*OWN, *fields), source, empty, texts.filter(pl.col("document") > 1).height)
