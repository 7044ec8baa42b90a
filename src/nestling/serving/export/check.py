"""The check of an export: what torch and the exported encoder make of the same texts, in quality and in speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from timeit import timeit
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from nestling.config.names import Kind
from nestling.evaluation.cell_search import Vectors
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.torch_encoder import embed
from nestling.retrieval.codec import Codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.vectors import truncate

K = 10
LARGEST_LOSS = 0.005
"""Of recall@10, relative to torch's."""
LEAST_AGREEMENT = 0.9
"""Share of torch's ten nearest documents, where there are no judgments of the user's to count by."""
TIMED_DOCUMENTS, TIMED_QUERIES, SHARES, ROUNDS = 256, 40, 4, 2

Matrix = NDArray[np.float32]
Encode = Callable[[Sequence[str], Kind], Matrix]


@dataclass(frozen=True)
class Speed:
    """Documents a second in batches of like length; milliseconds of a single query, from text to vector."""

    documents_per_second: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Check:
    """Comparison of the exported encoder with torch.

    Attributes:
        texts: `dev` of the user's split, or `toolshed`, the generated catalogue, whose recall decides nothing.
        recall_torch, recall_exported: mean recall@10, searched as the model stores documents.
        agreement: share of torch's ten nearest documents that are among the exported encoder's ten.
        cosine_mean, cosine_lowest: between the two vectors of a text, over queries and documents.
    """

    texts: str
    queries: int
    documents: int
    recall_torch: float
    recall_exported: float
    agreement: float
    cosine_mean: float
    cosine_lowest: float
    torch: Speed
    exported: Speed
    threads: int

    @property
    def loss(self) -> float:
        """Share of torch's recall@10 that is lost; negative where it rises."""
        return 1 - self.recall_exported / self.recall_torch if self.recall_torch else 0.0

    @property
    def fault(self) -> str:
        """Say what is lost beyond what an export may lose; empty where nothing is."""
        if self.texts == "dev" and self.loss > LARGEST_LOSS:
            falls = f"recall@{K} on dev falls from {self.recall_torch:.4f} to {self.recall_exported:.4f}"
            return f"{falls}, by {self.loss:.2%} of it, and an export may lose {LARGEST_LOSS:.1%}"
        if self.texts != "dev" and not self.agreement >= LEAST_AGREEMENT:
            finds = f"of torch's {K} nearest documents on the generated catalogue it finds {self.agreement:.1%}"
            return f"{finds}, less than {LEAST_AGREEMENT:.0%}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "loss": self.loss, "fault": self.fault}


def check_export(
    model: SentenceTransformer, encoder: ExportedEncoder, qrels: Qrels, *, texts: str, threads: int
) -> Check:
    """Compare a model in torch, on the CPU, with its export, which was opened with as many threads as torch has."""
    sides: list[Encode] = [
        lambda batch, kind: truncate(embed(model, batch, kind=kind), encoder.dim),
        lambda batch, kind: encoder.encode(batch, kind=kind),
    ]
    both = [Vectors(encode(qrels.queries, "query"), encode(qrels.documents, "document")) for encode in sides]
    rankings = [search(each, encoder.codec, oversampling=encoder.oversampling) for each in both]
    recall_torch, recall_exported = (float(Measure("recall", K).per_query(each, qrels).mean()) for each in rankings)
    cosines = np.einsum("nd,nd->n", *(np.concatenate([each.queries, each.documents]) for each in both))
    torch_speed, exported_speed = speeds(sides, qrels.queries, qrels.documents)
    return Check(
        texts=texts,
        queries=qrels.n_queries,
        documents=qrels.n_documents,
        recall_torch=recall_torch,
        recall_exported=recall_exported,
        agreement=agreement(*rankings),
        cosine_mean=float(cosines.mean()),
        cosine_lowest=float(cosines.min()),
        torch=torch_speed,
        exported=exported_speed,
        threads=threads,
    )


def search(vectors: Vectors, codec: Codec | None, *, oversampling: int = 0) -> NDArray[np.int64]:
    """Return the ten nearest documents of each query, (n_queries, 10) int64, stored as the codec says."""
    codec = codec or Codec("float32", vectors.documents.shape[1])
    queries, documents = truncate(vectors.queries, codec.dim), truncate(vectors.documents, codec.dim)
    shortlist = top_k(queries, codec.encode(documents), K * max(1, oversampling), codec)[0]
    if not oversampling:
        return shortlist
    # What rescoring reads lies in float16.
    return rescore(vectors.queries, shortlist, vectors.documents.astype(np.float16).astype(np.float32), K)[0]


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the mean share of a row's documents that the other ranking's row has too, 0..1."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(first, second, strict=True)]))


def speeds(sides: Sequence[Encode], queries: Sequence[str], documents: Sequence[str]) -> list[Speed]:
    """Measure several sides in turn, share by share and query by query, so that what else runs falls on all alike."""

    def seconds_of(texts: Sequence[str], kind: Kind) -> list[float]:
        return [timeit(partial(encode, texts, kind), number=1) for encode in sides]

    timed = documents[:TIMED_DOCUMENTS]
    shares = [timed[start::SHARES] for start in range(min(SHARES, len(timed)))]
    # The first round and the first query warm up; the fastest round counts.
    rounds = [[seconds_of(share, "document") for share in shares] for _ in range(ROUNDS + 1)]
    single = [seconds_of([query], "query") for query in [queries[0], *queries[:TIMED_QUERIES]]]
    seconds = np.min(rounds, axis=0).sum(axis=0)
    p50, p95 = np.quantile(single[1:], [0.5, 0.95], axis=0) * 1000
    return [Speed(len(timed) / float(t), float(a), float(b)) for t, a, b in zip(seconds, p50, p95, strict=True)]
