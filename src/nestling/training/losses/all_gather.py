"""A batch gathered from all processes, gradients included, so that each sees every negative."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(
    queries: Tensor, documents: Tensor, numbers: dict[str, Tensor]
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Concatenate embeddings and numbers of all processes, in the order of their ranks; of one process as they are.

    The backward pass sums gradients over processes; as the trainer then averages over them, and each process computes
    the same whole loss, the outcome is the gradient of one process with the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return queries, documents, numbers
    sizes = torch.tensor([len(queries), len(documents), len(numbers["anchor"])], device=queries.device)
    counts = _all(sizes)
    firsts = (counts.cumsum(0) - counts)[dist.get_rank()]
    n_queries, n_documents, n_pairs = counts.unbind(1)
    return (
        _padded_and_gathered(queries, n_queries),
        _padded_and_gathered(documents, n_documents),
        {
            "query": _padded_and_gathered(numbers["query"], n_queries),
            "document": _padded_and_gathered(numbers["document"], n_documents),
            "anchor": _padded_and_gathered(numbers["anchor"] + firsts[0], n_pairs),
            "positive": _padded_and_gathered(numbers["positive"] + firsts[1], n_pairs),
        },
    )


def _padded_and_gathered(value: Tensor, lengths: Tensor) -> Tensor:
    most = int(lengths.max())
    padded = torch.cat([value, value.new_zeros((most - len(value), *value.shape[1:]))])
    every: Tensor = _Gather.apply(padded) if value.is_floating_point() else _all(padded)  # type: ignore[no-untyped-call]
    return torch.cat([part[: int(n)] for part, n in zip(every, lengths, strict=True)])


def _all(value: Tensor) -> Tensor:
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """(n, ...) of each process -> (processes, n, ...) on all; gradients of one's own part are summed over processes."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return _all(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]
