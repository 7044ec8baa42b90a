"""What belongs to a table of documents in PostgreSQL: names, and the shortlist's index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from psycopg.sql import SQL, Composed, Identifier

from nestling.errors import InputError

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
            raise InputError(
                f"--table {text[:80]!r}: give TABLE or SCHEMA.TABLE, each of small letters, digits and _, not "
                "beginning with a digit, at most 50 long"
            )
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
    """What finds candidates: the first `dim` components, as half-precision floats or as their signs."""

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
