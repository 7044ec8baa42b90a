"""What Nestling makes in PostgreSQL: names, columns, the shortlist's index, and the function that searches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal as OneOf

from psycopg.sql import SQL, Composed, Identifier, Literal

from nestling.errors import InputError

FORMAT = 1
SHORTLIST = "48:halfvec"
LARGEST = {"halfvec": 4_000, "bit": 64_000}
"""Dims that pgvector's HNSW index takes."""
CANDIDATES, CANDIDATES_A_RESULT = 400, 20
"""A search rescores the larger of: the first, and the second times k."""
FEW = 10_000
"""So many documents that pass a filter, or fewer, are scored one by one, without the index."""
NAME = re.compile(r"[a-z_][a-z0-9_]*")
LONGEST_NAME = 50
COLUMNS = {"document_id": "text", "document": "text", "fields": "jsonb", "text_hash": "text", "fingerprint": "text"}
"""The columns beside the embedding, each with its type."""
STORED = ("halfvec", "vector")
META = ("format", "model", "fingerprint", "dim", "shortlist", "version")


@dataclass(frozen=True)
class Shortlist:
    """What finds candidates: the first `dim` components, as half-precision floats or as their signs."""

    dim: int
    kind: OneOf["halfvec", "bit"]

    @classmethod
    def parse(cls, text: str) -> Shortlist:
        """Read DIMS:KIND.

        Raises:
            InputError: the text is something else, or more dims than an index takes.
        """
        dim, _, kind = text.partition(":")
        if not (dim.isascii() and dim.isdigit() and int(dim)) or kind not in LARGEST:
            raise InputError(f"--shortlist {text!r}: give DIMS:halfvec or DIMS:bit, as in 48:halfvec or 384:bit")
        if int(dim) > LARGEST[kind]:
            raise InputError(f"--shortlist {text!r}: pgvector indexes at most {LARGEST[kind]:,} dims of {kind}")
        return cls(int(dim), "bit" if kind == "bit" else "halfvec")

    def __str__(self) -> str:
        return f"{self.dim}:{self.kind}"

    def within(self, full: int) -> Shortlist:
        """Return the shortlist of a model of `full` dims, which may have fewer."""
        return Shortlist(min(self.dim, full), self.kind)

    @property
    def operators(self) -> tuple[str, str]:
        """The operator class and its operator.

        A prefix of a unit vector is not of length 1, and cosine gives the order of the renormalised prefixes.
        """
        return ("bit_hamming_ops", "<~>") if self.kind == "bit" else ("halfvec_cosine_ops", "<=>")

    def of(self, vector: str) -> str:
        """Return the SQL expression of a full vector's code."""
        prefix = f"subvector({vector}, 1, {self.dim})"
        return f"binary_quantize({prefix})::bit({self.dim})" if self.kind == "bit" else f"{prefix}::halfvec({self.dim})"


def check_table(text: str) -> tuple[str | None, str]:
    """Read TABLE or SCHEMA.TABLE.

    Raises:
        InputError: a name is not plain, or too long for the names made of it.
    """
    parts = text.split(".")
    if len(parts) > 2 or not all(NAME.fullmatch(part) and len(part) <= LONGEST_NAME for part in parts):
        raise InputError(
            f"--table {text[:80]!r}: give TABLE or SCHEMA.TABLE, each of small letters, digits and _, not beginning "
            f"with a digit, at most {LONGEST_NAME} long"
        )
    return (parts[0] if len(parts) == 2 else None), parts[-1]


@dataclass(frozen=True)
class Names:
    """The names of all that belongs to one table, quoted; `check_table` has passed both parts."""

    schema: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations beside the table."""
        return tuple(f"{self.name}_{what}" for what in ("meta", "shortlist", "filter"))

    def of(self, what: str = "") -> Identifier:
        """Return the table, or what is called TABLE_`what`."""
        return Identifier(self.schema, f"{self.name}_{what}" if what else self.name)

    def bare(self, what: str) -> Identifier:
        """Return TABLE_`what` without the schema, as the maker of an index wants it."""
        return Identifier(f"{self.name}_{what}")


def create_table(names: Names, dim: int) -> Composed:
    """Return the statement that makes the table."""
    return SQL(
        "CREATE TABLE {} (document_id text PRIMARY KEY, document text NOT NULL, fields jsonb NOT NULL DEFAULT '{{}}', "
        "text_hash text NOT NULL, fingerprint text NOT NULL, embedding halfvec({}) NOT NULL)"
    ).format(names.of(), Literal(dim))


def create_meta(names: Names) -> Composed:
    """Return the statement that makes the table of one row that says what the documents were encoded with."""
    return SQL(
        "CREATE TABLE {} (one boolean PRIMARY KEY DEFAULT true CHECK (one), format integer NOT NULL, "
        "model text NOT NULL, fingerprint text NOT NULL, dim integer NOT NULL, shortlist text NOT NULL, "
        "version text NOT NULL)"
    ).format(names.of("meta"))


def create_indexes(names: Names, shortlist: Shortlist) -> list[Composed]:
    """Return the statements that make the shortlist's index and the filter's, where they are missing."""
    return [
        SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw (({}) {})").format(
            names.bare("shortlist"), names.of(), SQL(shortlist.of("embedding")), SQL(shortlist.operators[0])
        ),
        SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING gin (fields jsonb_path_ops)").format(
            names.bare("filter"), names.of()
        ),
    ]


def create_search(names: Names, shortlist: Shortlist, dim: int, stored: str, vector_schema: str) -> Composed:
    """Return the statement that makes TABLE_search.

    Args:
        dim: of the full vectors.
        stored: the type of the column `embedding`, one of `STORED`.
        vector_schema: where pgvector lives.

    Raises:
        ValueError: `stored` is no type that Nestling uses.
    """
    if stored not in STORED:
        raise ValueError(f"stored must be one of {', '.join(STORED)}, got {stored!r}")
    body = BODY.format(
        table=names.of().as_string(None),
        full=f"{stored}({int(dim)})",
        code=shortlist.of("d.embedding"),
        asked=shortlist.of("$1"),
        operator=shortlist.operators[1],
        candidates=CANDIDATES,
        times=CANDIDATES_A_RESULT,
        few=FEW,
    )
    return SQL(
        "CREATE FUNCTION {} (query {}.vector, k integer DEFAULT 10, shortlist integer DEFAULT NULL, "
        "filter jsonb DEFAULT NULL) RETURNS TABLE (document_id text, score double precision, document text, "
        "fields jsonb) LANGUAGE plpgsql STABLE SET search_path TO pg_catalog, {}, pg_temp AS {}"
    ).format(names.of("search"), Identifier(vector_schema), Identifier(vector_schema), Literal(body))


# All statements are dynamic: each is planned for its values, and no column can hide a variable. The server's settings
# are put back at the end; an error on the way puts them back too, since they are set for the transaction only.
BODY = """
DECLARE
  asked {full} := query::{full};
  wanted integer := greatest(k, coalesce(shortlist, greatest({candidates}, {times} * k)));
  fits text := 'true';
  exact boolean := coalesce(shortlist = 0, false);
  ef text := coalesce(current_setting('hnsw.ef_search', true), '40');
  scan text := coalesce(current_setting('hnsw.iterative_scan', true), 'off');
BEGIN
  IF query IS NULL OR coalesce(k, 0) < 1 OR shortlist < 0 THEN
    RAISE EXCEPTION 'give a query, k of 1 or more, and a shortlist of 0 (none) or more' USING ERRCODE = '22023';
  END IF;
  IF filter IS NOT NULL AND filter <> '{{}}' THEN
    IF jsonb_typeof(filter) <> 'object' THEN
      RAISE EXCEPTION 'filter must be an object, field to value or to an array of values' USING ERRCODE = '22023';
    END IF;
    SELECT string_agg(coalesce((
        SELECT '(' || string_agg(format('d.fields @> %L::jsonb', jsonb_build_object(f.key, v.value)), ' OR ') || ')'
        FROM jsonb_array_elements(
          CASE jsonb_typeof(f.value) WHEN 'array' THEN f.value ELSE jsonb_build_array(f.value) END) v
      ), 'false'), ' AND ')
      INTO fits FROM jsonb_each(filter) f;
    IF NOT exact THEN
      EXECUTE 'SELECT count(*) <= {few} FROM (SELECT FROM {table} d WHERE ' || fits || ' LIMIT {few} + 1) passing'
        INTO exact;
    END IF;
  END IF;
  IF exact THEN
    RETURN QUERY EXECUTE 'SELECT d.document_id, -(d.embedding <#> $1), d.document, d.fields FROM {table} d WHERE '
      || fits || ' ORDER BY d.embedding <#> $1, d.document_id LIMIT $2' USING asked, k;
    RETURN;
  END IF;
  PERFORM set_config('hnsw.ef_search', least(1000, greatest(wanted, ef::integer))::text, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true);
  RETURN QUERY EXECUTE 'WITH candidates AS MATERIALIZED (SELECT d.document_id, d.embedding, d.document, d.fields '
    || 'FROM {table} d WHERE ' || fits || ' ORDER BY {code} {operator} {asked} LIMIT $2) '
    || 'SELECT d.document_id, -(d.embedding <#> $1), d.document, d.fields FROM candidates d '
    || 'ORDER BY d.embedding <#> $1, d.document_id LIMIT $3' USING asked, wanted, k;
  PERFORM set_config('hnsw.ef_search', ef, true), set_config('hnsw.iterative_scan', scan, true);
END
"""
