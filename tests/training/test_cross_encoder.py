"""The cross-encoder: what counts as irrelevant, its labels, its logits, its folder, and how it is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

from nestling.config.training import TrainingSettings
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model, save_model
from nestling.retrieval.exact_search import top_k
from nestling.training.batches.batching import Pairs
from nestling.training.cross_encoder import (
    IGNORED,
    NEGATIVES,
    Candidates,
    RerankEvaluator,
    irrelevant,
    judged_pairs,
    load,
    logits,
    measured_rows,
    with_head,
)
from nestling.training.spec import TrainingSpec

QUERIES = ["hand saw", "cordless drill 18 v", "paint"]
DOCUMENTS = ["steel hand saw", "a drill", "white paint for walls and for ceilings"]
JUDGMENTS = generate(300, seed=0)
PAIRS = Pairs.from_judgments(JUDGMENTS, threshold=2.5)


@pytest.fixture
def model(tiny_model_path: Path) -> CrossEncoder:
    return with_head(load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_the_models_own_whatever_the_order(
    model: CrossEncoder, precision: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nestling.training.cross_encoder.AT_ONCE", 2)
    pairs = [(QUERIES[q], DOCUMENTS[d]) for q, d in ((1, 2), (2, 0), (0, 1), (0, 0), (1, 1))]
    model.eval()
    with torch.no_grad():
        expected = [model(model.preprocess([pair]))["scores"].item() for pair in pairs]
    found = logits(model, pairs, precision=precision)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "fp32" else 0.02)


def test_the_saved_folder_is_loaded_by_plain_sentence_transformers(model: CrossEncoder, tmp_path: Path):
    model.max_seq_length = 8
    save_model(model, tmp_path / "model")
    pairs = list(zip(QUERIES, DOCUMENTS, strict=True))
    for loaded in (CrossEncoder(str(tmp_path / "model"), device="cpu"), load(str(tmp_path / "model"))):
        assert loaded.max_seq_length == 8
        np.testing.assert_allclose(loaded.predict(pairs), model.predict(pairs), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_nothing_that_raters_saw_and_no_candidate_on_top_is_drawn_as_irrelevant(seed: int, k: int):
    rng = np.random.default_rng(seed)
    n_queries, n_documents = len(PAIRS.queries), len(PAIRS.documents)
    nearest = np.array([rng.permutation(n_documents)[:k] for _ in range(n_queries)])
    query, document = irrelevant(PAIRS, Candidates(nearest, np.zeros(nearest.shape, np.float32)), seed=seed)
    drawn = set(zip(query.tolist(), document.tolist(), strict=True))
    judged = set(zip(PAIRS.judged_query.tolist(), PAIRS.judged_document.tolist(), strict=True))
    assert len(drawn) == len(query)
    assert not drawn & judged
    counts = np.bincount(query, minlength=n_queries)
    assert counts.max() <= NEGATIVES + 1
    beyond = [
        sum(document not in nearest[query, IGNORED:] for query, document in drawn if query == q) for q in range(9)
    ]
    assert max(beyond) <= 1, "one random document a query, all others candidates below the first"
    assert not any(document in nearest[query, :IGNORED] for query, document in drawn)


def test_a_score_is_scaled_to_a_chance_and_what_nobody_judged_has_none(model: CrossEncoder, tiny_model_path: Path):
    nearest = Candidates.nearest(load_model(str(tiny_model_path)), PAIRS.queries, PAIRS.documents, 12)
    spec = TrainingSpec(find_model(str(tiny_model_path)), "cross-encoder", TrainingSettings(), 2.5)
    inputs = judged_pairs(JUDGMENTS, spec, model, nearest)
    assert isinstance(inputs.loss, BinaryCrossEntropyLoss)
    columns = inputs.examples.to_dict()
    n = len(PAIRS.judged_score)
    low, high = JUDGMENTS.scale
    np.testing.assert_allclose(np.array(columns["label"][:n]) * (high - low) + low, PAIRS.judged_score, atol=1e-6)
    assert len(columns["label"]) > n
    assert not any(columns["label"][n:])
    judged = [
        (PAIRS.queries[q], PAIRS.documents[d]) for q, d in zip(PAIRS.judged_query, PAIRS.judged_document, strict=True)
    ]
    texts = list(zip(columns["query"], columns["document"], strict=True))
    assert texts[:n] == judged
    assert not set(texts[n:]) & set(judged)
    batches = list(inputs.sampler(16, seed=0, processes=1))  # type: ignore[misc]
    assert sorted(row for batch in batches for row in batch) == list(range(len(texts)))


def test_the_first_model_is_measured_as_any_model_is_and_the_two_by_their_sum(
    model: CrossEncoder, tiny_model_path: Path
):
    qrels = Qrels.from_judgments(JUDGMENTS, threshold=2.5)
    first = load_model(str(tiny_model_path))
    found = Candidates.nearest(first, qrels.queries, qrels.documents, 20)
    evaluator = RerankEvaluator(qrels, found, scale=20.0)
    assert len(measured_rows(qrels)) == qrels.n_queries
    ranking, _ = top_k(first.encode(qrels.queries), first.encode(qrels.documents), 10)
    for name in ("recall@10", "mrr@10"):
        expected = Measure.parse(name).per_query(ranking, qrels).mean()
        assert evaluator.figures(found.similarities)[f"dev_{name}"] == pytest.approx(expected)
    query, document = found.pairs()
    texts = [(qrels.queries[q], qrels.documents[d]) for q, d in zip(query, document, strict=True)]
    read = logits(model, texts)
    scores = 20.0 * found.similarities + read.reshape(found.documents.shape)
    best = np.take_along_axis(found.documents, np.argsort(-scores, axis=1, kind="stable"), axis=1)[:, :10]
    expected = Measure.parse("mrr@10").per_query(best, qrels).mean()
    assert evaluator(model)["dev_mrr@10"] == pytest.approx(expected)


def test_of_many_queries_some_are_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestling.training.cross_encoder.MEASURED", 5)
    qrels = Qrels.from_judgments(JUDGMENTS, threshold=2.5)
    rows = measured_rows(qrels)
    assert len(set(rows.tolist())) == 5
    assert (rows[0], rows[-1]) == (0, qrels.n_queries - 1)
    perfect = np.full((5, 10), -1)
    for place, row in enumerate(rows):
        right = qrels.relevant_columns[qrels.relevant_indptr[row] : qrels.relevant_indptr[row + 1]][:10]
        perfect[place, : len(right)] = right
    scores = np.tile(np.arange(10, 0, -1, dtype=np.float32), (5, 1))
    assert RerankEvaluator(qrels, Candidates(perfect, scores), scale=20.0).figures(scores)["dev_mrr@10"] == 1.0


def test_candidates_are_read_back_as_they_were_written(tmp_path: Path):
    found = Candidates(np.arange(6).reshape(2, 3), np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    for each in (found, Candidates(found.documents, found.similarities, -found.similarities)):
        each.save(tmp_path / "some.npz")
        again = Candidates.load(tmp_path / "some.npz")
        for name in ("documents", "similarities", "logits"):
            np.testing.assert_array_equal(getattr(again, name), getattr(each, name))


def test_the_head_depends_on_the_seed_alone(tiny_model_path: Path):
    made = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(state)
        made.append(with_head(load_model(str(tiny_model_path)), seed=seed)[2].linear.weight.detach().cpu().numpy())
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
