"""The tables of an evaluation: what they are made of, and that they are read as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from nestling.config.run_folder import RunFolder
from nestling.errors import InputError
from nestling.evaluation.cells import Cell
from nestling.evaluation.grid import CELL, SCHEMA, System
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.results import COLUMNS, Results
from nestling.evaluation.significance import holm
from nestling.judgments.toolshed import generate

MEASURES = [Measure.parse("recall@2"), Measure.parse("mrr@2")]
QRELS = Qrels.from_judgments(generate(120, seed=0), threshold=2.5)


def system(share: float, *cells: Cell | None) -> System:
    """Rankings that begin with a relevant document for a share of the queries."""
    relevant = QRELS.relevant_columns[QRELS.relevant_indptr[:-1]]
    wrong = (relevant + 1) % QRELS.n_documents
    first = np.where(np.arange(QRELS.n_queries) < share * QRELS.n_queries, relevant, wrong)
    top = np.stack([first, np.full_like(first, -1)], axis=1), np.ones((QRELS.n_queries, 2), dtype=np.float32)
    return System.of([(cell, top) for cell in cells], QRELS, MEASURES)


@pytest.fixture(scope="module")
def made() -> Results:
    systems = {
        "base": system(0.3, Cell(8), Cell(4), Cell(8, "int8")),
        "better": system(0.9, Cell(6)),
        "bm25": system(0.5, None),
    }
    return Results.of(systems, QRELS, train=None, reference="base")


def test_every_variant_stands_in_every_table(made: Results):
    for name in COLUMNS:
        if name != "comparisons":
            assert getattr(made, name)["variant"].unique(maintain_order=True).to_list() == ["base", "better", "bm25"]
    assert dict(made.results.schema) == SCHEMA
    assert made.results.height == (3 + 1 + 1) * len(MEASURES)
    assert made.per_query.columns == ["variant", *CELL, "query_id", "query", "recall@2", "mrr@2"]


def test_rankings_are_of_plain_float32_and_of_what_has_no_embeddings(made: Results):
    systems = made.rankings.select("variant", "dim").unique(maintain_order=True).rows()
    assert systems == [("base", 8), ("base", 4), ("better", 6), ("bm25", 0)]


def test_variants_are_compared_at_their_own_full_size_on_each_measure_apart(made: Results):
    assert made.comparisons.select("a", "b", "measure").rows() == [
        ("base", other, measure) for measure in ("recall@2", "mrr@2") for other in ("better", "bm25")
    ]
    means = dict(
        made.per_query.filter(pl.col("dim").is_in([8, 6, 0]))
        .group_by("variant")
        .agg(pl.col("mrr@2").mean())
        .iter_rows()
    )
    row = made.comparisons.row(2, named=True)
    assert row["difference"] == pytest.approx(means["better"] - means["base"])
    for _, rows in made.comparisons.group_by("measure"):
        assert rows["p_holm"].to_numpy() == pytest.approx(holm(rows["p"].to_numpy()))
    assert made.slices["dim"].unique().sort().to_list() == [0, 6, 8]


def test_one_variant_is_compared_with_nothing():
    alone = Results.of({"base": system(0.3, Cell(8))}, QRELS, train=None, reference="base")
    assert alone.comparisons.is_empty()
    assert alone.comparisons.columns == list(COLUMNS["comparisons"])


def test_tables_are_read_as_they_were_written(made: Results, tmp_path: Path):
    folder = RunFolder(tmp_path)
    made.write(folder)
    read = Results.read(folder)
    for name, columns in COLUMNS.items():
        assert getattr(read, name).equals(getattr(made, name)), name
        assert set(columns) <= set(getattr(read, name).columns)


def test_tables_that_earlier_versions_did_not_write_are_empty(made: Results, tmp_path: Path):
    folder = RunFolder(tmp_path)
    made.write(folder)
    folder.slices.unlink()
    folder.rankings.unlink()
    read = Results.read(folder)
    assert (read.slices.is_empty(), read.rankings.is_empty()) == (True, True)
    assert read.rankings.columns == made.rankings.columns


def test_a_missing_damaged_or_old_table_is_a_line(made: Results, tmp_path: Path):
    folder = RunFolder(tmp_path)
    with pytest.raises(InputError, match=r"holds no results\.parquet; make it with nestling run"):
        Results.read(folder)
    made.write(folder)
    made.slices.drop("low").write_parquet(folder.slices)
    with pytest.raises(InputError, match=r"slices\.parquet lacks column 'low', so an earlier version wrote it"):
        Results.read(folder)
    folder.slices.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"slices\.parquet cannot be read as Parquet"):
        Results.read(folder)
