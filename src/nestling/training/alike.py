"""Batches of documents that resemble each other, so that each is a hard negative for the others' queries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError
from nestling.training.batching import LengthBatches

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from nestling.training.tokens import TokenStore


class AlikeBatches(LengthBatches):
    """Batches whose documents lie near each other, other ones in every epoch.

    Random batches hold easy negatives: a drill is seldom beside another drill. Here the pairs are shuffled and cut into
    stretches of `MEGA` batches as in LengthBatches, and each stretch is halved again and again, along the line between
    two documents drawn from it, down to batches: a random-projection tree (Dasgupta and Freund 2008, "Random projection
    trees and low dimensional manifolds"), balanced. Batches of clustered texts: TAS-Balanced (Hofstätter et al. 2021,
    arXiv 2104.06967) and CDE (Morris and Rush 2024, arXiv 2410.02525).

    Args:
        vectors: (n_pairs, dim) float, of each pair's document; see `word_vectors`.
        batch_size, seed, drop_last, processes: as in LengthBatches.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        batch_size: int,
        *,
        seed: int,
        drop_last: bool = False,
        processes: int = 1,
    ) -> None:
        super().__init__(
            np.zeros(len(vectors), dtype=np.int64), batch_size, seed=seed, drop_last=drop_last, processes=processes
        )
        self.vectors = vectors

    def batches_of(self, stretch: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Halve a stretch of pairs until batches are left; all are full but one."""
        size = self.batch_size
        if len(stretch) <= size:
            return [stretch]
        vectors = self.vectors[stretch]
        first, second = vectors[rng.choice(len(stretch), 2, replace=False)]
        # Equal documents give a line of no direction: the halves are then those of the shuffled order.
        order = stretch[np.argsort(vectors @ (first - second), kind="stable")]
        middle = max(1, len(stretch) // size // 2) * size
        return self.batches_of(order[:middle], rng) + self.batches_of(order[middle:], rng)


def word_vectors(model: SentenceTransformer, texts: TokenStore) -> NDArray[np.float32]:
    """Return a cheap vector of each text: the mean of its tokens' input embeddings, rare tokens weighted up.

    Made of the table that a transformer, or a static model, begins with, so that no text has to be encoded.

    Args:
        texts: tokens by that model's tokenizer.

    Returns:
        (n_texts, dim) float32 of length 1, or 0 for a text without tokens.

    Raises:
        InputError: the model does not begin with a table of word pieces.
    """
    import torch
    import torch.nn.functional as F

    table = _table(model)
    ids = torch.from_numpy(texts.ids.astype(np.int64))
    used = torch.bincount(ids, minlength=len(table))
    present = used > 0
    rows = F.normalize(table - table[present].mean(dim=0), dim=1)
    # By occurrences, not by texts: in texts of a few words that is nearly the same.
    weight = torch.log(1 + len(texts.lengths) / used.clamp(min=1))
    summed = F.embedding_bag(ids, rows * weight[:, None], torch.from_numpy(texts.offsets[:-1]), mode="sum")
    vectors: NDArray[np.float32] = F.normalize(summed, dim=1).numpy()
    return vectors


def _table(model: SentenceTransformer) -> Tensor:
    from torch import nn

    first: Any = model[0]
    table = getattr(getattr(first, "model", None), "get_input_embeddings", lambda: None)()
    table = getattr(first, "embedding", None) if table is None else table
    if not isinstance(table, nn.Embedding | nn.EmbeddingBag):
        raise InputError("batches of documents alike need a model that begins with word pieces; set alike: false")
    return table.weight.detach().float().cpu()
