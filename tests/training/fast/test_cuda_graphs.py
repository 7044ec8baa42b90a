"""Captured passes: embeddings and gradients of the model itself, whatever is captured and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from nestling.models.load import load_model
from nestling.models.precision import Precision
from nestling.training.batches.tokens import TokenStore
from nestling.training.fast import cuda_graphs
from nestling.training.fast.cuda_graphs import Embed, GraphEncoder, GraphMemory, aliased, can_capture, padded, rounded
from nestling.training.fast.mixed_precision import embed_cast
from nestling.training.fast.setup import settle
from nestling.training.losses.contrastive import ContrastiveLoss, PairValues

QUERIES = ["saw", "door hinge brass", "drill " * 5, "paint", "white"]
DOCUMENTS = ["hand saw with a wooden handle", "18 v drill driver kit " * 3, "x", "white paint for doors", "hinge"]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class EagerCapture:
    """What a CUDA graph does, on any device: fixed places for inputs and outputs, gradients added to buffers."""

    def __init__(
        self,
        embed: Embed,
        parameters: dict[str, torch.Tensor],
        buffers: list[torch.Tensor],
        column: dict[str, torch.Tensor],
        pool: Any,
    ) -> None:
        self.embed, self.aliases = embed, aliased(parameters, buffers)
        self.shape = column["input_ids"].shape
        self.output = embed(column, self.aliases).detach().clone()

    def forward(self, column: dict[str, torch.Tensor]) -> torch.Tensor:
        assert column["input_ids"].shape == self.shape
        with torch.enable_grad():
            self.embeddings = self.embed(column, self.aliases)
        self.output.copy_(self.embeddings.detach())
        return self.output.detach()

    def backward(self, gradient: torch.Tensor) -> None:
        torch.autograd.backward(self.embeddings, gradient)


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


def assert_same(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], times: float = 1, rough: bool = False
) -> None:
    # The pooler gives nothing to an embedding: no gradient, which is something else than zeros.
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        if rough:
            # Sums over another number of rows, each rounded to eight bits.
            assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.99, name
        else:
            torch.testing.assert_close(found[name], times * gradient, atol=2e-5, rtol=1e-4, msg=name)


def widened(column: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    more = width - column["input_ids"].shape[1]
    return {name: torch.nn.functional.pad(value, (0, more)) for name, value in column.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make_capture", [EagerCapture, pytest.param(cuda_graphs.CapturedGraph, marks=on_gpu)])
def test_every_step_has_the_models_gradients(model: SentenceTransformer, make_capture: Any, dtype: torch.dtype) -> None:
    encoder = GraphEncoder(model, dtype, make_capture)
    sizes = [(5, 5), (4, 5), (3, 2)] * 2
    for n_queries, n_documents in sizes:
        # Both columns of one padded shape, which one recording could not serve.
        columns = [widened(column, 32) for column in batch(model, n_queries, n_documents)]
        plain = embed_cast(model, columns, dtype)
        backward(plain)
        wanted = gradients(model)
        model.zero_grad()
        embeddings = encoder(columns)
        for ours, theirs in zip(embeddings, plain, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        backward(embeddings)
        assert_same(gradients(model), wanted, rough=dtype == torch.bfloat16)
        model.zero_grad()
    assert set(encoder.captures) == {(0, 8, 32), (1, 8, 32)}
    assert not encoder.failed


def test_gradients_of_several_batches_add_up(model: SentenceTransformer) -> None:
    columns = batch(model)
    encoder = GraphEncoder(model, torch.float32, EagerCapture)
    wanted = expected(model, columns)
    backward(embed_cast(model, columns, torch.float32))
    # The recording begins between batches whose gradients are kept.
    for number in range(2, 5):
        backward(encoder(columns))
        assert_same(gradients(model), wanted, times=number)
    assert encoder.captures


def test_gradients_let_go_of_before_the_backward_pass_are_none_the_less_there(model: SentenceTransformer) -> None:
    columns = batch(model)
    encoder = GraphEncoder(model, torch.float32, EagerCapture)
    wanted = expected(model, columns)
    for _ in range(3):
        embeddings = encoder(columns)
        model.zero_grad()
        backward(embeddings)
        assert_same(gradients(model), wanted)
    assert encoder.captures


def test_a_shape_that_is_not_captured_goes_beside_one_that_is(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_SHAPES", 1)
    encoder = GraphEncoder(model, torch.float32, EagerCapture)
    backward(encoder(batch(model)))
    wide = batch(model)
    wide[1] = widened(wide[1], wide[1]["input_ids"].shape[1] + 16)
    wanted = expected(model, wide)
    for _ in range(2):
        model.zero_grad()
        backward(encoder(wide))
        assert_same(gradients(model), wanted)
    assert len(encoder.captures) == 2


def test_a_model_that_cannot_be_captured_is_trained_all_the_same(
    model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    columns = batch(model)
    wanted = expected(model, columns)
    encoder = GraphEncoder(model, torch.float32, broken)
    for _ in range(3):
        model.zero_grad()
        backward(encoder(columns))
        assert_same(gradients(model), wanted)
    assert caplog.text.count("cannot be captured") == 1


def test_an_evaluation_is_not_captured(model: SentenceTransformer) -> None:
    encoder = GraphEncoder(model, torch.float32, EagerCapture)
    model.eval()
    encoder(batch(model))
    assert not encoder.captures


def test_an_optimizer_steps_as_without(tiny_model_path: Path) -> None:
    def trained(wrap: bool) -> SentenceTransformer:
        model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0).train()
        encoder = GraphEncoder(model, torch.float32, EagerCapture)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        for step in range(6):
            columns = batch(model, 5 if step % 2 else 3)
            embeddings = encoder(columns) if wrap else [model(dict(c))["sentence_embedding"] for c in columns]
            backward(embeddings)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert bool(encoder.captures) == wrap
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


def test_memory_is_given_back_where_a_later_recording_fails(model: SentenceTransformer) -> None:
    def full(*given: Any) -> EagerCapture:
        if given[3]["input_ids"].shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return EagerCapture(*given)

    encoder = GraphEncoder(model, torch.float32, full)
    backward(encoder(batch(model)))
    assert encoder.captures
    wide = [widened(column, 64) for column in batch(model)]
    model.zero_grad()
    wanted = expected(model, wide)
    for _ in range(2):
        model.zero_grad()
        backward(encoder(wide))
        assert_same(gradients(model), wanted)
    assert encoder.failed
    assert not encoder.captures


def test_what_can_be_captured(model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_capture(model.to("cpu"))
    monkeypatch.setattr(SentenceTransformer, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not can_capture(model)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert can_capture(model)
    model[0].model.config._attn_implementation = "flash_attention_2"
    assert not can_capture(model)
    model[0].model.config._attn_implementation = "sdpa"
    model[0].model.encoder.layer[1].output.dense.weight = model[0].model.encoder.layer[0].output.dense.weight
    assert not can_capture(model)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", None)])
def test_on_a_gpu_our_loss_replays(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(SentenceTransformer, "device", torch.device("cuda"))
    relevance = PairValues(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=5)
    loss = ContrastiveLoss(model, relevance)
    autocast, remark = settle(model, loss, Precision(name, ""), processes=1)
    assert loss.compute_dtype == dtype
    assert autocast == (dtype is None)
    assert ("CUDA graphs" in remark) == (loss.graphs is not None) == (dtype is not None)
    several = ContrastiveLoss(model, relevance)
    assert settle(model, several, Precision(name, ""), processes=2) == (name != "fp32", "")
    assert several.graphs is None


@on_gpu
def test_a_loss_is_the_same_once_captured(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.0).train()
    relevance = PairValues(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), n_documents=5)
    loss = ContrastiveLoss(model, relevance).to(model.device)
    settle(model, loss, Precision("fp32", ""), processes=1)
    assert loss.graphs is not None
    numbers = {name: torch.arange(5, device=model.device) for name in ("query", "document", "anchor", "positive")}
    found, first = [], {}
    graphs = loss.graphs
    for number in range(4):
        # The first as it comes, the others as captured.
        loss.graphs = graphs if number else None
        model.zero_grad()
        each = loss(batch(model), numbers)
        each.backward()
        found.append(each.item())
        first = first or gradients(model)
    assert loss.graphs.captures
    assert found == pytest.approx([found[0]] * len(found), rel=1e-3)
    assert_same(gradients(model), first)


@on_gpu
def test_a_recording_that_fails_leaves_a_gpu_in_order(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.1).train()
    plain = cuda_graphs.embed_cast

    def asking(*given: Any) -> list[torch.Tensor]:
        found = plain(*given)
        assert found[0].sum().item() < 1e9
        return found

    monkeypatch.setattr(cuda_graphs, "embed_cast", asking)
    encoder = GraphEncoder(model, torch.float32)
    stream = torch.cuda.current_stream()
    for _ in range(4):
        backward(encoder(batch(model)))
    assert encoder.failed
    assert caplog.text.count("cannot be captured") == 1
    assert torch.cuda.current_stream() == stream
    assert all(bool(gradient.isfinite().all()) for gradient in gradients(model).values())


@on_gpu
def test_passes_computed_at_once_take_memory_of_the_recordings() -> None:
    def held(memory: GraphMemory) -> int:
        segments = torch.cuda.memory_snapshot()
        return sum(each["total_size"] for each in segments if tuple(each["segment_pool_id"]) == tuple(memory.id))

    memory = GraphMemory(torch.cuda.Stream())
    before = held(memory)
    weights = torch.ones(2048, 2048, device="cuda", requires_grad=True)
    for _ in range(3):
        with torch.autograd.set_multithreading_enabled(False), memory.in_use():
            (gradient,) = torch.autograd.grad((weights @ weights).sum(), weights)
            assert gradient[0, 0] == 4096
            del gradient
    # A product, its gradients and a library's own, once for all three.
    assert 2**25 <= held(memory) - before <= 2**28
    graph = torch.cuda.CUDAGraph()
    taken = held(memory)
    with memory.capturing(graph):
        again = weights.detach() @ weights.detach()
    graph.replay()
    assert again[0, 0].item() == 2048
    assert held(memory) == taken


@on_gpu
def test_dropout_differs_between_replays(tiny_model_path: Path) -> None:
    model = load_model(str(tiny_model_path), attention_dropout=0.0, hidden_dropout=0.5).train()
    encoder = GraphEncoder(model, torch.float32)
    found = []
    for _ in range(4):
        embeddings = encoder(batch(model))
        found.append(embeddings[0].detach().clone())
        backward(embeddings)
    assert encoder.captures
    assert not torch.allclose(found[-1], found[-2])
