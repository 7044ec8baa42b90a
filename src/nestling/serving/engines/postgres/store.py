"""The search on PostgreSQL with pgvector: a table of documents, kept up to date with a catalogue, and its search."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg.sql import SQL, Identifier

from nestling.config.fingerprint import fingerprint
from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.models.encoder import Encoder
from nestling.progress import Observer
from nestling.serving.engines.postgres import schema
from nestling.serving.engines.postgres.connection import Connection, Psycopg
from nestling.serving.engines.postgres.schema import Meta, Names, Shortlist
from nestling.serving.index.documents import Filters, check_filters
from nestling.serving.index.index import Hit, check_queries

SHORTLIST = "48:halfvec"
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


@dataclass(frozen=True, eq=False)
class Store:
    """A table of documents in PostgreSQL; `Store.connect` opens one, and the table need not be there yet."""

    names: Names
    _connection: Connection

    @classmethod
    def connect(cls, dsn: str, *, table: str = "nestling_documents", observer: Observer | None = None) -> Store:
        """Connect to a database, where nothing is made or changed; InputError where the server lets nobody in.

        `dsn` is as libpq takes it; what it leaves out comes from PGHOST, PGPASSWORD and the like.
        """
        names = Names.parse(table)
        connection = Connection(dsn, observer=observer)
        if not names.schema:
            current = connection.run(lambda _: connection.schema)
            try:
                names = Names.parse(f"{current}.{table}")
            except InputError:
                connection.close()
                raise InputError(
                    f"no plain schema to make a table in, but {current}; give --table SCHEMA.TABLE"
                ) from None
        return cls(names, connection)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def meta(self) -> Meta | None:
        """Return what the table was made with; None where Nestling has made none."""
        return self._connection.run(lambda c: schema.read_meta(c, self.names))

    def sync(
        self,
        encoder: Encoder,
        catalogue: Catalogue,
        *,
        model: str = "",
        shortlist: str | None = None,
        batch: int = 1_000,
        remove_missing: bool = False,
        adopt: bool = False,
    ) -> Loaded:
        """Make the table where it is missing, and bring it up to date with a catalogue.

        A call that was stopped or killed loses the batch in progress at most, and the same call goes on: documents
        that are there with the same text, of the same model, are not encoded again.

        Args:
            model: the model's name, for the table `TABLE_meta`.
            shortlist: `DIM:halfvec` or `DIM:bit`; by default what the table has, what a shrunk model brings, or
                48:halfvec. A model of fewer dims takes all of its own.
            batch: documents in a transaction.
            adopt: take a table that Nestling did not make, if its columns fit.
        """
        if batch < 1:
            raise InputError(f"--batch must be 1 or more, not {batch}")
        _check_ids(catalogue)
        observer, loaded, given = self._connection.observer, Loaded(), shortlist is not None
        meta = Meta(model, encoder.fingerprint, encoder.dim, _shortlist(encoder, shortlist))
        meta = self._connection.run(lambda c: schema.set_up(c, self.names, meta, shortlist_given=given, adopt=adopt))
        # The next one has the types of pgvector, which may just have been added.
        self._connection.close()
        observer.stage("load", f"{len(catalogue):,} documents into {self.names}")
        try:
            for part in catalogue.frame.iter_slices(batch):
                documents = list(part.iter_rows(named=True))
                encoded, replaced = _upsert(self._connection, self.names, encoder, documents)
                loaded.encoded += encoded
                loaded.kept += len(documents) - encoded
                loaded.replaced += replaced
                observer.encoding("", loaded.encoded + loaded.kept, len(catalogue))
        finally:
            observer.done()
        if loaded.replaced:
            what = "documents hold characters that PostgreSQL cannot store; U+FFFD stands for each"
            observer.note(f"{loaded.replaced:,} {what}")
        observer.stage("index", f"shortlist of {meta.shortlist}")
        # After the documents, since building an index at once is faster; once there it is kept up to date.
        code, operators = meta.shortlist.code("embedding"), SQL(schema.KINDS[meta.shortlist.kind][1])
        self._connection.rows(self.names.sql(schema.INDEXES, code=code, operators=operators))
        if remove_missing:
            observer.stage("remove", "documents that the catalogue no longer has")
            kept = catalogue.frame["document_id"].to_list()
            loaded.removed = len(self._connection.rows(self.names.sql(DELETE_OTHERS), [kept]))
        if loaded.encoded or loaded.removed:
            # The server gathers what its planner goes by in its own time, and searches begin at once.
            self._connection.rows(self.names.sql("ANALYZE {table}"))
        return loaded

    def search(
        self,
        encoder: Encoder,
        queries: Sequence[str],
        k: int = 10,
        *,
        filters: Filters | None = None,
        shortlist: int | None = None,
    ) -> list[list[Hit]]:
        """Return the `k` best documents of each query, best first, by the function `TABLE_search`.

        Scores are cosines, and `row` is -1, since a table has no rows by number.

        Args:
            filters: as of an index, but upper and lower case count, since PostgreSQL compares.
            shortlist: candidates to rescore; by default 400, or 20 times k where that is more. 0 compares the query
                with every document, without the index.
        """
        check_queries(queries)
        check_filters(filters)
        meta = self.meta()
        if meta is None:
            raise InputError(f"there is no table {self.names} of Nestling's; load a catalogue with nestling postgres")
        if meta.fingerprint != encoder.fingerprint:
            raise InputError(f"{schema.other_model(self.names, meta, encoder.fingerprint)}; search with its own")
        accepted = {
            storable(name): [storable(value) for value in ([values] if isinstance(values, str) else values)]
            for name, values in (filters or {}).items()
        }
        # In the order of a Hit's, whose row has no number here.
        columns = "document_id, score, document, coalesce(fields, '{{}}'), -1"
        call = self.names.sql(f"SELECT {columns} FROM {{search}}(%s, %s, %s, %s::jsonb)")
        results = []
        for vector in encoder.encode(list(queries), kind="query"):
            rows = self._connection.rows(call, [vector, k, shortlist, json.dumps(accepted)])
            results.append([Hit(rank, *row) for rank, row in enumerate(rows, 1)])
        return results

    def sizes(self) -> dict[str, int]:
        """Return the number of documents, and the bytes on the server of the table, the shortlist and other indexes."""
        [(documents, table, shortlist, indexes)] = self._connection.rows(
            self.names.sql(
                "SELECT (SELECT count(*) FROM {table}), pg_table_size({name}), "
                "coalesce(pg_relation_size(to_regclass({index})), 0), pg_indexes_size({name})",
                name=self.names.sql("{table}").as_string(),
                index=Identifier(self.names.schema, f"{self.names.table}_shortlist").as_string(),
            )
        )
        return {"documents": documents, "table": table, "shortlist": shortlist, "other": indexes - shortlist}


def _shortlist(encoder: Encoder, requested: str | None) -> Shortlist:
    if requested is None and encoder.codec is not None:
        requested = f"{encoder.codec.dim}:{'bit' if encoder.codec.precision == 'binary' else 'halfvec'}"
    shortlist = Shortlist.parse(requested or SHORTLIST)
    return Shortlist(min(shortlist.dim, encoder.dim), shortlist.kind)


def storable(text: str) -> str:
    """Return a text with U+FFFD for NUL and lone surrogates, which PostgreSQL cannot store."""
    return REFUSED.sub("\ufffd", text)


def _check_ids(catalogue: Catalogue) -> None:
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


def _upsert(
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
