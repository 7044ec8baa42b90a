"""What belongs to a table of documents in PostgreSQL: its names, its shortlist, and its indexes and search function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal as OneOf

from psycopg.sql import SQL, Composed, Identifier

from nestling.errors import InputError

LARGEST = {"halfvec": 4_000, "bit": 64_000}
"""Dims that pgvector's HNSW index takes."""
CANDIDATES, CANDIDATES_A_RESULT = 400, 20
"""A search rescores the larger of: the first, and the second times k."""
FEW = 10_000
"""So many documents that pass a filter, or fewer, are scored one by one, without the index."""
NAME = re.compile(r"[a-z_][a-z0-9_]{,49}")
"""PostgreSQL cuts names at 63 characters, and those of what belongs to a table are longer than the table's."""
BESIDE = ("meta", "shortlist", "filter", "search")
SEARCH = Path(__file__).with_name("search.sql")


@dataclass(frozen=True)
class Names:
    """The names of a table, and of what belongs to it: TABLE_meta, TABLE_shortlist, TABLE_filter, TABLE_search."""

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
        """Fill in {table}, {meta}, {shortlist}, {filter}, {search}, each with the schema, and values by name."""
        beside = {what: Identifier(self.schema, f"{self.table}_{what}") for what in BESIDE}
        return SQL(text).format(table=Identifier(self.schema, self.table), **beside, **values)


@dataclass(frozen=True)
class Shortlist:
    """What finds candidates: the first `dim` components, as half-precision floats or as their signs."""

    dim: int
    kind: OneOf["halfvec", "bit"]

    @classmethod
    def parse(cls, text: str) -> Shortlist:
        """Read DIMS:KIND; InputError where the text is something else, or more dims than an index takes."""
        dim, _, kind = text.partition(":")
        if not (dim.isascii() and dim.isdigit() and int(dim)) or kind not in LARGEST:
            raise InputError(f"--shortlist {text!r}: give DIMS:halfvec or DIMS:bit, as in 48:halfvec or 384:bit")
        if int(dim) > LARGEST[kind]:
            raise InputError(f"--shortlist {text!r}: pgvector indexes at most {LARGEST[kind]:,} dims of {kind}")
        return cls(int(dim), "bit" if kind == "bit" else "halfvec")

    def __str__(self) -> str:
        return f"{self.dim}:{self.kind}"

    @property
    def operators(self) -> tuple[str, str]:
        """The operator class and its operator.

        A prefix of a unit vector is not of length 1, and cosine gives the order of the renormalised prefixes.
        """
        return ("bit_hamming_ops", "<~>") if self.kind == "bit" else ("halfvec_cosine_ops", "<=>")

    def code(self, vector: str) -> SQL:
        """Return the expression of a full vector's code."""
        prefix = f"subvector({vector}, 1, {self.dim})"
        if self.kind == "bit":
            return SQL(f"binary_quantize({prefix})::bit({self.dim})")
        return SQL(f"{prefix}::halfvec({self.dim})")


def create_indexes(names: Names, shortlist: Shortlist) -> list[Composed]:
    """Return the statements that make the shortlist's index and the filter's, where they are missing."""
    return [
        names.sql(
            "CREATE INDEX IF NOT EXISTS {name} ON {table} USING hnsw (({code}) {operators})",
            name=Identifier(f"{names.table}_shortlist"),
            code=shortlist.code("embedding"),
            operators=SQL(shortlist.operators[0]),
        ),
        names.sql(
            "CREATE INDEX IF NOT EXISTS {name} ON {table} USING gin (fields jsonb_path_ops)",
            name=Identifier(f"{names.table}_filter"),
        ),
    ]


def create_search(names: Names, shortlist: Shortlist, dim: int, stored: str, vectors: str) -> Composed:
    """Return the statement that makes TABLE_search.

    Args:
        stored: the type of the column `embedding`, `halfvec` or `vector`, of `dim` components.
        vectors: the schema of pgvector.
    """
    return names.sql(
        SEARCH.read_text(encoding="utf-8"),
        vectors=Identifier(vectors),
        full=SQL(f"{stored}({dim})"),
        document_code=shortlist.code("d.embedding"),
        query_code=shortlist.code("$1"),
        operator=SQL(shortlist.operators[1]),
        candidates=CANDIDATES,
        times=CANDIDATES_A_RESULT,
        few=FEW,
    )
