"""Inspection: what a table of judgments holds, in figures, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from nestling.config.names import Kind
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import Bar, Candidate, candidates, dip, histogram

CountTokens = Callable[[Sequence[str], Kind], np.ndarray]
"""(n_texts) strings -> (n_texts,) int64, the tokens of each."""


@dataclass(frozen=True)
class Lengths:
    """Text lengths in tokens, special tokens included, over distinct texts; `cut` is the share beyond the limit."""

    mean: float
    median: float
    p95: float
    longest: int
    limit: int
    cut: float


@dataclass(frozen=True)
class Inspection:
    """The figures of a table of judgments; `kept` and `share` are the pairs above the threshold in use."""

    judgments: Judgments
    queries: int
    documents: int
    per_query: tuple[float, ...]
    """Quantiles 0, 0.25, 0.5, 0.75, 1 of the number of judged documents a query."""
    query_lengths: Lengths
    document_lengths: Lengths
    bars: list[Bar]
    dip: float | None
    candidates: list[Candidate]
    threshold: float
    kept: int

    @property
    def share(self) -> float:
        """Share (0..1) of the pairs above the threshold."""
        return self.kept / len(self.judgments)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON takes them, without the table itself."""
        figures = asdict(self)
        table = figures.pop("judgments")
        about = {name: table[name] for name in ("scale", "encoding", "notes", "cleaning")}
        return {"records": len(self.judgments), **figures, "share": self.share, **about}


def inspect_judgments(
    judgments: Judgments, *, threshold: float, count_tokens: CountTokens, max_tokens: int
) -> Inspection:
    """Compute the figures of a table; tokens as the model that is to be trained counts and cuts them."""

    def lengths(texts: pl.Series, kind: Kind) -> Lengths:
        tokens = count_tokens(texts.unique().to_list(), kind)
        median, p95 = (float(quantile) for quantile in np.quantile(tokens, [0.5, 0.95]))
        cut = float((tokens > max_tokens).mean())
        return Lengths(float(tokens.mean()), median, p95, int(tokens.max()), max_tokens, cut)

    frame, scores = judgments.frame, judgments.frame["score"].to_numpy()
    per_query = judgments.query_keys.value_counts()["count"].to_numpy()
    return Inspection(
        judgments=judgments,
        queries=len(per_query),
        documents=frame["document_id"].n_unique(),
        per_query=tuple(float(q) for q in np.quantile(per_query, [0, 0.25, 0.5, 0.75, 1])),
        query_lengths=lengths(frame["query"], "query"),
        document_lengths=lengths(frame["document"], "document"),
        bars=histogram(scores),
        dip=dip(scores, judgments.scale),
        candidates=candidates(scores),
        threshold=threshold,
        kept=int(judgments.relevant(threshold).sum()),
    )
