"""Recorded passes: embeddings and gradients of the model itself, whatever is recorded and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from nestling.models import load_model
from nestling.training import replay
from nestling.training.losses import ContrastiveLoss, Relevance
from nestling.training.precision import Precision, settle
from nestling.training.replay import AFTER, Embed, ReplayedEncoder, aliased, padded, rounded
from nestling.training.tokens import TokenStore

QUERIES = ["saw", "door hinge brass", "drill " * 5, "paint", "white"]
DOCUMENTS = ["hand saw with a wooden handle", "18 v drill driver kit " * 3, "x", "white paint for doors", "hinge"]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class EagerRecording:
    """What a CUDA graph does, on any device: fixed places for inputs and outputs, gradients added to buffers."""

    def __init__(
        self,
        embed: Embed,
        parameters: dict[str, torch.Tensor],
        buffers: list[torch.Tensor],
        column: dict[str, torch.Tensor],
        pool: Any,
    ) -> None:
        self.embed, self.buffers, self.aliases = embed, buffers, aliased(parameters)
        self.shape = column["input_ids"].shape
        self.output = embed(column, self.aliases).detach().clone()

    def forward(self, column: dict[str, torch.Tensor]) -> torch.Tensor:
        assert column["input_ids"].shape == self.shape
        with torch.enable_grad():
            self.embeddings = self.embed(column, self.aliases)
        self.output.copy_(self.embeddings.detach())
        return self.output.detach()

    def backward(self, gradient: torch.Tensor) -> None:
        found = torch.autograd.grad(self.embeddings, list(self.aliases.values()), gradient)
        for buffer, each in zip(self.buffers, found, strict=True):
            buffer.add_(each)


@pytest.fixture
def model(tiny_model_path: Path) -> SentenceTransformer:
    return load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0).train()


def batch(model: SentenceTransformer, n_queries: int = 5, n_documents: int = 5) -> list[dict[str, torch.Tensor]]:
    found = []
    for texts, n in ((QUERIES, n_queries), (DOCUMENTS, n_documents)):
        tokens = TokenStore.build(texts, model.tokenizer, 64).batch(np.arange(n))
        found.append({name: value.to(model.device) for name, value in tokens.items()})
    return found


def backward(embeddings: list[torch.Tensor]) -> None:
    queries, documents = embeddings
    # Of no symmetry that could hide a swapped row.
    target = torch.arange(len(documents), dtype=torch.float32, device=documents.device)
    ((queries @ documents.T).exp() * (1 + target)).sum().backward()


def gradients(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def expected(model: SentenceTransformer, columns: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    backward([model(dict(column))["sentence_embedding"] for column in columns])
    found = gradients(model)
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], times: float = 1) -> None:
    # The pooler gives nothing to an embedding: no gradient, which is something else than zeros.
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], times * gradient, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("record", [EagerRecording, pytest.param(replay.GraphRecording, marks=on_gpu)])
def test_every_step_has_the_models_gradients(model: SentenceTransformer, record: Any) -> None:
    encoder = ReplayedEncoder(model, torch.float32, record)
    # Both columns of one padded shape, which one recording could not serve.
    sizes = [(5, 5), (4, 5), (3, 2)] * (AFTER + 1)
    for n_queries, n_documents in sizes:
        columns = batch(model, n_queries, n_documents)
        wanted = expected(model, columns)
        plain = [model(dict(column))["sentence_embedding"] for column in columns]
        embeddings = encoder(columns)
        for ours, theirs in zip(embeddings, plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        backward(embeddings)
        assert_same(gradients(model), wanted)
    assert len(encoder.recordings) >= 2
    assert not encoder.failed


def test_gradients_of_several_batches_add_up(model: SentenceTransformer) -> None:
    columns = batch(model)
    encoder = ReplayedEncoder(model, torch.float32, EagerRecording)
    wanted = expected(model, columns)
    # The recording begins between batches whose gradients are kept.
    for number in range(1, AFTER + 4):
        backward(encoder(columns))
        assert_same(gradients(model), wanted, times=number)


def test_a_shape_that_is_not_recorded_goes_beside_one_that_is(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MOST", 1)
    encoder = ReplayedEncoder(model, torch.float32, EagerRecording)
    for _ in range(AFTER):
        backward(encoder(batch(model)))
    wide = batch(model)
    wide[1] = {name: torch.nn.functional.pad(value, (0, 16)) for name, value in wide[1].items()}
    wanted = expected(model, wide)
    for _ in range(AFTER + 1):
        model.zero_grad()
        backward(encoder(wide))
        assert_same(gradients(model), wanted)
    assert len(encoder.recordings) == 2


def test_a_model_that_cannot_be_recorded_is_trained_all_the_same(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    columns = batch(model)
    wanted = expected(model, columns)
    encoder = ReplayedEncoder(model, torch.float32, broken)
    for _ in range(AFTER + 2):
        model.zero_grad()
        backward(encoder(columns))
    assert {name: g for name, g in gradients(model).items() if g.any()}.keys() <= wanted.keys()
    assert_same({name: gradients(model)[name] for name in wanted}, wanted)
    assert caplog.text.count("cannot be recorded") == 1


def test_an_evaluation_is_not_recorded(model: SentenceTransformer) -> None:
    encoder = ReplayedEncoder(model, torch.float32, EagerRecording)
    model.eval()
    for _ in range(AFTER + 1):
        encoder(batch(model))
    assert not encoder.met


def test_an_optimizer_steps_as_without(tiny_model_path: Path) -> None:
    def trained(wrap: bool) -> SentenceTransformer:
        model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0).train()
        encoder = ReplayedEncoder(model, torch.float32, EagerRecording)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        for step in range(AFTER + 4):
            columns = batch(model, 5 if step % 2 else 3)
            embeddings = encoder(columns) if wrap else [model(dict(c))["sentence_embedding"] for c in columns]
            backward(embeddings)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return model

    for (name, ours), theirs in zip(trained(True).named_parameters(), trained(False).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)


@given(st.integers(1, 2000))
def test_sizes_are_rounded_up_by_little(size: int) -> None:
    found = rounded(size)
    assert size <= found < size + max(8, size / 4)
    assert rounded(found) == found


def test_few_sizes_are_left() -> None:
    assert len({rounded(size) for size in range(1, 513)}) == 8 + 4 * 3


@given(st.integers(1, 9), st.integers(1, 30), st.integers(30, 40))
def test_padding_adds_texts_of_one_token(n_texts: int, width: int, widest: int) -> None:
    column = {"input_ids": torch.arange(n_texts * width).view(n_texts, width) + 1}
    column["attention_mask"] = torch.ones_like(column["input_ids"])
    found = padded(column, 0, widest=widest)
    ids, mask = found["input_ids"], found["attention_mask"]
    assert ids.shape == mask.shape == (rounded(n_texts), min(rounded(width), widest))
    assert torch.equal(ids[:n_texts, :width], column["input_ids"])
    assert mask[:n_texts].sum() == n_texts * width
    assert mask[n_texts:].sum(dim=1).eq(1).all()
    assert ids.sum() == column["input_ids"].sum()


@on_gpu
def test_a_gpu_trains_from_recordings_as_without(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0).train()
    relevance = Relevance(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=5)
    loss = ContrastiveLoss(model, relevance).to(model.device)
    autocast, remark = settle(model, loss, Precision("fp32", ""), processes=1)
    assert not autocast
    assert "CUDA graphs" in remark
    numbers = {name: torch.arange(5, device=model.device) for name in ("query", "document", "anchor", "positive")}
    losses = [loss(batch(model), numbers).item() for _ in range(AFTER + 3)]
    assert loss.replayed is not None
    assert loss.replayed.recordings
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)


@on_gpu
def test_a_recording_that_fails_leaves_a_gpu_in_order(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.1).train()
    plain = replay.embed_cast

    def asking(*given: Any) -> list[torch.Tensor]:
        found = plain(*given)
        assert found[0].sum().item() < 1e9
        return found

    monkeypatch.setattr(replay, "embed_cast", asking)
    encoder = ReplayedEncoder(model, torch.float32)
    stream = torch.cuda.current_stream()
    for _ in range(AFTER + 3):
        backward(encoder(batch(model)))
    assert encoder.failed
    assert caplog.text.count("cannot be recorded") == 1
    assert torch.cuda.current_stream() == stream
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())


@on_gpu
def test_dropout_differs_between_replays(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.5).train()
    encoder = ReplayedEncoder(model, torch.float32)
    found = []
    for _ in range(AFTER + 3):
        embeddings = encoder(batch(model))
        found.append(embeddings[0].detach().clone())
        backward(embeddings)
    assert encoder.recordings
    assert not torch.allclose(found[-1], found[-2])
