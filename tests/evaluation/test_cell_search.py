"""Search in a cell against plain numpy: rotation, truncation, codes, the funnel, and what is fitted when."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.config.names import PRECISIONS, ROTATIONS, Rotation
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell
from nestling.retrieval.codec import fit_codec
from nestling.retrieval.rotation import fit_search_rotation, rotated
from nestling.retrieval.trained_rotation import train_search_rotation
from nestling.retrieval.vectors import truncate

FULL = 64
CODED = [precision for precision in PRECISIONS if precision != "float32"]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, by numpy alone."""
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def vectors_of(seed: int, n_queries: int = 30, n_documents: int = 400, full: int = FULL) -> Vectors:
    """Queries near documents, off the origin, with axes that differ in strength and are not the coordinates'."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(99).standard_normal((full, full)))
    spread = turn * np.geomspace(1, 0.1, full)[:, None]
    documents = rng.standard_normal((n_documents, full)) @ spread + 0.2
    queries = documents[rng.integers(0, n_documents, n_queries)] + 0.5 * rng.standard_normal((n_queries, full)) @ spread
    return Vectors(unit(queries).astype(np.float32), unit(documents).astype(np.float32))


def unasked() -> Vectors:
    raise AssertionError("nothing is to be fitted here")


@cache
def fitted_on(n_queries: int = 100, n_documents: int = 400, full: int = FULL) -> Fitted:
    """One for all tests: what it fits is the same whatever was fitted before."""
    return Fitted(lambda: vectors_of(1, n_queries, n_documents, full))


def found(cell: Cell, vectors: Vectors, fitted: Fitted, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    return CellSearch(cell, vectors, fitted).top(k)


def stored(vectors: Vectors) -> np.ndarray:
    """Scores of every pair by the full embedding as float16 holds it, (n_queries, n_documents) float64."""
    return vectors.queries.astype(np.float64) @ vectors.documents.astype(np.float16).astype(np.float64).T


def assert_best(ranking: np.ndarray, scores: np.ndarray, k: int, atol: float = 1e-6) -> None:
    """The ranking is that of a full sort of the scores, but for order among scores that rounding makes alike."""
    assert ranking.shape == (len(scores), k)
    assert all(len(set(row)) == k for row in ranking.tolist())
    best = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_allclose(np.take_along_axis(scores, ranking, axis=1), best, rtol=0, atol=atol)


@pytest.mark.parametrize("dim", [FULL, 48, 7, 1])
def test_plain_float32_is_the_order_of_cosines_of_the_first_dims(dim: int) -> None:
    vectors = vectors_of(0)
    ranking, scores = found(Cell(dim), vectors, Fitted(unasked))
    queries, documents = (unit(side[:, :dim].astype(np.float64)) for side in (vectors.queries, vectors.documents))
    assert_best(ranking, queries @ documents.T, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ documents.T, ranking, axis=1), atol=1e-6)


@pytest.mark.parametrize("rotation", ["pca", "trained"])
def test_rotation_at_full_size_changes_no_ranking(rotation: Rotation) -> None:
    vectors = vectors_of(0)
    ranking, scores = found(Cell(FULL, "float32", rotation), vectors, fitted_on())
    plain, plain_scores = found(Cell(FULL), vectors, Fitted(unasked))
    exact = vectors.queries.astype(np.float64) @ vectors.documents.astype(np.float64).T
    assert_best(ranking, exact, 10)
    np.testing.assert_allclose(scores, plain_scores, atol=1e-6)
    assert np.mean(ranking == plain) > 0.99


@pytest.mark.parametrize("rotation", ["pca", "trained"])
def test_a_rotated_cell_cuts_what_the_rotation_of_the_training_side_gives(rotation: Rotation) -> None:
    vectors, train = vectors_of(0), vectors_of(1, n_queries=100)
    fitted = Fitted(lambda: train, (FULL, 32, 8))
    turn = (
        fit_search_rotation(train.queries, train.documents)
        if rotation == "pca"
        else train_search_rotation(train.queries, train.documents, dims=(32, 8))
    )
    for dim in (32, 8):
        ranking, _ = found(Cell(dim, "float32", rotation), vectors, fitted)
        queries, documents = (
            unit((side @ turn.astype(np.float64))[:, :dim]) for side in (vectors.queries, vectors.documents)
        )
        assert_best(ranking, queries @ documents.T, 10, atol=1e-5)


def test_rotated_prefixes_find_more_of_the_full_ranking_than_plain_ones() -> None:
    vectors = vectors_of(0, n_queries=200)
    full, _ = found(Cell(FULL), vectors, Fitted(unasked))

    def share(cell: Cell) -> float:
        ranking, _ = found(cell, vectors, fitted_on())
        return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ranking, full, strict=True)]))

    assert share(Cell(16, "float32", "pca")) > share(Cell(16)) + 0.05
    # A hundred queries are too few to train on: what was trained is then not taken.
    assert share(Cell(16, "float32", "trained")) > share(Cell(16, "float32", "pca")) - 0.02


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [FULL, 4])
def test_a_shortlist_of_the_whole_corpus_gives_the_full_embeddings_ranking(
    dim: int, precision: str, rotation: str
) -> None:
    vectors = vectors_of(0)
    cell = Cell(dim, precision, rotation, oversampling=40)  # type: ignore[arg-type]
    ranking, scores = found(cell, vectors, fitted_on())
    assert_best(ranking, stored(vectors), 10)
    np.testing.assert_allclose(scores, np.take_along_axis(stored(vectors), ranking, axis=1), atol=1e-6)


def test_a_shortlist_longer_than_the_corpus_is_the_corpus() -> None:
    vectors = vectors_of(0, n_documents=25)
    ranking, _ = found(Cell(4, "binary", oversampling=100), vectors, fitted_on())
    assert_best(ranking, stored(vectors), 10)


@pytest.mark.parametrize("oversampling", [2, 3])
def test_the_funnel_from_few_dims_to_all_is_two_sorts_of_numpy(oversampling: int) -> None:
    vectors = vectors_of(0)
    ranking, _ = found(Cell(8, oversampling=oversampling), vectors, Fitted(unasked), k=5)
    small = unit(vectors.queries[:, :8].astype(np.float64)) @ unit(vectors.documents[:, :8].astype(np.float64)).T
    shortlist = np.argsort(-small, axis=1, kind="stable")[:, : 5 * oversampling]
    large = stored(vectors)
    expected = [sorted(row, key=lambda column: -large[q, column])[:5] for q, row in enumerate(shortlist.tolist())]
    assert ranking.tolist() == expected
    # So the test would see a shortlist of another length.
    longer = np.argsort(-small, axis=1, kind="stable")[:, : 5 * oversampling + 1].tolist()
    assert [sorted(row, key=lambda c: -large[q, c])[:5] for q, row in enumerate(longer)] != expected


def test_rescoring_reads_float16_not_float32() -> None:
    # In float32 the second document is nearer, by less than float16 can hold.
    documents = unit(np.array([[1.0, 0.0302], [1.0, 0.0301999]])).astype(np.float32)
    vectors = Vectors(unit(np.array([[1.0, 0.0]])).astype(np.float32), documents)
    assert found(Cell(2), vectors, Fitted(unasked), k=2)[0].tolist() == [[1, 0]]
    assert found(Cell(1, oversampling=2), vectors, Fitted(unasked), k=2)[0].tolist() == [[0, 1]]


def test_int8_at_full_size_is_near_float32() -> None:
    vectors = vectors_of(0, n_queries=200)
    exact, scores = found(Cell(FULL), vectors, Fitted(unasked))
    ranking, coded = found(Cell(FULL, "int8"), vectors, Fitted(unasked))
    assert np.abs(coded - scores).max() < 0.01
    assert np.mean([len(set(a) & set(b)) for a, b in zip(ranking, exact, strict=True)]) > 9.7


def test_float16_at_full_size_is_the_order_of_what_float16_holds() -> None:
    vectors = vectors_of(0)
    assert_best(found(Cell(FULL, "float16"), vectors, Fitted(unasked))[0], stored(vectors), 10)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("precision", ["int4", "binary"])
def test_codes_are_those_of_a_codec_fitted_on_training_documents_as_the_cell_cuts_them(
    precision: str, rotation: str
) -> None:
    vectors, train, fitted = vectors_of(0), vectors_of(1, n_queries=100), fitted_on()
    cell = Cell(16, precision, rotation)  # type: ignore[arg-type]
    search = CellSearch(cell, vectors, fitted)
    turn = np.eye(FULL, dtype=np.float32) if rotation == "none" else fitted.rotation(rotation)
    codec = fit_codec(precision, truncate(rotated(train.documents, turn), 16))
    assert search.codec == codec
    decoded = codec.decode(codec.encode(truncate(rotated(vectors.documents, turn), 16)))
    exact = truncate(vectors.queries @ turn, 16) @ decoded.T
    # Queries are rounded to int8 for the search.
    assert_best(search.top(10)[0], exact, 10, atol=0.02)


@pytest.mark.parametrize("oversampling", [0, 3])
@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_equal_documents_come_in_their_order(precision: str, rotation: str, oversampling: int) -> None:
    vectors = vectors_of(0)
    copies = [0, 5, 7, 201, 399]
    vectors.documents[copies] = vectors.documents[5]
    cell = Cell(16, precision, rotation, oversampling)  # type: ignore[arg-type]
    ranking, scores = found(cell, vectors, fitted_on(), k=400)
    places = np.stack([np.flatnonzero(np.isin(row, copies)) for row in ranking])
    assert np.take_along_axis(ranking, places, axis=1).tolist() == [copies] * len(ranking)
    assert np.ptp(np.take_along_axis(scores, places, axis=1), axis=1).max() == 0


@pytest.mark.parametrize("oversampling", [0, 4])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_scores_of_pairs_are_those_that_rank(precision: str, oversampling: int) -> None:
    search = CellSearch(Cell(16, precision, oversampling=oversampling), vectors_of(0), Fitted(unasked))
    ranking, scores = search.top(10)
    rows = np.repeat(np.arange(len(ranking)), 10)
    np.testing.assert_allclose(search.pair_scores(rows, ranking.ravel()), scores.ravel(), atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "int4", "binary"])
def test_scores_of_pairs_of_codes_are_within_the_rounding_of_queries_of_those_that_rank(precision: str) -> None:
    search = CellSearch(Cell(16, precision), vectors_of(0), fitted_on())
    ranking, scores = search.top(10)
    rows = np.repeat(np.arange(len(ranking)), 10)
    np.testing.assert_allclose(search.pair_scores(rows, ranking.ravel()), scores.ravel(), atol=0.01)


@pytest.mark.parametrize("precision", CODED)
def test_scores_of_pairs_of_a_rescored_cell_are_the_full_embeddings(precision: str) -> None:
    vectors = vectors_of(0)
    search = CellSearch(Cell(8, precision, oversampling=2), vectors, fitted_on())
    rows, columns = np.array([0, 3, 3]), np.array([399, 0, 17])
    np.testing.assert_allclose(search.pair_scores(rows, columns), stored(vectors)[rows, columns], atol=1e-6)


class Counted:
    """The training side, and how often it was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Vectors:
        self.calls += 1
        return vectors_of(1)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_precisions_that_need_no_fit_never_ask_for_the_training_side(precision: str) -> None:
    train = Counted()
    for oversampling in (0, 4):
        found(Cell(8, precision, oversampling=oversampling), vectors_of(0), Fitted(train))
    assert train.calls == 0


def test_the_training_side_is_asked_for_once_however_many_cells_need_it() -> None:
    train = Counted()
    fitted = Fitted(train)
    for precision in PRECISIONS:
        for cell in (Cell(8, precision), Cell(8, precision, "pca"), Cell(16, precision, "pca", 2)):
            found(cell, vectors_of(0), fitted)
    assert train.calls == 1


def test_a_rotation_is_trained_on_a_sample_of_a_large_training_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nestling.retrieval.trained_rotation.SAMPLE", 50)
    train = vectors_of(1, n_queries=100)
    turn = Fitted(lambda: train, (FULL, 8)).rotation("trained")
    places = [np.sort(np.random.default_rng(0).permutation(n)[:50]) for n in (100, 400)]
    expected = train_search_rotation(train.queries[places[0]], train.documents[places[1]], dims=(FULL, 8))
    np.testing.assert_array_equal(turn, expected)


def test_a_codec_is_fitted_once_for_cells_that_differ_in_rescoring_alone() -> None:
    fitted = Fitted(lambda: vectors_of(1))
    plain, rescored, turned, smaller = (
        fitted.codec(cell)
        for cell in (Cell(8, "int4"), Cell(8, "int4", "none", 4), Cell(8, "int4", "pca"), Cell(4, "int4"))
    )
    assert plain.rotation is rescored.rotation
    assert len({codec.fingerprint for codec in (plain, turned, smaller)}) == 3


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dim=st.integers(1, 12),
    precision=st.sampled_from(PRECISIONS),
    rotation=st.sampled_from(ROTATIONS),
    k=st.integers(1, 50),
)
def test_any_cell_with_the_corpus_as_shortlist_ranks_as_the_full_embedding(
    seed: int, dim: int, precision: str, rotation: str, k: int
) -> None:
    vectors = vectors_of(seed, n_queries=4, n_documents=40, full=12)
    cell = Cell(dim, precision, rotation, oversampling=40)  # type: ignore[arg-type]
    ranking, _ = found(cell, vectors, fitted_on(30, 60, 12), k=k)
    assert_best(ranking, stored(vectors), min(k, 40))


def test_int4_and_binary_share_one_fit_and_are_what_each_would_be_alone() -> None:
    rows = np.random.default_rng(5).normal(size=(200, 12)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    fitted = Fitted(lambda: Vectors(rows, rows))
    for precision in ("int4", "binary"):
        cell = Cell(8, precision)
        assert fitted.codec(cell) == fit_codec(precision, fitted.cut(cell, rows))
