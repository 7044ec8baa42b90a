"""The cheapest training: one linear layer on top of a base model that stays as it is, learnt in seconds on a CPU.

Texts go through the base once; what is trained is a matrix on their fixed vectors. It starts as the rotation that lets
prefixes carry the most. The result is the base with sentence-transformers' Dense before its Normalize, so any tool
loads it; and a corpus that is embedded with the base already needs a matrix product, no text is encoded again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from nestling import atomic
from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import BATCH_SIZE, embed, truncate
from nestling.retrieval.rotation import append_linear, fit_rotation, place_of_last
from nestling.training.batches.batching import PairCollator, Pairs
from nestling.training.batches.mining import MinedNegatives
from nestling.training.batches.similar_documents import sampler_for
from nestling.training.recipes.contrastive import positives_above
from nestling.training.spec import Job, Material

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense
    from torch import Tensor

logger = logging.getLogger(__name__)

Kind = Literal["query", "document"]


@dataclass(frozen=True)
class AdapterTraining:
    """How to train the layer, with Adam.

    Measured on dev of 25,000 Home Depot titles with the pretrained all-MiniLM-L6-v2 (659 queries, threshold 2.5; mean
    recall@10 of 384, 192, 96 and 48 dims unless another is named; a point is 0.01, and seeds differ by 0.2). The base
    has .6774, its rotation .7308, the trained layer .7703 to .7720 over three seeds; at 384 dims .7797, the same, and
    .8063; at 48 dims .5214, .6363 and .7038. MRR@10 at 384 dims rises from .567 to .585 and above.

    - learning rate: .0005 and .001 are level; .002 loses 0.3, more at full size; .0003 and .003 lose 1 (positives
      from 2.5 up).
    - batch size: 64 and 128 are 0.6 and 0.3 points below 256; 512 and 1024 are 0.2 above it, in half the steps and
      less, which small training data cannot spare.
    - epochs: 2 to 5 are level, 10 lose 0.1. Scale: 20 and 30 are level, 12 loses 0.4.
    - prefixes in the loss: without them 0.7 points less, 1.3 at 48 dims. Started from the identity in place of the
      rotation: 2.3 less with prefixes (positives from 2.5 up), 5.9 without.
    - pairs scored 2.0 and more as positives, not only those above 2.5: 0.4 points.
    - grades, both directions, judged negatives, dropout of 0.1 on the vectors, weight decay, a pull towards the
      start: 0.3 points or less, either way.
    - on a base that was fine-tuned by `mnrl` (.7678) the rotation brings nearly all there is (.7978), and the layer
      next to nothing (.7978; .8007 with a learning rate of .0003).
    """

    learning_rate: float = 1e-3
    batch_size: int = 256
    epochs: int = 5
    scale: float = 20.0


RECOMMENDED = AdapterTraining()


def with_adapter(model: SentenceTransformer) -> SentenceTransformer:
    """Freeze a model and add a linear layer to it, in place, which at first changes nothing; return the model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with model.truncate_embeddings(None):
        full = int(model.get_embedding_dimension() or 0)
    append_linear(model, np.eye(full, dtype=np.float32))
    return model


def adapter(judgments: Judgments, job: Job, model: SentenceTransformer) -> Material:
    """Prepare InfoNCE on the fixed vectors of all pairs from the middle of the scale upwards, and start the layer.

    The layer becomes the rotation of the training documents. Documents that are known to be relevant to a query are
    no negatives of it; `symmetric`, `negatives`, `mined` and `bm25` are as in the other contrastive recipes. `crops`
    and `typos` would need texts embedded anew in each epoch, and are left out.

    Args:
        model: what `with_adapter` made.

    Raises:
        InputError: no pair is a positive.
    """
    import torch
    from datasets import Dataset

    from nestling.training.losses.bm25_teacher import teacher_for
    from nestling.training.losses.cached_embeddings import FixedVectorsLoss
    from nestling.training.losses.contrastive import ContrastiveLoss, Relevance

    settings = job.settings
    threshold = positives_above(judgments, job, generous=True)
    pairs = Pairs.from_judgments(judgments, threshold=threshold)
    if not len(pairs):
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    queries = _vectors(model, pairs.queries, "query", job)
    documents = _vectors(model, pairs.documents, "document", job)
    layer = layer_of(model)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(fit_rotation(documents).T.copy()))
    relevance = Relevance.from_pairs(pairs, threshold=threshold, scale=judgments.scale, graded=False)
    teacher = teacher_for(settings, pairs.documents, lambda _: pairs.queries)
    contrastive = ContrastiveLoss(
        layer,
        relevance,
        scale=settings.scale,
        dims=job.matryoshka,
        dim_weights=job.weights,
        symmetric=bool(settings.symmetric),
        teacher=teacher,
        teacher_weight=settings.bm25,
    )
    # All lengths alike make plain random batches.
    lengths = np.zeros(len(pairs), dtype=np.int64)
    vectors = documents[pairs.document] if settings.alike else None
    mined = MinedNegatives(pairs, settings.mined) if settings.mined else None
    return Material(
        Dataset.from_dict({"row": np.arange(len(pairs))}),
        FixedVectorsLoss(contrastive, queries, documents),
        PairCollator(
            pairs,
            pairs.query,
            pairs.document,
            _NoTokens(),
            _NoTokens(),
            settings.negatives or 0,
            settings.seed,
            mined.of if mined else None,
        ),
        sampler_for(lengths, vectors),
        tuple(part.refresh for part in (teacher, mined) if part is not None),
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
        turned = self._known[key] @ weight.T
        return truncate(turned, turned.shape[1])


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


def _vectors(model: SentenceTransformer, texts: list[str], kind: Kind, job: Job) -> NDArray[np.float32]:
    """Return the fixed vectors of texts, (len(texts), dim) float32, or read what an earlier training kept of them."""
    parts = [job.base.fingerprint, kind, str(model.max_seq_length), *texts]
    digest = hashlib.blake2b("\x1e".join(parts).encode(), digest_size=8).hexdigest()
    path: Path | None = job.cache / f"vectors-{digest}.npy" if job.cache else None
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
