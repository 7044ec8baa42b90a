"""A cross-encoder: the transformer reads query and document together, and a linear layer says how relevant they are.

It is too slow to search with, and knows what no pair of embeddings does: with the model that found the candidates, as
in `Candidates.scores_of_both`, it ranks them better than either does alone. So it is a teacher. Cross-encoders as
rankers: Nogueira and Cho 2019, "Passage re-ranking with BERT" (arXiv 1901.04085).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from torch import Tensor

from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource
from nestling.models.precision import Setting, choose_precision
from nestling.training.batches.batching import Pairs
from nestling.training.batches.similar_documents import sampler_for
from nestling.training.batches.tokens import PAD_TO, TokenStore
from nestling.training.distill.candidates import Candidates
from nestling.training.fast.mixed_precision import embed_cast
from nestling.training.fast.unpadded import can_unpad, embed_unpadded
from nestling.training.losses.contrastive import SCALE
from nestling.training.losses.encoding import EncodingLoss
from nestling.training.result import RECALL
from nestling.training.spec import TrainingInputs, TrainingSpec

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NEGATIVES = 3
"""Unjudged candidates that count as irrelevant, for each query."""
IGNORED = 2
"""Candidates on top that never do: the likeliest to be right answers that nobody judged."""
AT_ONCE = 16_384
"""Tokens, padding included, that it reads in one pass."""
MEASURED = 300
"""Queries of dev to measure it on: each takes as many passes as it has candidates."""


def with_head(model: SentenceTransformer, *, seed: int = 0) -> SentenceTransformer:
    """Return the transformer of a model, with a layer that makes one number of a text in place of what followed it.

    Args:
        seed: of that layer's first weights.

    Raises:
        InputError: the model has no transformer.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding

    if isinstance(model[0], StaticEmbedding):
        raise InputError("a cross-encoder needs a transformer; a static model has none")
    size = int(model[0].get_embedding_dimension())
    pooling = "cls" if getattr(model.tokenizer, "cls_token_id", None) is not None else "mean"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = Dense(size, 1, activation_function=torch.nn.Identity())
    made = SentenceTransformer(modules=[model[0], Pooling(size, pooling), head], device=str(model.device))
    made.max_seq_length = model.max_seq_length
    return made


class PairTokens:
    """The tokens of a query followed by those of a document, as the transformer reads a pair of texts.

    Both are of the same token type, as our trainers have them. A query is cut at half of the model's limit and a pair
    at all of it, so that what is lost is mostly the document's end.

    Args:
        model: whose tokenizer and limit they are.
        queries, documents: texts; pairs are named by their numbers.
        cache: a folder for tokens, as in TokenStore.
    """

    def __init__(
        self, model: SentenceTransformer, queries: Sequence[str], documents: Sequence[str], *, cache: Path | None = None
    ) -> None:
        self.limit = model.max_seq_length or None
        half = None if self.limit is None else max(3, self.limit // 2)
        self.queries = TokenStore.build(queries, model.tokenizer, half, cache=cache)
        self.documents = TokenStore.build(documents, model.tokenizer, self.limit, cache=cache)
        special = model.tokenizer.all_special_ids
        firsts = self.documents.ids[self.documents.offsets[:-1][self.documents.lengths > 0]]
        # What opens a text would stand in the middle of a pair.
        self.skipped = int(len(firsts) > 0 and bool(np.isin(firsts, special).all()))

    def lengths(self, query: NDArray[np.int64], document: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many tokens each pair has, (n_pairs,) int64."""
        both = self.queries.lengths[query] + np.maximum(self.documents.lengths[document] - self.skipped, 0)
        lengths: NDArray[np.int64] = both if self.limit is None else np.minimum(both, self.limit)
        return lengths

    def batch(self, query: NDArray[np.int64], document: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` of pairs, (n_pairs, width) int64 each."""
        heads, lengths = self.queries.lengths[query], self.lengths(query, document)
        width = -(-int(lengths.max(initial=1)) // PAD_TO) * PAD_TO
        places = np.arange(width)
        mask, head = places < lengths[:, None], places < heads[:, None]
        tail = mask & ~head
        ids = np.full(mask.shape, self.queries.padding, dtype=np.int64)
        ids[head] = self.queries.ids[(self.queries.offsets[query][:, None] + places)[head]]
        starts = self.documents.offsets[document] + self.skipped - heads
        ids[tail] = self.documents.ids[(starts[:, None] + places)[tail]]
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


class LikelihoodLoss(EncodingLoss):
    """Binary cross-entropy between what a cross-encoder makes of pairs and how relevant raters found them, 0 to 1."""

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the mean over the pairs of a batch, a scalar."""
        (logits,) = self.embedded(features)
        return F.binary_cross_entropy_with_logits(logits[:, 0].float(), labels)

    def get_config_dict(self) -> dict[str, Any]:
        """Return what distinguishes one such loss from another: nothing."""
        return {}


class PairBatches:
    """Makes the tensors of a batch of numbered pairs with their labels."""

    def __init__(
        self,
        tokens: PairTokens,
        query: NDArray[np.int64],
        document: NDArray[np.int64],
        label: NDArray[np.float32],
    ) -> None:
        self.tokens = tokens
        self.query = query
        self.document = document
        self.label = label
        self.valid_label_columns = ("label",)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `pair_*` tokens, and `label`, (n_pairs,) float32."""
        rows = np.array([example["row"] for example in examples], dtype=np.int64)
        features = self.tokens.batch(self.query[rows], self.document[rows])
        return {
            **{f"pair_{name}": value for name, value in features.items()},
            "label": torch.from_numpy(self.label[rows]),
        }


def prepare(judgments: Judgments, spec: TrainingSpec, model: SentenceTransformer) -> TrainingInputs:
    """Prepare a cross-encoder's training on the judgments, and on unjudged candidates as irrelevant.

    A score is scaled to 0..1 and taken for the chance that the pair is relevant. Each query adds `NEGATIVES` candidates
    that nobody judged, drawn from all but the first `IGNORED`, and a random document.

    Args:
        spec: its folder of candidates holds `train.npz`.
    """
    from datasets import Dataset

    pairs = Pairs.from_judgments(judgments, threshold=spec.threshold)
    low, high = judgments.scale
    score = (pairs.judged_score - low) / (high - low) if high > low else np.ones(len(pairs.judged_score))
    query, document = irrelevant(pairs, Candidates.load(spec.candidate_file("train")), seed=spec.settings.seed)
    query = np.concatenate([pairs.judged_query, query])
    document = np.concatenate([pairs.judged_document, document])
    label = np.concatenate([score, np.zeros(len(query) - len(score))]).astype(np.float32)
    tokens = PairTokens(model, pairs.queries, pairs.documents, cache=spec.cache)
    return TrainingInputs(
        Dataset.from_dict({"row": np.arange(len(query))}),
        LikelihoodLoss(model),
        PairBatches(tokens, query, document, label),
        sampler_for(tokens.lengths(query, document), None),
        vocabulary=np.unique(np.concatenate([tokens.queries.ids, tokens.documents.ids])),
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
    model: SentenceTransformer,
    tokens: PairTokens,
    query: NDArray[np.int64],
    document: NDArray[np.int64],
    *,
    precision: Setting = "auto",
) -> NDArray[np.float32]:
    """Return what a cross-encoder makes of pairs, (n_pairs,) float32: logarithms of odds.

    Args:
        precision: as in the training; fp16 reads in float32.
    """
    dtype = torch.bfloat16 if choose_precision(precision).name == "bf16" else torch.float32
    packed = model.device.type == "cpu" and can_unpad(model)
    found = np.empty(len(query), dtype=np.float32)
    lengths = tokens.lengths(query, document)
    # The longest first: what does not fit into memory fails at once.
    order = np.argsort(-lengths, kind="stable")
    model.eval()
    start = 0
    with torch.inference_mode():
        while start < len(order):
            rows = order[start : start + max(1, AT_ONCE // int(lengths[order[start]]))]
            start += len(rows)
            column = {name: value.to(model.device) for name, value in tokens.batch(query[rows], document[rows]).items()}
            made = (embed_unpadded if packed else embed_cast)(model, [column], dtype)[0]
            found[rows] = made[:, 0].float().cpu().numpy()
    return found


def read_by(
    model: SentenceTransformer, candidates: Candidates, tokens: PairTokens, *, precision: Setting = "auto"
) -> Candidates:
    """Return candidates with the logits of a cross-encoder; `tokens` are of their queries and documents."""
    query, document = candidates.pairs()
    found = logits(model, tokens, query, document, precision=precision)
    return Candidates(candidates.documents, candidates.similarities, found.reshape(candidates.documents.shape))


class RerankEvaluator(SentenceEvaluator):  # type: ignore[misc]
    """Measures on dev how the candidates of some queries are ranked by the first model and a cross-encoder together.

    Args:
        qrels: the dev split's.
        candidates: for the queries of `measured_rows`, documents as columns of `qrels`.
        scale: of the first model's cosines.
        precision: to read in.
    """

    def __init__(
        self, qrels: Qrels, candidates: Candidates, *, scale: float = SCALE, precision: Setting = "auto"
    ) -> None:
        super().__init__()
        self.primary_metric = RECALL
        self.qrels = qrels
        self.rows = measured_rows(qrels)
        self.candidates = candidates
        self.scale = scale
        self.precision: Setting = precision
        self.tokens: PairTokens | None = None

    def __call__(
        self, model: SentenceTransformer, output_path: str | Path | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Return `dev_recall@10` and `dev_mrr@10`, means over those queries."""
        if self.tokens is None:
            queries = [self.qrels.queries[row] for row in self.rows]
            self.tokens = PairTokens(model, queries, self.qrels.documents)
        read = read_by(model, self.candidates, self.tokens, precision=self.precision)
        return self.figures(read.scores_of_both(self.scale))

    def of_base(self, base: ModelSource) -> dict[str, float]:
        """Return the same figures of the first model alone: what its candidates are worth as they are."""
        return self.figures(self.candidates.similarities)

    def figures(self, scores: NDArray[np.float32]) -> dict[str, float]:
        """Return the same figures of the candidates ranked by these scores, (n_queries, k)."""
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(self.candidates.documents, order, axis=1)[:, :10]
        ranking = np.full((self.qrels.n_queries, ranked.shape[1]), -1, dtype=np.int64)
        ranking[self.rows] = ranked
        return {
            f"dev_{name}": float(Measure.parse(name).per_query(ranking, self.qrels)[self.rows].mean())
            for name in ("recall@10", "mrr@10")
        }


def measured_rows(qrels: Qrels) -> NDArray[np.int64]:
    """Return the rows of dev that a cross-encoder is measured on: at most `MEASURED`, evenly spaced."""
    spaced = np.linspace(0, qrels.n_queries - 1, min(MEASURED, qrels.n_queries))
    rows: NDArray[np.int64] = spaced.astype(np.int64)
    return rows
