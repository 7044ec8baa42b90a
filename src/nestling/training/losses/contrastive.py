"""The contrastive loss: masks for what raters called relevant, several graded positives, prefixes, both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nestling.training.batches.batching import Pairs
from nestling.training.fast.cuda_graphs import GraphEncoder
from nestling.training.fast.mixed_precision import embed_cast
from nestling.training.fast.unpadded import embed_unpadded
from nestling.training.losses.all_gather import gathered
from nestling.training.spec import TrainingSpec

NOTHING = -1e4
"""Stands for minus infinity in a softmax: it may be all that a row has, and infinities give NaN gradients."""


class PairValues(nn.Module):
    """A lookup, on the loss's own device, of a number for each of some pairs; `missing` for every other pair.

    Query, document and value are (n,) each, the pairs by number and each once.
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self, query: np.ndarray, document: np.ndarray, value: np.ndarray, *, n_documents: int, missing: float = 0.0
    ) -> None:
        super().__init__()
        self.n_documents = n_documents
        self.missing = missing
        keys = np.append(query.astype(np.int64) * n_documents + document, np.iinfo(np.int64).max)
        order = np.argsort(keys)
        values = np.append(value, missing)[order].astype(np.float32)
        # Not saved with the model, moved to its device.
        self.register_buffer("keys", torch.from_numpy(keys[order]), persistent=False)
        self.register_buffer("values", torch.from_numpy(values), persistent=False)

    def forward(self, query: Tensor, document: Tensor) -> Tensor:
        """Return (n_queries, n_documents) float32."""
        keys = query[:, None] * self.n_documents + document[None, :]
        place = torch.searchsorted(self.keys, keys)
        return torch.where(self.keys[place] == keys, self.values[place], self.missing)


class EncodingLoss(nn.Module):
    """A loss that runs the model itself, by the fastest way that the machine allows (`fast.setup.settle`)."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype: torch.dtype | None = None
        """Run the transformer in this type, its weights cast once; None leaves types to the trainer."""
        self.unpadded = False
        """Run it over all texts of a batch in one row; needs a `compute_dtype`."""
        self.graphs: GraphEncoder | None = None
        """Runs it as CUDA graphs; its type must be `compute_dtype`."""

    def embedded(self, columns: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Return the embeddings of each column of texts, (n_texts, dim)."""
        if self.compute_dtype is None:
            return [self.model(dict(column))["sentence_embedding"] for column in columns]
        if self.unpadded:
            return embed_unpadded(self.model, columns, self.compute_dtype)
        return (self.graphs or partial(embed_cast, self.model, dtype=self.compute_dtype))(columns)


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
        relevance: above 0 for the pairs known to be relevant, 0 for all others.
        scale: s above.
        dims: sizes of prefixes, over which the loss is summed (Matryoshka); the whole embedding by default.
        dim_weights: one for each of them; 1 each by default.
        ignored: above 0 for pairs that are neither positives nor negatives.
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
        model: SentenceTransformer | nn.Module,
        relevance: PairValues,
        *,
        scale: float = 20.0,
        dims: Sequence[int] = (),
        dim_weights: Sequence[float] | None = None,
        graded: bool = False,
        ignored: PairValues | None = None,
        teacher: Callable[[Tensor, Tensor], Tensor] | None = None,
        teacher_weight: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.relevance = relevance
        self.scale = scale
        self.dims = tuple(dims)
        self.dim_weights = tuple(dim_weights or [1.0] * len(self.dims))
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
            # Float32 throughout: under autocast the product would round cosines to three digits.
            with torch.autocast(device_type=queries.device.type, enabled=False):
                sides = (side[:, :dim] if dim < side.shape[1] else side for side in (queries, documents))
                q, d = (F.normalize(side.float(), dim=1) for side in sides)
                logits = self.scale * (q @ d.T)
            total = total + weight * _nll(logits, relevant, weights)
            if self.teacher is not None and dim == queries.shape[1]:
                scores = self.teacher(numbers["query"], numbers["document"])
                total = total + self.teacher_weight * _divergence(logits, scores)
        return total

    def _targets(self, numbers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        known = self.relevance(numbers["query"], numbers["document"])
        own = torch.zeros_like(known)
        own.index_put_((numbers["anchor"], numbers["positive"]), torch.ones_like(known[0, 0]), accumulate=True)
        relevant = (known > 0) | (own > 0)
        if self.ignored is not None:
            relevant |= self.ignored(numbers["query"], numbers["document"]) > 0
        return relevant, (torch.where(known > 0, known, own) if self.graded else own)


class CachedEmbeddingsLoss(nn.Module):
    """Contrastive loss of a layer's output for a batch's cached vectors, which are looked up by number.

    Across processes the numbers' vectors are gathered *before* the layer, so that each process has the whole batch's
    gradient by itself, and all stay equal without an exchange of gradients. The model of `contrastive` is the layer:
    features with `sentence_embedding` in and out.
    """

    queries: Tensor
    documents: Tensor

    def __init__(
        self, contrastive: ContrastiveLoss, queries: NDArray[np.float32], documents: NDArray[np.float32]
    ) -> None:
        super().__init__()
        self.contrastive = contrastive
        # Not saved with the model, moved to its device.
        self.register_buffer("queries", torch.from_numpy(queries), persistent=False)
        self.register_buffer("documents", torch.from_numpy(documents), persistent=False)

    def forward(self, features: list[dict[str, Tensor]], labels: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch, a scalar, in float32 whatever the trainer's precision."""
        vectors = self.queries[labels["query"]], self.documents[labels["document"]]
        queries, documents, numbers = gathered(*vectors, labels)
        with torch.autocast(device_type=queries.device.type, enabled=False):
            columns = [{"sentence_embedding": queries}, {"sentence_embedding": documents}]
            queries, documents = self.contrastive.embedded(columns)
            return self.contrastive.of_embeddings(queries, documents, numbers)


def loss_for(model: nn.Module, pairs: Pairs, spec: TrainingSpec, **options: Any) -> ContrastiveLoss:
    """Return the contrastive loss of a spec, in which the positives are relevant, with further options of the loss."""
    step, (low, high) = spec.settings.finetune, pairs.scale
    graded = step.loss == "graded" and step.start != "adapter"
    scores = pairs.judged_score[pairs.judged_score > pairs.threshold]
    weight = (scores - low) / (high - low) if graded and high > low else np.ones(len(scores))
    return ContrastiveLoss(
        model,
        PairValues(pairs.query, pairs.document, weight, n_documents=len(pairs.documents)),
        scale=step.scale,
        dims=spec.matryoshka,
        dim_weights=spec.weights,
        graded=graded,
        **options,
    )


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
