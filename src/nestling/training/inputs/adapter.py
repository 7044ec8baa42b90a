"""The cheapest training: one linear layer on top of a base model that stays as it is, learnt in seconds on a CPU.

Texts go through the base once; what is trained is a matrix on their fixed vectors. It starts as the rotation that lets
prefixes carry the most. The result is the base with sentence-transformers' Dense before its Normalize, so any tool
loads it; and a corpus that is embedded with the base already needs a matrix product, no text is encoded again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.config.fingerprint import fingerprint
from nestling.config.names import Kind
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import BATCH_SIZE, embed
from nestling.retrieval.rotation import append_linear, fit_rotation, place_of_last
from nestling.retrieval.vectors import truncate
from nestling.training.batches.batching import PairCollator
from nestling.training.batches.similar_documents import sampler_for
from nestling.training.inputs.contrastive import positives
from nestling.training.spec import TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense
    from torch import Tensor

logger = logging.getLogger(__name__)


def with_adapter(model: SentenceTransformer) -> SentenceTransformer:
    """Freeze a model and add a linear layer to it, in place, which at first changes nothing; return the model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with model.truncate_embeddings(None):
        full = int(model.get_embedding_dimension() or 0)
    append_linear(model, np.eye(full, dtype=np.float32))
    return model


def adapter(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare InfoNCE on the fixed vectors of the pairs, and start the layer.

    The layer becomes the rotation of the training documents. Documents that are known to be relevant to a query are
    no negatives of it; `negatives` and `bm25` are as in the other contrastive recipes. `crops` would need texts
    embedded anew in each epoch, and are left out.

    Args:
        model: what `with_adapter` made.

    Raises:
        InputError: no pair is a positive.
    """
    import torch
    from datasets import Dataset

    from nestling.training.losses.bm25_teacher import teacher_for
    from nestling.training.losses.cached_embeddings import CachedEmbeddingsLoss
    from nestling.training.losses.contrastive import ContrastiveLoss, Relevance

    step = spec.settings.finetune
    pairs, threshold = positives(judgments, spec)
    queries = _vectors(model, pairs.queries, "query", spec)
    documents = _vectors(model, pairs.documents, "document", spec)
    layer = layer_of(model)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(fit_rotation(documents).T.copy()))
    relevance = Relevance.from_pairs(pairs, threshold=threshold, scale=judgments.scale, graded=False)
    teacher = teacher_for(step, pairs.documents, lambda _: pairs.queries)
    contrastive = ContrastiveLoss(
        layer,
        relevance,
        scale=step.scale,
        dims=spec.matryoshka,
        dim_weights=spec.weights,
        teacher=teacher,
        teacher_weight=step.bm25,
    )
    # Equal lengths make plain random batches.
    lengths = np.zeros(len(pairs), dtype=np.int64)
    vectors = documents[pairs.document] if step.batches == "similar" else None
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(pairs))}),
        CachedEmbeddingsLoss(contrastive, queries, documents),
        PairCollator(pairs, pairs.query, pairs.document, _NoTokens(), _NoTokens(), step.negatives, spec.settings.seed),
        sampler_for(lengths, vectors),
        (teacher.refresh,) if teacher is not None else (),
        encoder=AdapterEncoder(),
    )


def layer_of(model: SentenceTransformer) -> Dense:
    """Return the layer that `with_adapter` added."""
    return model[place_of_last(model) - 1]


class AdapterEncoder:
    """Embeds as `embed` does, but runs the frozen part of a model with an adapter once for the same texts."""

    def __init__(self) -> None:
        self._known: dict[tuple[Kind, tuple[str, ...]], NDArray[np.float32]] = {}

    def __call__(
        self, model: SentenceTransformer, texts: Sequence[str], *, kind: Kind, batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Return what `embed` returns for the same arguments, up to rounding."""
        key = (kind, tuple(texts))
        if key not in self._known:
            self._known[key] = embed(_without_adapter(model), texts, kind=kind, batch_size=batch_size)
        weight = layer_of(model).linear.weight.detach().float().cpu().numpy()
        vectors = self._known[key] @ weight.T
        return truncate(vectors, vectors.shape[1])


class _NoTokens:
    """Stands where the collator wants tokens: the loss finds vectors by number."""

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {}


def _without_adapter(model: SentenceTransformer) -> SentenceTransformer:
    """Return the modules below the layer as a model of their own, sharing all weights."""
    from sentence_transformers import SentenceTransformer

    frozen = SentenceTransformer(
        modules=list(model)[: place_of_last(model) - 1],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        device=str(model.device),
    )
    frozen.module_kwargs = model.module_kwargs
    return frozen


def _vectors(model: SentenceTransformer, texts: list[str], kind: Kind, spec: TrainingSpec) -> NDArray[np.float32]:
    """Return the fixed vectors of texts, (len(texts), dim) float32, or read what an earlier training kept of them."""
    digest = fingerprint([spec.base.fingerprint, kind, model.max_seq_length, *texts])
    path: Path | None = spec.cache / f"vectors-{digest}.npy" if spec.cache else None
    if path is not None and path.is_file():
        try:
            known: NDArray[np.float32] = np.load(path)
            return known
        except (OSError, ValueError, EOFError):
            logger.warning("%s is damaged and made again", path)
    logger.info("embedding %d texts once", len(texts))
    vectors = embed(_without_adapter(model), texts, kind=kind)
    if path is not None:
        with atomic.new_file(path) as temporary:
            np.save(temporary, vectors)
    return vectors
