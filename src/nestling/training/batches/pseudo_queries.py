"""Pseudo-queries: a few words of each document, drawn anew for every epoch, and variations of real queries."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nestling.training.batches.batching import Pairs
from nestling.training.batches.tokens import TokenStore

logger = logging.getLogger(__name__)

WORDS = (2, 3, 3, 4, 4, 5)
"""Numbers of words in a crop, each as likely: about those of search terms."""
SHUFFLED = 0.3
"""Share of crops whose words are in another order than in the document."""
DROPPED, ADDED = 0.3, 0.45
"""Shares of variations with a word less and with a word more; the others have a word exchanged."""
SEPARATOR = re.compile(r"[\s,;]+")


class QueriesOfEpoch:
    """The queries that a contrastive recipe sees in one epoch: those of the raters, then `crops` for each document.

    A crop is two to five words of a document, which is its positive, mostly in its order. So it teaches the words of
    documents that no rater saw with a query. Random cropping as in Contriever (Izacard et al. 2022, arXiv 2112.09118),
    but single words instead of spans, as search terms are. An epoch's queries depend on seed and epoch alone; number
    n + d is document d's first crop, where `pairs` has n queries.
    """

    def __init__(self, pairs: Pairs, tokenise: Callable[[list[str]], TokenStore], *, crops: int, seed: int) -> None:
        self.pairs = pairs
        self.tokenise = tokenise
        self.crops = crops
        self.seed = seed
        self.tokens: TokenStore | None = None

    def with_crops(self) -> tuple[np.ndarray, np.ndarray]:
        """Return query and document of all pairs by number, those of the raters first, (n,) int64 each."""
        n_queries, n_documents = len(self.pairs.queries), len(self.pairs.documents)
        crops = np.arange(self.crops * n_documents)
        return (
            np.concatenate([self.pairs.query, n_queries + crops]),
            np.concatenate([self.pairs.document, crops % n_documents]),
        )

    def refresh(self, epoch: int) -> None:
        """Make the queries of an epoch and their tokens."""
        texts = self.texts(epoch)
        self.tokens = self.tokenise(texts)
        n_queries = len(self.pairs.queries)
        logger.info("epoch %d: %d queries of raters, %d crops", epoch + 1, n_queries, len(texts) - n_queries)

    def texts(self, epoch: int) -> list[str]:
        """Return the queries of an epoch, as they are numbered."""
        rng = np.random.default_rng([self.seed, epoch])
        return [*self.pairs.queries, *(crop(text, rng) for _ in range(self.crops) for text in self.pairs.documents)]

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, Any]:
        """Return the tokens of the queries with these numbers, as TokenStore does."""
        if self.tokens is None:
            raise RuntimeError("refresh comes before the first batch")
        return self.tokens.batch(rows)


def crop(document: str, rng: np.random.Generator) -> str:
    """Return two to five words of a document; all of it where it has no words."""
    words = [word for word in SEPARATOR.split(document) if word]
    if not words:
        return document
    kept = rng.choice(len(words), min(len(words), int(rng.choice(WORDS))), replace=False)
    if rng.random() >= SHUFFLED:
        kept = np.sort(kept)
    return " ".join(words[place] for place in kept)


def vary(query: str, document: str, rng: np.random.Generator) -> str:
    """Return a query with a word left out, or with one of a document's words put before or in place of a word.

    The last word stays where one is left out or added: it mostly says what the thing is.
    """
    words = query.split()
    new = [word for word in SEPARATOR.split(document.lower()) if word and word not in query.lower().split()]
    kind = rng.random()
    if not words or (not new and len(words) < 2):
        return query
    if not new or (kind < DROPPED and len(words) > 2):
        words.pop(int(rng.integers(max(1, len(words) - 1))))
    elif kind < DROPPED + ADDED:
        words.insert(int(rng.integers(len(words))), str(rng.choice(new)))
    else:
        words[int(rng.integers(len(words)))] = str(rng.choice(new))
    return " ".join(words)


def pseudo_queries(pairs: Pairs, *, seed: int) -> list[str]:
    """Return for every query a variation of it, then as many crops of documents: queries for a teacher to answer.

    A variation takes words from a document that is relevant to the query, or from any where none is.
    """
    rng = np.random.default_rng(seed)
    n_documents = len(pairs.documents)
    # Pairs are sorted by query.
    firsts = np.searchsorted(pairs.query, np.arange(1, len(pairs.queries)))
    texts = []
    for query, relevant in zip(pairs.queries, np.split(pairs.document, firsts), strict=True):
        document = rng.choice(relevant) if len(relevant) else rng.integers(n_documents)
        texts.append(vary(query, pairs.documents[document], rng))
    chosen = rng.integers(n_documents, size=len(pairs.queries))
    return texts + [crop(pairs.documents[document], rng) for document in chosen]
