"""Brings a table in PostgreSQL up to date with a catalogue, batch by batch; only new and changed texts are encoded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nestling.config.fingerprint import fingerprint
from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.models.encoder import Encoder
from nestling.progress import Observer
from nestling.serving.engines.postgres.connection import Connection, Psycopg
from nestling.serving.engines.postgres.schema import Meta
from nestling.serving.engines.postgres.sql import Names, create_indexes

LONGEST_ID = 2_000
"""Bytes: what the primary key's index takes, with room to spare."""
REFUSED = re.compile("[\x00\ud800-\udfff]")

KNOWN = """
    SELECT document_id, d.fields IS NOT DISTINCT FROM b.fields::jsonb
    FROM unnest(%s::text[], %s::text[], %s::text[]) AS b (document_id, text_hash, fields)
    JOIN {table} d USING (document_id)
    WHERE d.text_hash = b.text_hash AND d.fingerprint = %s AND d.embedding IS NOT NULL
"""
INSERT = """
    INSERT INTO {table} (document_id, document, fields, text_hash, fingerprint, embedding)
    VALUES (%(document_id)s, %(document)s, %(fields)s::jsonb, %(text_hash)s, %(fingerprint)s, %(embedding)s)
    ON CONFLICT (document_id) DO UPDATE SET document = excluded.document, fields = excluded.fields,
    text_hash = excluded.text_hash, fingerprint = excluded.fingerprint, embedding = excluded.embedding
"""
UPDATE_FIELDS = "UPDATE {table} SET fields = %(fields)s::jsonb WHERE document_id = %(document_id)s"
DELETE_OTHERS = """
    DELETE FROM {table} d
    WHERE NOT EXISTS (SELECT FROM unnest(%s::text[]) AS kept (document_id) WHERE kept.document_id = d.document_id)
    RETURNING 1
"""


@dataclass
class Loaded:
    """Documents that were encoded, were there with the same text, were removed, or hold a replaced character."""

    encoded: int = 0
    kept: int = 0
    removed: int = 0
    replaced: int = 0


def storable(text: str) -> str:
    """Return a text with U+FFFD for NUL and lone surrogates, which PostgreSQL cannot store."""
    return REFUSED.sub("\ufffd", text)


def check_ids(catalogue: Catalogue) -> None:
    """Raise InputError where an id cannot be stored as it is."""
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
    """
    loaded = Loaded()
    observer.stage("load", f"{len(catalogue):,} documents into {names}")
    try:
        for part in catalogue.frame.iter_slices(batch):
            originals = list(part.iter_rows(named=True))
            rows = [{storable(name): storable(value) for name, value in row.items()} for row in originals]
            loaded.replaced += sum(row != original for row, original in zip(rows, originals, strict=True))
            encoded = _upsert(connection, names, meta, encoder, [_stored(row, meta) for row in rows])
            loaded.encoded += encoded
            loaded.kept += len(rows) - encoded
            observer.encoding("", loaded.encoded + loaded.kept, len(catalogue))
    finally:
        observer.done()
    if loaded.replaced:
        what = "documents hold characters that PostgreSQL cannot store; U+FFFD stands for each"
        observer.note(f"{loaded.replaced:,} {what}")
    observer.stage("index", f"shortlist of {meta.shortlist}")
    for statement in create_indexes(names, meta.shortlist):
        connection.rows(statement)
    if remove_missing:
        observer.stage("remove", "documents that the catalogue no longer has")
        kept = catalogue.frame["document_id"].to_list()
        loaded.removed = len(connection.rows(names.sql(DELETE_OTHERS), [kept]))
    if loaded.encoded or loaded.removed:
        # The server gathers what its planner goes by in its own time, and searches begin at once.
        connection.rows(names.sql("ANALYZE {table}"))
    return loaded


def _stored(row: dict[str, str], meta: Meta) -> dict[str, Any]:
    """Return the columns of a document, but for its embedding."""
    key, text = row.pop("document_id"), row.pop("document")
    return {
        "document_id": key,
        "document": text,
        "fields": json.dumps(row),
        "text_hash": fingerprint(text.encode(), size=16),
        "fingerprint": meta.fingerprint,
    }


def _upsert(connection: Connection, names: Names, meta: Meta, encoder: Encoder, rows: Sequence[dict[str, Any]]) -> int:
    """Write a batch; return how many documents were encoded."""
    columns = [[row[name] for row in rows] for name in ("document_id", "text_hash", "fields")]
    same_fields: dict[str, bool] = dict(connection.rows(names.sql(KNOWN), [*columns, meta.fingerprint]))
    new = [row for row in rows if row["document_id"] not in same_fields]
    changed = [row for row in rows if same_fields.get(row["document_id"]) is False]
    if new:
        vectors = encoder.encode([row["document"] for row in new], kind="document")
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            key = new[int(bad.argmax())]["document_id"]
            raise InputError(f"the model gives document {key[:40]!r} no finite vector; give another model")
        new = [{**row, "embedding": vector} for row, vector in zip(new, vectors, strict=True)]

    def write(c: Psycopg) -> None:
        with c.cursor() as cursor:
            for statement, values in ((INSERT, new), (UPDATE_FIELDS, changed)):
                cursor.executemany(names.sql(statement), values)

    if new or changed:
        connection.run(write)
    return len(new)
