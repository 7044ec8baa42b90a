"""One test side on which models, BM25 and the fusion of both are measured alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import polars as pl

from nestling.config.experiment import EvaluationSettings
from nestling.config.names import Kind
from nestling.errors import InputError
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell, sizes_in
from nestling.evaluation.fusion_weight import fit_fusion
from nestling.evaluation.grid import System, measure_cells, measure_tops
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


@dataclass(frozen=True)
class Measured:
    """One model's figures.

    Attributes:
        alone: those of the model by itself.
        fused: those with BM25 added, where it was asked for.
        fusions: for each cell the fusion that was fitted on dev.
        texts: how many distinct texts of the test side were encoded, in `seconds` (none where a cache had them).
    """

    alone: System
    fused: System | None
    fusions: dict[Cell, Fusion]
    texts: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A test side, and the sides that may be learnt from.

    Attributes:
        test: what is measured.
        dev: what fusion weights are chosen on; None leaves fusions out.
        train: what rotations and codecs are fitted on; None takes dev's queries, or where there is no dev the very
            queries that are measured, and the test side's documents. No judgment is used.
        measures: what is measured, the first two first.
        language: of the stemmer.
    """

    test: Qrels
    dev: Qrels | None
    train: Judgments | None
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
        """Make one side of a split the test side, or a table as it is; a dev that is measured is not learnt from.

        Args:
            observer: told how many documents of that side have the text of another.

        Raises:
            InputError: nothing on that side is relevant.
        """

        def qrels(judgments: Judgments) -> Qrels:
            return Qrels.from_judgments(judgments, threshold=threshold, protocol=settings.protocol)

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
        """What an int8 engine is calibrated on, the training side, and tried on, the dev side."""
        texts = sum(side.n_queries + side.n_documents for side in (self.test, self.dev) if side is not None)
        if self.train is None:
            return Sample(self.test.queries, self.test.documents, texts, self.dev)
        frame = self.train.frame
        return Sample(frame["query"].to_list(), frame["document"].to_list(), texts, self.dev)

    def lexical(self, name: str) -> System:
        """Measure BM25, `bm25` or `bm25-stemmed`, on the test side; its rows have dim 0."""
        index = self._index(stem=name == STEMMED)
        top = index.top_k(self.test.queries, self._deepest)
        return measure_tops([(None, top)], self.test, self.measures)

    def model(self, embed: Embed, cells: Sequence[Cell], *, fuse: bool) -> Measured:
        """Measure a model in every cell, alone and, with `fuse` and a dev side, with stemmed BM25 added.

        Args:
            embed: encodes with the model.
        """
        start = time.perf_counter()
        vectors = self.vectors(embed)
        seconds = time.perf_counter() - start
        fitted = Fitted(lambda: self.training(embed), sizes_in(cells))
        alone = measure_cells(vectors, self.test, cells, self.measures, fitted)
        fusions: dict[Cell, Fusion] = {}
        fused = None
        if fuse and self.dev is not None:
            fusions = replace(self, test=self.dev, dev=None).fusions(embed, cells, fitted)
            fused = self.fused(vectors, fusions, fitted)
        return Measured(alone, fused, fusions, len(set(self.test.queries)) + len(set(self.test.documents)), seconds)

    def vectors(self, embed: Embed) -> Vectors:
        """Encode the test side."""
        return Vectors(embed(self.test.queries, "query"), embed(self.test.documents, "document"))

    def training(self, embed: Embed) -> Vectors:
        """Encode what rotations and codecs are fitted on, each text once."""
        if self.train is not None:
            queries, documents = self.train.frame["query"], self.train.frame["document"]
        else:
            queries, documents = pl.Series((self.dev or self.test).queries), pl.Series(self.test.documents)
        return Vectors(
            embed(queries.unique(maintain_order=True).to_list(), "query"),
            embed(documents.unique(maintain_order=True).to_list(), "document"),
        )

    def fusions(self, embed: Embed, cells: Sequence[Cell], fitted: Fitted) -> dict[Cell, Fusion]:
        """Choose, on this very side, the weight of BM25 in each cell; so call it on dev."""
        vectors, (top, pairs) = self.vectors(embed), self._words
        found = {}
        for cell in cells:
            search = CellSearch.make(cell, vectors, fitted)
            fusion = fit_fusion(
                search.top(self._depth), top, self.test, dense_scores=search.pair_scores, lexical_scores=pairs
            )
            # A small dev side has fewer documents to choose from than the side that is measured.
            found[cell] = replace(fusion, depth=self._depth)
        return found

    def fused(self, vectors: Vectors, fusions: Mapping[Cell, Fusion], fitted: Fitted) -> System:
        """Measure the fusion of each cell with BM25."""

        def fuse(cell: Cell, fusion: Fusion) -> Top:
            search = CellSearch.make(cell, vectors, fitted)
            top, pairs = self._words
            return fusion.fuse(
                search.top(self._depth), top, self._deepest, dense_scores=search.pair_scores, lexical_scores=pairs
            )

        tops = ((cell, fuse(cell, fusion)) for cell, fusion in fusions.items())
        return measure_tops(tops, self.test, self.measures)

    @property
    def _deepest(self) -> int:
        return max(measure.k for measure in self.measures)

    @property
    def _depth(self) -> int:
        # A ranking that is measured deeper would end with its candidates.
        return max(CANDIDATES, self._deepest)

    @cached_property
    def _words(self) -> tuple[Top, PairScores]:
        index = self._index(stem=True)
        return index.top_k(self.test.queries, self._depth), index.pair_scores(self.test.queries)

    def _index(self, *, stem: bool) -> Lexical:
        return Lexical.fit(self.test.documents, stem=stem, language=self.language)
