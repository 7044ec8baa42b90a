"""What BM25 makes of a batch, for a model that shall rank exact words as high as it does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nestling.retrieval.bm25 import Lexical, NoWordsError, PairScores

if TYPE_CHECKING:
    from nestling.config.training import Finetune

logger = logging.getLogger(__name__)

LANGUAGE = "english"
SHARPNESS = 0.5
"""BM25's scores are multiplied by this before the softmax."""


class BM25Teacher:
    """Stemmed BM25 over the training documents, asked about the queries and documents of a batch by number.

    A fine-tuned transformer forgets which words a text had; BM25 knows nothing else. To imitate a lexical ranker is how
    SPAR (Chen et al. 2022, arXiv 2110.06918) brings exact words into a dense model.

    Args:
        documents: the training documents, (n_documents,) texts.
        texts: epoch -> the texts of all queries of that epoch, as they are numbered.
        language: of the stemmer.

    Texts are scored whole, whatever the model's limit of tokens.

    Raises:
        NoWordsError: no document holds a word.
        InputError: the language is unknown.
    """

    def __init__(self, documents: list[str], texts: Callable[[int], list[str]], *, language: str) -> None:
        self.bm25 = Lexical.fit(documents, language=language)
        self.texts = texts
        self.of_pairs: PairScores | None = None

    def refresh(self, epoch: int) -> None:
        """Take the queries of an epoch."""
        self.of_pairs = self.bm25.pair_scores(self.texts(epoch))

    def __call__(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Return the scores of queries (n_queries,) and documents (n_documents,), by number, times `SHARPNESS`.

        Returns:
            (n_queries, n_documents) float32, on the device of the numbers.
        """
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
