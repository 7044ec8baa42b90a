from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.retrieval.exact_search import top_k


def by_definition(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the whole score matrix by (score descending, column ascending); exact for integer-valued vectors."""
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def integers(seed: int, n: int, dim: int = 4, high: int = 2) -> np.ndarray:
    """Vectors of few small integers, so that equal inner products abound and none is rounded."""
    return np.random.default_rng(seed).integers(-high, high + 1, size=(n, dim)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.integers(1, 40),
    n_documents=st.integers(1, 400),
    k=st.integers(1, 60),
    query_block=st.integers(1, 50),
    corpus_block=st.integers(1, 300),
)
def test_ties_go_to_the_lower_column_whatever_the_blocks(
    seed: int, n_queries: int, n_documents: int, k: int, query_block: int, corpus_block: int
) -> None:
    queries, corpus = integers(seed, n_queries), integers(seed + 1, n_documents)
    indices, scores = top_k(queries, corpus, k, query_block=query_block, corpus_block=corpus_block)
    expected_indices, expected_scores = by_definition(queries, corpus, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


def test_random_vectors_give_the_order_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    queries, corpus = rng.standard_normal((70, 48)), rng.standard_normal((3000, 48))
    indices, scores = top_k(queries.astype(np.float32), corpus.astype(np.float32), 25, corpus_block=256)
    expected_indices, expected_scores = by_definition(queries.astype(np.float32), corpus.astype(np.float32), 25)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_a_corpus_that_gets_ever_better_is_searched_to_its_end() -> None:
    corpus = np.arange(1000, dtype=np.float32)[:, None]
    indices, _ = top_k(np.ones((1, 1), np.float32), corpus, 3, corpus_block=64)
    assert indices.tolist() == [[999, 998, 997]]


def test_a_corpus_of_equal_vectors_comes_back_in_column_order() -> None:
    corpus = np.tile(np.random.default_rng(0).standard_normal((1, 48)).astype(np.float32), (1000, 1))
    queries = np.random.default_rng(1).standard_normal((3, 48)).astype(np.float32)
    indices, _ = top_k(queries, corpus, 10, corpus_block=128)
    assert indices.tolist() == [list(range(10))] * 3


@pytest.mark.parametrize("n_queries", [1, 2, 17])
def test_equal_vectors_score_equal_wherever_they_lie(n_queries: int) -> None:
    rng = np.random.default_rng(2)
    corpus = rng.standard_normal((1000, 384)).astype(np.float32)
    corpus[[3, 500, 998, 999]] = corpus[3]
    queries = rng.standard_normal((n_queries, 384)).astype(np.float32) + 3 * corpus[3]
    indices, _ = top_k(queries, corpus, 4, corpus_block=192)
    assert indices.tolist() == [[3, 500, 998, 999]] * n_queries


def test_k_larger_than_the_corpus_gives_all_of_it() -> None:
    indices, scores = top_k(np.ones((2, 1), np.float32), np.array([[1], [3], [2]], np.float32), 10)
    assert indices.tolist() == [[1, 2, 0]] * 2
    assert scores.tolist() == [[3.0, 2.0, 1.0]] * 2


def test_no_queries_give_no_rows() -> None:
    indices, scores = top_k(np.zeros((0, 4), np.float32), np.ones((5, 4), np.float32), 3)
    assert indices.shape == scores.shape == (0, 3)


def test_an_empty_corpus_gives_no_columns() -> None:
    indices, _ = top_k(np.ones((2, 4), np.float32), np.zeros((0, 4), np.float32), 3)
    assert indices.shape == (2, 0)


def test_results_are_int64_and_float32() -> None:
    indices, scores = top_k(np.ones((1, 2), np.float32), np.ones((3, 2), np.float32), 2)
    assert (indices.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_document_that_is_not_finite_is_named(value: float) -> None:
    corpus = np.ones((100, 4), np.float32)
    corpus[71, 2] = value
    with pytest.raises(ValueError, match=r"embedding of document 71 .* NaN or infinite"):
        top_k(np.ones((2, 4), np.float32), corpus, 3, corpus_block=64)


def test_a_query_that_is_not_finite_is_named() -> None:
    queries = np.ones((5, 4), np.float32)
    queries[4, 0] = np.nan
    with pytest.raises(ValueError, match="embedding of query 4"):
        top_k(queries, np.ones((3, 4), np.float32), 1, query_block=2)


def test_products_that_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="overflow"):
        top_k(np.full((1, 2), -1e30, np.float32), np.full((3, 2), 1e30, np.float32), 2)


def test_matrices_of_unlike_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) do not fit a corpus of shape \(3, 5\)"):
        top_k(np.ones((2, 4), np.float32), np.ones((3, 5), np.float32), 1)


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k=0"):
        top_k(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), 0)


def test_a_read_only_matrix_is_searched_without_a_warning() -> None:
    corpus = np.eye(4, dtype=np.float32)
    corpus.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        indices, _ = top_k(np.eye(4, dtype=np.float32), corpus, 1)
    assert indices.ravel().tolist() == [0, 1, 2, 3]
