"""The cheapest training: one linear layer on top of a base model that stays as it is, learnt in seconds on a CPU.

Texts go through the base once; what is trained is a matrix on their fixed vectors. The result is the base with
sentence-transformers' Dense before its Normalize, so any tool loads it; and a corpus that is embedded with the base
already needs a matrix product, no text is encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from nestling.config.names import Kind
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import embed
from nestling.retrieval.rotation import append_linear, fit_rotation, place_of_last
from nestling.retrieval.vectors import truncate
from nestling.training.batches.batching import LengthBatches, PairCollator, SimilarBatches
from nestling.training.batches.tokens import cached
from nestling.training.inputs.contrastive import positives
from nestling.training.losses.bm25_teacher import teacher_for
from nestling.training.losses.contrastive import CachedEmbeddingsLoss, loss_for
from nestling.training.spec import TrainingInputs, TrainingSpec


def with_adapter(model: SentenceTransformer) -> SentenceTransformer:
    """Freeze a model and add a linear layer to it, in place, which at first changes nothing; return the model."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with model.truncate_embeddings(None):
        full = int(model.get_embedding_dimension() or 0)
    append_linear(model, np.eye(full, dtype=np.float32))
    return model


def adapter(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare InfoNCE on the fixed vectors of the pairs, for a model that `with_adapter` made.

    Its layer starts as the rotation of the documents, so that prefixes carry the most. Settings are as in the other
    contrastive recipes, but for `graded`, and for `crops`, which would need texts embedded in every epoch.
    """
    step = spec.settings.finetune
    pairs = positives(judgments, spec)
    queries = _vectors(model, pairs.queries, "query", spec)
    documents = _vectors(model, pairs.documents, "document", spec)
    layer = layer_of(model)
    with torch.no_grad():
        layer.linear.weight.copy_(torch.from_numpy(fit_rotation(documents).T.copy()))
    teacher = teacher_for(step, pairs.documents, lambda _: pairs.queries)
    loss = loss_for(layer, pairs, spec, teacher=teacher, teacher_weight=step.bm25)
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(pairs))}),
        CachedEmbeddingsLoss(loss, queries, documents),
        # The loss finds vectors by number.
        PairCollator(
            pairs, lambda _: {}, lambda _: {}, spec.settings.seed, pairs.query, pairs.document, step.negatives
        ),
        partial(SimilarBatches, documents[pairs.document])
        if step.batches == "similar"
        # Equal lengths make plain random batches.
        else partial(LengthBatches, np.zeros(len(pairs), dtype=np.int64)),
        (teacher.refresh,) if teacher else (),
        encoder=AdapterEncoder(),
    )


def layer_of(model: SentenceTransformer) -> Dense:
    """Return the layer that `with_adapter` added."""
    return model[place_of_last(model) - 1]


class AdapterEncoder:
    """Embeds as `embed` does, but runs the frozen part of a model with an adapter once for the same texts."""

    def __init__(self) -> None:
        self._frozen: dict[tuple[Kind, tuple[str, ...]], NDArray[np.float32]] = {}

    def __call__(self, model: SentenceTransformer, texts: Sequence[str], *, kind: Kind) -> NDArray[np.float32]:
        """Return what `embed` returns for the same arguments, up to rounding."""
        key = (kind, tuple(texts))
        if key not in self._frozen:
            self._frozen[key] = embed(_without_adapter(model), texts, kind=kind)
        weight = layer_of(model).linear.weight.detach().float().cpu().numpy()
        vectors = self._frozen[key] @ weight.T
        return truncate(vectors, vectors.shape[1])


def _without_adapter(model: SentenceTransformer) -> SentenceTransformer:
    """Return the modules below the layer as a model of their own, sharing all weights."""
    frozen = SentenceTransformer(
        modules=list(model)[: place_of_last(model) - 1],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        device=str(model.device),
    )
    frozen.module_kwargs = model.module_kwargs
    return frozen


def _vectors(model: SentenceTransformer, texts: list[str], kind: Kind, spec: TrainingSpec) -> NDArray[np.float32]:
    """Return the fixed vectors of texts, (len(texts), dim) float32, or what an earlier training kept of them."""
    parts = [spec.base.fingerprint, kind, model.max_seq_length, *texts]
    return cached(spec.cache, "vectors", parts, lambda: {"x": embed(_without_adapter(model), texts, kind=kind)})["x"]
