"""A benchmark of models and BM25 on one side, and what it learns from the other sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import pytrec_eval

from fixtures.bm25 import scores_of
from fixtures.qrels import as_dicts
from nestling.evaluation.benchmark import Benchmark, Kind
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell
from nestling.evaluation.fusion_weight import TRUST, WEIGHTS
from nestling.evaluation.grid import CELL
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.retrieval.bm25 import Lexical
from nestling.retrieval.fusion import Fusion

DIM = 48
MEASURES = tuple(Measure.parse(text) for text in ("recall@10", "mrr@10", "ndcg@10"))
CELLS = (Cell(DIM), Cell(8), Cell(8, "binary", "pca"), Cell(8, "int8", "none", 4))


@cache
def word_vector(word: str) -> np.ndarray:
    return np.random.default_rng(crc32(word.encode())).standard_normal(DIM)


class BagOfWords:
    """Encodes a text as the sum of its words' random vectors; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Kind, list[str]]] = []

    def __call__(self, texts: Sequence[str], kind: Kind) -> np.ndarray:
        self.asked.append((kind, list(texts)))
        rows = np.array([np.sum([word_vector(word) for word in text.lower().split()], axis=0) for text in texts])
        unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


@cache
def judged(records: int, seed: int) -> Judgments:
    return generate(records, seed=seed)


@cache
def qrels_of(records: int, seed: int) -> Qrels:
    return Qrels.from_judgments(judged(records, seed), threshold=2.5)


def benchmark(**changes: object) -> Benchmark:
    """Test of 124 documents, dev of 96 (fewer than there are candidates), and a training side."""
    whole = Benchmark(qrels_of(400, 3), qrels_of(300, 2), judged(300, 1), MEASURES)
    return replace(whole, **changes)  # type: ignore[arg-type]


def other_judgments(qrels: Qrels) -> Qrels:
    """The same queries and documents, with other documents judged and relevant."""
    last = qrels.n_documents - 1

    def mirrored(columns: np.ndarray, indptr: np.ndarray) -> np.ndarray:
        parts = [np.sort(last - columns[start:stop]) for start, stop in pairwise(indptr)]
        return np.concatenate(parts)

    return replace(
        qrels,
        relevant_columns=mirrored(qrels.relevant_columns, qrels.relevant_indptr),
        judged_columns=mirrored(qrels.judged_columns, qrels.judged_indptr),
    )


def trec_recall_and_mrr(qrels: Qrels, ranking: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """recall@10 and MRR@10 by trec_eval, (n_queries,) each; -1 is no document."""
    relevant = {query_id: dict.fromkeys(found, 1) for query_id, found in as_dicts(qrels)[2].items()}
    run = {
        query_id: {qrels.document_ids[column]: -float(rank) for rank, column in enumerate(row) if column >= 0}
        for query_id, row in zip(qrels.query_ids, ranking[:, :10].tolist(), strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(relevant, {"recall.10", "recip_rank"}).evaluate(run)
    return tuple(
        np.array([found[query_id][name] if query_id in found else 0.0 for query_id in qrels.query_ids])
        for name in ("recall_10", "recip_rank")
    )  # type: ignore[return-value]


def sorted_by(scores: np.ndarray) -> np.ndarray:
    """Every document by falling score, equal ones by column, without those of score 0 (-1 instead)."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.where(np.take_along_axis(scores, order, axis=1) > 0, order, -1)


@pytest.mark.parametrize(("name", "stem"), [("bm25", False), ("bm25-stemmed", True)])
def test_bm25_is_what_trec_eval_says_of_its_scores_and_has_no_size(name: str, stem: bool) -> None:
    table, qrels = benchmark().lexical(name)[0], benchmark().test
    scores = scores_of(Lexical.fit(qrels.documents, stem=stem), qrels.queries)
    recall, mrr = trec_recall_and_mrr(qrels, sorted_by(scores))
    assert table["recall@10"].to_numpy() == pytest.approx(recall, abs=1e-9)
    assert table["mrr@10"].to_numpy() == pytest.approx(mrr, abs=1e-9)
    assert table.select(list(CELL)).unique().rows() == [(0, "", "none", 0, 0)]
    assert table["query_id"].to_list() == qrels.query_ids


def test_bm25_knows_the_language_it_is_told() -> None:
    german = Qrels.from_judgments(
        Judgments.from_frame(
            pl.DataFrame(
                {
                    "query": ["bohrern", "lampe"],
                    "document": ["bohrer", "lampe"],
                    "score": [3.0, 3.0],
                }
            ),
            scale=(1.0, 3.0),
        ),
        threshold=2.5,
    )
    hit = (Measure.parse("hit@1"),)
    assert Benchmark(german, None, None, hit, "german").lexical("bm25-stemmed")[0]["hit@1"].to_list() == [1.0, 1.0]
    assert Benchmark(german, None, None, hit).lexical("bm25-stemmed")[0]["hit@1"].to_list() == [0.0, 1.0]


def test_a_model_alone_is_measured_as_the_grid_measures_it() -> None:
    encode, one = BagOfWords(), benchmark()
    frame = judged(300, 1).frame
    queries, documents = (frame[side].unique(maintain_order=True).to_list() for side in ("query", "document"))
    train = Vectors(encode(queries, "query"), encode(documents, "document"))
    vectors = Vectors(encode(one.test.queries, "query"), encode(one.test.documents, "document"))
    expected = one.measure(vectors, CELLS, Fitted(lambda: train)).per_query
    measured = one.model(encode, CELLS, fuse=False)
    assert measured.alone.per_query.equals(expected)
    assert (measured.fused, measured.fusions) == (None, {})
    assert measured.seconds > 0


def test_texts_are_counted_once_however_many_queries_have_them() -> None:
    pairs = Qrels.from_judgments(judged(400, 3), threshold=2.5, protocol="per-pair")
    queries = len(qrels_of(400, 3).queries)
    assert pairs.n_queries > queries
    measured = benchmark(test=pairs).model(BagOfWords(), CELLS[:1], fuse=False)
    assert measured.texts == queries + len(set(pairs.documents))


def test_plain_float32_encodes_the_test_side_alone() -> None:
    encode, one = BagOfWords(), benchmark()
    one.model(encode, [Cell(DIM), Cell(8), Cell(8, "int8", "none", 2)], fuse=False)
    assert encode.asked == [("query", one.test.queries), ("document", one.test.documents)]


def test_a_rotation_is_fitted_on_the_distinct_texts_of_the_training_side() -> None:
    encode, one = BagOfWords(), benchmark()
    one.model(encode, [Cell(8, "float32", "pca"), Cell(8, "binary", "pca")], fuse=False)
    frame = judged(300, 1).frame
    queries, documents = (list(dict.fromkeys(frame[side].to_list())) for side in ("query", "document"))
    assert encode.asked[2:] == [("query", queries), ("document", documents)]


def test_a_rotation_is_trained_once_for_all_sizes_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noting(queries: np.ndarray, documents: np.ndarray, *, dims: tuple[int, ...]) -> np.ndarray:
        asked.append(dims)
        return np.eye(queries.shape[1], dtype=np.float32)

    monkeypatch.setattr("nestling.evaluation.cell_search.train_search_rotation", noting)
    cells = [Cell(DIM), Cell(8, "float32", "trained"), Cell(4, "int4", "trained", 2), Cell(4, "int8")]
    benchmark().model(BagOfWords(), cells, fuse=False)
    assert asked == [(DIM, 8, 4)]


@pytest.mark.parametrize("has_dev", [True, False])
def test_without_a_training_side_a_rotation_is_fitted_on_queries_of_dev_and_documents_of_test(has_dev: bool) -> None:
    encode, one = BagOfWords(), benchmark(train=None)
    if not has_dev:
        one = replace(one, dev=None)
    one.model(encode, [Cell(8, "float32", "pca")], fuse=False)
    asked = (one.dev or one.test).queries
    assert encode.asked[2:] == [("query", list(dict.fromkeys(asked))), ("document", one.test.documents)]


def test_without_a_training_side_no_judgment_of_test_is_used() -> None:
    cells = [Cell(8, "float32", "pca"), Cell(8, "int4")]
    rankings = []
    for test in (qrels_of(400, 3), other_judgments(qrels_of(400, 3))):
        one = benchmark(train=None, dev=None, test=test)
        fitted = one.fitted(BagOfWords(), cells)
        rankings.append([CellSearch(cell, one.vectors(BagOfWords()), fitted).top(10)[0] for cell in cells])
    for first, second in zip(*rankings, strict=True):
        assert first.tolist() == second.tolist()


def test_without_a_dev_side_there_is_no_fusion() -> None:
    measured = benchmark(dev=None).model(BagOfWords(), CELLS, fuse=True)
    assert (measured.fused, measured.fusions) == (None, {})


def test_weights_are_chosen_on_dev_alone() -> None:
    as_it_is = benchmark().model(BagOfWords(), CELLS, fuse=True)
    other_test = benchmark(test=other_judgments(qrels_of(400, 3))).model(BagOfWords(), CELLS, fuse=True)
    other_corpus = benchmark(test=qrels_of(200, 5)).model(BagOfWords(), CELLS, fuse=True)
    assert list(as_it_is.fusions) == list(CELLS)
    assert other_test.fusions == other_corpus.fusions == as_it_is.fusions
    assert other_test.alone.per_query["recall@10"].to_list() != as_it_is.alone.per_query["recall@10"].to_list()
    other_dev = benchmark(dev=other_judgments(qrels_of(300, 2))).model(BagOfWords(), CELLS, fuse=True)
    assert other_dev.fusions != as_it_is.fusions


def sums_of(qrels: Qrels, cell: Cell, weight: float) -> np.ndarray:
    """Cosine of a plain cell plus weighted stemmed BM25, for every pair, by numpy."""
    sides = (
        BagOfWords()(texts, "query")[:, : cell.dim].astype(np.float64) for texts in (qrels.queries, qrels.documents)
    )
    queries, documents = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    sums: np.ndarray = queries @ documents.T + weight * scores_of(Lexical.fit(qrels.documents), qrels.queries)
    return sums


def trec_ndcg(qrels: Qrels, ranking: np.ndarray) -> np.ndarray:
    """nDCG@10 by trec_eval, (n_queries,)."""
    bounds = pairwise(qrels.judged_indptr)
    grades = {
        query_id: {
            qrels.document_ids[column]: round(300 * gain)
            for column, gain in zip(qrels.judged_columns[start:stop], qrels.gains[start:stop], strict=True)
        }
        for query_id, (start, stop) in zip(qrels.query_ids, bounds, strict=True)
    }
    run = {
        query_id: {qrels.document_ids[column]: -float(rank) for rank, column in enumerate(row)}
        for query_id, row in zip(qrels.query_ids, ranking.tolist(), strict=True)
    }
    found = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.10"}).evaluate(run)
    return np.array([found[query_id]["ndcg_cut_10"] for query_id in qrels.query_ids])


@pytest.mark.parametrize("cell", [Cell(DIM), Cell(8)], ids=str)
def test_the_weight_lies_between_the_middle_of_the_best_on_dev_and_that_of_equal_spread(cell: Cell) -> None:
    # All documents of dev are candidates, so a sort of all sums is what the fusion gives.
    dev = qrels_of(300, 2)
    assert dev.n_documents <= 100
    sums = {weight: sums_of(dev, cell, weight).astype(np.float32) for weight in WEIGHTS}
    values = {w: trec_ndcg(dev, np.argsort(-rows, axis=1, kind="stable")) for w, rows in sums.items()}
    best = max(WEIGHTS, key=lambda weight: values[weight].mean())

    def as_good(weight: float) -> bool:
        behind = values[best] - values[weight]
        return bool(behind.mean() <= behind.std(ddof=1) / len(behind) ** 0.5 + 1e-12)

    place = WEIGHTS.index(best)
    first = last = place
    while first and as_good(WEIGHTS[first - 1]):
        first -= 1
    while last + 1 < len(WEIGHTS) and as_good(WEIGHTS[last + 1]):
        last += 1
    assert first > 0
    lexical = scores_of(Lexical.fit(dev.documents), dev.queries)
    spread = sums_of(dev, cell, 0.0).std(axis=1).mean() / lexical.astype(np.float64).std(axis=1).mean()
    middle = np.log(WEIGHTS[first] * WEIGHTS[last]) / 2
    wanted = np.exp((dev.n_queries * middle + TRUST * np.log(spread)) / (dev.n_queries + TRUST))
    fusion = benchmark().model(BagOfWords(), [cell], fuse=True).fusions[cell]
    assert fusion.weight == pytest.approx(wanted, rel=0.01)


def test_the_first_ten_of_a_fusion_on_test_are_those_of_a_sort_of_all_sums() -> None:
    one, encode = benchmark(), BagOfWords()
    measured = one.model(encode, [Cell(8)], fuse=True)
    weight = measured.fusions[Cell(8)].weight
    ranking = np.argsort(-sums_of(one.test, Cell(8), weight).astype(np.float32), axis=1, kind="stable")
    assert measured.fused is not None
    recall, mrr = trec_recall_and_mrr(one.test, ranking)
    assert measured.fused.per_query["recall@10"].to_numpy() == pytest.approx(recall, abs=1e-9)
    assert measured.fused.per_query["mrr@10"].to_numpy() == pytest.approx(mrr, abs=1e-9)


def test_fused_figures_stand_in_the_order_and_shape_of_those_alone() -> None:
    measured = benchmark().model(BagOfWords(), CELLS, fuse=True)
    assert measured.fused is not None
    assert measured.fused.per_query.schema == measured.alone.per_query.schema
    where = [*CELL, "query_id", "query"]
    assert measured.fused.per_query.select(where).equals(measured.alone.per_query.select(where))


def test_words_help_embeddings_that_are_small() -> None:
    measured = benchmark().model(BagOfWords(), CELLS[1:3], fuse=True)
    assert measured.fused is not None
    fused, alone = (
        table.group_by("precision").agg(pl.col("mrr@10").mean()).sort("precision")["mrr@10"].to_numpy()
        for table in (measured.fused.per_query, measured.alone.per_query)
    )
    assert (fused > alone + 0.1).all()


def weight_0(one: Benchmark, cells: Sequence[Cell], depth: int = 100) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A model alone, and fused with a weight of 0."""
    encode = BagOfWords()
    fitted, vectors = one.fitted(encode, cells), one.vectors(encode)
    fusions = dict.fromkeys(cells, Fusion(0.0, depth=depth))
    return one.measure(vectors, cells, fitted).per_query, one.measure(vectors, cells, fitted, fusions).per_query


@pytest.mark.parametrize("cell", [Cell(DIM), Cell(8), Cell(8, "float16", "pca")], ids=str)
def test_a_weight_of_0_is_the_dense_ranking(cell: Cell) -> None:
    alone, fused = weight_0(benchmark(), [cell])
    assert fused.equals(alone)


def test_measures_deeper_than_the_candidates_are_of_the_whole_fused_ranking() -> None:
    one = benchmark(test=qrels_of(1200, 4), measures=(Measure.parse("recall@150"),))
    assert one.test.n_documents > 200
    chosen = one.model(BagOfWords(), [Cell(8)], fuse=True).fusions[Cell(8)]
    alone, fused = weight_0(one, [Cell(8)], depth=chosen.depth)
    assert fused.equals(alone)


def test_a_dev_side_of_few_documents_does_not_cut_what_test_has_to_choose_from() -> None:
    small = qrels_of(60, 2)
    assert small.n_documents < 30
    measures = (Measure.parse("recall@60"),)
    measured = benchmark(dev=small, measures=measures).model(BagOfWords(), [Cell(8)], fuse=True)
    assert measured.fusions[Cell(8)].depth == 100
    test, weight = qrels_of(400, 3), measured.fusions[Cell(8)].weight
    ranking = np.argsort(-sums_of(test, Cell(8), weight).astype(np.float32), axis=1, kind="stable")
    assert measured.fused is not None
    assert measured.fused.per_query["recall@60"].to_list() == measures[0].per_query(ranking, test).tolist()


def test_a_corpus_smaller_than_what_is_measured_is_ranked_whole() -> None:
    deep = (Measure.parse("recall@500"),)
    one = benchmark(test=qrels_of(60, 2), dev=qrels_of(60, 6), measures=deep)
    measured = one.model(BagOfWords(), [Cell(4), Cell(4, "binary", "pca", 2)], fuse=True)
    assert measured.fused is not None
    assert measured.alone.per_query["recall@500"].unique().to_list() == [1.0]
    assert measured.fused.per_query["recall@500"].unique().to_list() == [1.0]
    lexical = one.lexical("bm25")[0]["recall@500"].to_numpy()
    assert 0 < lexical.mean() <= 1
