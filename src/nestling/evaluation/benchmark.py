"""Benchmark: one test side on which models, BM25 and the fusion of both are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

from nestling.config.experiment import EvaluationSettings
from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell
from nestling.evaluation.fusion_weight import fit_fusion
from nestling.evaluation.grid import System
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.split import Split
from nestling.judgments.table import Judgments
from nestling.models.engines.engine import Sample
from nestling.progress import Observer
from nestling.retrieval.bm25 import Lexical, PairScores
from nestling.retrieval.fusion import Fusion, Top

STEMMED = "bm25-stemmed"
CANDIDATES = 100

Embed = Callable[[Sequence[str], Kind], Any]
"""Gives the full-size embeddings of texts, (n, full) float32 with rows of length 1."""


class Measured(NamedTuple):
    """One model's figures, alone and with BM25 added, and the number of distinct texts encoded in `seconds`."""

    alone: System
    fused: System | None
    fusions: dict[Cell, Fusion]
    texts: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A test side, and the sides that may be learnt from."""

    test: Qrels
    dev: Qrels | None
    """The side on which fusion weights are chosen; None for no fusion."""
    train: Judgments | None
    """The side on which rotations and codecs are fitted; None: queries of dev (else test), documents of test."""
    measures: tuple[Measure, ...]
    language: str = "english"

    @classmethod
    def of(
        cls,
        data: Split | Judgments,
        settings: EvaluationSettings,
        threshold: float,
        *,
        side: Literal["dev", "test"] = "test",
        observer: Observer | None = None,
    ) -> Benchmark:
        """Make one side of a split the test side, or a table as it is; a dev that is measured is not learnt from."""
        qrels = partial(Qrels.from_judgments, threshold=threshold, protocol=settings.protocol)
        test = qrels(data if isinstance(data, Judgments) else data.sides[side])
        if test.n_merged and observer is not None:
            observer.note(f"{test.n_merged:,} documents have the text of another one and count as one with it")
        dev = None
        if isinstance(data, Split) and side == "test":
            # Nothing relevant to choose a weight by: the study goes on without fusions.
            with suppress(InputError):
                dev = qrels(data.dev)
        train = data.train if isinstance(data, Split) else None
        return cls(test, dev, train, tuple(map(Measure.parse, settings.measures)), settings.language)

    @property
    def sample(self) -> Sample:
        """The sample of an int8 engine: the training side to calibrate it on, the dev side to try it on."""
        texts = sum(side.n_queries + side.n_documents for side in (self.test, self.dev) if side is not None)
        judged = None if self.dev is None else (self.dev.queries, self.dev.documents, self.dev.relevant)
        queries, documents = self.test.queries, self.test.documents
        if self.train is not None:
            queries, documents = (self.train.frame[side].to_list() for side in ("query", "document"))
        return Sample(queries, documents, texts, judged)

    def lexical(self, name: str) -> System:
        """Measure BM25, `bm25` or `bm25-stemmed`."""
        index = Lexical.fit(self.test.documents, stem=name == STEMMED, language=self.language)
        return System.of([(None, index.top_k(self.test.queries, self._deepest))], self.test, self.measures)

    def model(self, embed: Embed, cells: Sequence[Cell], *, fuse: bool) -> Measured:
        """Measure a model in every cell, alone and, with `fuse` and a dev side, with stemmed BM25 added."""
        start = time.perf_counter()
        vectors, fitted = self.vectors(embed), self.fitted(embed, cells)
        seconds = time.perf_counter() - start
        alone, fused, fusions = self.measure(vectors, cells, fitted), None, {}
        if fuse and self.dev is not None:
            fusions = replace(self, test=self.dev, dev=None).fusions(embed, cells, fitted)
            fused = self.measure(vectors, cells, fitted, fusions)
        return Measured(alone, fused, fusions, len(set(self.test.queries)) + len(set(self.test.documents)), seconds)

    def vectors(self, embed: Embed) -> Vectors:
        """Encode the test side."""
        return Vectors(embed(self.test.queries, "query"), embed(self.test.documents, "document"))

    def fitted(self, embed: Embed, cells: Sequence[Cell]) -> Fitted:
        """Return what fits the rotations and codecs of the cells, each text of the training side encoded once."""

        def train() -> Vectors:
            queries, documents = (self.dev or self.test).queries, self.test.documents
            if self.train is not None:
                queries, documents = (self.train.frame[side].to_list() for side in ("query", "document"))
            return Vectors(
                embed(list(dict.fromkeys(queries)), "query"), embed(list(dict.fromkeys(documents)), "document")
            )

        return Fitted(train, tuple(sorted({cell.dim for cell in cells}, reverse=True)))

    def measure(
        self, vectors: Vectors, cells: Sequence[Cell], fitted: Fitted, fusions: Mapping[Cell, Fusion] | None = None
    ) -> System:
        """Search the test side in each cell and measure each query, alone or, with fusions, with BM25 added."""

        def top(cell: Cell) -> Top:
            search = CellSearch(cell, vectors, fitted)
            if fusions is None:
                return search.top(self._deepest)
            words, pairs = self._words
            dense = search.top(self._depth)
            return fusions[cell].fuse(
                dense, words, self._deepest, dense_scores=search.pair_scores, lexical_scores=pairs
            )

        return System.of(((cell, top(cell)) for cell in cells), self.test, self.measures)

    def fusions(self, embed: Embed, cells: Sequence[Cell], fitted: Fitted) -> dict[Cell, Fusion]:
        """Choose, on this very side, the weight of BM25 in each cell; so call it on dev."""
        vectors, (words, pairs) = self.vectors(embed), self._words
        fusions = {}
        for cell in cells:
            search = CellSearch(cell, vectors, fitted)
            dense = search.top(self._depth)
            fusion = fit_fusion(dense, words, self.test, dense_scores=search.pair_scores, lexical_scores=pairs)
            # A small dev side has fewer documents to choose from than the side that is measured.
            fusions[cell] = replace(fusion, depth=self._depth)
        return fusions

    @property
    def _deepest(self) -> int:
        return max(measure.k for measure in self.measures)

    @property
    def _depth(self) -> int:
        return max(CANDIDATES, self._deepest)

    @cached_property
    def _words(self) -> tuple[Top, PairScores]:
        """The best documents by stemmed BM25, and what scores pairs by it."""
        index = Lexical.fit(self.test.documents, language=self.language)
        return index.top_k(self.test.queries, self._depth), index.pair_scores(self.test.queries)
