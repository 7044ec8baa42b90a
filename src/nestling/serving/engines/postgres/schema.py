"""Makes a table's parts in PostgreSQL, or sees that those that are there are Nestling's and of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg.sql import SQL, Identifier, Literal

from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.serving.engines.postgres import sql as made
from nestling.serving.engines.postgres.sql import Names, Shortlist

Psycopg = psycopg.Connection[Any]

OLDEST = (0, 8)
"""pgvector from which an index is scanned on until enough documents pass."""


@dataclass(frozen=True)
class Meta:
    """What a table was made with.

    Attributes:
        model: its name when the table was made.
        fingerprint: of that model.
        dim: of the full vectors.
    """

    model: str
    fingerprint: str
    dim: int
    shortlist: Shortlist


def current_schema(connection: Psycopg) -> str:
    """Return the schema in which a table without one is made.

    Raises:
        InputError: there is none, or its name is not plain.
    """
    row = connection.execute("SELECT current_schema()").fetchone()
    schema = row[0] if row else None
    if schema is None or not made.NAME.fullmatch(schema):
        raise InputError(f"PostgreSQL: no plain schema to make a table in, but {schema}; give --table SCHEMA.TABLE")
    return str(schema)


def vector_schema(connection: Psycopg) -> str | None:
    """Return where pgvector lives, None where this database has none.

    Raises:
        InputError: it is too old.
    """
    row = connection.execute(
        "SELECT n.nspname, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'"
    ).fetchone()
    if row is None:
        return None
    schema, version = row
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise InputError(f"this database has pgvector {version}, not {needed} or newer; ALTER EXTENSION vector UPDATE")
    return str(schema)


def create_extension(connection: Psycopg) -> None:
    """Make pgvector known in this database.

    Raises:
        InputError: the server has none, or the user may not, or the database does not hold Unicode.
    """
    errors = psycopg.errors
    encoding = connection.execute("SHOW server_encoding").fetchone()
    if encoding != ("UTF8",):
        raise InputError("this database does not hold Unicode; make one with createdb --encoding UTF8")
    if vector_schema(connection) is not None:
        return
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


def use_vectors(connection: Psycopg) -> None:
    """Let this connection send vectors as numpy arrays.

    Raises:
        InputError: the database has no pgvector.
    """
    schema = vector_schema(connection)
    if schema is None:
        raise InputError("this database has no pgvector, so no table of nestling postgres; load one first")
    # The types must be in sight to be found.
    connection.execute(
        "SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(%s), false) "
        "WHERE to_regtype('vector') IS NULL",
        [schema],
    )
    register_vector(connection)


def read_meta(connection: Psycopg, names: Names) -> Meta | None:
    """Return what a table was made with; None where Nestling made none.

    Raises:
        InputError: what is there is of another format or not Nestling's.
    """
    other = f"{names}_meta is no table that this version of Nestling made; give another --table"
    if not _exists(connection, names, "meta"):
        return None
    columns = SQL(", ").join(Identifier(name) for name in made.META)
    try:
        row = connection.execute(SQL("SELECT {} FROM {}").format(columns, names.of("meta"))).fetchone()
    except psycopg.errors.UndefinedColumn:
        raise InputError(other) from None
    if row is None or row[0] != made.FORMAT:
        raise InputError(other)
    if not _exists(connection, names):
        raise InputError(f"{names} is gone, but {names}_meta is there; drop that too, or put the table back")
    return Meta(row[1], row[2], row[3], Shortlist.parse(row[4]))


def set_up(connection: Psycopg, names: Names, wanted: Meta, *, shortlist_given: bool, adopt: bool) -> Meta:
    """Make the table and what belongs to it, unless it is there; return what it was made with.

    Args:
        shortlist_given: a table with another shortlist is refused.
        adopt: take a table that Nestling did not make, if its columns fit.

    Raises:
        InputError: the table is another model's or not Nestling's, or does not fit.
    """
    # Two calls at a time would each make it.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"nestling {names}"])
    there = read_meta(connection, names)
    if there is not None:
        _compare(names, there, wanted, shortlist_given=shortlist_given)
        return there
    if connection.execute("SELECT to_regnamespace(quote_ident(%s))", [names.schema]).fetchone() == (None,):
        raise InputError(f"there is no schema {names.schema}; CREATE SCHEMA it, or give another --table")
    for relation in names.relations:
        if _exists(connection, Names(names.schema, relation)):
            raise InputError(f"{names.schema}.{relation} is not Nestling's and in the way; give another --table")
    if connection.execute(
        "SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE nspname = %s AND proname = %s",
        [names.schema, f"{names.name}_search"],
    ).rowcount:
        raise InputError(f"the function {names}_search is not Nestling's and in the way; give another --table")
    stored = "halfvec"
    if _exists(connection, names):
        if not adopt:
            raise InputError(f"{names} was not made by Nestling and is left alone; give another --table, or --adopt")
        stored = _fitting(connection, names, wanted.dim)
    else:
        connection.execute(made.create_table(names, wanted.dim))
    connection.execute(made.create_meta(names))
    values = (made.FORMAT, wanted.model, wanted.fingerprint, wanted.dim, str(wanted.shortlist), VERSION)
    connection.execute(
        SQL("INSERT INTO {} ({}) VALUES (%s, %s, %s, %s, %s, %s)").format(
            names.of("meta"), SQL(", ").join(map(SQL, made.META))
        ),
        values,
    )
    where = vector_schema(connection)
    assert where is not None
    connection.execute(made.create_search(names, wanted.shortlist, wanted.dim, stored, where))
    about = Literal("Made by nestling postgres; what with is in the table of the same name with _meta.")
    connection.execute(SQL("COMMENT ON FUNCTION {} IS {}").format(names.of("search"), about))
    return wanted


def _compare(names: Names, there: Meta, wanted: Meta, *, shortlist_given: bool) -> None:
    if (there.fingerprint, there.dim) != (wanted.fingerprint, wanted.dim):
        raise InputError(
            f"{names} was made with another model ({there.model}, fingerprint {there.fingerprint}, not "
            f"{wanted.fingerprint}); give another --table, or drop this one"
        )
    if shortlist_given and there.shortlist != wanted.shortlist:
        raise InputError(
            f"{names} has a shortlist of {there.shortlist}, not {wanted.shortlist}; give another --table, or drop "
            "this one"
        )


def _exists(connection: Psycopg, names: Names, what: str = "") -> bool:
    row = connection.execute(
        "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE nspname = %s AND relname = %s",
        [names.schema, f"{names.name}_{what}" if what else names.name],
    ).fetchone()
    return row is not None


def _fitting(connection: Psycopg, names: Names, dim: int) -> str:
    """Return the type in which a table that Nestling did not make stores vectors, if the table fits."""
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attidentity = '', "
        "EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisunique AND indnkeyatts = 1 "
        "AND indkey[0] = attnum AND indpred IS NULL AND indisvalid), relkind "
        "FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname = %s AND relname = %s AND attnum > 0 AND NOT attisdropped",
        [names.schema, names.name],
    ).fetchall()
    # A type outside the search path has its schema before it.
    types = {name: kind.rpartition(".")[2] for name, kind, *_ in rows}
    wanted = {**made.COLUMNS, "embedding": f"halfvec({dim})"}
    faults = [
        f"{name} must be {kind}, is {types.get(name, 'missing')}"
        for name, kind in wanted.items()
        if types.get(name) != kind and not (name == "embedding" and types.get(name) == f"vector({dim})")
    ]
    if any(kind != "r" for *_, kind in rows):
        faults.append("it is no plain table")
    if not any(name == "document_id" and unique for name, _, _, unique, _ in rows):
        faults.append("document_id has no unique index of its own")
    faults += [f"{name} must have a default" for name, _, needed, *_ in rows if needed and name not in wanted]
    if faults:
        raise InputError(f"{names} cannot be adopted: {'; '.join(faults)}")
    return str(types["embedding"].partition("(")[0])
