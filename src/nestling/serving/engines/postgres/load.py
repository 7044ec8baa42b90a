"""Brings a table in PostgreSQL up to date with a catalogue, batch by batch; only new and changed texts are encoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg.sql import SQL

from nestling.config.fingerprint import fingerprint
from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.models.encoder import Encoder
from nestling.progress import Observer
from nestling.serving.engines.postgres.connection import Connection
from nestling.serving.engines.postgres.schema import Meta
from nestling.serving.engines.postgres.sql import Names, create_indexes

IDS_AT_ONCE = 10_000
LONGEST_ID = 2_000
"""Bytes: what the primary key's index takes, with room to spare."""
REFUSED = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True)
class Loaded:
    """What a call did.

    Attributes:
        encoded: documents that were new, or whose text had changed.
        kept: documents that were there with the same text.
        removed: documents that the catalogue no longer has.
        replaced: documents with characters that PostgreSQL cannot store, for which U+FFFD stands.
    """

    encoded: int
    kept: int
    removed: int
    replaced: int


@dataclass(frozen=True)
class Row:
    """A document as it is stored; `fields` is JSON."""

    document_id: str
    document: str
    fields: str
    text_hash: str
    replaced: bool


def storable(text: str) -> str:
    """Return a text with U+FFFD for NUL and lone surrogates, which PostgreSQL cannot store."""
    return REFUSED.sub("\ufffd", text)


def as_json(fields: Mapping[str, Any]) -> str:
    """Return fields, or a filter's values, as JSON that PostgreSQL can store."""
    # Replaced before they become escapes, which would hide them.
    return json.dumps({storable(name): _storable(value) for name, value in fields.items()}, ensure_ascii=False)


def check(catalogue: Catalogue) -> None:
    """See that ids and names of fields can be stored as they are.

    Raises:
        InputError: one cannot.
    """
    for name in catalogue.fields:
        if storable(name) != name:
            raise InputError(f"{catalogue.source}: the column {name!r} has a NUL in its name; rename it")
    ids = catalogue.frame["document_id"]
    for fault, bad in (
        ("holds a NUL, which PostgreSQL cannot store", ids.str.contains("\x00", literal=True)),
        (f"has more than {LONGEST_ID:,} bytes", ids.str.len_bytes() > LONGEST_ID),
    ):
        row = bad.arg_max() if bad.any() else None
        if row is not None:
            raise InputError(
                f"{catalogue.source}: the id of document {row + 1}, {ids[row][:40]!r}, {fault}; change it, or give "
                "another --document-id"
            )


def load(
    connection: Connection,
    names: Names,
    meta: Meta,
    encoder: Encoder,
    catalogue: Catalogue,
    *,
    batch: int,
    remove_missing: bool,
    observer: Observer,
) -> Loaded:
    """Upsert a catalogue's documents, each batch in one transaction, then make the indexes, then remove.

    The indexes come after the documents, since building them at once is faster; once there they are kept up to date.

    Raises:
        InputError: the server went away and did not come back.
    """
    encoded = kept = replaced = removed = done = 0
    observer.stage("load", f"{len(catalogue):,} documents into {names}")
    try:
        for rows in _batches(catalogue, batch):
            fresh = _upsert(connection, names, meta, encoder, rows)
            encoded, kept = encoded + fresh, kept + len(rows) - fresh
            replaced += sum(row.replaced for row in rows)
            done += len(rows)
            observer.encoding("", done, len(catalogue))
    finally:
        observer.done()
    if replaced:
        observer.note(f"{replaced:,} documents hold characters that PostgreSQL cannot store; U+FFFD stands for each")
    observer.stage("index", f"shortlist of {meta.shortlist}")
    for statement in create_indexes(names, meta.shortlist):
        connection.run(lambda c, statement=statement: c.execute(statement))  # type: ignore[misc]
    if remove_missing:
        observer.stage("remove", "documents that the catalogue no longer has")
        removed = _remove(connection, names, set(catalogue.frame["document_id"]))
    if encoded or removed:
        # The server gathers what its planner goes by in its own time, and searches begin at once.
        connection.run(lambda c: c.execute(SQL("ANALYZE {}").format(names.of())))
    return Loaded(encoded, kept, removed, replaced)


def _batches(catalogue: Catalogue, size: int) -> Iterator[list[Row]]:
    for part in catalogue.frame.iter_slices(size):
        yield [_row(values, catalogue.fields) for values in part.iter_rows(named=True)]


def _row(values: Mapping[str, Any], fields: Sequence[str]) -> Row:
    text = storable(values["document"])
    own = {name: values[name] for name in fields}
    replaced = text != values["document"] or any(value != _storable(value) for value in own.values())
    return Row(values["document_id"], text, as_json(own), fingerprint(text.encode(), size=16), replaced)


def _upsert(connection: Connection, names: Names, meta: Meta, encoder: Encoder, rows: Sequence[Row]) -> int:
    """Write a batch; return how many documents were encoded."""
    ask = SQL(
        "SELECT b.document_id, d.fields IS NOT DISTINCT FROM b.fields::jsonb "
        "FROM unnest(%s::text[], %s::text[], %s::text[]) AS b (document_id, text_hash, fields) "
        "JOIN {} d ON d.document_id = b.document_id WHERE d.text_hash = b.text_hash AND d.fingerprint = %s "
        "AND d.embedding IS NOT NULL"
    ).format(names.of())
    asked = [[row.document_id for row in rows], [row.text_hash for row in rows], [row.fields for row in rows]]
    known: dict[str, bool] = dict(connection.run(lambda c: c.execute(ask, [*asked, meta.fingerprint]).fetchall()))
    fresh = [row for row in rows if row.document_id not in known]
    vectors = encoder.encode([row.document for row in fresh], kind="document") if fresh else np.zeros((0, meta.dim))
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        row = fresh[int(bad.argmax())]
        raise InputError(f"the model gives document {row.document_id[:40]!r} no finite vector; give another model")
    insert = SQL(
        "INSERT INTO {} (document_id, document, fields, text_hash, fingerprint, embedding) "
        "VALUES (%s, %s, %s::jsonb, %s, %s, %s) ON CONFLICT (document_id) DO UPDATE SET document = excluded.document, "
        "fields = excluded.fields, text_hash = excluded.text_hash, fingerprint = excluded.fingerprint, "
        "embedding = excluded.embedding"
    ).format(names.of())
    refield = SQL("UPDATE {} SET fields = %s::jsonb WHERE document_id = %s").format(names.of())
    new = [
        (row.document_id, row.document, row.fields, row.text_hash, meta.fingerprint, vector)
        for row, vector in zip(fresh, vectors, strict=True)
    ]
    changed = [(row.fields, row.document_id) for row in rows if known.get(row.document_id) is False]

    def write(c: psycopg.Connection[Any]) -> None:
        with c.cursor() as cursor:
            if new:
                cursor.executemany(insert, new)
            if changed:
                cursor.executemany(refield, changed)

    if new or changed:
        connection.run(write)
    return len(fresh)


def _remove(connection: Connection, names: Names, wanted: set[str]) -> int:
    """Delete documents that are not `wanted`, page by page; return how many."""
    page = SQL(
        "SELECT document_id FROM {} WHERE (%s::text IS NULL OR document_id > %s::text) ORDER BY document_id LIMIT %s"
    ).format(names.of())
    delete = SQL("DELETE FROM {} WHERE document_id = ANY(%s)").format(names.of())
    last: str | None = None
    removed = 0
    while True:
        after = last
        ids = [row[0] for row in connection.run(lambda c: c.execute(page, [after, after, IDS_AT_ONCE]).fetchall())]  # noqa: B023
        if not ids:
            return removed
        gone = [key for key in ids if key not in wanted]
        if gone:
            connection.run(lambda c: c.execute(delete, [gone]))  # noqa: B023
        removed += len(gone)
        last = ids[-1]


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    return [_storable(each) for each in value] if isinstance(value, list | tuple) else value
