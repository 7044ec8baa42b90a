from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.places import HOME_DEPOT
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.significance import interval
from nestling.evaluation.slices import SCHEMA, slice_table, slices_of
from nestling.judgments.table import Judgments


def judged(rows: list[tuple[str, str, float]]) -> Judgments:
    """Judgments of (query, document, score); the ids are derived from the texts."""
    frame = pl.DataFrame(rows, schema=["query", "document", "score"], orient="row")
    return Judgments.from_frame(frame, scale=(1.0, 3.0))


def qrels_of(rows: list[tuple[str, str, float]], **options) -> Qrels:
    return Qrels.from_judgments(judged(rows), threshold=2.5, **options)


def labels(qrels: Qrels, kind: str, *, train: Judgments | None = None) -> dict[str, str]:
    """Query text -> label, of one kind."""
    texts = dict(zip(qrels.query_ids, qrels.queries, strict=True))
    table = slices_of(qrels, train=train).filter(pl.col("slice") == kind)
    return {texts[query_id]: label for query_id, label in table.select("query_id", "label").rows()}


def in_order(qrels: Qrels, kind: str) -> list[str]:
    return slices_of(qrels).filter(pl.col("slice") == kind)["label"].unique(maintain_order=True).to_list()


def test_queries_are_banded_by_their_words() -> None:
    queries = ["drill", "saw", "red drill", "big saw", "a b c", "a b 1/2 d", "a b c d e f"]
    qrels = qrels_of([(query, f"thing {i}", 3.0) for i, query in enumerate(queries)])
    assert labels(qrels, "query length") == {
        "drill": "1 word",
        "saw": "1 word",
        "red drill": "2 words",
        "big saw": "2 words",
        "a b c": "3-4 words",
        "a b 1/2 d": "3-4 words",
        "a b c d e f": "6 words",
    }
    assert in_order(qrels, "query length") == ["1 word", "2 words", "3-4 words", "6 words"]


def test_counts_are_put_together_until_a_band_holds_a_fifth_and_a_small_rest_joins_the_last() -> None:
    # Of 20 queries a band takes 4; the two longest would be one of 2, which is enough to stand alone.
    lengths = [1, 2, 2, 3, *[4] * 5, 5, 5, 5, 6, *[7] * 5, 8, 9]
    queries = [" ".join([f"w{i}", *["x"] * (n - 1)]) for i, n in enumerate(lengths)]
    qrels = qrels_of([(query, f"thing {i}", 3.0) for i, query in enumerate(queries)])
    assert in_order(qrels, "query length") == ["1-3 words", "4 words", "5-6 words", "7 words", "8 or more words"]
    without_longest = qrels_of([(query, f"thing {i}", 3.0) for i, query in enumerate(queries[:-1])])
    assert in_order(without_longest, "query length") == ["1-3 words", "4 words", "5-6 words", "7 or more words"]


@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=60))
@settings(max_examples=25, deadline=None)
def test_bands_take_every_query_once_and_none_is_tiny(lengths: list[int]) -> None:
    queries = [" ".join([f"w{i}", *["x"] * (n - 1)]) for i, n in enumerate(lengths)]
    qrels = qrels_of([(query, f"thing {i}", 3.0) for i, query in enumerate(queries)])
    table = slices_of(qrels).filter(pl.col("slice") == "query length")
    if table.is_empty():
        return
    assert sorted(table["query_id"]) == sorted(qrels.query_ids)
    sizes = table.group_by("label").len()["len"]
    assert sizes.min() >= 0.1 * len(lengths)  # type: ignore[operator]
    bounds = {label: label.split(" ")[0].split("-") for label in table["label"].unique()}
    texts = dict(zip(qrels.query_ids, qrels.queries, strict=True))
    row = {query_id: i for i, query_id in enumerate(qrels.query_ids)}
    for _, group in table.group_by("label"):
        assert [row[query_id] for query_id in group["query_id"]] == sorted(row[q] for q in group["query_id"])
    for query_id, label in table.select("query_id", "label").rows():
        n = len(texts[query_id].split())
        first, last = int(bounds[label][0]), int(bounds[label][-1])
        assert n >= first if "or more" in label else first <= n <= last


def test_queries_are_banded_by_their_relevant_documents() -> None:
    rows = [("one", "a", 3.0), ("one", "b", 1.0), ("two", "c", 3.0), ("two", "d", 2.67), ("three", "e", 3.0)]
    assert labels(qrels_of(rows), "relevant documents") == {
        "one": "1 document",
        "two": "2 documents",
        "three": "1 document",
    }


def test_word_overlap_is_the_mean_share_of_query_words_in_the_relevant_documents() -> None:
    rows = [
        ("Cordless DRILL", "a Drill, CORDLESS", 3.0),
        # 1/3 and 2/3, and the document that is not relevant holds all: half.
        ("red oak door", "a door", 3.0),
        ("red oak door", "red-oak board", 3.0),
        ("red oak door", "red oak door", 1.0),
        # 1/2 and 1/3 of the words twice.
        ("saw saw blades", "saws", 3.0),
        ("tap small brass", "tap", 3.0),
        # A part of a word is not the word.
        ("paint", "painted wall", 3.0),
        # A word in one document of two.
        ("tile", "tile", 3.0),
        ("tile", "stone", 3.0),
        ("$", "screw", 3.0),
    ]
    assert labels(qrels_of(rows), "word overlap") == {
        "Cordless DRILL": "every word",
        "red oak door": "half of the words or more",
        "saw saw blades": "no word",
        "tap small brass": "less than half of the words",
        "paint": "no word",
        "tile": "half of the words or more",
        "$": "no word",
    }
    assert in_order(qrels_of(rows), "word overlap") == [
        "no word",
        "less than half of the words",
        "half of the words or more",
        "every word",
    ]


def test_what_training_held_is_found_by_normalised_text_or_by_id() -> None:
    train = judged([("Red  Drill", "a drill", 1.0), ("lamp", "A  LAMP", 3.0), ("lamp", "a light", 3.0)])
    qrels = qrels_of(
        [("red drill", "new tool", 3.0), ("lamp", "a  Lamp", 3.0), ("lights", "a light", 3.0), ("lights", "torch", 3.0)]
    )
    assert labels(qrels, "query in training", train=train) == {"red drill": "seen", "lamp": "seen", "lights": "new"}
    assert labels(qrels, "relevant documents in training", train=train) == {
        "red drill": "none seen",
        "lamp": "all seen",
        "lights": "some seen",
    }
    by_id = pl.DataFrame({"query": ["x"], "document_id": ["d7"], "document": ["an old text"], "score": [3.0]})
    tested = pl.DataFrame(
        {
            "query": ["y", "z", "t"],
            "document_id": ["d7", "d8", "d9"],
            "document": ["a new text", "another", "An  OLD text"],
            "score": [3.0] * 3,
        }
    )
    scale = (1.0, 3.0)
    found = labels(
        Qrels.from_judgments(Judgments.from_frame(tested, scale=scale), threshold=2.5),
        "relevant documents in training",
        train=Judgments.from_frame(by_id, scale=scale),
    )
    assert found == {"y": "all seen", "z": "none seen", "t": "all seen"}


def test_kinds_that_put_all_queries_under_one_label_are_left_out() -> None:
    qrels = qrels_of([("drill", "a drill", 3.0), ("saw", "a saw", 3.0)])
    table = slices_of(qrels, train=judged([("lamp", "a lamp", 3.0), ("lamp", "oil", 1.0)]))
    assert table.is_empty()
    assert table.schema == SCHEMA


def test_kinds_labels_and_queries_come_in_order() -> None:
    rows = [("b b", "b", 3.0), ("a", "a", 3.0), ("a", "x", 3.0), ("c c", "y", 3.0), ("d", "d", 3.0)]
    qrels = qrels_of(rows)
    table = slices_of(qrels)
    row = {query_id: i for i, query_id in enumerate(qrels.query_ids)}
    assert table["slice"].unique(maintain_order=True).to_list() == [
        "query length",
        "relevant documents",
        "word overlap",
    ]
    for _, group in table.group_by("slice", "label"):
        places = [row[query_id] for query_id in group["query_id"]]
        assert places == sorted(places)


SLICES = pl.DataFrame(
    [
        ("q1", "size", "small"),
        ("q3", "size", "small"),
        ("q2", "size", "large"),
        ("q9", "size", "absent"),
        ("q1", "colour", "red"),
        ("q2", "colour", "red"),
        ("q9", "colour", "red"),
    ],
    schema=SCHEMA,
    orient="row",
)
PER_QUERY = pl.DataFrame(
    [
        ("tuned", 8, "q1", "one", 1.0, 0.5),
        ("tuned", 8, "q2", "two", 0.0, 0.25),
        ("tuned", 8, "q3", "three", 0.5, 1.0),
        ("base", 4, "q3", "three", 0.1, 0.0),
        ("base", 4, "q2", "two", 0.2, 0.0),
        ("base", 4, "q1", "one", 0.3, 1.0),
    ],
    schema=["variant", "dim", "query_id", "query", "recall@10", "mrr@10"],
    orient="row",
)


def test_the_table_holds_the_mean_of_every_measure_on_every_group() -> None:
    table = slice_table(PER_QUERY, SLICES)
    assert table.columns == ["slice", "label", "queries", "variant", "dim", "measure", "value", "low", "high"]
    rows = table.select("slice", "label", "queries", "variant", "dim", "measure", "value").rows()
    expected = [
        ("size", "small", 2, "tuned", 8, "recall@10", 0.75),
        ("size", "small", 2, "tuned", 8, "mrr@10", 0.75),
        ("size", "small", 2, "base", 4, "recall@10", 0.2),
        ("size", "small", 2, "base", 4, "mrr@10", 0.5),
        ("size", "large", 1, "tuned", 8, "recall@10", 0.0),
        ("size", "large", 1, "tuned", 8, "mrr@10", 0.25),
        ("size", "large", 1, "base", 4, "recall@10", 0.2),
        ("size", "large", 1, "base", 4, "mrr@10", 0.0),
        ("colour", "red", 2, "tuned", 8, "recall@10", 0.5),
        ("colour", "red", 2, "tuned", 8, "mrr@10", 0.375),
        ("colour", "red", 2, "base", 4, "recall@10", 0.25),
        ("colour", "red", 2, "base", 4, "mrr@10", 0.5),
    ]
    assert [row[:-1] for row in rows] == [row[:-1] for row in expected]
    assert [row[-1] for row in rows] == pytest.approx([row[-1] for row in expected])


def test_the_intervals_are_those_of_the_group_alone() -> None:
    values = np.random.default_rng(0).random(40)
    ids = [f"q{i}" for i in range(40)]
    slices = pl.DataFrame({"query_id": ids, "slice": "half", "label": ["first"] * 20 + ["second"] * 20})
    per_query = pl.DataFrame({"variant": "base", "query_id": ids, "recall@10": values})
    table = slice_table(per_query, slices)
    low, high = interval(values[20:])
    assert table.row(1)[-3:] == pytest.approx((values[20:].mean(), float(low), float(high)))


def test_a_group_of_one_query_has_an_interval_of_no_width() -> None:
    assert slice_table(PER_QUERY, SLICES).row(5)[-3:] == (0.25, 0.25, 0.25)


def test_other_columns_name_the_system_too() -> None:
    twice = pl.concat([PER_QUERY.with_columns(pl.lit(name).alias("precision")) for name in ("float32", "int8")])
    table = slice_table(twice, SLICES)
    assert table.columns[3:6] == ["variant", "dim", "precision"]
    assert table.filter(pl.col("precision") == "int8").drop("precision").equals(slice_table(PER_QUERY, SLICES))


@pytest.mark.skipif(not HOME_DEPOT.is_dir(), reason="the Home Depot data is not here")
def test_home_depot_slices_share_out_all_queries_and_their_means_average_to_the_mean() -> None:
    from nestling.judgments.sources import load_judgments

    qrels = Qrels.from_judgments(load_judgments(str(HOME_DEPOT)).sample(1000, seed=1), threshold=2.5)
    slices = slices_of(qrels)
    rng = np.random.default_rng(0)
    ranking = np.stack([rng.permutation(qrels.n_documents)[:300] for _ in range(qrels.n_queries)])
    values = Measure.parse("recall@300").per_query(ranking, qrels)
    table = slice_table(pl.DataFrame({"variant": "random", "query_id": qrels.query_ids, "recall@300": values}), slices)
    assert {"query length", "word overlap"} <= set(table["slice"])
    for _, kind in table.group_by("slice"):
        assert kind["queries"].sum() == qrels.n_queries
        assert (kind["value"] * kind["queries"]).sum() / qrels.n_queries == pytest.approx(values.mean())
        assert ((kind["low"] <= kind["value"]) & (kind["value"] <= kind["high"])).all()
