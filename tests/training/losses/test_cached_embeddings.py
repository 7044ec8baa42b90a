"""The loss on fixed vectors: in float32 whatever the trainer does, and the whole batch's in every process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from sentence_transformers.sentence_transformer.modules import Dense
from torch import Tensor, nn

from nestling.training.losses.cached_embeddings import CachedEmbeddingsLoss
from nestling.training.losses.contrastive import ContrastiveLoss, Relevance

KNOWN = {(0, 0): 1.0, (1, 1): 1.0, (2, 2): 1.0, (3, 3): 1.0, (4, 4): 1.0, (0, 4): 1.0, (3, 1): 1.0}
SHARES = (([0, 1, 2], [0, 1, 2, 7]), ([3, 4], [3, 4]))


def loss_of(layer: Dense) -> CachedEmbeddingsLoss:
    pairs = np.array(list(KNOWN))
    relevance = Relevance(pairs[:, 0], pairs[:, 1], np.array(list(KNOWN.values())), n_documents=10)
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5, 10))
    return CachedEmbeddingsLoss(ContrastiveLoss(layer, relevance, dims=(4, 2)), queries, documents)


def fresh() -> Dense:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Dense(6, 4, bias=False, activation_function=nn.Identity())


def labels(queries: list[int], documents: list[int]) -> dict[str, Tensor]:
    values = {
        "query": queries,
        "document": documents,
        "anchor": list(range(len(queries))),
        "positive": [documents.index(query) for query in queries],
    }
    return {name: torch.tensor(value) for name, value in values.items()}


def gradient(queries: list[int], documents: list[int]) -> Tensor:
    layer = fresh()
    loss_of(layer)([], labels(queries, documents)).backward()
    assert layer.linear.weight.grad is not None
    return layer.linear.weight.grad


def one_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = gradient(*SHARES[rank])
    torch.save(found, Path(folder) / f"{rank}.part")
    (Path(folder) / f"{rank}.part").rename(Path(folder) / f"{rank}.pt")
    # As in test_losses: neither leaves before the other is done, and both without gloo's clean-up.
    while not all((Path(folder) / f"{other}.pt").exists() for other in (0, 1)):
        time.sleep(0.01)
    os._exit(0)


def test_each_of_two_processes_has_the_whole_batchs_gradient_by_itself(tmp_path: Path):
    mp.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    whole = gradient(SHARES[0][0] + SHARES[1][0], SHARES[0][1] + SHARES[1][1])
    for rank in (0, 1):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt"), whole, atol=1e-6)


def test_autocast_does_not_round_the_layer():
    batch = labels(*SHARES[0])
    exact = loss_of(fresh())([], batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(fresh())([], batch)
    assert found.dtype == torch.float32
    assert found.item() == exact.item()


def test_vectors_are_no_part_of_what_is_saved_or_trained():
    loss = loss_of(fresh())
    assert list(loss.state_dict()) == ["contrastive.model.linear.weight"]
    assert [name for name, _ in loss.named_parameters()] == ["contrastive.model.linear.weight"]
