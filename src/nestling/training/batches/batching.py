"""Batches of like length: which pairs go together, and how a batch becomes tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nestling.judgments.table import Judgments

if TYPE_CHECKING:
    from torch import Tensor

MEGA = 32
"""Batches that are filled from one shuffled stretch of the data, sorted by length within it."""


@dataclass(frozen=True)
class Pairs:
    """What a contrastive recipe trains on: queries and documents by number, and what raters said of them.

    A query is a normalised query, a document a normalised document text, as the split has it: equal texts are one.

    Attributes:
        queries, documents: the texts; numbers below are places in these.
        query, document: (n_pairs,) int64, the positive pairs, one example each.
        judged_query, judged_document: (n_judged,) int64, all pairs judged in the training data.
        judged_score: (n_judged,) float64, their scores.
        low_indptr, low_documents: CSR over queries: the documents judged irrelevant for each.
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
        positive = score > threshold
        low_indptr = np.concatenate([[0], np.cumsum(np.bincount(query[~positive], minlength=len(queries)))])
        return cls(
            queries,
            documents,
            query[positive],
            document[positive],
            query,
            document,
            score,
            low_indptr.astype(np.int64),
            document[~positive],
        )


class LengthBatches:
    """Batches of pairs whose documents are of like length, in an order that is random all the same.

    The pairs are shuffled, cut into stretches of `MEGA` batches, sorted by length within each stretch, and the batches
    of the whole epoch are shuffled again. The trainer calls `set_epoch`; an epoch's batches depend on seed and epoch.

    Args:
        lengths: (n_pairs,) int64, tokens of each pair's document.
        processes: how many share the batches in turn; all get the same number, and up to `processes` - 1 are left out.
    """

    def __init__(
        self, lengths: np.ndarray, batch_size: int, *, seed: int, drop_last: bool = False, processes: int = 1
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        if processes > 1 and not drop_last:
            # Where there is less than a batch for each process, each gets a smaller one rather than none.
            self.batch_size = min(batch_size, max(1, len(lengths) // processes))
        self.seed = seed
        self.drop_last = drop_last
        self.processes = processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.batch_size)
        number = whole + (1 if rest and not self.drop_last else 0)
        return number - number % self.processes

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths))
        stretch = MEGA * self.batch_size
        batches = []
        for start in range(0, len(order), stretch):
            batches += self.batches_of(order[start : start + stretch], rng)
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        for number in rng.permutation(len(batches))[: len(self)]:
            yield batches[number].tolist()

    def batches_of(self, stretch: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Sort a shuffled stretch of pairs by length and cut it into batches; all are full but one."""
        ordered = stretch[np.argsort(self.lengths[stretch], kind="stable")]
        return [ordered[at : at + self.batch_size] for at in range(0, len(ordered), self.batch_size)]


class Tokens(Protocol):
    """What gives the tokens of texts by their numbers: a TokenStore, or the queries of an epoch."""

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, (len(rows), width) int64 each."""
        ...


@dataclass(frozen=True)
class PairCollator:
    """Makes the tensors of a batch: each distinct query and document once, padded on their own.

    Called by the data loader with rows of `{"row": number of a pair}`.

    Attributes:
        query, document: (n_rows,) int64, the pairs to train on by number; queries from `len(pairs.queries)` on are
            nobody's, and have no negatives of their own.
        query_tokens, document_tokens: give the tokens of queries and documents by number.
        negatives: documents judged low that are drawn for each query of the batch, as far as it has any.
        seed: of the draw, which depends on the batch alone, so that a resumed training draws the same.
    """

    pairs: Pairs
    query: np.ndarray
    document: np.ndarray
    query_tokens: Tokens
    document_tokens: Tokens
    negatives: int = 0
    seed: int = 0
    valid_label_columns: tuple[str, ...] = ("label",)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `anchor_*` and `document_*` tokens, and the numbers that the loss needs under `label`."""
        rows = np.array([example["row"] for example in examples], dtype=np.int64)
        queries, anchor = np.unique(self.query[rows], return_inverse=True)
        documents, positive = np.unique(self.document[rows], return_inverse=True)
        extra = np.setdiff1d(self._drawn(queries, rows), documents)
        documents = np.concatenate([documents, extra])
        label = {"query": queries, "document": documents, "anchor": anchor, "positive": positive}
        return contrastive_batch(self.query_tokens, self.document_tokens, label)

    def _drawn(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        queries = queries[queries < len(self.pairs.queries)]
        drawn = []
        rng = np.random.default_rng([self.seed, len(rows), int(rows[0]), int(rows.sum())])
        for query in queries if self.negatives else ():
            low = self.pairs.low_documents[self.pairs.low_indptr[query] : self.pairs.low_indptr[query + 1]]
            drawn.append(low if len(low) <= self.negatives else rng.choice(low, self.negatives, replace=False))
        return np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)


def contrastive_batch(queries: Tokens, documents: Tokens, label: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return `anchor_*` and `document_*` tokens of a batch, and its `label`, which names them by number.

    Args:
        queries, documents: give the tokens.
        label: `query`, `document`, `anchor` and `positive`, as ContrastiveLoss takes them.
    """
    import torch

    return {
        **{f"anchor_{name}": value for name, value in queries.batch(label["query"]).items()},
        **{f"document_{name}": value for name, value in documents.batch(label["document"]).items()},
        "label": {name: torch.from_numpy(value) for name, value in label.items()},
    }


def _numbered(keys: list[str], texts: list[str]) -> tuple[list[str], np.ndarray]:
    places: dict[str, int] = {}
    first: list[str] = []
    numbers = np.empty(len(keys), dtype=np.int64)
    for row, (key, text) in enumerate(zip(keys, texts, strict=True)):
        place = places.setdefault(key, len(places))
        if place == len(first):
            first.append(text)
        numbers[row] = place
    return first, numbers
