from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.config.names import PRECISIONS
from nestling.errors import InputError
from nestling.retrieval import exact_search, vectors
from nestling.retrieval.codec import Codec, Codes, fit_codec
from nestling.retrieval.exact_search import rescore
from nestling.retrieval.vectors import truncate

QUANTIZED = ("int8", "int4", "binary")


def top_k(*arguments: Any, query_block: int = 512, corpus_block: int = 8192) -> tuple[np.ndarray, np.ndarray]:
    """Search in blocks of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_search, "QUERY_BLOCK", query_block)
        patch.setattr(exact_search, "CORPUS_BLOCK", corpus_block)
        return exact_search.top_k(*arguments)


def by_definition(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort the whole score matrix by (score descending, column ascending); exact for integer-valued vectors."""
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


def integers(seed: int, n: int, dim: int = 4, high: int = 2) -> np.ndarray:
    """Vectors of few small integers, so that equal inner products abound and none is rounded."""
    return np.random.default_rng(seed).integers(-high, high + 1, size=(n, dim)).astype(np.float32)


@settings(max_examples=40, deadline=None)
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


def test_without_torch_few_queries_tie_all_the_same_and_many_find_the_same_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    rng = np.random.default_rng(2)
    corpus = rng.standard_normal((1000, 384)).astype(np.float32)
    corpus[[3, 500, 998, 999]] = corpus[3]
    queries = rng.standard_normal((40, 384)).astype(np.float32) + 3 * corpus[3]
    assert top_k(queries[:7], corpus, 4, corpus_block=192)[0].tolist() == [[3, 500, 998, 999]] * 7
    _, scores = top_k(queries, corpus, 20, corpus_block=192)
    np.testing.assert_allclose(scores, by_definition(queries, corpus, 20)[1], rtol=1e-5)


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
    pytest.importorskip("torch")  # numpy's own product is used where it is not loaded, and differs in the last bit
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


def unit_rows(seed: int, n: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def codes_by_definition(queries: np.ndarray, codes: Codes, codec: Codec, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort all documents by (score descending, column ascending), queries rounded to 127ths of their largest value."""
    projected, shift = codec.project(queries)
    largest = np.abs(projected.astype(np.float64)).max(axis=1, keepdims=True)
    rounded = np.rint(projected / np.where(largest > 0, largest, 1) * 127)
    products = (rounded @ codec.integers(codes).T.astype(np.float64)).astype(np.float32) * codec.steps(codes)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    scores = products * largest / 127 + shift[:, None]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("integer_product", [True, False])
@settings(max_examples=30, deadline=None)
@given(
    precision=st.sampled_from(QUANTIZED),
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.integers(1, 20),
    n_documents=st.integers(1, 300),
    dim=st.integers(1, 40),
    k=st.integers(1, 40),
    query_block=st.integers(1, 30),
    corpus_block=st.integers(1, 200),
)
def test_integer_scores_give_the_order_of_a_full_sort_whatever_the_blocks(
    integer_product: bool,
    precision: str,
    seed: int,
    n_queries: int,
    n_documents: int,
    dim: int,
    k: int,
    query_block: int,
    corpus_block: int,
) -> None:
    queries, documents = unit_rows(seed, n_queries, dim), unit_rows(seed + 1, n_documents, dim)
    codec = fit_codec(precision, documents)
    codes = codec.encode(documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cpu.get_capabilities", lambda: {"avx_vnni": integer_product})
        patch.setattr(vectors, "has_integer_product", vectors.has_integer_product.__wrapped__)
        indices, scores = top_k(queries, codes, k, codec, query_block=query_block, corpus_block=corpus_block)
    expected_indices, expected_scores = codes_by_definition(queries, codes, codec, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [1041, 3000])
def test_sums_too_large_for_float32_are_the_same_without_an_integer_product(
    monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    # Documents differ in few values, and so by less than float32 loses on the way to sums beyond 2 ** 24.
    rng = np.random.default_rng(0)
    documents = np.tile(rng.integers(119, 128, dim), (400, 1))
    documents[:, rng.permutation(dim)[:6]] += rng.integers(-3, 1, (400, 6))
    documents = documents.clip(max=127).astype(np.float32) / 127
    documents[:, 0] = 1
    codec = fit_codec("int8", documents)
    codes = codec.encode(documents)
    expected = codes_by_definition(documents[:3], codes, codec, 50)
    monkeypatch.setattr(vectors, "has_integer_product", vectors.has_integer_product.__wrapped__)
    for known in (True, False):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda known=known: {"avx_vnni": known})
        indices, _ = top_k(documents[:3], codes, 50, codec)
        np.testing.assert_array_equal(indices, expected[0])


@pytest.mark.parametrize("wrong", [True, False])
def test_an_integer_product_that_saturates_is_not_used(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    import torch

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        exact = (a.double() @ b.double()).int()
        return exact.clamp(-32768, 32767) if wrong else exact

    monkeypatch.setattr(torch, "_int_mm", product)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_vnni": True, "amx_int8": False})
    probe = vectors.has_integer_product.__wrapped__
    assert probe(384) is (torch.backends.mkldnn.is_available() and not wrong)
    assert probe(1) is False


def test_float32_codes_are_searched_as_the_matrix_is() -> None:
    queries, documents = unit_rows(1, 20, 24), unit_rows(2, 500, 24)
    codec = fit_codec("float32", documents)
    indices, scores = top_k(queries, codec.encode(documents), 9, codec)
    expected_indices, expected_scores = top_k(queries, documents, 9)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("n_queries", [1, 20])
def test_float16_codes_are_searched_as_the_decoded_matrix_is(n_queries: int) -> None:
    queries, documents = unit_rows(3, n_queries, 24), unit_rows(4, 500, 24)
    codec = fit_codec("float16", documents)
    codes = codec.encode(documents)
    indices, scores = top_k(queries, codes, 9, codec, query_block=7, corpus_block=128)
    expected_indices, expected_scores = top_k(queries, codec.decode(codes), 9)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize(("precision", "separation"), [("float16", 2e-3), ("int8", 0.03), ("int4", 0.3)])
def test_documents_well_apart_in_score_keep_their_order(precision: str, separation: float) -> None:
    rng = np.random.default_rng(5)
    query = unit_rows(6, 1, 64)
    scores = np.arange(1, -1, -separation)
    aside = unit_rows(7, len(scores), 64)
    aside -= (aside @ query.T) * query
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    order = rng.permutation(len(scores))
    documents = scores[:, None] * query + np.sqrt(1 - scores[:, None] ** 2).clip(0) * aside
    documents = documents[order].astype(np.float32)
    # The codec is fitted on other documents, as of a corpus that grows.
    codec = fit_codec(precision, unit_rows(8, 500, 64))
    indices, _ = top_k(query, codec.encode(documents), len(scores), codec)
    np.testing.assert_array_equal(order[indices[0]], np.arange(len(scores)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_documents_come_back_in_column_order(precision: str) -> None:
    documents = unit_rows(9, 400, 33)
    documents[[5, 200, 399]] = documents[5]
    codec = fit_codec(precision, documents)
    indices, scores = top_k(documents[5:6], codec.encode(documents), 3, codec, corpus_block=64)
    assert indices.tolist() == [[5, 200, 399]]
    assert len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize("precision", QUANTIZED)
def test_scores_are_near_those_of_the_decoded_documents(precision: str) -> None:
    queries, documents = unit_rows(10, 5, 48), unit_rows(11, 300, 48)
    codec = fit_codec(precision, documents)
    codes = codec.encode(documents)
    indices, scores = top_k(queries, codes, 10, codec)
    exact = np.take_along_axis(queries @ codec.decode(codes).T, indices, axis=1)
    # Each of 48 values of a query is off by half of 1/127 of its largest (0.5 at most) at most.
    np.testing.assert_allclose(scores, exact, atol=0.02)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_query_of_zeros_gives_the_first_columns(precision: str) -> None:
    documents = unit_rows(12, 50, 10)
    codec = fit_codec(precision, documents)
    indices, scores = top_k(np.zeros((1, 10), np.float32), codec.encode(documents), 3, codec)
    assert indices.tolist() == [[0, 1, 2]]
    assert scores.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_few_documents_many_wanted_and_none_at_all(precision: str) -> None:
    documents = unit_rows(13, 4, 10)
    codec = fit_codec(precision, documents)
    codes = codec.encode(documents)
    assert sorted(top_k(documents[:1], codes, 10, codec)[0][0].tolist()) == [0, 1, 2, 3]
    assert top_k(documents, codes[:0], 10, codec)[0].shape == (4, 0)
    assert top_k(documents[:0], codes, 3, codec)[0].shape == (0, 3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_of_code_search_are_int64_and_float32(precision: str) -> None:
    documents = unit_rows(14, 30, 10)
    codec = fit_codec(precision, documents)
    indices, scores = top_k(documents, codec.encode(documents), 3, codec)
    assert (indices.dtype, scores.dtype) == (np.int64, np.float32)


def test_scores_that_overflow_are_refused() -> None:
    documents = np.full((3, 4), 60000, np.float32)
    for precision in ("float16", "int8"):
        codec = fit_codec(precision, documents)
        with pytest.raises(ValueError, match="overflow"):
            top_k(np.full((1, 4), 3e38, np.float32), codec.encode(documents), 1, codec)


def test_codes_of_another_codec_and_unfit_queries_are_refused() -> None:
    documents = unit_rows(15, 30, 10)
    codec, other = fit_codec("int8", documents), fit_codec("float16", documents)
    codes = codec.encode(documents)
    with pytest.raises(InputError, match="cannot be read by codec"):
        top_k(documents, codes, 3, other)
    with pytest.raises(InputError, match="do not fit a codec of 10 dims"):
        top_k(documents[:, :9], codes, 3, codec)
    with pytest.raises(ValueError, match="k=0"):
        top_k(documents, codes, 0, codec)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_queries=st.integers(1, 10),
    n_documents=st.integers(1, 30),
    m=st.integers(1, 20),
    k=st.integers(1, 25),
)
def test_rescoring_sorts_candidates_by_score_then_column_and_leaves_padding_last(
    seed: int, n_queries: int, n_documents: int, m: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    queries = rng.integers(-2, 3, (n_queries, 3)).astype(np.float32)
    documents = rng.integers(-2, 3, (n_documents, 3)).astype(np.float32)
    candidates = np.full((n_queries, m), -1, np.int64)
    for row in candidates:
        chosen = rng.permutation(n_documents)[: rng.integers(0, m + 1)]
        row[rng.permutation(m)[: len(chosen)]] = chosen
    indices, scores = rescore(queries, candidates, documents, k)
    for query, row, got, values in zip(queries, candidates, indices, scores, strict=True):
        best = sorted((-float(query @ documents[c]), int(c)) for c in row if c >= 0)[:k]
        padding = min(k, m) - len(best)
        assert got.tolist() == [c for _, c in best] + [-1] * padding
        assert values.tolist() == [-s for s, _ in best] + [-np.inf] * padding


def test_rescoring_in_small_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = unit_rows(16, 30, 12), unit_rows(17, 100, 12)
    candidates = top_k(queries, documents, 20)[0]
    whole = rescore(queries, candidates, documents, 5)
    monkeypatch.setattr(exact_search, "GATHERED", 4 * 12 * 20 * 7)
    parts = rescore(queries, candidates, documents, 5)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_array_equal(parts[1], whole[1])


def test_a_funnel_over_sizes_that_keeps_all_candidates_is_the_search_at_the_large_size() -> None:
    queries, documents = unit_rows(20, 15, 40), unit_rows(21, 150, 40)
    candidates, _ = top_k(truncate(queries, 8), truncate(documents, 8), 150)
    indices, scores = rescore(truncate(queries, 32), candidates, truncate(documents, 32), 10)
    expected_indices, expected_scores = top_k(truncate(queries, 32), truncate(documents, 32), 10)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_a_funnel_finds_of_its_candidates_the_best_by_the_large_size() -> None:
    queries, documents = unit_rows(22, 15, 40), unit_rows(23, 150, 40)
    codec = fit_codec("binary", truncate(documents, 8))
    candidates, _ = top_k(truncate(queries, 8), codec.encode(truncate(documents, 8)), 40, codec)
    indices, _ = rescore(queries, candidates, documents, 10)
    full = queries @ documents.T
    for row, got, scores in zip(candidates, indices, full, strict=True):
        assert got.tolist() == sorted(row.tolist(), key=lambda c: -scores[c])[:10]


def test_candidates_outside_the_documents_are_refused() -> None:
    queries, documents = unit_rows(24, 1, 4), unit_rows(25, 5, 4)
    with pytest.raises(ValueError, match="outside the 5 documents"):
        rescore(queries, np.array([[5]]), documents, 1)
    with pytest.raises(ValueError, match="do not fit 1 queries"):
        rescore(queries, np.array([[1], [2]]), documents, 1)
    with pytest.raises(ValueError, match=r"do not fit documents of shape \(5, 3\)"):
        rescore(queries, np.array([[1]]), documents[:, :3], 1)
    with pytest.raises(ValueError, match="k=0"):
        rescore(queries, np.array([[1]]), documents, 0)


def test_rescoring_refuses_scores_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="NaN or overflow"):
        rescore(np.ones((1, 1), np.float32), np.array([[0]]), np.full((1, 1), np.nan, np.float32), 1)
