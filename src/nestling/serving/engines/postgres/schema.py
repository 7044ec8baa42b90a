"""Makes a table and what belongs to it in PostgreSQL, or checks that what is there is Nestling's and of this model."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import errors

from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.serving.engines.postgres import sql
from nestling.serving.engines.postgres.connection import Psycopg
from nestling.serving.engines.postgres.sql import Names, Shortlist

FORMAT = 1
OLDEST = (0, 8)
"""pgvector from which an index is scanned on until enough documents pass."""
COLUMNS = {"document_id": "text", "document": "text", "fields": "jsonb", "text_hash": "text", "fingerprint": "text"}
"""The columns beside the embedding, each with its type."""


@dataclass(frozen=True)
class Meta:
    """What a table was made with: a model, its fingerprint and the size of its vectors, and a shortlist."""

    model: str
    fingerprint: str
    dim: int
    shortlist: Shortlist


def read_meta(connection: Psycopg, names: Names) -> Meta | None:
    """Return what a table was made with; None where Nestling made none, InputError where it is of another format."""
    try:
        with connection.transaction():
            statement = names.sql("SELECT format, model, fingerprint, dim, shortlist FROM {meta}")
            row = connection.execute(statement).fetchone()
    except errors.UndefinedTable:
        return None
    except errors.UndefinedColumn:
        row = None
    if row is None or row[0] != FORMAT:
        raise InputError(f"{names}_meta is no table that this version of Nestling made; give another --table")
    return Meta(row[1], row[2], row[3], Shortlist.parse(row[4]))


def set_up(connection: Psycopg, names: Names, meta: Meta, *, shortlist_given: bool, adopt: bool) -> Meta:
    """Make the table and what belongs to it, unless it is there; return what it was made with.

    Args:
        meta: of a new table.
        shortlist_given: a table with another shortlist is refused.
        adopt: take a table that Nestling did not make, if its columns fit.

    Raises:
        InputError: the table is another model's or not Nestling's, or does not fit; or the database has no pgvector.
    """
    # Two calls at a time would each make it.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"nestling {names}"])
    vectors = _extension(connection)
    there = read_meta(connection, names)
    if there is not None:
        if (there.fingerprint, there.dim) != (meta.fingerprint, meta.dim):
            raise InputError(f"{other_model(names, there, meta.fingerprint)}; give another --table, or drop this one")
        if shortlist_given and there.shortlist != meta.shortlist:
            what = f"{names} has a shortlist of {there.shortlist}, not {meta.shortlist}"
            raise InputError(f"{what}; give another --table, or drop this one")
        return there
    if connection.execute("SELECT to_regnamespace(quote_ident(%s))", [names.schema]).fetchone() == (None,):
        raise InputError(f"there is no schema {names.schema}; CREATE SCHEMA it, or give another --table")
    taken = _taken(connection, names)
    if in_the_way := sorted(taken - {names.table}):
        raise InputError(f"{names.schema}.{in_the_way[0]} is not Nestling's and in the way; give another --table")
    stored = "halfvec"
    if names.table not in taken:
        connection.execute(
            names.sql(
                "CREATE TABLE {table} (document_id text PRIMARY KEY, document text NOT NULL, "
                "fields jsonb NOT NULL DEFAULT '{{}}', text_hash text NOT NULL, fingerprint text NOT NULL, "
                "embedding halfvec({dim}) NOT NULL)",
                dim=meta.dim,
            )
        )
    elif adopt:
        stored = _fitting(connection, names, meta.dim)
    else:
        raise InputError(f"{names} was not made by Nestling and is left alone; give another --table, or --adopt")
    connection.execute(
        names.sql(
            "CREATE TABLE {meta} (one boolean PRIMARY KEY DEFAULT true CHECK (one), format integer NOT NULL, "
            "model text NOT NULL, fingerprint text NOT NULL, dim integer NOT NULL, shortlist text NOT NULL, "
            "version text NOT NULL)"
        )
    )
    connection.execute(
        names.sql("INSERT INTO {meta} VALUES (true, %s, %s, %s, %s, %s, %s)"),
        [FORMAT, meta.model, meta.fingerprint, meta.dim, str(meta.shortlist), VERSION],
    )
    connection.execute(sql.create_search(names, meta.shortlist, meta.dim, stored, vectors))
    return meta


def other_model(names: Names, there: Meta, fingerprint: str) -> str:
    """Say that a table belongs to another model than the one with this fingerprint."""
    return f"{names} was made with another model ({there.model}, fingerprint {there.fingerprint}, not {fingerprint})"


def _extension(connection: Psycopg) -> str:
    """Add pgvector to the database where it is missing, and return its schema."""
    if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
        raise InputError("this database does not hold Unicode; make one with createdb --encoding UTF8")
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (errors.FeatureNotSupported, errors.UndefinedFile, errors.UndefinedObject):
        raise InputError(
            "this server has no pgvector; install its package there (postgresql-18-pgvector or the like)"
        ) from None
    except errors.InsufficientPrivilege:
        raise InputError(
            "this user may not add pgvector to the database; have an administrator give CREATE EXTENSION vector there"
        ) from None
    schema, version = connection.execute(
        "SELECT nspname, extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'"
    ).fetchone() or ("", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"this database has pgvector {version}, not {oldest} or newer; ALTER EXTENSION vector UPDATE")
    return str(schema)


def _taken(connection: Psycopg, names: Names) -> set[str]:
    """Return which names of a table, and of what belongs to it, stand for something in its schema."""
    rows = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname = %(schema)s AND relname = ANY(%(relations)s) UNION ALL "
        "SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace "
        "WHERE nspname = %(schema)s AND proname = %(function)s",
        {
            "schema": names.schema,
            "relations": [names.table, *(f"{names.table}_{what}" for what in ("meta", "shortlist", "filter"))],
            "function": f"{names.table}_search",
        },
    )
    return {name for (name,) in rows}


def _fitting(connection: Psycopg, names: Names, dim: int) -> str:
    """Return the type in which a table that Nestling did not make stores vectors, if the table fits."""
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod) "
        "FROM pg_attribute JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname = %s AND relname = %s AND relkind = 'r' AND attnum > 0 AND NOT attisdropped",
        [names.schema, names.table],
    ).fetchall()
    # A type outside the search path has its schema before it.
    types = {name: kind.rpartition(".")[2] for name, kind in rows}
    fitting = {name: (kind,) for name, kind in COLUMNS.items()} | {"embedding": (f"halfvec({dim})", f"vector({dim})")}
    faults = [
        f"{name} must be {kinds[0]}, is {types.get(name, 'missing')}"
        for name, kinds in fitting.items()
        if types.get(name) not in kinds
    ]
    if faults:
        raise InputError(f"{names} cannot be adopted: {'; '.join(faults)}")
    return str(types["embedding"].partition("(")[0])
