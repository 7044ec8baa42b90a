"""Splits that share nothing: by property, on hand-made graphs, and on the real data with its giant component."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.places import HOME_DEPOT
from nestling.errors import InputError
from nestling.judgments.sources import load_judgments
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.split_files import read_split, summarise, write_split
from nestling.judgments.table import Judgments

REAL = HOME_DEPOT / "train.csv.zip"


def judgments(rows: list[tuple[int, int, float]]) -> Judgments:
    """Build a table from (query number, document number, score); texts repeat for some ids on purpose."""
    return Judgments.from_frame(
        pl.DataFrame(
            {
                "query": [f"Query {q % 40}" for q, _, _ in rows],
                "query_id": [str(q) for q, _, _ in rows],
                "document": [f"document {d % 60}" for _, d, _ in rows],
                "document_id": [str(d) for _, d, _ in rows],
                "score": [s for _, _, s in rows],
            }
        ),
        scale=(1, 3),
    )


graphs = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 90), st.sampled_from([1.0, 2.0, 3.0])), min_size=2, max_size=120
)


@given(graphs, st.sampled_from(["auto", "components", "queries", "queries-only"]), st.integers(0, 5))
@settings(max_examples=60)
def test_no_two_sides_share_a_query_and_unless_by_queries_only_a_document(rows, method, seed):
    try:
        split = split_judgments(judgments(rows), method=method, seed=seed)
    except InputError:
        return
    assert split.leaks() == []
    columns = ["query_id", "query", *([] if split.method == "queries-only" else ["document_id", "document"])]
    for one, other in combinations(split.sides.values(), 2):
        for column in columns:
            assert not set(one.frame[column]) & set(other.frame[column])


@given(graphs, st.integers(0, 5))
@settings(max_examples=40)
def test_auto_splits_by_queries_only_where_the_others_lose_or_lump_too_much(rows, seed):
    table = judgments(rows)
    try:
        split = split_judgments(table, seed=seed)
    except InputError:
        return
    if split.largest_component <= 0.1 * len(table):
        assert split.method == "components"
        return
    try:
        dropped = split_judgments(table, method="queries", seed=seed).dropped
    except InputError:
        assert split.method == "queries-only"
        return
    assert split.method == ("queries" if dropped <= 0.2 * len(table) else "queries-only")
    assert split.dropped <= 0.2 * len(table)


@given(graphs, st.sampled_from(["components", "queries", "queries-only"]))
@settings(max_examples=40)
def test_every_record_is_on_one_side_or_dropped(rows, method):
    table = judgments(rows)
    try:
        split = split_judgments(table, method=method)
    except InputError:
        return
    kept = pl.concat([side.frame for side in split.sides.values()])
    assert kept.height + split.dropped == len(table)
    assert kept.unique().height == kept.height
    assert method == "queries" or split.dropped == 0


@given(graphs, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_the_rows_does_not_move_a_record(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    try:
        one = split_judgments(judgments(rows))
    except InputError:
        return
    other = split_judgments(judgments(shuffled))
    assert all(one.sides[name].frame.equals(other.sides[name].frame) for name in one.sides)


@pytest.fixture
def pairs() -> Judgments:
    """Two hundred queries with two documents each, no document in two queries: 200 components."""
    rows = [(f"q{n}", f"d{n}-{m}", float(m)) for n in range(200) for m in (1, 3)]
    return Judgments.from_frame(pl.DataFrame(rows, schema=["query", "document", "score"], orient="row"))


@pytest.fixture
def chain() -> Judgments:
    """A hundred queries, each sharing a document with the next: one component."""
    rows = [(f"q{n}", f"d{n + m}", 3.0 if m else 1.0) for n in range(100) for m in (0, 1)]
    return Judgments.from_frame(pl.DataFrame(rows, schema=["query", "document", "score"], orient="row"))


def test_small_components_are_dealt_whole_and_nothing_is_dropped(pairs: Judgments):
    split = split_judgments(pairs, test=0.2, dev=0.1)
    assert split.method == "components"
    assert split.dropped == 0
    assert summarise(split)["reached"] == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.01)


def test_a_giant_component_is_split_by_queries_with_cross_records_dropped(chain: Judgments):
    wider = pl.concat(
        [chain.frame, chain.frame.with_columns(pl.format("{} own {}", "query", "score").alias("document"))]
    )
    split = split_judgments(Judgments.from_frame(wider.select("query", "document", "score")))
    assert split.method == "queries"
    assert split.largest_component == 400
    assert split.dropped <= 0.2 * 400
    assert split.dropped > 0
    assert split.leaks() == []


def test_by_queries_a_test_query_keeps_all_its_judgments(chain: Judgments):
    split = split_judgments(chain, method="queries")
    counts = split.test.query_keys.value_counts()["count"]
    assert counts.to_list() == [2] * len(counts)


@pytest.fixture
def dense() -> Judgments:
    """Two hundred queries, each with five of 250 documents."""
    rng = np.random.default_rng(0)
    judged = [(n, rng.choice(250, 5, replace=False)) for n in range(200)]
    rows = [(f"q{n}", f"d{d}", 3.0 if m < 2 else 1.0) for n, documents in judged for m, d in enumerate(documents)]
    return Judgments.from_frame(pl.DataFrame(rows, schema=["query", "document", "score"], orient="row"))


def test_dense_data_is_split_by_queries_only_without_a_loss_and_with_a_warning(dense: Judgments):
    strict = split_judgments(dense, method="queries")
    assert strict.dropped > 0.5 * len(dense)
    assert strict.warning is None
    split = split_judgments(dense)
    assert (split.method, split.dropped) == ("queries-only", 0)
    assert f"keeping documents apart too would drop {strict.dropped:,} records" in split.reason
    assert summarise(split)["reached"] == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.02)
    train = set(split.train.frame["document_id"])
    assert split.seen == {name: len(set(split.sides[name].frame["document_id"]) & train) for name in ("dev", "test")}
    assert split.warning is not None
    assert split.warning.startswith(f"WARNING: sides share documents, and train holds {split.seen['test']} of the")
    assert split.overview()[-1] == split.warning


def test_documents_that_train_lacks_are_not_counted_as_seen():
    rows = [("a", "x"), ("b", "X "), ("b", "y"), ("b", "z")]
    frame = pl.DataFrame(rows, schema=["query", "document"], orient="row").with_columns(
        document_id=pl.Series(["1", "2", "3", "4"]), score=pl.lit(1.0)
    )
    table = Judgments.from_frame(frame)
    train, test = table.take([0]), table.take([1, 2, 3])
    split = Split(train, train.take([]), test, "queries-only", "", 0, (0.5, 0.0, 0.5), 4, 0, 1, 4)
    # Document 2 has the text of document 1.
    assert split.seen == {"dev": 0, "test": 1}


def test_the_leak_check_knows_what_the_method_promises(dense: Judgments):
    split = split_judgments(dense)
    assert split.leaks() == []
    assert any("document ids" in line for line in replace(split, method="queries").leaks())
    leaky = replace(split, test=split.train)
    assert leaky.leaks()[0].startswith("train and test share")
    assert not any("document" in line for line in leaky.leaks())


def test_a_split_that_shares_documents_reads_back_with_its_warning(dense: Judgments, tmp_path: Path):
    split = split_judgments(dense)
    write_split(split, tmp_path / "split")
    summary = json.loads((tmp_path / "split" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["method"], summary["warning"], summary["seen"]) == ("queries-only", split.warning, split.seen)
    assert summary["promise"] == "sides share no query; they do share documents"
    again = read_split(tmp_path / "split")
    assert (again.leaks(), again.warning) == ([], split.warning)


def test_another_seed_gives_another_split(pairs: Judgments):
    one, other = split_judgments(pairs, seed=0), split_judgments(pairs, seed=1)
    assert one.test.fingerprint != other.test.fingerprint


def test_equal_texts_under_different_ids_are_on_one_side():
    rows = [(f"q{n}", f"text {n // 2}", f"id{n}", 2.0) for n in range(40)]
    frame = pl.DataFrame(rows, schema=["query", "document", "document_id", "score"], orient="row")
    split = split_judgments(Judgments.from_frame(frame, scale=(1, 3)), test=0.3, dev=0.2)
    assert split.components == 20
    assert split.leaks() == []


def test_a_leak_is_found_and_named(pairs: Judgments):
    half = pairs.take(range(10))
    leaky = Split(half, half, pairs.take(range(20, 30)), "components", "", 0, (0.7, 0.1, 0.2), 30, 0, 1, 1)
    assert leaky.leaks()[0].startswith("train and dev share 5 query ids, ")
    assert not any("test" in line for line in leaky.leaks())


def test_one_query_cannot_be_split():
    one = Judgments.from_frame(pl.DataFrame({"query": ["a", "a"], "document": ["b", "c"], "score": [1.0, 2.0]}))
    with pytest.raises(InputError, match="it has one query only"):
        split_judgments(one)


def test_one_component_cannot_be_split_by_components(chain: Judgments):
    with pytest.raises(InputError, match=r"nothing is left for dev .* try --method queries"):
        split_judgments(chain, method="components")


@pytest.mark.parametrize(("test", "dev"), [(0.0, 0.1), (0.9, 0.1), (0.5, -0.1)])
def test_shares_that_leave_nothing_for_a_side_are_refused(pairs: Judgments, test: float, dev: float):
    with pytest.raises(InputError, match="must be above 0 and leave something for train"):
        split_judgments(pairs, test=test, dev=dev)


def test_a_written_split_reads_back_as_the_same(pairs: Judgments, tmp_path: Path):
    split = split_judgments(pairs)
    write_split(split, tmp_path / "split")
    again = read_split(tmp_path / "split")
    assert {n: s.fingerprint for n, s in again.sides.items()} == {n: s.fingerprint for n, s in split.sides.items()}
    assert (again.method, again.dropped, again.seed, again.shares) == (split.method, 0, 0, split.shares)


def test_a_table_changed_behind_the_summary_is_refused(pairs: Judgments, tmp_path: Path):
    write_split(split_judgments(pairs), tmp_path / "split")
    pairs.frame.write_parquet(tmp_path / "split" / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet is not the table that summary\.json describes"):
        read_split(tmp_path / "split")


def test_a_folder_that_is_no_split_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"is no split: it has no summary\.json"):
        read_split(tmp_path)


@pytest.mark.skipif(not REAL.exists(), reason="the Home Depot data is not on this machine")
def test_the_real_data_is_split_by_components_when_sampled_and_by_queries_in_full():
    full = load_judgments(REAL)
    sample = split_judgments(full.sample(25_000, seed=0))
    assert sample.method == "components"
    assert sample.dropped == 0
    assert summarise(sample)["reached"]["test"] == pytest.approx(0.2, abs=0.005)
    whole = split_judgments(full)
    assert whole.method == "queries"
    assert whole.largest_component > 50_000
    assert whole.leaks() == sample.leaks() == []
