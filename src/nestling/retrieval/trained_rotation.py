"""Trained rotation: axes after which prefixes of embeddings rank more like the whole, fitted without a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.retrieval.exact_search import top_k
from nestling.retrieval.rotation import fit_search_rotation, rotated
from nestling.retrieval.vectors import truncate

if TYPE_CHECKING:
    import torch

ANGLE = 0.0196
"""By how much, in radians, a step of Adam may rotate an axis, before warm-up and decay."""
STEPS = 150
WARMUP = 20
BATCH = 128
NEAREST = 8
# One query of so many is held out, to tell every so many steps which rotation is the best, and whether any is: by the
# documents on top that a prefix has in common with the whole.
HELD_OUT, EVERY, TOP = 8, 10, 10
SCALE = 20.0
SAMPLE = 6000
"""Queries, and documents, that are enough to train on."""


def sampled(n: int) -> NDArray[np.int64]:
    """Return at most `SAMPLE` places below n, always the same ones, rising."""
    return np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])


def train_search_rotation(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    *,
    size: int | None = None,
    dims: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    r"""Return the axes of `fit_search_rotation`, rotated so that prefixes rank documents more like all of them do.

    For a batch of queries and the documents nearest to any of them, with the softmax p of `SCALE` times their cosines
    along all axes that are kept, and p_d that of the cosines of the first d,

    .. math:: \sum_{d} \mathrm{KL}(p \,\|\, p_d)

    is brought down by Adam over orthogonal matrices (Cayley transforms of skew-symmetric ones: Helfrich, Willmott and
    Ye 2018, arXiv 1707.09520; torch's parametrisation). Some queries are held out; that rotation is taken whose
    prefixes have the most in common with the whole's ten best, or none. Of (n, dim) embeddings, `size` axes are kept,
    by default all: (dim, size) float32, with orthonormal columns. Prefixes d are the `dims` below `size`, by default a
    half, a quarter and an eighth of it.
    """
    import torch
    import torch.nn.functional as F
    from torch.nn.utils.parametrizations import orthogonal

    axes = fit_search_rotation(queries, documents)[:, :size]
    size = axes.shape[1]
    sizes = [part for part in dims or (size // 2, size // 4, size // 8) if 0 < part < size]
    order = torch.randperm(len(queries), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    if not sizes or not len(held_out) or not len(documents):
        return axes
    kept = [truncate(rotated(rows, axes), size) for rows in (queries, documents)]
    nearest = torch.from_numpy(top_k(kept[0], kept[1], NEAREST)[0])
    whole = [torch.from_numpy(rows).to(device) for rows in kept]
    # Its first weights are drawn for nothing, from the caller's random state.
    with torch.random.fork_rng(devices=[]):
        linear = torch.nn.Linear(size, size, bias=False)
    layer = orthogonal(linear.to(device), orthogonal_map="cayley")
    layer.weight = torch.eye(size, device=device)
    # A step of Adam moves each entry by up to the learning rate, and an axis by that times the root of its entries.
    optimizer = torch.optim.Adam(layer.parameters(), lr=ANGLE / size**0.5)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / STEPS))

    def scores(chosen: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the cosines of queries with the documents near any of them, along all axes and by prefix."""
        q, d = whole[0][chosen], whole[1][torch.unique(nearest[chosen])]
        all_axes = q @ d.T
        q, d = q @ rotation, d @ rotation
        return all_axes, [F.normalize(q[:, :part], dim=1) @ F.normalize(d[:, :part], dim=1).T for part in sizes]

    def divergence(chosen: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        all_axes, prefixes = scores(chosen, rotation)
        teacher = F.softmax(SCALE * all_axes, dim=1)
        loss = torch.zeros((), device=teacher.device)
        for cosines in prefixes:
            loss = loss + F.kl_div(F.log_softmax(SCALE * cosines, dim=1), teacher, reduction="batchmean")
        return loss

    def overlap(rotation: torch.Tensor) -> float:
        all_axes, prefixes = scores(held_out, rotation)
        target = _top(all_axes)
        return float(torch.stack([(_top(cosines) & target).sum() for cosines in prefixes]).sum())

    # Not by the divergence, which can fall while the documents on top get further from the whole's.
    best, most = torch.eye(size), overlap(torch.eye(size, device=device))
    for step, chosen in enumerate(_batches(len(rest)), 1):
        with torch.enable_grad():
            loss = divergence(rest[chosen], layer.weight.T)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        if step % EVERY == 0:
            with torch.no_grad():
                rotation = layer.weight.T  # each reading of it solves for the whole matrix anew
                common = overlap(rotation)
            if common > most:
                best, most = rotation.cpu(), common
    return np.asarray(axes.astype(np.float64) @ best.double().numpy(), dtype=np.float32)


def _top(scores: torch.Tensor) -> torch.Tensor:
    """Return which documents are among the `TOP` best of each query, bool of the shape of the scores."""
    import torch

    places = scores.topk(min(TOP, scores.shape[1]), dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, places, True)


def _batches(n: int) -> Iterator[torch.Tensor]:
    """Give `STEPS` batches of distinct places below n, dealt anew when too few for a batch are left."""
    import torch

    generator = torch.Generator().manual_seed(0)
    places = torch.zeros(0, dtype=torch.int64)
    for _ in range(STEPS):
        if len(places) < min(BATCH, n):
            places = torch.randperm(n, generator=generator)
        yield places[:BATCH]
        places = places[BATCH:]
