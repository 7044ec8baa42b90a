from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.evaluation.fusion_weight import WEIGHTS, fit_fusion
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.retrieval import fusion
from nestling.retrieval.fusion import Candidates, Fusion, PairScores, Top, inner_products

seeds = st.integers(0, 2**32 - 1)


def dense_top(scores: np.ndarray, depth: int) -> Top:
    """The best columns of each row, ties to the lower, as an exact dense search gives them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return order, np.take_along_axis(scores, order, axis=1)


def lexical_top(scores: np.ndarray, depth: int) -> Top:
    """The same without documents of score 0, as BM25 gives them."""
    columns, found = dense_top(scores, depth)
    return np.where(found > 0, columns, -1), found


def pairs_of(scores: np.ndarray) -> PairScores:
    return lambda rows, columns: scores[rows, columns]


def unasked(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    raise AssertionError("no score is missing")


def random_scores(seed: int, n_queries: int, n_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Dense scores in eighths of -1..1, lexical ones in halves with many zeros: sums are exact, ties abound."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(-8, 9, (n_queries, n_documents)) / 8
    lexical = rng.integers(0, 9, (n_queries, n_documents)) / 2 * (rng.random((n_queries, n_documents)) < 0.4)
    return dense.astype(np.float32), lexical.astype(np.float32)


def whole_sums(dense: np.ndarray, lexical: np.ndarray, weight: float) -> np.ndarray:
    """The weighted sum of every document, in single precision."""
    return (dense.astype(np.float64) + weight * lexical.astype(np.float64)).astype(np.float32)


def fuse(fused: Fusion, dense: np.ndarray, lexical: np.ndarray, k: int) -> Top:
    return fused.fuse(
        dense_top(dense, 30),
        lexical_top(lexical, 30),
        k,
        dense_scores=pairs_of(dense),
        lexical_scores=pairs_of(lexical),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    n_queries=st.integers(1, 6),
    n_documents=st.integers(1, 30),
    k=st.integers(1, 40),
    weight=st.sampled_from([0.0, 0.25, 0.5, 2.0]),
)
def test_with_the_corpus_as_candidates_the_fusion_is_a_sort_of_all_sums(
    seed: int, n_queries: int, n_documents: int, k: int, weight: float
) -> None:
    dense, lexical = random_scores(seed, n_queries, n_documents)
    indices, scores = fuse(Fusion(weight, depth=n_documents), dense, lexical, k)
    expected, sums = dense_top(whole_sums(dense, lexical, weight), k)
    depth = min(k, n_documents)
    assert indices.shape == scores.shape == (n_queries, k)
    assert (indices.dtype, scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(scores[:, :depth], sums)
    np.testing.assert_array_equal(indices[:, :depth], expected)
    assert (indices[:, depth:] == -1).all()
    assert np.isneginf(scores[:, depth:]).all()


@settings(max_examples=40, deadline=None)
@given(seed=seeds, depth=st.integers(1, 30), weight=st.sampled_from([0.0, 0.5]))
def test_the_candidates_are_those_of_either_side_each_with_its_whole_sum(seed: int, depth: int, weight: float) -> None:
    dense, lexical = random_scores(seed, 4, 30)
    indices, scores = fuse(Fusion(weight, depth), dense, lexical, 60)
    sums = whole_sums(dense, lexical, weight)
    for row in range(4):
        candidates = {*dense_top(dense, depth)[0][row], *lexical_top(lexical, depth)[0][row]} - {-1}
        best = sorted(candidates, key=lambda column: (-sums[row, column], column))
        assert indices[row].tolist() == best + [-1] * (60 - len(best))
        assert scores[row, : len(best)].tolist() == sums[row, best].tolist()


def test_a_document_that_one_side_lacks_gets_its_exact_score_there() -> None:
    dense = np.array([[0.9, 0.8, 0.7]], np.float32)
    lexical = np.array([[0.0, 1.0, 4.0]], np.float32)
    indices, scores = fuse(Fusion(0.125, depth=1), dense, lexical, 3)
    assert indices.tolist() == [[2, 0, -1]]
    np.testing.assert_allclose(scores, [[0.7 + 0.125 * 4, 0.9, -np.inf]], rtol=1e-6)


def test_only_the_missing_pairs_are_scored_and_each_once() -> None:
    dense, lexical = random_scores(3, 5, 30)
    asked: dict[str, list[tuple[int, int]]] = {"dense": [], "lexical": []}

    def noting(name: str, scores: np.ndarray) -> PairScores:
        def of_pairs(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            asked[name] += zip(rows.tolist(), columns.tolist(), strict=True)
            return scores[rows, columns]

        return of_pairs

    sides = {"dense": dense_top(dense, 7), "lexical": lexical_top(lexical, 7)}
    Fusion(0.5, depth=7).fuse(
        sides["dense"],
        sides["lexical"],
        5,
        dense_scores=noting("dense", dense),
        lexical_scores=noting("lexical", lexical),
    )
    named = {
        name: {(row, column) for row in range(5) for column in top[0][row].tolist() if column >= 0}
        for name, top in sides.items()
    }
    assert sorted(asked["dense"]) == sorted(named["lexical"] - named["dense"])
    assert sorted(asked["lexical"]) == sorted(named["dense"] - named["lexical"])


def test_one_query_alone_is_fused_as_among_others() -> None:
    dense, lexical = random_scores(5, 6, 30)
    fused = Fusion(0.3, depth=8)
    indices, scores = fuse(fused, dense, lexical, 10)
    for row in range(6):
        alone = fuse(fused, dense[row : row + 1], lexical[row : row + 1], 10)
        np.testing.assert_array_equal(alone[0][0], indices[row])
        np.testing.assert_array_equal(alone[1][0], scores[row])


def test_a_query_without_a_lexical_match_keeps_its_dense_order() -> None:
    dense = np.array([[0.1, 0.3, 0.2]], np.float32)
    indices, scores = fuse(Fusion(2.0), dense, np.zeros_like(dense), 3)
    assert indices.tolist() == [[1, 2, 0]]
    np.testing.assert_array_equal(scores, np.array([[0.3, 0.2, 0.1]], np.float32))


def test_a_lexical_side_that_retrieved_no_column_at_all_is_fused() -> None:
    dense = np.array([[0.25, 0.5]], np.float32)
    empty = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32)
    indices, _ = Fusion(1.0).fuse(
        dense_top(dense, 2), empty, 2, dense_scores=unasked, lexical_scores=pairs_of(np.zeros_like(dense))
    )
    assert indices.tolist() == [[1, 0]]


def test_sides_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 queries of the dense side do not fit 3"):
        Fusion(1.0).fuse(
            dense_top(np.ones((2, 2), np.float32), 2),
            lexical_top(np.ones((3, 2), np.float32), 2),
            1,
            dense_scores=unasked,
            lexical_scores=unasked,
        )


def qrels_of(relevant: list[list[int]], n_documents: int) -> Qrels:
    rows = [
        (f"q{row:04}", f"query {row:04}", f"d{column:02}", f"document {column:02}", float(column in columns))
        for row, columns in enumerate(relevant)
        for column in range(n_documents)
    ]
    frame = pl.DataFrame(rows, schema=["query_id", "query", "document_id", "document", "score"], orient="row")
    return Qrels.from_judgments(Judgments.from_frame(frame, scale=(0.0, 1.0)), threshold=0.5)


def candidates_of(dense: np.ndarray, lexical: np.ndarray) -> Candidates:
    return Candidates.of(
        dense_top(dense, 3), lexical_top(lexical, 3), dense_scores=pairs_of(dense), lexical_scores=pairs_of(lexical)
    )


def fit(qrels: Qrels, dense: list[list[float]], lexical: list[list[float]], **options: Any) -> Fusion:
    first, second = np.array(dense, np.float32), np.array(lexical, np.float32)
    depth = qrels.n_documents
    return fit_fusion(
        dense_top(first, depth),
        lexical_top(second, depth),
        qrels,
        dense_scores=pairs_of(first),
        lexical_scores=pairs_of(second),
        **options,
    )


def test_many_queries_choose_the_middle_of_the_weights_that_rank_best() -> None:
    # Half of the queries need a weight above 0.1, the others one below 0.4.
    qrels = qrels_of([[1], [0]] * 1000, 3)
    dense, lexical = [[0.5, 0.4, 0.0], [0.5, 0.1, 0.0]] * 1000, [[0.0, 1.0, 0.0]] * 2000
    good = [weight for weight in WEIGHTS if 0.1 < weight < 0.4]
    assert fit(qrels, dense, lexical).weight == pytest.approx((good[0] * good[-1]) ** 0.5, rel=0.03)


def test_one_query_of_58_that_words_alone_find_does_not_cost_the_others_their_first_place() -> None:
    # Above 1.2 the last query's document comes among the first ten; above 1 all others fall to the second place.
    qrels = qrels_of([[0]] * 57 + [[11]], 12)
    dense = [[0.5, 0.4, *[0.0] * 10]] * 57 + [[*np.linspace(0.5, 0.4, 11), -1.0]]
    lexical = [[0.9, 1.0, *[0.0] * 10]] * 57 + [[0.0] * 11 + [1.2]]
    assert fit(qrels, dense, lexical).weight < 1.0


def test_a_grade_counts_where_relevance_is_the_same() -> None:
    rows = [(f"q{row}", "d0", 2.0) for row in range(500)] + [(f"q{row}", "d1", 3.0) for row in range(500)]
    frame = pl.DataFrame(
        [(q, f"query {q}", d, f"text {d}", score) for q, d, score in rows],
        schema=["query_id", "query", "document_id", "document", "score"],
        orient="row",
    )
    qrels = Qrels.from_judgments(Judgments.from_frame(frame, scale=(0.0, 3.0)), threshold=1.0)
    assert fit(qrels, [[0.5, 0.4]] * 500, [[0.0, 1.0]] * 500).weight > 0.1


def test_a_single_query_moves_the_weight_little_from_where_both_sides_spread_alike() -> None:
    alike = float(np.std([0.5, 0.4, 0.0]) / np.std([0.0, 1.0, 0.0]))
    for relevant in ([[0]], [[1]]):
        assert fit(qrels_of(relevant, 3), [[0.5, 0.4, 0.0]], [[0.0, 1.0, 0.0]]).weight == pytest.approx(alike, rel=0.1)


@given(seed=seeds, dense_scale=st.floats(0.2, 5), lexical_scale=st.floats(0.2, 5))
@settings(max_examples=25)
def test_the_weight_without_judgments_follows_the_scale_of_either_score(
    seed: int, dense_scale: float, lexical_scale: float
) -> None:
    dense, lexical = random_scores(seed, 4, 9)
    lexical[0, 0] = 1.0
    scaled = candidates_of(
        (dense * dense_scale).astype(np.float32), (lexical * lexical_scale).astype(np.float32)
    ).balance()
    assert scaled == pytest.approx(candidates_of(dense, lexical).balance() * dense_scale / lexical_scale, rel=1e-4)


@given(seed=seeds)
@settings(max_examples=25)
def test_at_the_balance_both_scores_spread_alike_over_the_candidates(seed: int) -> None:
    dense, lexical = random_scores(seed, 6, 9)
    lexical[0, 0] = 1.0
    found = candidates_of(dense, lexical)
    spreads: dict[str, list[float]] = {"dense": [], "lexical": []}
    for row, columns in enumerate(found.columns):
        there = columns[columns >= 0]
        spreads["dense"].append(np.std(dense[row, there]))
        spreads["lexical"].append(np.std(lexical[row, there]))
    weight = found.balance()
    assert weight is not None
    assert weight * np.mean(spreads["lexical"]) == pytest.approx(np.mean(spreads["dense"]), abs=1e-6)


def test_where_words_only_do_harm_many_queries_leave_the_dense_ranking_alone() -> None:
    assert fit(qrels_of([[0]] * 3000, 2), [[0.5, 0.4999]] * 3000, [[0.0, 1.0]] * 3000).weight == 0.0


def test_where_no_query_shares_a_word_with_a_document_the_dense_ranking_stays_alone() -> None:
    assert fit(qrels_of([[0]], 3), [[0.5, 0.4, 0.0]], [[0.0, 0.0, 0.0]]).weight == 0.0


def test_the_fitted_depth_is_that_of_the_candidates() -> None:
    assert fit(qrels_of([[1]], 3), [[0.5, 0.4, 0.0]], [[0.0, 8.0, 0.0]]).depth == 3


def test_a_fusion_survives_json() -> None:
    fused = Fusion(0.15, 200)
    assert Fusion.from_dict(json.loads(json.dumps(fused.as_dict()))) == fused


def test_a_fusion_of_an_earlier_version_is_read() -> None:
    assert Fusion.from_dict({"weight": 0.5, "normalisation": "none", "depth": 9}) == Fusion(0.5, 9)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"weight": 1.0}, "has the fields weight, depth; these are weight"),
        ({}, "these are none"),
        ({"weight": 1, "depth": 3, "k": 1}, "these are .*k"),
        ({"weight": "1", "depth": 3}, "weight cannot be '1'"),
        ({"weight": 1, "depth": True}, "depth cannot be True"),
        ({"weight": 1, "depth": 2.5}, "depth cannot be 2.5"),
        ({"weight": 1, "normalisation": "max", "depth": 3}, "these are weight, normalisation, depth"),
    ],
)
def test_values_that_are_no_fusion_are_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Fusion.from_dict(values)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="0 or more"):
        Fusion(weight)


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="depth must be 1 or more, not 0"):
        Fusion(1.0, depth=0)


def test_inner_products_of_pairs_are_those_of_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "PAIRS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    queries = rng.integers(-3, 4, (4, 5)).astype(np.float32)
    documents = rng.integers(-3, 4, (9, 5)).astype(np.float32)
    rows, columns = rng.integers(0, 4, 30), rng.integers(0, 9, 30)
    found = inner_products(queries, documents)(rows, columns)
    np.testing.assert_array_equal(found, (queries @ documents.T)[rows, columns])
    assert found.dtype == np.float32
