"""BM25 as a teacher, for a model that shall rank exact words as high as it does."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nestling.config.training import Finetune
from nestling.retrieval.bm25 import Lexical, NoWordsError, PairScores

logger = logging.getLogger(__name__)

LANGUAGE = "english"
SHARPNESS = 0.5
"""BM25's scores are multiplied by this before the softmax."""


class BM25Teacher:
    """Stemmed BM25 scores of a batch's queries and training documents, by number; texts are scored whole.

    To imitate a lexical ranker is how SPAR (Chen et al. 2022, arXiv 2110.06918) brings exact words into a dense model.
    `texts` gives, for an epoch, all its queries as they are numbered.
    """

    def __init__(self, documents: list[str], texts: Callable[[int], list[str]], *, language: str) -> None:
        self.bm25 = Lexical.fit(documents, language=language)
        self.texts = texts
        self.of_pairs: PairScores | None = None

    def refresh(self, epoch: int) -> None:
        """Take the queries of an epoch."""
        self.of_pairs = self.bm25.pair_scores(self.texts(epoch))

    def __call__(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Return scores times `SHARPNESS`, (n_queries, n_documents) float32, on the device of the numbers."""
        if self.of_pairs is None:
            raise RuntimeError("refresh comes before the first batch")
        rows, columns = (numbers.cpu().numpy() for numbers in (queries, documents))
        scores = self.of_pairs(np.repeat(rows, len(columns)), np.tile(columns, len(rows)))
        return torch.from_numpy(SHARPNESS * scores.reshape(len(rows), len(columns))).to(queries.device)


def teacher_for(step: Finetune, documents: list[str], texts: Callable[[int], list[str]]) -> BM25Teacher | None:
    """Return the teacher that the settings ask for; None where they do not, or where no document holds a word."""
    if not step.bm25:
        return None
    try:
        return BM25Teacher(documents, texts, language=step.language or LANGUAGE)
    except NoWordsError as error:
        logger.warning("training goes on without BM25: %s", error)
        return None
