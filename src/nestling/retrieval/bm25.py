"""BM25 over a corpus, plain or stemmed: the lexical baseline beside dense models, and one half of a fusion.

Scores are those of Lucene (the variant as Kamphuis et al. 2020 write it, without the constant factor k1 + 1), computed
by bm25s (Lù 2024, arXiv 2407.03618). Words are stemmed by Snowball (PyStemmer).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
from numpy.typing import NDArray

from nestling import atomic
from nestling.errors import InputError, unread
from nestling.judgments.identity import normalise

if TYPE_CHECKING:
    import bm25s  # type: ignore[import-untyped]


class NoWordsError(InputError):
    """No document holds a word that BM25 could go by."""


PairScores = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""Scores of pairs: (n,) int64 query rows and (n,) int64 document columns -> (n,) float32."""

K1, B = 0.6, 0.75
"""Titles say a word once or not at all, so a second time should count little."""

SETTINGS = "lexical.json"
FORMAT = 1

# A number and its unit are words of their own, so that "18v" finds "18-volt" by its 18 and "4ft" finds "4 ft.".
# Fractions and decimals stay whole. Marks belong to the letter before them, without which Hindi falls to pieces.
_WORD = regex.compile(r"\p{N}+(?:[./]\p{N}+)*|[\p{L}\p{M}]+")
# Compatibility normalisation writes 1½ as 11⁄2.
_FRACTION = re.compile("([\u00bc-\u00be\u2150-\u215f\u2189])")


@dataclass(frozen=True, eq=False)
class Lexical:
    """BM25 over a corpus. `fit` makes one, `load` reads one that `save` wrote."""

    language: str | None
    """The Snowball stemmer that words go through, as PyStemmer names it; None leaves words as they are."""
    n_documents: int
    index: bm25s.BM25
    """The library's index; its vocabulary holds stems."""

    @classmethod
    def fit(cls, documents: Sequence[str], *, stem: bool = True, language: str = "english") -> Lexical:
        """Index a corpus, one text a column, some of them empty; NoWordsError where no document holds a word.

        With `stem`, words are brought to their stems in the language, so that "drills" finds "drill". Scripts without
        spaces between words are not segmented.
        """
        name = language if stem else None
        words, distinct = _words(documents)
        if not distinct:
            raise NoWordsError(f"BM25 needs a word to go by; none of {len(documents)} documents holds one")
        stems = _stemmed(distinct, name)
        vocabulary = {term: i for i, term in enumerate(dict.fromkeys(stems))}
        ids = {word: vocabulary[term] for word, term in zip(distinct, stems, strict=True)}
        index = _library().BM25(k1=K1, b=B, method="lucene", backend="numpy")
        corpus = [[ids[word] for word in row] for row in words], vocabulary
        # An empty word, which the library would add, would be no column of its matrix.
        index.index(corpus, create_empty_token=False, show_progress=False)
        return cls(name, len(documents), index)

    def top_k(
        self, queries: Sequence[str], k: int, *, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the `k` documents of the highest scores for each query, best first; equal scores by lower column.

        A document that shares no word with the query is not retrieved, as in Lucene and so in its TREC runs; -1 with
        a score of 0 pads the row. A word that a query repeats counts as often. Only documents of `allowed`,
        (n_documents,) bool, are ranked, by default all.

        Returns indices, (n_queries, min(k, n_documents)) int64, and scores, the same shape, float32, descending.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        k = min(k, self.n_documents)
        indices = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for row, terms in enumerate(self._terms(queries)):
            every = self.index.get_scores_from_ids(terms)
            columns = np.flatnonzero(every if allowed is None else (every > 0) & allowed)
            if len(columns) > k:
                kth = np.partition(every[columns], -k)[-k]
                columns = columns[every[columns] >= kth]
            best = columns[np.argsort(-every[columns], kind="stable")[:k]]
            indices[row, : len(best)], scores[row, : len(best)] = best, every[best]
        return indices, scores

    def pair_scores(self, queries: Sequence[str]) -> PairScores:
        """Return what scores pairs of these queries and documents, to the last bit as `top_k` does."""
        terms = self._terms(queries)
        data, postings, starts = (self.index.scores[name] for name in ("data", "indices", "indptr"))

        def of_pairs(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
            scores = np.zeros(len(rows), dtype=np.float32)
            order = np.argsort(rows, kind="stable")
            query_rows, first = np.unique(rows[order], return_index=True)
            for row, start, stop in zip(query_rows, first, np.append(first, len(rows))[1:], strict=True):
                places = order[start:stop]
                documents = columns[places]
                for term in terms[row]:
                    holders = postings[starts[term] : starts[term + 1]]
                    place = np.searchsorted(holders, documents).clip(max=len(holders) - 1)
                    held = holders[place] == documents
                    scores[places] += np.where(held, data[starts[term] + place], np.float32(0))
            return scores

        return of_pairs

    def save(self, folder: Path) -> None:
        """Write the index into a folder of its own (arrays as .npy, the rest as JSON), whole or not at all."""
        with atomic.new_folder(folder) as temporary:
            self.index.save(temporary, show_progress=False)
            atomic.write_json(temporary / SETTINGS, {"format": FORMAT, "language": self.language})

    @classmethod
    def load(cls, folder: Path) -> Lexical:
        """Read what `save` wrote; postings stay in the file, and what a query needs of them is read."""
        library = _library()
        try:
            settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            version, language = settings["format"], settings["language"]
            if version == FORMAT:
                index = library.BM25.load(folder, mmap=True, show_progress=False)
                n_documents = _checked(index)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            what = f"{folder} holds no BM25 index that can be read ({error}); build it anew"
            raise unread(folder / SETTINGS, error, what) from error
        if version != FORMAT:
            raise InputError(f"{folder} holds a BM25 index of format {version}, not {FORMAT}; build it anew")
        _stemmed([], language)
        return cls(language, n_documents, index)

    def _terms(self, queries: Sequence[str]) -> list[list[int]]:
        """Return the vocabulary's numbers of each query's words."""
        words, distinct = _words(queries)
        ids = dict(zip(distinct, map(self.index.vocab_dict.get, _stemmed(distinct, self.language)), strict=True))
        return [[term for word in row if (term := ids[word]) is not None] for row in words]


def _words(texts: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Return the words of each text, and all distinct ones."""
    plain = (normalise(_FRACTION.sub(r" \1", text)).replace("\u2044", "/") for text in texts)
    words = [_WORD.findall(text) for text in plain]
    return words, list(dict.fromkeys(word for row in words for word in row))


def _stemmed(words: list[str], language: str | None) -> list[str]:
    if language is None:
        return words
    import Stemmer  # type: ignore[import-not-found]

    try:
        # One that is shared between threads would be corrupted, and making one costs microseconds.
        stems: list[str] = Stemmer.Stemmer(language).stemWords(words)
    except KeyError:
        known = ", ".join(Stemmer.algorithms())
        raise InputError(f"there is no stemmer for {language!r}; choose one of {known}") from None
    return stems


def _library() -> Any:
    # Where jax is installed the library tries it out when it is imported, and jax takes three quarters of a GPU's
    # memory at its first call unless told otherwise.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import bm25s

    return bm25s


def _checked(index: bm25s.BM25) -> int:
    """Return the number of documents of an index whose parts fit each other."""
    data, postings, starts = (index.scores[name] for name in ("data", "indices", "indptr"))
    n_documents = int(index.scores["num_docs"])
    fits = (
        starts[-1] == len(data) == len(postings)
        and postings.min() >= 0
        and postings.max() < n_documents
        and sorted(index.vocab_dict.values()) == list(range(len(starts) - 1))
    )
    if not fits:
        raise ValueError("its files do not fit each other")
    return n_documents
