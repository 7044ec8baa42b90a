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

    Args:
        queries, documents: (n_queries, dim) and (n_documents, dim), of this process; their numbers of rows may differ
            between processes.
        numbers: `query`, `document`, `anchor` and `positive`, the latter two as places in the former.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return queries, documents, numbers
    sizes = torch.tensor([len(queries), len(documents), len(numbers["anchor"])], device=queries.device)
    every = [torch.zeros_like(sizes) for _ in range(dist.get_world_size())]
    dist.all_gather(every, sizes)
    counts = torch.stack(every)
    firsts = counts.cumsum(0) - counts
    rank = dist.get_rank()
    shifted = {
        "query": (numbers["query"], counts[:, 0]),
        "document": (numbers["document"], counts[:, 1]),
        "anchor": (numbers["anchor"] + firsts[rank, 0], counts[:, 2]),
        "positive": (numbers["positive"] + firsts[rank, 1], counts[:, 2]),
    }
    return (
        _padded_and_gathered(queries, counts[:, 0]),
        _padded_and_gathered(documents, counts[:, 1]),
        {name: _padded_and_gathered(value, lengths) for name, (value, lengths) in shifted.items()},
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
