"""Packed forward passes: what the model itself gives, gradients included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from nestling.models.load import load_model
from nestling.models.precision import choose_precision
from nestling.training.batches.tokens import TokenStore
from nestling.training.fast import unpadded
from nestling.training.fast.setup import settle
from nestling.training.fast.unpadded import PAD_TO, can_unpad, embed_unpadded, split_by_length
from nestling.training.losses.contrastive import ContrastiveLoss, PairValues

QUERIES = ["saw", "door hinge brass", "drill " * 15, "paint"]
DOCUMENTS = ["hand saw with a wooden handle", "18 v drill driver kit " * 3, "x", "white paint for doors " * 2, "hinge"]


@pytest.fixture
def model(tiny_model_path: Path) -> SentenceTransformer:
    return load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0)


def columns(model: SentenceTransformer) -> list[dict[str, torch.Tensor]]:
    stores = [TokenStore.build(texts, model.tokenizer, 64) for texts in (QUERIES, DOCUMENTS)]
    return [store.batch(np.arange(len(store.lengths))) for store in stores]


def gradients(model: SentenceTransformer, embeddings: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    queries, documents = embeddings
    # Of no symmetry that could hide a swapped row.
    target = torch.arange(len(documents), dtype=torch.float32)
    ((queries @ documents.T).exp() * (1 + target)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain(model: SentenceTransformer) -> list[torch.Tensor]:
    return [model(dict(column))["sentence_embedding"] for column in columns(model)]


def test_embeddings_are_those_of_the_model(model: SentenceTransformer) -> None:
    found = embed_unpadded(model, columns(model), torch.float32)

    for ours, theirs in zip(found, plain(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, unpadded.AT_ONCE])
def test_gradients_are_those_of_the_model(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(unpadded, "AT_ONCE", at_once)
    theirs = gradients(model, plain(model))
    ours = gradients(model, embed_unpadded(model, columns(model), torch.float32))

    # The pooler gives nothing to a sentence's embedding and has no gradient on either side.
    assert set(ours) == set(theirs)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_bfloat16_is_near_float32_in_embeddings_and_gradients(model: SentenceTransformer) -> None:
    exact = gradients(model, plain(model))
    found = embed_unpadded(model, columns(model), torch.bfloat16)
    assert all(embeddings.dtype == torch.float32 for embeddings in found)
    rough = gradients(model, found)

    for name in ("0.model.encoder.layer.0.attention.self.value.weight", "0.model.embeddings.word_embeddings.weight"):
        a, b = exact[name].flatten(), rough[name].flatten()
        assert float(torch.dot(a, b) / a.norm() / b.norm()) > 0.99


def test_texts_of_one_length_need_no_mask_and_give_the_same(model: SentenceTransformer) -> None:
    ids = torch.randint(5, 50, (6, 8))
    column = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    ours = embed_unpadded(model, [column, column], torch.float32)

    for found in ours:
        torch.testing.assert_close(found, model(dict(column))["sentence_embedding"], atol=1e-6, rtol=1e-5)


def test_a_width_that_is_no_multiple_of_the_padding_is_filled_up(model: SentenceTransformer) -> None:
    ids = torch.randint(5, 50, (3, 7))
    column = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    (ours,) = embed_unpadded(model, [column], torch.float32)

    torch.testing.assert_close(ours, model(dict(column))["sentence_embedding"], atol=1e-6, rtol=1e-5)


def test_hidden_dropout_acts_in_training_alone(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.5)
    model.train()
    first, second = (embed_unpadded(model, columns(model), torch.float32)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    still, again = (embed_unpadded(model, columns(model), torch.float32)[0] for _ in range(2))
    torch.testing.assert_close(still, again)


def test_a_loss_on_unpadded_texts_is_the_librarys(model: SentenceTransformer) -> None:
    n = len(QUERIES)
    queries, documents = columns(model)
    documents = {name: value[:n] for name, value in documents.items()}
    numbers = {name: torch.arange(n) for name in ("query", "document", "anchor", "positive")}
    relevance = PairValues(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=n)
    loss = ContrastiveLoss(model, relevance)
    loss.compute_dtype, loss.unpadded = torch.float32, True

    theirs = MultipleNegativesRankingLoss(model)([dict(queries), dict(documents)], torch.zeros(n))

    torch.testing.assert_close(loss([queries, documents], numbers), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="texts are unpadded on CPUs")
def test_settle_packs_what_it_can_and_says_so(model: SentenceTransformer, tiny_model_path: Path) -> None:
    relevance = PairValues(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=1)
    loss = ContrastiveLoss(model, relevance)
    _, remark = settle(model, loss, choose_precision("fp32"), processes=1)
    assert loss.unpadded
    assert "unpadded" in remark

    dropping = load_model(str(tiny_model_path), attention_dropout=0.1)
    assert not can_unpad(dropping)
    loss = ContrastiveLoss(dropping, relevance)
    _, remark = settle(dropping, loss, choose_precision("fp32"), processes=1)
    assert not loss.unpadded
    assert "unpadded" not in remark


def test_several_processes_do_not_pack_since_only_the_wrapped_model_synchronises(model: SentenceTransformer) -> None:
    relevance = PairValues(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=1)
    loss = ContrastiveLoss(model, relevance)
    settle(model, loss, choose_precision("fp32"), processes=2)
    assert not loss.unpadded


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
def test_blocks_hold_every_text_once_and_are_no_wider_than_one_padded_block(lengths: list[int]) -> None:
    blocks = split_by_length(np.array(lengths))

    assert sorted(int(row) for rows, _ in blocks for row in rows) == list(range(len(lengths)))
    assert all(max(lengths[row] for row in rows) <= width for rows, width in blocks)
    assert all(width % PAD_TO == 0 for _, width in blocks)
    widest = -(-max(lengths) // PAD_TO) * PAD_TO
    assert sum(len(rows) * width for rows, width in blocks) <= widest * len(lengths)
