from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.qrels import as_dicts
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import PROTOCOLS, Protocol, Qrels
from nestling.judgments.table import Judgments
from nestling.retrieval.exact_search import top_k


@pytest.fixture
def judgments() -> Judgments:
    rows = [
        ("s1", "Saw", "d10", "a saw", 3.0),
        ("s1", "saw ", "d2", "a fine saw", 2.67),
        ("s1", "saw", "d1", "a drill", 1.0),
        ("n1", "nail", "d1", "a drill", 1.33),
        ("d1", "drill", "d1", "a drill", 2.5),
        ("d1", "drill", "d3", "a drill bit", 3.0),
    ]
    frame = pl.DataFrame(rows, schema=["query_id", "query", "document_id", "document", "score"], orient="row")
    return Judgments.from_frame(frame, scale=(1.0, 3.0))


def test_the_corpus_holds_every_document_in_the_order_of_ids(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    assert list(zip(qrels.document_ids, qrels.documents, strict=True)) == [
        ("d1", "a drill"),
        ("d10", "a saw"),
        ("d2", "a fine saw"),
        ("d3", "a drill bit"),
    ]


def test_a_query_without_a_document_above_the_threshold_is_no_row(judgments: Judgments) -> None:
    assert Qrels.from_judgments(judgments, threshold=2.5).query_ids == ["d1", "s1"]


def test_queries_that_differ_in_case_and_space_are_one_row_with_the_first_text(judgments: Judgments) -> None:
    assert Qrels.from_judgments(judgments, threshold=2.5).queries == ["drill", "saw"]


def test_a_score_equal_to_the_threshold_is_not_relevant(judgments: Judgments) -> None:
    assert Qrels.from_judgments(judgments, threshold=2.5).n_relevant.tolist() == [1, 2]


def test_relevant_columns_point_at_the_relevant_documents_of_each_row(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    assert (qrels.relevant_indptr.tolist(), qrels.relevant_columns.tolist()) == ([0, 1, 3], [3, 1, 2])


def test_gains_cover_every_judged_document_and_count_from_the_bottom_of_the_scale(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    assert qrels.judged_columns.tolist() == [0, 3, 0, 1, 2]
    assert qrels.gains == pytest.approx([1.5, 2.0, 0.0, 2.0, 1.67])


def test_per_pair_makes_each_positive_record_a_query_with_one_relevant_document(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5, protocol="per-pair")
    assert qrels.query_ids == ["d1/d3", "s1/d10", "s1/d2"]
    assert qrels.relevant_columns.tolist() == [3, 1, 2]
    assert qrels.n_relevant.tolist() == [1, 1, 1]


def test_per_pair_judges_nothing_but_the_relevant_document(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5, protocol="per-pair")
    assert qrels.judged_columns.tolist() == qrels.relevant_columns.tolist()


def test_per_pair_keeps_the_corpus_of_per_query(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5, protocol="per-pair")
    assert qrels.document_ids == ["d1", "d10", "d2", "d3"]


def test_ceiling_is_below_one_where_a_query_has_more_than_k_relevant_documents(judgments: Judgments) -> None:
    assert Qrels.from_judgments(judgments, threshold=2.5).ceiling(1) == pytest.approx((1 + 1 / 2) / 2)


def test_dictionaries_speak_of_ids(judgments: Judgments) -> None:
    queries, corpus, relevant = as_dicts(Qrels.from_judgments(judgments, threshold=2.5))
    assert queries == {"d1": "drill", "s1": "saw"}
    assert corpus["d10"] == "a saw"
    assert relevant == {"d1": {"d3"}, "s1": {"d10", "d2"}}


def test_queries_that_share_an_id_but_not_a_text_stay_apart() -> None:
    frame = pl.DataFrame(
        {"query_id": ["x", "x", "x#2"], "query": ["a", "b", "c"], "document": ["A", "B", "C"], "score": [1.0] * 3}
    )
    qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0, 1)), threshold=0.5)
    assert qrels.query_ids == ["x", "x#3", "x#2"]


def test_no_relevant_document_at_all_is_an_error_that_names_the_threshold(judgments: Judgments) -> None:
    with pytest.raises(InputError, match=r"none of 6 records scores above the threshold 3 .* give a lower threshold"):
        Qrels.from_judgments(judgments, threshold=3)


def test_an_unknown_protocol_is_refused_with_the_known_ones(judgments: Judgments) -> None:
    with pytest.raises(InputError, match="choose one of per-query, per-pair"):
        Qrels.from_judgments(judgments, threshold=2.5, protocol="per-day")  # type: ignore[arg-type]


def test_index_arrays_are_int64_and_gains_float64(judgments: Judgments) -> None:
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    arrays = (qrels.relevant_indptr, qrels.relevant_columns, qrels.judged_indptr, qrels.judged_columns, qrels.gains)
    assert [array.dtype for array in arrays] == [np.int64] * 4 + [np.float64]


def twins(*scores: tuple[str, str, str, float]) -> Qrels:
    frame = pl.DataFrame(scores, schema=["query", "document_id", "document", "score"], orient="row")
    return Qrels.from_judgments(Judgments.from_frame(frame, scale=(1.0, 3.0)), threshold=2.5)


def test_documents_of_equal_text_are_one_column_with_the_first_id() -> None:
    qrels = twins(("saw", "b", "A Saw ", 3.0), ("saw", "a", "a\u00a0saw", 1.0), ("saw", "c", "a drill", 1.0))
    assert (qrels.document_ids, qrels.documents) == (["a", "c"], ["a\u00a0saw", "a drill"])
    assert qrels.column_of == {"a": 0, "b": 0, "c": 1}
    assert qrels.n_merged == 1


def test_of_the_scores_of_equal_texts_the_highest_stands_for_each_query() -> None:
    judged = [("saw", "a", "a saw", 1.0), ("saw", "b", "a saw", 3.0), ("tool", "a", "a saw", 2.67)]
    qrels = twins(*judged, ("tool", "b", "a saw", 1.0), ("tool", "c", "a drill", 2.0))
    assert (qrels.queries, qrels.n_relevant.tolist()) == (["saw", "tool"], [1, 1])
    assert qrels.gains == pytest.approx([2.0, 1.67, 1.0])


def test_per_pair_asks_once_for_a_text_under_several_ids() -> None:
    frame = pl.DataFrame({"query": ["saw"] * 2, "document_id": ["b", "a"], "document": ["a saw"] * 2, "score": [1, 1]})
    qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0, 1)), threshold=0.5, protocol="per-pair")
    assert (qrels.n_queries, qrels.relevant_columns.tolist(), qrels.document_ids) == (1, [0], ["a"])


def test_a_perfect_model_finds_the_relevant_document_first_whatever_the_ids_of_its_copies() -> None:
    qrels = twins(
        ("saw", "z", "a saw", 3.0), *(("nail", f"a{n}", "a saw", 1.0) for n in range(4)), ("nail", "n", "n", 3.0)
    )
    ranking, _ = top_k(np.eye(2, dtype=np.float32)[::-1], np.eye(2, dtype=np.float32), 2)
    assert qrels.documents == ["a saw", "n"]
    assert Measure.parse("mrr@10").per_query(ranking, qrels).tolist() == [1.0, 1.0]


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), protocol=st.sampled_from(PROTOCOLS))
def test_figures_depend_neither_on_ids_nor_on_how_often_a_document_is_there(seed: int, protocol: Protocol) -> None:
    rng = np.random.default_rng(seed)
    judged = [(q, d, float(rng.integers(0, 4))) for q in range(5) for d in range(12) if rng.random() < 0.5]
    judged += [(q, int(rng.integers(12, 15)), 3.0) for q in range(5)]
    vectors = rng.normal(size=(15, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)

    def figures(copies: np.ndarray) -> list[float]:
        names = iter(rng.permutation(int(copies.sum()) + 1).tolist())
        ids = [[f"id{next(names)}" for _ in range(n)] for n in copies]
        rows = [
            (f"query {q}", name, f"{'text' if n % 2 else ' TEXT '} {d}", score if n == 0 else score * rng.random())
            for q, d, score in judged
            for n, name in enumerate(ids[d])
            if n == 0 or rng.random() < 0.7
        ]
        frame = pl.DataFrame(rows, schema=["query", "document_id", "document", "score"], orient="row")
        qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0, 3)), threshold=1.5, protocol=protocol)
        documents = vectors[0][[int(text.split()[1]) for text in qrels.documents]]
        ranking, _ = top_k(vectors[1][[int(text.split()[1]) for text in qrels.queries]], documents, 10)
        measures = map(Measure.parse, ("recall@3", "mrr@10", "ndcg@5", "map@4", "precision@2", "hit@1"))
        return [float(np.mean(measure.per_query(ranking, qrels))) for measure in measures]

    assert figures(rng.integers(1, 4, size=15)) == pytest.approx(figures(np.ones(15, dtype=np.int64)), abs=1e-12)
