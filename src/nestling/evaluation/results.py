"""Results: the tables that an evaluation comes to, made, written and read in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nestling import atomic
from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.grid import CELL, RANKED, SCHEMA, System
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.significance import SCHEMA as COMPARED
from nestling.evaluation.significance import compare_all, means_by
from nestling.evaluation.slices import slice_table, slices_of
from nestling.judgments.table import Judgments

COLUMNS = {
    "results": tuple(SCHEMA),
    "per_query": ("variant", *CELL, "query_id", "query"),
    "comparisons": tuple(COMPARED),
    "slices": ("slice", "label", "queries", "variant", "measure", "value", "low", "high"),
    "rankings": ("variant", *RANKED),
}
"""The columns that each table has at least."""
LATER = ("slices", "rankings")
"""Tables that runs of earlier versions lack: they are read as empty."""


@dataclass(frozen=True)
class Results:
    """Tables of an evaluation, with the columns of `COLUMNS` at least."""

    results: pl.DataFrame
    """Means over queries with their intervals."""
    per_query: pl.DataFrame
    comparisons: pl.DataFrame
    """Variants at full size against the reference, p corrected for the number of comparisons on the same measure."""
    slices: pl.DataFrame
    """Variants at full size by group of queries."""
    rankings: pl.DataFrame
    """The documents on top in the plain float32 cells."""

    @classmethod
    def of(
        cls, systems: Mapping[str, System], test: Qrels, *, train: Judgments | None, reference: str | None
    ) -> Results:
        """Make the tables of variants trained on `train`, each compared with the reference (None: each with each)."""
        per_query = _named({name: system.per_query for name, system in systems.items()})
        # Figures of BM25 have no precision.
        is_plain = pl.col("precision").is_in(["float32", ""])
        plain = {
            name: system.per_query.filter(is_plain, rotation="none", oversampling=0) for name, system in systems.items()
        }
        full = {name: table.filter(pl.col("dim") == pl.col("dim").max()) for name, table in plain.items()}
        return cls(
            results=means_by(per_query, ["variant", *CELL]).select(list(SCHEMA)),
            per_query=per_query,
            comparisons=_compared(full, reference),
            slices=slice_table(_named(full), slices_of(test, train=train)),
            rankings=_named({name: system.ranked for name, system in systems.items()}),
        )

    def write(self, folder: RunFolder) -> None:
        """Write each table as Parquet."""
        for name in COLUMNS:
            write_table(getattr(folder, name), getattr(self, name))

    @classmethod
    def read(cls, folder: RunFolder) -> Results:
        """Read what `write` wrote; refuse a table that is missing, damaged or of an earlier version."""
        return cls(**{name: _read(getattr(folder, name), name) for name in COLUMNS})


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    with atomic.new_file(path) as temporary:
        table.write_parquet(temporary)


def _read(path: Path, name: str) -> pl.DataFrame:
    columns = COLUMNS[name]
    if name in LATER and not path.is_file():
        return pl.DataFrame(schema=columns)
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}; make it with nestling run") from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}); make it again with nestling run") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{path} lacks column {missing[0]!r}, so an earlier version wrote it; run nestling run again")
    return table


def _named(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    return pl.concat([table.select(pl.lit(name).alias("variant"), pl.all()) for name, table in tables.items()])


def _compared(full: Mapping[str, pl.DataFrame], reference: str | None) -> pl.DataFrame:
    if len(full) < 2:
        return pl.DataFrame(schema=COMPARED)
    tables = []
    for measure in next(iter(full.values())).select(pl.selectors.float()).columns:
        values = {name: table[measure].to_numpy() for name, table in full.items()}
        tables.append(compare_all(values, measures=(measure,), reference=reference))
    return pl.concat(tables)
