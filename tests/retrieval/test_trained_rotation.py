"""The trained rotation: still a rotation, and prefixes rank better by it than by the queries' axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import InputError
from nestling.retrieval import trained_rotation
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.rotation import fit_search_rotation
from nestling.retrieval.trained_rotation import _batches, train_search_rotation
from nestling.retrieval.vectors import truncate


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def texts(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Queries and documents of n topics; queries differ most in components that documents do not have."""
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(n, dim // 2))
    queries = np.hstack([topics + 0.3 * rng.normal(size=topics.shape), 1.2 * rng.normal(size=topics.shape)])
    documents = np.hstack([topics, 0.05 * rng.normal(size=topics.shape)])
    return unit(queries), unit(documents)


def recall(queries: np.ndarray, documents: np.ndarray) -> float:
    """Return the share of the whole embedding's ten nearest that the first half of the components finds."""
    size = queries.shape[1] // 2
    whole, _ = top_k(queries, documents, 10)
    part, _ = top_k(truncate(queries, size), truncate(documents, size), 10)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(whole, part, strict=True)]))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_rotation, "STEPS", 20)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.integers(0, 9))
def test_columns_are_orthonormal_whatever_the_rows(n_queries: int, n_documents: int, dim: int, seed: int):
    rng = np.random.default_rng(seed)
    queries, documents = (unit(rng.normal(size=(n, dim))) for n in (n_queries, n_documents))
    kept = max(1, dim - seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained_rotation, "STEPS", 20)
        axes = train_search_rotation(queries, documents, size=kept)
    assert axes.shape == (dim, kept)
    assert axes.dtype == np.float32
    np.testing.assert_allclose(axes.T @ axes, np.eye(kept), atol=1e-4)


def test_prefixes_rank_unseen_texts_more_as_the_whole_does_and_cosines_stay():
    queries, documents = texts(1200, 64)
    seen, unseen = slice(0, 800), slice(800, None)
    before = fit_search_rotation(queries[seen], documents[seen])
    after = train_search_rotation(queries[seen], documents[seen])
    assert recall(queries[unseen] @ after, documents[unseen] @ after) > 0.05 + recall(
        queries[unseen] @ before, documents[unseen] @ before
    )
    np.testing.assert_allclose(
        (queries[unseen] @ after) @ (documents[unseen] @ after).T, queries[unseen] @ documents[unseen].T, atol=1e-5
    )


@pytest.mark.usefixtures("few_steps")
def test_the_same_rows_give_the_same_axes():
    queries, documents = texts(100, 16)
    first, again = (train_search_rotation(queries, documents) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_number_that_is_not_finite_is_refused():
    queries, documents = texts(20, 8)
    documents[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        train_search_rotation(queries, documents)


@pytest.mark.parametrize("n", [1, 5, 128, 200, 1000])
def test_batches_hold_distinct_places_and_leave_none_out(n: int):
    made = [batch.tolist() for batch in _batches(n)]
    assert all(len(set(batch)) == len(batch) == min(n, 128) for batch in made)
    assert {place for batch in made for place in batch} == set(range(n))


def test_a_turn_after_which_unseen_queries_rank_less_like_the_whole_is_not_taken():
    rng = np.random.default_rng(0)
    spread = np.linalg.qr(rng.normal(size=(64, 64)))[0] * np.geomspace(1, 0.1, 64)[:, None]
    documents = rng.normal(size=(600, 64)) @ spread + 0.2
    queries = documents[rng.integers(0, 600, 300)] + 0.5 * rng.normal(size=(300, 64)) @ spread
    queries, documents = unit(queries), unit(documents)
    before = fit_search_rotation(queries[:100], documents)
    after = train_search_rotation(queries[:100], documents)
    assert recall(queries[100:] @ after, documents @ after) > -0.01 + recall(queries[100:] @ before, documents @ before)


@pytest.mark.usefixtures("few_steps")
def test_it_leaves_the_random_numbers_of_its_caller_alone():
    queries, documents = texts(40, 16)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_search_rotation(queries, documents)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("n_queries", [1, 7])
def test_too_few_queries_to_hold_one_out_leave_it_at_the_start(n_queries: int):
    queries, documents = texts(40, 16)
    found = train_search_rotation(queries[:n_queries], documents)
    np.testing.assert_array_equal(found, fit_search_rotation(queries[:n_queries], documents))
