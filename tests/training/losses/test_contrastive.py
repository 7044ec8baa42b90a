"""The contrastive loss: against the library's, against sums by hand, and against itself across two processes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn

from nestling.training.losses.contrastive import CachedEmbeddingsLoss, ContrastiveLoss, PairValues


class Given(nn.Module):
    """A model whose embeddings are given."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


def relevance(pairs: dict[tuple[int, int], float], n_documents: int = 10) -> PairValues:
    query, document = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    return PairValues(query, document, np.array(list(pairs.values())), n_documents=n_documents)


def numbers(query: list[int], document: list[int], anchor: list[int], positive: list[int]) -> dict[str, Tensor]:
    values = {"query": query, "document": document, "anchor": anchor, "positive": positive}
    return {name: torch.tensor(value, dtype=torch.int64) for name, value in values.items()}


def unit(*angles: float) -> Tensor:
    """Return unit vectors in the plane, so that cosines are cosines of differences of angles."""
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def random_batch(n: int, dim: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator)


def test_with_nothing_else_known_it_is_the_librarys_multiple_negatives_ranking_loss():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    queries, documents = random_batch(8)
    own = list(range(8))
    ours = ContrastiveLoss(Given(), relevance({(n, n): 1.0 for n in own}), scale=20.0)
    stock = MultipleNegativesRankingLoss(None, scale=20.0)
    expected = stock.compute_loss_from_embeddings([queries, documents], None)
    found = ours([{"x": queries}, {"x": documents}], numbers(own, own, own, own))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_prefixes_are_the_librarys_matryoshka_loss(tiny_model):
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    tiny_model.eval()
    columns = [["drill", "saw", "white door"], ["steel drill 18", "hand saw", "door in white"]]
    features = [tiny_model.preprocess(column) for column in columns]
    stock = MatryoshkaLoss(tiny_model, MultipleNegativesRankingLoss(tiny_model), [32, 16, 4], [1.0, 0.5, 2.0])
    own = list(range(3))
    ours = ContrastiveLoss(
        tiny_model, relevance({(n, n): 1.0 for n in own}), dims=(32, 16, 4), dim_weights=(1.0, 0.5, 2.0)
    )
    with torch.no_grad():
        expected = stock([dict(f) for f in features], None)
        found = ours(features, numbers(own, own, own, own))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_document_known_to_be_relevant_is_no_negative():
    queries, documents = unit(0.0, 1.0), unit(0.1, 1.1, 0.2)
    # Query 0 was drawn with document 0; document 2 is relevant to it as well, so only document 1 is wrong.
    loss = ContrastiveLoss(Given(), relevance({(0, 0): 1.0, (0, 2): 1.0}), scale=2.0)
    found = loss([{"x": queries[:1]}, {"x": documents}], numbers([0], [0, 1, 2], [0], [0]))
    right, wrong = math.exp(2 * math.cos(0.1)), math.exp(2 * math.cos(1.1))
    assert found.item() == pytest.approx(-math.log(right / (right + wrong)), rel=1e-5)


def test_graded_takes_every_relevant_document_with_its_weight():
    documents = unit(0.1, 1.1, 0.2)
    loss = ContrastiveLoss(Given(), relevance({(0, 0): 1.0, (0, 2): 0.5}), scale=2.0, graded=True)
    found = loss([{"x": unit(0.0)}, {"x": documents}], numbers([0], [0, 1, 2], [0], [0]))
    wrong = math.exp(2 * math.cos(1.1))
    each = [-math.log(math.exp(2 * math.cos(a)) / (math.exp(2 * math.cos(a)) + wrong)) for a in (0.1, 0.2)]
    assert found.item() == pytest.approx((1.0 * each[0] + 0.5 * each[1]) / 1.5, rel=1e-5)


def test_a_batch_without_a_single_negative_gives_a_finite_loss_and_gradient():
    queries = unit(0.0).requires_grad_()
    loss = ContrastiveLoss(Given(), relevance({(0, 0): 1.0}))
    value = loss([{"x": queries}, {"x": unit(0.3)}], numbers([0], [0], [0], [0]))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(queries.grad).all()


def test_values_are_looked_up_for_pairs_in_any_order():
    known = relevance({(3, 1): 0.5, (0, 9): 1.0, (3, 0): 0.25})
    assert known(torch.tensor([3, 0]), torch.tensor([0, 1, 9])).tolist() == [[0.25, 0.5, 0.0], [0.0, 0.0, 1.0]]
    assert relevance({})(torch.tensor([1]), torch.tensor([1])).tolist() == [[0.0]]


def with_teacher(teacher: object, dims: tuple[int, ...] = (), weight: float = 0.5) -> float:
    loss = ContrastiveLoss(Given(), relevance({(0, 0): 1.0}), dims=dims, teacher=teacher, teacher_weight=weight)  # type: ignore[arg-type]
    features = [{"x": torch.tensor([[1.0, 0.2, 0.1], [0.3, 1.0, 0.5]])}, {"x": torch.eye(3)}]
    return float(loss(features, numbers([0, 1], [0, 1, 2], [0, 1], [0, 1])))


def test_a_teacher_adds_the_divergence_of_its_softmax_averaged_over_what_it_knows():
    given = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    cosines = torch.tensor([1.0, 0.2, 0.1]) / math.sqrt(1.05)
    p, q = given[0].softmax(dim=0), (20 * cosines).softmax(dim=0)
    divergence = float((p * (p / q).log()).sum())
    none = with_teacher(None)
    assert with_teacher(lambda _, __: given) == pytest.approx(none + 0.5 * divergence, rel=1e-4)
    assert with_teacher(lambda _, __: torch.zeros(2, 3)) == pytest.approx(none)


def test_a_pair_that_a_teacher_does_not_know_is_no_part_of_either_softmax():
    given = torch.tensor([[1.0, torch.nan, 2.0], [torch.nan, torch.nan, torch.nan]])
    cosines = torch.tensor([1.0, 0.1]) / math.sqrt(1.05)
    p, q = torch.tensor([1.0, 2.0]).softmax(dim=0), (20 * cosines).softmax(dim=0)
    divergence = float((p * (p / q).log()).sum())
    assert with_teacher(lambda _, __: given) == pytest.approx(with_teacher(None) + 0.5 * divergence, rel=1e-4)


def test_a_teacher_is_asked_about_the_numbers_of_the_batch_and_at_full_size_alone():
    asked = []

    def teacher(queries: Tensor, documents: Tensor) -> Tensor:
        asked.append((queries.tolist(), documents.tolist()))
        return torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])

    added = with_teacher(teacher) - with_teacher(None)
    assert asked == [([0, 1], [0, 1, 2])]
    assert with_teacher(teacher, dims=(3, 2)) - with_teacher(None, dims=(3, 2)) == pytest.approx(added, rel=1e-4)
    assert len(asked) == 2


KNOWN = {(0, 0): 1.0, (1, 1): 0.5, (2, 2): 1.0, (3, 3): 1.0, (4, 4): 0.75, (0, 4): 0.5, (3, 1): 0.25}
SHARES = (([0, 1, 2], [0, 1, 2, 7]), ([3, 4], [3, 4]))


def linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(6, 4, bias=False)


def embedded(layer: nn.Module, rows: list[int], offset: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    every = torch.randn(40, 6, generator=generator)
    return layer(every[[row + offset for row in rows]])


def taught(queries: Tensor, documents: Tensor) -> Tensor:
    """Return made-up logits of a teacher, which knows nothing of query 2."""
    return ((queries[:, None] * 3 + documents * 5) % 4).float() * (queries != 2)[:, None]


def gradient(layer: nn.Module, queries: list[int], documents: list[int]) -> Tensor:
    loss = ContrastiveLoss(Given(), relevance(KNOWN), graded=True, dims=(4, 2), teacher=taught, teacher_weight=0.5)
    features = [{"x": embedded(layer, queries, 0)}, {"x": embedded(layer, documents, 20)}]
    value = loss(features, labels(queries, documents))
    value.backward()
    (weight,) = layer.parameters()
    assert weight.grad is not None
    return weight.grad


def layer() -> Dense:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Dense(6, 4, bias=False, activation_function=nn.Identity())


def cached_loss(model: Dense) -> CachedEmbeddingsLoss:
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5, 10))
    return CachedEmbeddingsLoss(ContrastiveLoss(model, relevance(KNOWN), dims=(4, 2)), queries, documents)


def labels(queries: list[int], documents: list[int]) -> dict[str, Tensor]:
    return numbers(queries, documents, list(range(len(queries))), [documents.index(query) for query in queries])


def cached_gradient(queries: list[int], documents: list[int]) -> Tensor:
    model = layer()
    cached_loss(model)([], labels(queries, documents)).backward()
    assert model.linear.weight.grad is not None
    return model.linear.weight.grad


def one_of_two(rank: int, folder: str) -> None:
    # Through a file: a port that is free when it is looked for may be taken when it is needed.
    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    found = gradient(nn.parallel.DistributedDataParallel(linear()), *SHARES[rank])
    torch.save([found, cached_gradient(*SHARES[rank])], Path(folder) / f"{rank}.part")
    (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.pt")
    # Both are done with each other before either leaves, and leave without gloo's clean-up, whose threads now and then
    # abort a process that has nothing left to do.
    while not all((Path(folder) / f"{other}.pt").exists() for other in (0, 1)):
        time.sleep(0.01)
    os._exit(0)


def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(tmp_path: Path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    whole = SHARES[0][0] + SHARES[1][0], SHARES[0][1] + SHARES[1][1]
    expected = [gradient(linear(), *whole), cached_gradient(*whole)]
    for rank in (0, 1):
        for found, one in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert torch.allclose(found, one, atol=1e-6)


def test_autocast_does_not_round_the_layer_on_cached_embeddings():
    batch = labels(*SHARES[0])
    exact = cached_loss(layer())([], batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cached_loss(layer())([], batch)
    assert found.dtype == torch.float32
    assert found.item() == exact.item()


def test_cached_embeddings_are_no_part_of_what_is_saved_or_trained():
    loss = cached_loss(layer())
    assert list(loss.state_dict()) == ["contrastive.model.linear.weight"]
    assert [name for name, _ in loss.named_parameters()] == ["contrastive.model.linear.weight"]
