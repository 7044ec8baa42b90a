"""Batches of documents written to a table in PostgreSQL; only new and changed texts are encoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nestling.config.fingerprint import fingerprint
from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.models.encoder import Encoder
from nestling.serving.engines.postgres.connection import Connection, Psycopg
from nestling.serving.engines.postgres.schema import Names

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
            what = f"the id of document {row + 1}, {ids[row][:40]!r}, {fault}"
            raise InputError(f"{catalogue.source}: {what}; change it, or give another --document-id")


def upsert(
    connection: Connection, names: Names, encoder: Encoder, documents: Sequence[Mapping[str, str]]
) -> tuple[int, int]:
    """Write rows of a catalogue in one transaction; return how many were encoded, and how many hold a replaced NUL."""
    rows, replaced = [], 0
    for document in documents:
        fields = {storable(name): storable(value) for name, value in document.items()}
        replaced += fields != document
        row: dict[str, Any] = {name: fields.pop(name) for name in ("document_id", "document")}
        text_hash = fingerprint(row["document"].encode(), size=16)
        rows.append(row | {"fields": json.dumps(fields), "text_hash": text_hash, "fingerprint": encoder.fingerprint})
    columns = [[row[name] for row in rows] for name in ("document_id", "text_hash", "fields")]
    same_fields: dict[str, bool] = dict(connection.rows(names.sql(KNOWN), [*columns, encoder.fingerprint]))
    new = [row for row in rows if row["document_id"] not in same_fields]
    changed = [row for row in rows if same_fields.get(row["document_id"]) is False]
    vectors: Iterable[Any] = encoder.encode([row["document"] for row in new]) if new else ()
    for row, vector in zip(new, vectors, strict=True):
        if not np.isfinite(vector).all():
            what = f"the model gives document {row['document_id'][:40]!r} no finite vector"
            raise InputError(f"{what}; give another model")
        row["embedding"] = vector

    def write(c: Psycopg) -> None:
        with c.cursor() as cursor:
            cursor.executemany(names.sql(INSERT), new)
            cursor.executemany(names.sql(UPDATE_FIELDS), changed)

    if new or changed:
        connection.run(write)
    return len(new), replaced
