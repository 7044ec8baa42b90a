"""The second training: what its teacher knows, and what its batches hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.training import settings_of
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model
from nestling.training.batches.batching import Pairs
from nestling.training.distill.cross_encoder import Candidates
from nestling.training.distill.student import DRAWN, distilled
from nestling.training.losses.contrastive import ContrastiveLoss, PairValues
from nestling.training.spec import TrainingInputs, TrainingSpec

JUDGMENTS = generate(400, seed=0)
PAIRS = Pairs.from_judgments(JUDGMENTS, threshold=1.999)


PSEUDO = [f"{query} heavy duty" for query in PAIRS.queries[:50]]


def candidates(k: int = 14) -> Candidates:
    rng = np.random.default_rng(0)
    documents = np.array([rng.permutation(len(PAIRS.documents))[:k] for _ in [*PAIRS.queries, *PSEUDO]])
    return Candidates(documents, *(rng.random((2, *documents.shape)).astype(np.float32)))


def inputs(base: Path, found: Candidates, recipe: str = "graded", **settings: float) -> TrainingInputs:
    options = settings_of(recipe, distill={"weight": 0.7}, finetune={"positives_above": 1.999, **settings})
    spec = TrainingSpec(find_model(str(base)), recipe, options, 2.5)
    return distilled(JUDGMENTS, spec, load_model(str(base)), found, PSEUDO)


def test_the_teacher_knows_the_candidates_alone_by_cosine_and_logit(tiny_model_path: Path):
    found = candidates()
    teacher = inputs(tiny_model_path, found, scale=15.0).loss.teacher
    queries, documents = torch.tensor([5, 0, 3]), torch.randperm(len(PAIRS.documents))
    scores = teacher(queries, documents)
    for row, query in enumerate(queries.tolist()):
        for column, document in enumerate(documents.tolist()):
            place = np.flatnonzero(found.documents[query] == document)
            if len(place):
                expected = 15.0 * found.similarities[query, place[0]] + found.logits[query, place[0]]  # type: ignore[index]
                assert scores[row, column].item() == pytest.approx(float(expected), rel=1e-5)
            else:
                assert scores[row, column].isnan()


def test_a_batch_holds_all_that_raters_saw_of_its_queries_and_some_candidates(tiny_model_path: Path):
    found = candidates()
    made = inputs(tiny_model_path, found)
    assert len(made.examples) == len(PAIRS.queries) + len(PSEUDO)
    new = len(PAIRS.queries) + 3
    rows = [{"row": row} for row in (7, new, 2)]
    batch = made.collator(rows)  # type: ignore[misc]
    label = {name: value.numpy() for name, value in batch["label"].items()}
    assert label["query"].tolist() == [2, 7, new]
    tokenizer = made.loss.model.tokenizer
    expected = tokenizer([PAIRS.queries[2], PAIRS.queries[7], PSEUDO[3]])["input_ids"]
    masks = batch["anchor_attention_mask"].bool()
    assert [ids[mask].tolist() for ids, mask in zip(batch["anchor_input_ids"], masks, strict=True)] == expected
    documents = label["document"]
    assert len(set(documents.tolist())) == len(documents) == len(batch["document_input_ids"])
    judged = set(PAIRS.judged_document[np.isin(PAIRS.judged_query, label["query"])].tolist())
    assert judged <= set(documents.tolist())
    for query in label["query"]:
        assert np.isin(found.documents[query], documents).sum() >= DRAWN
    others = set(documents.tolist()) - judged
    assert others <= set(found.documents[label["query"]].ravel().tolist())
    pairs = set(zip(label["query"][label["anchor"]].tolist(), documents[label["positive"]].tolist(), strict=True))
    mine = np.isin(PAIRS.query, label["query"])
    assert pairs == set(zip(PAIRS.query[mine].tolist(), PAIRS.document[mine].tolist(), strict=True))
    again = made.collator(rows)  # type: ignore[misc]
    assert torch.equal(again["label"]["document"], batch["label"]["document"])


def test_fewer_candidates_than_are_drawn_are_all_taken(tiny_model_path: Path):
    found = candidates(3)
    batch = inputs(tiny_model_path, found).collator([{"row": 4}])  # type: ignore[misc]
    assert np.isin(found.documents[4], batch["label"]["document"].numpy()).all()


@pytest.mark.parametrize("recipe", ["graded", "mnrl"])
def test_the_loss_is_taught_and_finite_where_no_query_has_a_positive(recipe: str, tiny_model_path: Path):
    made = inputs(tiny_model_path, candidates(), recipe, positives_above=2.9)
    pairs = Pairs.from_judgments(JUDGMENTS, threshold=2.9)
    assert made.loss.teacher_weight == 0.7
    assert made.loss.graded == (recipe == "graded")
    without = np.setdiff1d(np.arange(len(pairs.queries)), pairs.query)
    assert len(without)
    for rows in (without[:3], pairs.query[:3]):
        device = made.loss.model.device
        made.loss.to(device)
        batch = made.collator([{"row": int(row)} for row in rows])  # type: ignore[misc]
        label = {name: value.to(device) for name, value in batch.pop("label").items()}
        columns = [
            {name.removeprefix(side): value.to(device) for name, value in batch.items() if name.startswith(side)}
            for side in ("anchor_", "document_")
        ]
        made.loss.zero_grad()
        value = made.loss(columns, label)
        value.backward()
        assert torch.isfinite(value)
        assert value.item() > 0
        gradients = [each.grad for each in made.loss.model.parameters() if each.grad is not None]
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)


def test_what_nobody_judged_among_the_candidates_is_neither_right_nor_wrong(tiny_model_path: Path):
    found = candidates()
    ignored = inputs(tiny_model_path, found).loss.ignored
    queries, documents = torch.arange(len(found.documents)), torch.arange(len(PAIRS.documents))
    expected = np.zeros((len(queries), len(documents)), dtype=bool)
    np.put_along_axis(expected, found.documents, True, axis=1)
    expected[PAIRS.judged_query, PAIRS.judged_document] = False
    np.testing.assert_array_equal(ignored(queries, documents).numpy() > 0, expected)


@pytest.mark.parametrize("graded", [False, True])
def test_a_spared_pair_is_no_negative_and_no_positive(graded: bool):
    known = PairValues(np.array([0]), np.array([0]), np.array([1.0]), n_documents=3)
    ignored = PairValues(np.array([0]), np.array([2]), np.array([1.0]), n_documents=3)
    numbers = {"query": [0], "document": [0, 1, 2], "anchor": [0], "positive": [0]}
    label = {name: torch.tensor(value) for name, value in numbers.items()}
    queries, documents = torch.randn(1, 4), torch.randn(3, 4)
    loss = ContrastiveLoss(torch.nn.Identity(), known, graded=graded, ignored=ignored)  # type: ignore[arg-type]
    plain = ContrastiveLoss(torch.nn.Identity(), known, graded=graded)  # type: ignore[arg-type]
    expected = plain.of_embeddings(queries, documents[:2], {**label, "document": torch.tensor([0, 1])})
    assert loss.of_embeddings(queries, documents, label).item() == pytest.approx(expected.item(), rel=1e-5)
