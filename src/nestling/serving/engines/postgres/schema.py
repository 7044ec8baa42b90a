"""Makes a table and what belongs to it in PostgreSQL, or checks that what is there is Nestling's and of this model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import errors
from psycopg.sql import SQL, Composed, Identifier

from nestling.environment import VERSION
from nestling.errors import InputError
from nestling.serving.engines.postgres.connection import Psycopg

FORMAT = 1
OTHER_TABLE = "give another --table"
OLDEST = (0, 8)
"""pgvector from which an index is scanned on until enough documents pass."""
CANDIDATES, CANDIDATES_A_RESULT = 400, 20
"""A search rescores the larger of: the first, and the second times k."""
FEW = 10_000
"""So many documents that pass a filter, or fewer, are scored one by one, without the index."""
SCHEMA = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
COLUMNS = {"document_id": "text", "document": "text", "fields": "jsonb", "text_hash": "text", "fingerprint": "text"}
"""The columns beside the embedding, each with its type."""
NAME = re.compile(r"[a-z_][a-z0-9_]{,49}")
"""PostgreSQL cuts names at 63 characters, and those of what belongs to a table are longer than the table's."""
KINDS = {"halfvec": (4_000, "halfvec_cosine_ops", "<=>"), "bit": (64_000, "bit_hamming_ops", "<~>")}
"""Kind of a shortlist -> most dims that pgvector's HNSW index takes, operator class and operator.

A prefix of a unit vector is not of length 1, and cosine gives the order of the renormalised prefixes.
"""
INDEXES = """
    CREATE INDEX IF NOT EXISTS {shortlist} ON {table} USING hnsw (({code}) {operators});
    CREATE INDEX IF NOT EXISTS {filter} ON {table} USING gin (fields jsonb_path_ops)
"""


@dataclass(frozen=True)
class Names:
    """The names of a table, and of what belongs to it: TABLE_meta, TABLE_search, TABLE_shortlist, TABLE_filter."""

    schema: str
    table: str

    @classmethod
    def parse(cls, text: str) -> Names:
        """Read SCHEMA.TABLE, or TABLE, whose schema stays empty; InputError where a name is not plain, or too long."""
        parts = text.split(".")
        if len(parts) > 2 or not all(NAME.fullmatch(part) for part in parts):
            form = "small letters, digits and _, not beginning with a digit, at most 50 long"
            raise InputError(f"--table {text[:80]!r}: give TABLE or SCHEMA.TABLE, each of {form}")
        return cls(parts[0] if len(parts) == 2 else "", parts[-1])

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"

    def sql(self, text: str, **values: Any) -> Composed:
        """Fill in {table}, {meta} and {search} with the schema, the indexes {shortlist} and {filter}, and values."""
        names = {what: Identifier(self.schema, f"{self.table}_{what}") for what in ("meta", "search")}
        names |= {what: Identifier(f"{self.table}_{what}") for what in ("shortlist", "filter")}
        return SQL(text).format(table=Identifier(self.schema, self.table), **names, **values)


@dataclass(frozen=True)
class Shortlist:
    """A shortlist that finds candidates: the first `dim` components, as half-precision floats or as their signs."""

    dim: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> Shortlist:
        """Read DIMS:KIND; InputError where the text is something else, or more dims than an index takes."""
        dim, _, kind = text.partition(":")
        if not (dim.isascii() and dim.isdigit() and int(dim)) or kind not in KINDS:
            raise InputError(f"--shortlist {text!r}: give DIMS:halfvec or DIMS:bit, as in 48:halfvec or 384:bit")
        if int(dim) > KINDS[kind][0]:
            raise InputError(f"--shortlist {text!r}: pgvector indexes at most {KINDS[kind][0]:,} dims of {kind}")
        return cls(int(dim), kind)

    def __str__(self) -> str:
        return f"{self.dim}:{self.kind}"

    def code(self, vector: str) -> SQL:
        """Return the expression of a full vector's code."""
        prefix = f"subvector({vector}, 1, {self.dim})"
        stored = prefix if self.kind == "halfvec" else f"binary_quantize({prefix})"
        return SQL(f"{stored}::{self.kind}({self.dim})")


@dataclass(frozen=True)
class Meta:
    """The metadata of a table: a model, its fingerprint and the size of its vectors, and a shortlist."""

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
        raise InputError(f"{names}_meta is no table that this version of Nestling made; {OTHER_TABLE}")
    return Meta(row[1], row[2], row[3], Shortlist.parse(row[4]))


def set_up(connection: Psycopg, names: Names, meta: Meta, *, shortlist_given: bool, adopt: bool) -> Meta:
    """Make the table and what belongs to it, unless it is there; return what it was made with.

    `shortlist_given` refuses a table with another shortlist; `adopt` takes one that Nestling did not make.
    """
    # Two calls at a time would each make it.
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"nestling {names}"])
    vectors = _extension(connection)
    existing = read_meta(connection, names)
    if existing is not None:
        if (existing.fingerprint, existing.dim) != (meta.fingerprint, meta.dim):
            raise InputError(f"{other_model(names, existing, meta.fingerprint)}; {OTHER_TABLE}, or drop this one")
        if shortlist_given and existing.shortlist != meta.shortlist:
            what = f"{names} has a shortlist of {existing.shortlist}, not {meta.shortlist}"
            raise InputError(f"{what}; {OTHER_TABLE}, or drop this one")
        return existing
    stored = _stored(connection, names, meta.dim, adopt=adopt)
    connection.execute(
        names.sql(
            SCHEMA,
            dim=meta.dim,
            format=FORMAT,
            model=meta.model,
            fingerprint=meta.fingerprint,
            shortlist_text=str(meta.shortlist),
            version=VERSION,
            vectors=Identifier(vectors),
            full=SQL(f"{stored}({meta.dim})"),
            document_code=meta.shortlist.code("d.embedding"),
            query_code=meta.shortlist.code("$1"),
            operator=SQL(KINDS[meta.shortlist.kind][2]),
            candidates=CANDIDATES,
            times=CANDIDATES_A_RESULT,
            few=FEW,
        )
    )
    return meta


def other_model(names: Names, meta: Meta, fingerprint: str) -> str:
    """Say that a table belongs to another model than the one with this fingerprint."""
    return f"{names} was made with another model ({meta.model}, fingerprint {meta.fingerprint}, not {fingerprint})"


def _extension(connection: Psycopg) -> str:
    """Add pgvector to the database where it is missing, and return its schema."""
    if connection.execute("SHOW server_encoding").fetchone() != ("UTF8",):
        raise InputError("this database does not hold Unicode; make one with createdb --encoding UTF8")
    try:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except (errors.FeatureNotSupported, errors.UndefinedFile, errors.UndefinedObject):
        advice = "install its package there (postgresql-18-pgvector or the like)"
        raise InputError(f"this server has no pgvector; {advice}") from None
    except errors.InsufficientPrivilege:
        advice = "have an administrator give CREATE EXTENSION vector there"
        raise InputError(f"this user may not add pgvector to the database; {advice}") from None
    schema, version = connection.execute(
        "SELECT nspname, extversion FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace "
        "WHERE extname = 'vector'"
    ).fetchone() or ("", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise InputError(f"this database has pgvector {version}, not {oldest} or newer; ALTER EXTENSION vector UPDATE")
    return str(schema)


def _stored(connection: Psycopg, names: Names, dim: int, *, adopt: bool) -> str:
    """Return the type in which the table stores vectors, or will; refuse names that others use, and what misfits."""
    relations = [names.table, *(f"{names.table}_{what}" for what in ("meta", "shortlist", "filter"))]
    taken = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = %s "
        "AND relname = ANY(%s) UNION ALL "
        "SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = %s AND proname = %s",
        [names.schema, relations, names.schema, f"{names.table}_search"],
    ).fetchall()
    for (name,) in taken:
        if name != names.table:
            raise InputError(f"{names.schema}.{name} is not Nestling's and in the way; {OTHER_TABLE}")
    if not taken:
        return "halfvec"
    if not adopt:
        raise InputError(f"{names} was not made by Nestling and is left alone; {OTHER_TABLE}, or --adopt")
    rows = connection.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull AND NOT atthasdef AND attidentity = '', "
        "EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisunique AND indnkeyatts = 1 "
        "AND indkey[0] = attnum AND indpred IS NULL AND indisvalid) "
        "FROM pg_attribute JOIN pg_class c ON c.oid = attrelid "
        "WHERE c.oid = to_regclass(%s) AND relkind = 'r' AND attnum > 0 AND NOT attisdropped",
        [names.sql("{table}").as_string()],
    ).fetchall()
    # A type outside the search path has its schema before it.
    types = {name: kind.rpartition(".")[2] for name, kind, *_ in rows}
    fitting = {name: (kind,) for name, kind in COLUMNS.items()} | {"embedding": (f"halfvec({dim})", f"vector({dim})")}
    faults = [
        f"{name} must be {kinds[0]}, is {types.get(name, 'missing')}"
        for name, kinds in fitting.items()
        if types.get(name) not in kinds
    ]
    if not any(name == "document_id" and unique for name, *_, unique in rows):
        faults.append("document_id has no unique index of its own")
    faults += [f"{name} must have a default" for name, _, needed, _ in rows if needed and name not in fitting]
    if faults:
        raise InputError(f"{names} cannot be adopted: {'; '.join(faults)}")
    return str(types["embedding"].partition("(")[0])
