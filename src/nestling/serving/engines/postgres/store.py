"""The search on PostgreSQL with pgvector: a table of documents, kept up to date with a catalogue, and its search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.sql import SQL

from nestling.errors import InputError
from nestling.judgments.catalogue import Catalogue
from nestling.models.encoder import Encoder
from nestling.progress import Observer
from nestling.serving.engines.postgres import load as postgres_load
from nestling.serving.engines.postgres import schema as postgres_schema
from nestling.serving.engines.postgres.connection import WAITS, Connection
from nestling.serving.engines.postgres.load import Loaded
from nestling.serving.engines.postgres.schema import Meta
from nestling.serving.engines.postgres.sql import SHORTLIST, Names, Shortlist, check_table
from nestling.serving.index.documents import Filters, check_filters
from nestling.serving.index.index import Hit, refuse_blank

TABLE = "nestling_documents"
BATCH = 1_000
NO_ROW = -1


@dataclass(frozen=True)
class Sizes:
    """What a table takes, in bytes on the server.

    Attributes:
        documents: how many.
        table: documents with their full vectors and what PostgreSQL stores aside.
        shortlist: the shortlist's index.
        other: the primary key's and the filter's.
    """

    documents: int
    table: int
    shortlist: int
    other: int


@dataclass(frozen=True, eq=False)
class Store:
    """A table of documents in PostgreSQL; `Store.connect` opens one, and the table need not be there yet.

    Attributes:
        names: of the table and of what belongs to it.
    """

    names: Names
    _connection: Connection

    @classmethod
    def connect(
        cls, dsn: str, *, table: str = TABLE, waits: Sequence[float] = WAITS, observer: Observer | None = None
    ) -> Store:
        """Connect to a database. Nothing is made or changed there.

        Args:
            dsn: `postgresql://USER@HOST/DATABASE` or any other form that libpq takes; what it leaves out comes from
                PGHOST, PGPASSWORD and the like.
            table: TABLE or SCHEMA.TABLE.
            waits: seconds before each attempt to connect again when the connection is lost.

        Raises:
            InputError: the table's name is not plain, or the server lets nobody in.
        """
        schema, name = check_table(table)
        connection = Connection(dsn, waits=waits, observer=observer)
        try:
            return cls(Names(schema or connection.run(postgres_schema.current_schema), name), connection)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def about(self) -> Meta | None:
        """Return what the table was made with; None where Nestling has made none.

        Raises:
            InputError: what is there is of another format.
        """
        return self._connection.run(lambda c: postgres_schema.read_meta(c, self.names))

    def upsert(
        self,
        encoder: Encoder,
        catalogue: Catalogue,
        *,
        model: str = "",
        shortlist: str | None = None,
        batch: int = BATCH,
        remove_missing: bool = False,
        adopt: bool = False,
        observer: Observer | None = None,
    ) -> Loaded:
        """Make the table where it is missing, and bring it up to date with a catalogue.

        Each batch is one transaction. A call that was stopped or killed loses the batch in progress at most, and the
        same call goes on: documents that are there with the same text, of the same model, are not encoded again.
        NUL characters in texts and fields, which PostgreSQL cannot store, become U+FFFD before they are encoded.

        Args:
            model: the model's name, for whoever looks into the table `TABLE_meta`.
            shortlist: `DIM:halfvec` or `DIM:bit`; by default what the table has, what a shrunk model brings, or
                48:halfvec. A model of fewer dims takes all of its own.
            batch: documents in a transaction.
            remove_missing: delete documents that the catalogue no longer has, after all others are written.
            adopt: take a table that Nestling did not make, if its columns fit.

        Raises:
            InputError: the table is another model's, has another shortlist or was not made by Nestling; the server
                has no pgvector, refuses, or went away and did not come back; or an id cannot be stored.
        """
        if batch < 1:
            raise InputError(f"--batch must be 1 or more, not {batch}")
        wanted = Meta(model, encoder.fingerprint, encoder.dim, _shortlist(encoder, shortlist))
        postgres_load.check(catalogue)
        run = self._connection.run
        # Asked before anything is made, so that a database that refuses the table is left as it was.
        run(postgres_schema.create_extension)
        self._connection.prepared(postgres_schema.use_vectors)
        meta = run(
            lambda c: postgres_schema.set_up(c, self.names, wanted, shortlist_given=shortlist is not None, adopt=adopt)
        )
        return postgres_load.load(
            self._connection,
            self.names,
            meta,
            encoder,
            catalogue,
            batch=batch,
            remove_missing=remove_missing,
            observer=observer or Observer(),
        )

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

        Args:
            encoder: the model that the table was made with.
            queries: texts; not one string.
            filters: field -> a value or several of which one is enough; all fields must fit. Upper and lower case
                count, since PostgreSQL compares.
            shortlist: candidates to rescore; by default 400, or 20 times k where that is more. 0 compares the query
                with every document, without the index.

        Returns:
            For each query its hits; scores are cosines, and `row` is -1, since a table has no rows by number.

        Raises:
            InputError: the table is missing or another model's, the server does not answer, or a query is blank.
            ValueError: k is below 1, the shortlist below 0, or `queries` is one string.
        """
        if isinstance(queries, str):
            raise ValueError("search takes a list of queries, not one string")
        refuse_blank(queries)
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        if shortlist is not None and shortlist < 0:
            raise ValueError(f"shortlist must be 0 or more, got {shortlist}")
        check_filters(filters)
        meta = self.about()
        if meta is None:
            raise InputError(f"there is no table {self.names} of Nestling's; load a catalogue with nestling postgres")
        if meta.fingerprint != encoder.fingerprint:
            raise InputError(
                f"{self.names} was made with another model ({meta.model}, fingerprint {meta.fingerprint}, not "
                f"{encoder.fingerprint}); search with its own"
            )
        self._connection.prepared(postgres_schema.use_vectors)
        vectors = encoder.encode(list(queries), kind="query")
        as_json = postgres_load.as_json(filters) if filters else None
        return [self._connection.run(lambda c, v=vector: self._hits(c, v, k, shortlist, as_json)) for vector in vectors]  # type: ignore[misc]

    def sizes(self) -> Sizes:
        """Return what the table takes on the server.

        Raises:
            InputError: there is no such table.
        """
        table = self.names.of().as_string(None)
        shortlist = self.names.of("shortlist").as_string(None)

        def ask(c: psycopg.Connection[Any]) -> Sizes:
            (count,) = c.execute(SQL("SELECT count(*) FROM {}").format(self.names.of())).fetchone() or (0,)
            row = c.execute(
                "SELECT pg_table_size(%s::regclass), coalesce(pg_relation_size(to_regclass(%s)), 0), "
                "pg_indexes_size(%s::regclass)",
                [table, shortlist, table],
            ).fetchone()
            assert row is not None
            return Sizes(count, row[0], row[1], row[2] - row[1])

        return self._connection.run(ask)

    def _hits(
        self, c: psycopg.Connection[Any], vector: Any, k: int, shortlist: int | None, filters: str | None
    ) -> list[Hit]:
        call = SQL("SELECT document_id, score, document, fields FROM {}(%s, %s, %s, %s::jsonb)")
        rows = c.execute(call.format(self.names.of("search")), [vector, k, shortlist, filters]).fetchall()
        return [
            Hit(rank, key, score, text, fields or {}, NO_ROW) for rank, (key, score, text, fields) in enumerate(rows, 1)
        ]


def _shortlist(encoder: Encoder, asked: str | None) -> Shortlist:
    if asked is None and encoder.codec is not None:
        kind = "bit" if encoder.codec.precision == "binary" else "halfvec"
        asked = f"{encoder.codec.dim}:{kind}"
    return Shortlist.parse(asked or SHORTLIST).within(encoder.dim)
