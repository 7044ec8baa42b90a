"""Contrastive training: positives against the rest of the batch, of equal weight (MNR loss) or weighted by score."""

from __future__ import annotations

from functools import partial

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from nestling.errors import InputError
from nestling.judgments.table import Judgments
from nestling.models.torch_encoder import embed
from nestling.training.batches.batching import LengthBatches, PairCollator, Pairs, SimilarBatches
from nestling.training.batches.pseudo_queries import QueriesOfEpoch
from nestling.training.batches.tokens import tokenised
from nestling.training.inputs.scored import with_matryoshka
from nestling.training.losses.bm25_teacher import teacher_for
from nestling.training.losses.contrastive import loss_for
from nestling.training.spec import TrainingInputs, TrainingSpec


def contrastive(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare multiple negatives ranking, or the graded loss, on pairs of the judgments.

    With `fast` (the default) documents that are known to be relevant to a query are no negatives of it, texts are
    batched by length, and the loss is our own. Without, `mnrl` is all the library's.
    """
    settings, step = spec.settings, spec.settings.finetune
    pairs = positives(judgments, spec)
    if step.loss != "graded" and not settings.fast:
        frame = judgments.above(pairs.threshold).frame
        examples = {"anchor": frame["query"].to_list(), "positive": frame["document"].to_list()}
        stock = MultipleNegativesRankingLoss(model, scale=step.scale)
        return TrainingInputs(Dataset.from_dict(examples), with_matryoshka(model, stock, spec))
    queries = tokenised(model, pairs.queries, kind="query", cache=spec.cache)
    documents = tokenised(model, pairs.documents, kind="document", cache=spec.cache)
    of_epoch = QueriesOfEpoch(pairs, partial(tokenised, model, kind="query"), crops=step.crops, seed=settings.seed)
    query, document = of_epoch.with_crops()
    teacher = teacher_for(step, pairs.documents, of_epoch.texts)
    sampler = (
        partial(SimilarBatches, embed(model, pairs.documents, kind="document")[document])
        if step.batches == "similar"
        else partial(LengthBatches, documents.lengths[document])
    )
    query_tokens = of_epoch.batch if step.crops else queries.batch
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(query))}),
        loss_for(model, pairs, spec, teacher=teacher, teacher_weight=step.bm25),
        PairCollator(pairs, query_tokens, documents.batch, settings.seed, query, document, step.negatives),
        sampler,
        (*([of_epoch.refresh] if step.crops else []), *([teacher.refresh] if teacher else [])),
        np.unique(np.concatenate([queries.ids, documents.ids])),
    )


def positives(judgments: Judgments, spec: TrainingSpec) -> Pairs:
    """Return the training pairs; raise InputError where none is a positive."""
    threshold = positives_above(judgments, spec)
    pairs = Pairs.from_judgments(judgments, threshold=threshold)
    if not len(pairs):
        raise InputError(f"{judgments.source}: no training pair is scored above {threshold:g}; lower the threshold")
    return pairs


def positives_above(judgments: Judgments, spec: TrainingSpec) -> float:
    """Return the score above which a pair is trained as a positive."""
    step = spec.settings.finetune
    if step.positives_above is not None:
        return step.positives_above
    if step.positives == "relevant":
        return spec.threshold
    low, high = judgments.scale
    # A little below the middle, as it shall count itself.
    return min(spec.threshold, (low + high) / 2 - (high - low) / 1000)
