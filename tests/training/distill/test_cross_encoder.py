"""The cross-encoder: tokens of pairs, what counts as irrelevant, its loss, its logits, and how it is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model
from nestling.retrieval.exact_search import top_k
from nestling.training.batches.batching import Pairs
from nestling.training.distill.candidates import Candidates
from nestling.training.distill.cross_encoder import (
    IGNORED,
    NEGATIVES,
    LikelihoodLoss,
    PairTokens,
    RerankEvaluator,
    irrelevant,
    logits,
    measured_rows,
    prepare,
    with_head,
)
from nestling.training.inputs.static import build_static
from nestling.training.spec import TrainingSpec

QUERIES = ["hand saw", "cordless drill 18 v", "paint"]
DOCUMENTS = ["steel hand saw", "a drill", "white paint for walls and for ceilings"]
JUDGMENTS = generate(300, seed=0)
PAIRS = Pairs.from_judgments(JUDGMENTS, threshold=2.5)


@pytest.fixture
def reader(tiny_model_path: Path) -> SentenceTransformer:
    torch.manual_seed(0)
    return with_head(load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0))


def pairs_on(reader: SentenceTransformer, tokens: PairTokens, query: list[int], document: list[int]) -> dict[str, Any]:
    made = tokens.batch(np.array(query), np.array(document))
    return {name: value.to(reader.device) for name, value in made.items()}


def test_a_pair_has_the_tokens_that_the_tokenizer_gives_two_texts(reader: SentenceTransformer):
    tokens = PairTokens(reader, QUERIES, DOCUMENTS)
    query, document = np.array([2, 0, 1]), np.array([2, 1, 0])
    batch = tokens.batch(query, document)
    expected = [reader.tokenizer(QUERIES[q], DOCUMENTS[d])["input_ids"] for q, d in zip(query, document, strict=True)]
    found = [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert found == expected
    assert tokens.lengths(query, document).tolist() == list(map(len, expected))


def test_a_long_pair_is_cut_at_the_models_limit(reader: SentenceTransformer):
    reader.max_seq_length = 8
    tokens = PairTokens(reader, QUERIES, DOCUMENTS)
    every = np.array([0, 1, 2])
    assert tokens.lengths(every, every).max() == 8
    long = PairTokens(reader, ["steel " * 50], DOCUMENTS)
    one, other = (long.batch(np.array([0]), np.array([document]))["input_ids"].tolist() for document in (0, 1))
    assert one != other, "a long query leaves room for documents"
    batch = tokens.batch(every, every)
    assert batch["attention_mask"].sum(dim=1).tolist() == tokens.lengths(every, every).tolist()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_are_the_models_own_whatever_the_order(
    reader: SentenceTransformer, precision: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nestling.training.distill.cross_encoder.AT_ONCE", 20)
    tokens = PairTokens(reader, QUERIES, DOCUMENTS)
    query, document = np.array([1, 2, 0, 0, 1]), np.array([2, 0, 1, 0, 1])
    reader.eval()
    with torch.no_grad():
        expected = [
            reader(pairs_on(reader, tokens, [q], [d]))["sentence_embedding"].item()
            for q, d in zip(query, document, strict=True)
        ]
    found = logits(reader, tokens, query, document, precision=precision)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "fp32" else 0.02)


def test_the_loss_is_the_likelihood_of_the_grades(reader: SentenceTransformer):
    tokens = PairTokens(reader, QUERIES, DOCUMENTS)
    batch = pairs_on(reader, tokens, [0, 1, 2], [0, 1, 2])
    label = torch.tensor([1.0, 0.25, 0.0], device=reader.device)
    loss = LikelihoodLoss(reader)
    value = loss([dict(batch)], label)
    chance = torch.sigmoid(reader(dict(batch))["sentence_embedding"][:, 0])
    expected = -(label * chance.log() + (1 - label) * (1 - chance).log()).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert all(each.grad.abs().sum() > 0 for each in reader[2].parameters())
    # Packed on a CPU, as `settle` has it.
    loss.compute_dtype, loss.unpadded = torch.float32, reader.device.type == "cpu"
    assert loss([dict(batch)], label).item() == pytest.approx(expected.item(), rel=1e-4)


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


def spec_with(path: Path, base: Path, candidates: Candidates) -> TrainingSpec:
    candidates.save(path / "train.npz")
    source = find_model(str(base))
    return TrainingSpec(source, "cross-encoder", TrainingSettings(), 2.5, candidates=path)


def test_a_score_is_scaled_to_a_chance_and_what_nobody_judged_has_none(
    reader: SentenceTransformer, tiny_model_path: Path, tmp_path: Path
):
    nearest = Candidates.nearest(load_model(str(tiny_model_path)), PAIRS.queries, PAIRS.documents, 12)
    inputs = prepare(JUDGMENTS, spec_with(tmp_path, tiny_model_path, nearest), reader)
    batch = inputs.collator([{"row": row} for row in range(len(inputs.examples))])  # type: ignore[misc]
    n = len(PAIRS.judged_score)
    low, high = JUDGMENTS.scale
    np.testing.assert_allclose(batch["label"][:n] * (high - low) + low, PAIRS.judged_score, atol=1e-6)
    assert len(batch["label"]) > n
    assert not batch["label"][n:].any()
    assert {name for name in batch if name != "label"} == {"pair_input_ids", "pair_attention_mask"}


def test_a_static_model_cannot_be_one(tiny_model_path: Path):
    with pytest.raises(InputError, match="transformer"):
        with_head(build_static(find_model(str(tiny_model_path)), [*QUERIES, *DOCUMENTS]))


def test_the_first_model_is_measured_as_any_model_is_and_the_two_by_their_sum(
    reader: SentenceTransformer, tiny_model_path: Path
):
    qrels = Qrels.from_judgments(JUDGMENTS, threshold=2.5)
    model = load_model(str(tiny_model_path))
    found = Candidates.nearest(model, qrels.queries, qrels.documents, 20)
    evaluator = RerankEvaluator(qrels, found)
    assert len(measured_rows(qrels)) == qrels.n_queries
    ranking, _ = top_k(model.encode(qrels.queries), model.encode(qrels.documents), 10)
    for name in ("recall@10", "mrr@10"):
        expected = Measure.parse(name).per_query(ranking, qrels).mean()
        assert evaluator.of_base(find_model(str(tiny_model_path)))[f"dev_{name}"] == pytest.approx(expected)
    query, document = found.pairs()
    read = logits(reader, PairTokens(reader, qrels.queries, qrels.documents), query, document)
    scores = 20.0 * found.similarities + read.reshape(found.documents.shape)
    best = np.take_along_axis(found.documents, np.argsort(-scores, axis=1, kind="stable"), axis=1)[:, :10]
    expected = Measure.parse("mrr@10").per_query(best, qrels).mean()
    assert evaluator(reader)["dev_mrr@10"] == pytest.approx(expected)


def test_of_many_queries_some_are_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nestling.training.distill.cross_encoder.MEASURED", 5)
    qrels = Qrels.from_judgments(JUDGMENTS, threshold=2.5)
    rows = measured_rows(qrels)
    assert len(set(rows.tolist())) == 5
    assert (rows[0], rows[-1]) == (0, qrels.n_queries - 1)
    perfect = np.full((5, 10), -1)
    for place, row in enumerate(rows):
        right = qrels.relevant_columns[qrels.relevant_indptr[row] : qrels.relevant_indptr[row + 1]][:10]
        perfect[place, : len(right)] = right
    scores = np.tile(np.arange(10, 0, -1, dtype=np.float32), (5, 1))
    assert RerankEvaluator(qrels, Candidates(perfect, scores)).figures(scores)["dev_mrr@10"] == 1.0


def test_candidates_are_read_back_as_they_were_written(tmp_path: Path):
    found = Candidates(np.arange(6).reshape(2, 3), np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3))
    for each in (found, Candidates(found.documents, found.similarities, -found.similarities)):
        each.save(tmp_path / "some.npz")
        again = Candidates.load(tmp_path / "some.npz")
        for name in ("documents", "similarities", "logits"):
            np.testing.assert_array_equal(getattr(again, name), getattr(each, name))
    assert again.first(2).documents.tolist() == [[0, 1], [3, 4]]
    assert again.first(2).logits is None
    with pytest.raises(ValueError, match="no cross-encoder"):
        found.scores_of_both(20.0)


def test_a_job_changes_with_its_candidates(tiny_model_path: Path, tmp_path: Path):
    plain = TrainingSpec(find_model(str(tiny_model_path)), "cross-encoder", TrainingSettings(), 2.5)
    some = Candidates(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32))
    prints = [plain.fingerprint()]
    for similar in (0.0, 0.0, 1.0):
        spec = spec_with(tmp_path, tiny_model_path, Candidates(some.documents, some.similarities + np.float32(similar)))
        prints.append(spec.fingerprint())
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3


def test_the_head_depends_on_the_seed_alone(tiny_model_path: Path):
    made = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(state)
        made.append(with_head(load_model(str(tiny_model_path)), seed=seed)[2].linear.weight.detach().cpu().numpy())
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
