"""A cross-encoder: the transformer reads query and document together, and a linear layer says how relevant they are.

It is too slow to search with, but with the model that found the candidates, as in `Candidates.scores_of_both`, it ranks
them better than either does alone. So it is a teacher. Cross-encoders as rankers: Nogueira and Cho 2019, "Passage
re-ranking with BERT" (arXiv 1901.04085).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from nestling import atomic
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.precision import Setting, choose_precision
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.training.batches.batching import LengthBatches, Pairs
from nestling.training.dev import MEASURES
from nestling.training.result import RECALL
from nestling.training.spec import TrainingInputs, TrainingSpec

NEGATIVES = 3
"""Unjudged candidates that count as irrelevant, for each query."""
IGNORED = 2
"""Candidates on top that never do: the likeliest to be right answers that nobody judged."""
AT_ONCE = 16_384
"""Tokens that it reads in one pass, at most."""
MEASURED = 300
"""Queries of dev to measure it on: each takes as many passes as it has candidates."""


@dataclass(frozen=True)
class Candidates:
    """For each query the documents that a first model ranks highest, best first.

    Attributes:
        documents: (n_queries, k) int64, by number.
        similarities: (n_queries, k) float32, the first model's cosines.
        logits: (n_queries, k) float32, a cross-encoder's; none before it has scored them.
    """

    documents: NDArray[np.int64]
    similarities: NDArray[np.float32]
    logits: NDArray[np.float32] | None = None

    @classmethod
    def nearest(
        cls, model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str], k: int
    ) -> Candidates:
        """Return the `k` nearest of the documents to each query, or all where there are fewer."""
        return cls(*top_k(embed(model, queries, kind="query"), embed(model, documents, kind="document"), k))

    @classmethod
    def load(cls, path: Path) -> Candidates:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**stored)

    def save(self, path: Path) -> None:
        """Write a NumPy archive; it appears whole or not at all."""
        with atomic.new_file(path) as temporary:
            np.savez(temporary, **{name: value for name, value in vars(self).items() if value is not None})

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return query and document of every candidate by number, query after query, (n_queries * k,) each."""
        return np.repeat(np.arange(len(self.documents)), self.documents.shape[1]), self.documents.ravel()

    def scores_of_both(self, scale: float) -> NDArray[np.float32]:
        """Return cosines times the scale of the contrastive loss, plus logits, (n_queries, k): a product of odds."""
        assert self.logits is not None
        return np.asarray(scale * self.similarities + self.logits, dtype=np.float32)


def with_head(model: SentenceTransformer, *, seed: int = 0) -> CrossEncoder:
    """Return a cross-encoder of a model's transformer: a linear layer, drawn by `seed`, reads its first token."""
    size = int(model[0].get_embedding_dimension())
    pooling = Pooling(size, "cls" if getattr(model.tokenizer, "cls_token_id", None) is not None else "mean")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Dense(size, 1, activation_function=torch.nn.Identity(), module_output_name="scores")
    encoder = CrossEncoder(modules=[model[0], pooling, head], device=str(model.device))
    encoder.max_seq_length = model.max_seq_length
    return encoder


def load(folder: str) -> CrossEncoder:
    """Read a saved cross-encoder, without remote code and without a look at the network."""
    return CrossEncoder(folder, local_files_only=True)


def judged_pairs(
    judgments: Judgments, spec: TrainingSpec, model: CrossEncoder, candidates: Candidates
) -> TrainingInputs:
    """Prepare a cross-encoder's training on the judgments, and on unjudged candidates as irrelevant.

    A score is scaled to 0..1 and taken for the chance that the pair is relevant. Each query adds `NEGATIVES` candidates
    that nobody judged, drawn from all but the first `IGNORED`, and a random document.
    """
    pairs = Pairs.from_judgments(judgments, threshold=spec.threshold)
    low, high = judgments.scale
    score = (pairs.judged_score - low) / (high - low) if high > low else np.ones(len(pairs.judged_score))
    query, document = irrelevant(pairs, candidates, seed=spec.settings.seed)
    texts = {
        "query": [pairs.queries[number] for number in (*pairs.judged_query, *query)],
        "document": [pairs.documents[number] for number in (*pairs.judged_document, *document)],
    }
    lengths = np.array([len(query) + len(document) for query, document in zip(*texts.values(), strict=True)])
    return TrainingInputs(
        Dataset.from_dict({**texts, "label": [*score, *np.zeros(len(query))]}),
        BinaryCrossEntropyLoss(model),
        sampler=partial(LengthBatches, lengths),
    )


def irrelevant(pairs: Pairs, candidates: Candidates, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs that nobody judged, as irrelevant ones: query and document by number, (n,) int64 each."""
    rng = np.random.default_rng(seed)
    n_documents = len(pairs.documents)
    judged = set((pairs.judged_query * n_documents + pairs.judged_document).tolist())
    drawn: list[int] = []
    for number, nearest in enumerate(candidates.documents[: len(pairs.queries)]):
        keys = (number * n_documents + nearest[IGNORED:]).tolist()
        free = [key for key in keys if key not in judged]
        drawn += rng.choice(free, min(NEGATIVES, len(free)), replace=False).tolist() if free else []
        random = int(rng.integers(n_documents))
        if random not in nearest[:IGNORED]:
            drawn.append(number * n_documents + random)
    chosen = np.array([key for key in dict.fromkeys(drawn) if key not in judged], dtype=np.int64)
    return chosen // n_documents, chosen % n_documents


def logits(
    model: CrossEncoder, pairs: Sequence[tuple[str, str]], *, precision: Setting = "auto"
) -> NDArray[np.float32]:
    """Return a cross-encoder's logarithms of the odds that pairs are relevant, (n_pairs,) float32."""
    half = choose_precision(precision).name == "bf16"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        size = max(1, AT_ONCE // (model.max_seq_length or 512))
        scores = model.predict(pairs, batch_size=size, show_progress_bar=False, activation_fn=torch.nn.Identity())
    return np.asarray(scores, dtype=np.float32)


class RerankEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Measures on dev how the candidates of some queries are ranked by the first model and a cross-encoder together.

    The candidates are those of `measured_rows`, as columns of `qrels`; `scale` is of the first model's cosines.
    """

    def __init__(self, qrels: Qrels, candidates: Candidates, *, scale: float, precision: Setting = "auto") -> None:
        super().__init__()
        self.primary_metric = RECALL
        self.qrels = qrels
        self.rows = measured_rows(qrels)
        self.candidates = candidates
        self.scale = scale
        self.precision: Setting = precision

    def __call__(self, model: CrossEncoder, *_: Any, **__: Any) -> dict[str, float]:
        """Return `dev_recall@10` and `dev_mrr@10`, means over those queries."""
        query, document = self.candidates.pairs()
        texts = [
            (self.qrels.queries[self.rows[q]], self.qrels.documents[d]) for q, d in zip(query, document, strict=True)
        ]
        found = logits(model, texts, precision=self.precision).reshape(self.candidates.documents.shape)
        return self.figures(replace(self.candidates, logits=found).scores_of_both(self.scale))

    def figures(self, scores: NDArray[np.float32]) -> dict[str, float]:
        """Return the same figures of the candidates ranked by these scores, (n_queries, k)."""
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(self.candidates.documents, order, axis=1)[:, :10]
        ranking = np.full((self.qrels.n_queries, ranked.shape[1]), -1, dtype=np.int64)
        ranking[self.rows] = ranked
        return {f"dev_{each}": float(each.per_query(ranking, self.qrels)[self.rows].mean()) for each in MEASURES}


def measured_rows(qrels: Qrels) -> NDArray[np.int64]:
    """Return the rows of dev that a cross-encoder is measured on: at most `MEASURED`, evenly spaced."""
    return np.linspace(0, qrels.n_queries - 1, min(MEASURED, qrels.n_queries)).astype(np.int64)
