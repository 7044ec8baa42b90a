"""Pairs by number, batches of them by length or by likeness, and how a batch becomes tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from nestling.judgments.table import Judgments, is_relevant

if TYPE_CHECKING:
    from torch import Tensor

MEGA = 32
"""Batches that are filled from one shuffled stretch of the data, sorted by length within it."""

Tokens = Callable[[np.ndarray], dict[str, "Tensor"]]
"""Numbers of texts -> their `input_ids` and `attention_mask`, (n_texts, width) int64 each: `TokenStore.batch`."""


@dataclass(frozen=True)
class Pairs:
    """Training pairs of a contrastive recipe: queries and documents by number, and the raters' scores.

    A query is a normalised query, a document a normalised document text, as the split has it: equal texts are one.
    Pairs are sorted by query and document.

    Attributes:
        queries, documents: the texts; numbers below are places in these.
        query, document: (n_pairs,) int64, the positive pairs, one example each.
        judged_query, judged_document: (n_judged,) int64, all pairs judged in the training data.
        judged_score: (n_judged,) float64, their scores.
        low_indptr, low_documents: CSR over queries: the documents judged irrelevant for each.
        threshold: positives have higher scores.
        scale: the lowest and the highest score that there can be.
    """

    queries: list[str]
    documents: list[str]
    query: np.ndarray
    document: np.ndarray
    judged_query: np.ndarray
    judged_document: np.ndarray
    judged_score: np.ndarray
    low_indptr: np.ndarray
    low_documents: np.ndarray
    threshold: float
    scale: tuple[float, float]

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def from_judgments(cls, judgments: Judgments, *, threshold: float) -> Pairs:
        """Number the texts of a table. Pairs scored above the threshold are positives, all others judged low.

        Of a pair of texts that is judged several times, under several document ids, the highest score counts.
        """
        queries, query = _numbered(judgments.query_keys.to_list(), judgments.frame["query"].to_list())
        documents, document = _numbered(judgments.document_keys.to_list(), judgments.frame["document"].to_list())
        score = judgments.frame["score"].to_numpy()
        # By pair, the highest score last: the last of each pair stands for it.
        order = np.lexsort((score, document, query))
        key = query[order] * len(documents) + document[order]
        chosen = order[np.append(key[1:] != key[:-1], True)]
        query, document, score = query[chosen], document[chosen], score[chosen]
        positive = is_relevant(score, threshold)
        return cls(
            queries,
            documents,
            query[positive],
            document[positive],
            query,
            document,
            score,
            np.searchsorted(query[~positive], np.arange(len(queries) + 1)),
            document[~positive],
            threshold,
            judgments.scale,
        )


class LengthBatches:
    """Batches of pairs whose documents are of like length, in an order that is random all the same.

    The pairs are shuffled, cut into stretches of `MEGA` batches, sorted by length within each stretch, and the batches
    of the whole epoch are shuffled again. The trainer calls `set_epoch`; an epoch's batches depend on seed and epoch.

    Args:
        lengths: (n_pairs,) int64, tokens of each pair's document.
        processes: how many share the batches in turn; all get the same number, and up to `processes` - 1 are left out.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, *, seed: int, processes: int = 1) -> None:
        self.lengths = lengths
        # Where there is less than a batch for each process, each gets a smaller one rather than none.
        self.batch_size = batch_size if processes == 1 else min(batch_size, max(1, len(lengths) // processes))
        self.seed = seed
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        number = -(-len(self.lengths) // self.batch_size)
        return number - number % self.processes

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        stretch = MEGA * self.batch_size
        batches = []
        for start in range(0, len(order), stretch):
            batches += self.batches_of(order[start : start + stretch], rng)
        for number in rng.permutation(len(batches))[: len(self)]:
            yield batches[number].tolist()

    def batches_of(self, stretch: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Sort a shuffled stretch of pairs by length and cut it into batches; all are full but one."""
        ordered = stretch[np.argsort(self.lengths[stretch], kind="stable")]
        return [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]


class SimilarBatches(LengthBatches):
    """Batches whose documents resemble each other, as hard negatives for the others' queries, anew in every epoch.

    Each shuffled stretch is halved again and again, along the line between two documents drawn from it, down to
    batches: a balanced random-projection tree (Dasgupta and Freund 2008). Batches of clustered texts: TAS-Balanced
    (Hofstätter et al. 2021, arXiv 2104.06967) and CDE (Morris and Rush 2024, arXiv 2410.02525). `vectors`, (n_pairs,
    dim), are of each pair's document, by the base model.
    """

    def __init__(self, vectors: NDArray[np.float32], batch_size: int, **options: Any) -> None:
        super().__init__(vectors[:, 0], batch_size, **options)
        self.vectors = vectors

    def batches_of(self, stretch: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Halve a stretch of pairs until batches are left; all are full but one."""
        size = self.batch_size
        if len(stretch) <= size:
            return [stretch]
        vectors = self.vectors[stretch]
        first, second = vectors[rng.choice(len(stretch), 2, replace=False)]
        # Equal documents give a line of no direction: the halves are then those of the shuffled order.
        order = stretch[np.argsort(vectors @ (first - second), kind="stable")]
        middle = max(1, len(stretch) // size // 2) * size
        return self.batches_of(order[:middle], rng) + self.batches_of(order[middle:], rng)


@dataclass(frozen=True)
class Collator(ABC):
    """Tensors of a batch of rows `{"row": number of an example}`: each distinct query and document once."""

    pairs: Pairs
    query_tokens: Tokens
    document_tokens: Tokens
    seed: int
    valid_label_columns: ClassVar[tuple[str, ...]] = ("label",)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `anchor_*` and `document_*` tokens, and the numbers that the loss needs under `label`."""
        import torch

        rows = np.array([example["row"] for example in examples], dtype=np.int64)
        # What is drawn depends on the batch alone, so that a resumed training draws the same.
        label = self.numbers(rows, np.random.default_rng([self.seed, len(rows), int(rows[0]), int(rows.sum())]))
        return {
            **{f"anchor_{name}": value for name, value in self.query_tokens(label["query"]).items()},
            **{f"document_{name}": value for name, value in self.document_tokens(label["document"]).items()},
            "label": {name: torch.from_numpy(value) for name, value in label.items()},
        }

    @abstractmethod
    def numbers(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a batch's `query`, `document`, `anchor` and `positive`, as ContrastiveLoss takes them."""


@dataclass(frozen=True)
class PairCollator(Collator):
    """Batches of pairs.

    Attributes:
        query, document: (n_rows,) int64, the pairs to train on; queries from `len(pairs.queries)` on are pseudo-queries
            and have no negatives of their own.
        negatives: documents judged low that are drawn for each query of the batch, as far as it has any.
    """

    query: np.ndarray
    document: np.ndarray
    negatives: int

    def numbers(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        queries, anchor = np.unique(self.query[rows], return_inverse=True)
        documents, positive = np.unique(self.document[rows], return_inverse=True)
        drawn = [np.zeros(0, dtype=np.int64)]
        for query in queries[queries < len(self.pairs.queries)] if self.negatives else ():
            low = self.pairs.low_documents[self.pairs.low_indptr[query] : self.pairs.low_indptr[query + 1]]
            drawn.append(low if len(low) <= self.negatives else rng.choice(low, self.negatives, replace=False))
        documents = np.concatenate([documents, np.setdiff1d(np.concatenate(drawn), documents)])
        return {"query": queries, "document": documents, "anchor": anchor, "positive": positive}


def _numbered(keys: list[str], texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the text of each distinct key's first record, and the number of each record's key among these."""
    places: dict[str, int] = {}
    numbers = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    _, first = np.unique(numbers, return_index=True)
    return [texts[row] for row in first], numbers
