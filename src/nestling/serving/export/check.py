"""The check of an export: what torch and the exported encoder make of the same texts, in quality and in speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Kind
from nestling.evaluation.measures import Measure
from nestling.models.exported_encoder import ExportedEncoder
from nestling.models.torch_encoder import embed
from nestling.retrieval.codec import Codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.vectors import truncate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from nestling.evaluation.qrels import Qrels

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
    """How fast one side encodes.

    Attributes:
        documents_per_second: in batches of like length.
        p50_ms, p95_ms: of a single query, from text to vector.
    """

    documents_per_second: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Check:
    """What the exported encoder keeps of torch.

    Attributes:
        texts: `dev` of the user's split, or `toolshed`, the generated catalogue.
        queries, documents: how many.
        recall_torch, recall_exported: mean recall@10, searched as the model stores documents; of the generated
            catalogue they say little and decide nothing.
        agreement: share of torch's ten nearest documents that are among the exported encoder's ten.
        cosine_mean, cosine_lowest: between the two vectors of a text, over queries and documents.
        torch, exported: speeds, measured in turn.
        threads: that either side had.
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
        """Share of torch's recall@10 that is lost; negative where it is gained."""
        return 1 - self.recall_exported / self.recall_torch if self.recall_torch else 0.0

    @property
    def fault(self) -> str:
        """Say what is lost beyond what an export may lose; empty where nothing is."""
        if self.texts == "dev":
            if self.loss > LARGEST_LOSS:
                return (
                    f"recall@{K} on dev falls from {self.recall_torch:.4f} to {self.recall_exported:.4f}, by "
                    f"{self.loss:.2%} of it, and an export may lose {LARGEST_LOSS:.1%}"
                )
        elif not self.agreement >= LEAST_AGREEMENT:
            return (
                f"of torch's {K} nearest documents on the generated catalogue it finds {self.agreement:.1%}, less than "
                f"{LEAST_AGREEMENT:.0%}"
            )
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {**asdict(self), "loss": self.loss, "fault": self.fault}


def check_export(
    model: SentenceTransformer,
    encoder: ExportedEncoder,
    qrels: Qrels,
    *,
    texts: Literal["dev", "toolshed"],
    threads: int,
) -> Check:
    """Compare a model in torch with its export.

    Args:
        model: on the CPU, as it was exported.
        encoder: opened with as many threads as torch has.
        qrels: queries and documents to compare on.
        texts: where they come from.
    """

    def by_torch(some: Sequence[str], kind: Kind) -> Matrix:
        return truncate(embed(model, some, kind=kind), encoder.dim)

    def by_export(some: Sequence[str], kind: Kind) -> Matrix:
        return encoder.encode(some, kind=kind)

    rankings, vectors = [], []
    for encode in (by_torch, by_export):
        queries, documents = encode(qrels.queries, "query"), encode(qrels.documents, "document")
        rankings.append(search(queries, documents, encoder.codec, oversampling=encoder.oversampling))
        vectors.append(np.concatenate([queries, documents]))
    recall_torch, recall_exported = (float(Measure("recall", K).per_query(each, qrels).mean()) for each in rankings)
    cosines = np.einsum("nd,nd->n", *vectors)
    torch_speed, exported_speed = speeds([by_torch, by_export], qrels.queries, qrels.documents)
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


def search(queries: Matrix, documents: Matrix, codec: Codec | None, *, oversampling: int = 0) -> NDArray[np.int64]:
    """Return the ten nearest documents of each query, (n_queries, 10) int64, stored as the codec says."""
    if codec is None:
        return top_k(queries, documents, K)[0]
    codes = codec.encode(truncate(documents, codec.dim))
    found = top_k(truncate(queries, codec.dim), codes, K * max(1, oversampling), codec)[0]
    if not oversampling:
        return found
    # What rescoring reads lies in float16.
    return rescore(queries, found, documents.astype(np.float16).astype(np.float32), K)[0]


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the mean share of a row's documents that the other ranking's row has too, 0..1."""
    same = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(first, second, strict=True)]
    return float(np.mean(same))


def speeds(sides: Sequence[Encode], queries: Sequence[str], documents: Sequence[str]) -> list[Speed]:
    """Measure several sides in turn, share by share and query by query, so that what else runs falls on all alike."""
    some, asked = list(documents[:TIMED_DOCUMENTS]), list(queries[:TIMED_QUERIES])
    parts = [part for part in (some[place::SHARES] for place in range(SHARES)) if part]
    for encode in sides:
        for part in parts:
            encode(part, "document")
        encode(asked[:1], "query")
    batched = np.empty((ROUNDS, len(parts), len(sides)))
    single = np.empty((len(asked), len(sides)))
    for turn in range(ROUNDS):
        for place, part in enumerate(parts):
            for side, encode in enumerate(sides):
                batched[turn, place, side] = _seconds(encode, part, "document")
    for place, query in enumerate(asked):
        for side, encode in enumerate(sides):
            single[place, side] = _seconds(encode, [query], "query")
    taken = batched.min(axis=0).sum(axis=0)
    p50, p95 = np.quantile(single, [0.5, 0.95], axis=0) * 1000
    return [Speed(len(some) / float(t), float(a), float(b)) for t, a, b in zip(taken, p50, p95, strict=True)]


def _seconds(encode: Encode, texts: Sequence[str], kind: Kind) -> float:
    start = time.perf_counter()
    encode(texts, kind)
    return time.perf_counter() - start
