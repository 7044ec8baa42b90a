"""The contrastive loss: masks for what raters called relevant, several graded positives, prefixes, both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.training.batches.batching import Pairs
from nestling.training.losses.all_gather import gathered
from nestling.training.losses.encoding import EncodingLoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SCALE = 20.0
NOTHING = -1e4
"""Stands for minus infinity in a softmax: it may be all that a row has, and infinities give NaN gradients."""


class PairValues(nn.Module):
    """A number for each of some pairs: a lookup on the loss's own device.

    Args:
        query, document: (n,) int64, the pairs by number, each once.
        value: (n,) float.
        n_documents: how many documents there are.
        missing: the number of every other pair.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, query: np.ndarray, document: np.ndarray, value: np.ndarray, *, n_documents: int, missing: float = 0.0
    ) -> None:
        super().__init__()
        self.n_documents = n_documents
        self.missing = missing
        keys = query.astype(np.int64) * n_documents + document
        order = np.argsort(keys)
        # Not saved with the model, moved to its device.
        self.register_buffer("keys", torch.from_numpy(keys[order]), persistent=False)
        self.register_buffer("values", torch.from_numpy(value[order].astype(np.float32)), persistent=False)

    def forward(self, query: Tensor, document: Tensor) -> Tensor:
        """Return (n_queries, n_documents) float32."""
        keys = query[:, None] * self.n_documents + document[None, :]
        if not len(self.keys):
            return torch.full(keys.shape, self.missing, device=keys.device)
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, self.values[place], self.missing)


class Relevance(PairValues):
    """Which documents are known to be relevant to which queries, and how much, above 0; 0 is every other pair's."""

    @classmethod
    def from_pairs(cls, pairs: Pairs, *, threshold: float, scale: tuple[float, float], graded: bool) -> Relevance:
        """Know the pairs that are scored above a threshold.

        Args:
            scale: the lowest and the highest score that there can be.
            graded: weigh a pair by its score, from 0 for the lowest to 1 for the highest; otherwise all weigh 1.
        """
        low, high = scale
        relevant = pairs.judged_score > threshold
        scores = pairs.judged_score[relevant]
        weight = (scores - low) / (high - low) if graded and high > low else np.ones(len(scores))
        return cls(
            pairs.judged_query[relevant], pairs.judged_document[relevant], weight, n_documents=len(pairs.documents)
        )


class ContrastiveLoss(EncodingLoss):
    r"""InfoNCE over a batch in which nothing known to be relevant counts as wrong.

    For queries i and documents j with cosines c_ij, scale s (1 / temperature), positive weights w_ij and the set
    N(i) of documents that are not known to be relevant to i:

    .. math::
        L = \frac{1}{\sum w} \sum_{ij} w_{ij} \left[ -s c_{ij}
            + \log\left( e^{s c_{ij}} + \sum_{n \in N(i)} e^{s c_{in}} \right) \right]

    With `graded` every relevant pair of the batch is a positive with its own weight; otherwise only the pairs that
    the batch was drawn for, with weight 1. With one positive a query and no other known relevance this is InfoNCE
    (van den Oord et al. 2018, arXiv 1807.03748), and equals MultipleNegativesRankingLoss of sentence-transformers.
    Several positives, each against the negatives alone: SupCon (Khosla et al. 2020, arXiv 2004.11362). Weights from
    grades: GCL (Zhu et al. 2024, arXiv 2404.08535).

    Args:
        model: gives `sentence_embedding`.
        relevance: what is known of queries and documents.
        scale: s above.
        dims: sizes of prefixes, over which the loss is summed (Matryoshka); the whole embedding by default.
        dim_weights: one for each of them; 1 each by default.
        graded: see above.
        ignored: pairs that are neither right nor wrong: no positives, and no negatives either.
        teacher: gives scores t_i of queries and documents by number, (n_queries, n_documents), NaN for a pair that it
            does not know, all 0 or NaN for a query that it knows nothing of. KL(softmax t_i || softmax s c_i) over the
            pairs that it knows, averaged over the other queries, is added at full size (distillation: Hinton et al.
            2015, arXiv 1503.02531). Prefixes are left out: a few components cannot hold single words.
        teacher_weight: of that divergence.

    Inputs: features of queries and of documents, and as labels the numbers `query` (n_queries,), `document`
    (n_documents,), and the pairs `anchor` and `positive` (n_pairs,) as places in those two. Across processes all is
    gathered, gradients included, so that the loss is that of one process with the whole batch.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        relevance: Relevance,
        *,
        scale: float = SCALE,
        dims: Sequence[int] = (),
        dim_weights: Sequence[float] | None = None,
        graded: bool = False,
        ignored: Relevance | None = None,
        teacher: Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher_weight: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.relevance = relevance
        self.scale = scale
        self.dims = tuple(dims)
        self.dim_weights = tuple(dim_weights) if dim_weights is not None else (1.0,) * len(self.dims)
        self.graded = graded
        self.ignored = ignored
        self.teacher = teacher
        self.teacher_weight = teacher_weight

    def forward(self, features: list[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar."""
        queries, documents = self.embedded(features)
        return self.of_embeddings(*gathered(queries, documents, labels))

    def of_embeddings(self, queries: Tensor, documents: Tensor, numbers: dict[str, Tensor]) -> Tensor:
        """Return the loss of embeddings of any length, (n_queries, dim) and (n_documents, dim); see the class."""
        relevant, weights = self._targets(numbers)
        total: Tensor = queries.new_zeros((), dtype=torch.float32)
        for dim, weight in zip(self.dims or (queries.shape[1],), self.dim_weights or (1.0,), strict=True):
            prefix_q, prefix_d = queries, documents
            if dim < queries.shape[1]:
                prefix_q, prefix_d = queries[:, :dim], documents[:, :dim]
            # Float32 throughout: under autocast the product would round cosines to three digits.
            with torch.autocast(device_type=queries.device.type, enabled=False):
                q, d = F.normalize(prefix_q.float(), dim=1), F.normalize(prefix_d.float(), dim=1)
                logits = self.scale * (q @ d.T)
            total = total + weight * _nll(logits, relevant, weights)
            if self.teacher is not None and dim == queries.shape[1]:
                total = total + self.teacher_weight * _divergence(
                    logits, self.teacher(numbers["query"], numbers["document"])
                )
        return total

    def _targets(self, numbers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        known = self.relevance(numbers["query"], numbers["document"])
        own = torch.zeros_like(known)
        own.index_put_((numbers["anchor"], numbers["positive"]), torch.ones_like(known[0, 0]), accumulate=True)
        relevant = (known > 0) | (own > 0)
        if self.ignored is not None:
            relevant |= self.ignored(numbers["query"], numbers["document"]) > 0
        return relevant, (torch.where(known > 0, known, own) if self.graded else own)

    def get_config_dict(self) -> dict[str, Any]:
        """Return what distinguishes one such loss from another, for logs."""
        return {
            "scale": self.scale,
            "dims": self.dims,
            "graded": self.graded,
            "teacher_weight": self.teacher_weight,
        }


def _nll(logits: Tensor, relevant: Tensor, weights: Tensor) -> Tensor:
    negatives = torch.logsumexp(logits.masked_fill(relevant, NOTHING), dim=1, keepdim=True)
    # A batch of queries may have no positive at all.
    loss: Tensor = (weights * F.softplus(negatives - logits)).sum() / weights.sum().clamp(min=torch.finfo().tiny)
    return loss


def _divergence(logits: Tensor, teacher_scores: Tensor) -> Tensor:
    unknown = teacher_scores.isnan()
    rows = (teacher_scores.nan_to_num() != 0).any(dim=1)
    student = F.log_softmax(logits.masked_fill(unknown, NOTHING), dim=1)
    teacher = F.softmax(teacher_scores.float().masked_fill(unknown, NOTHING), dim=1)
    # Of all rows, so that a GPU need not be asked which.
    of_row = F.kl_div(student, teacher, reduction="none").sum(dim=1)
    return (of_row * rows).sum() / rows.sum().clamp(min=1)
