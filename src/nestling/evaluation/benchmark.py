"""One test side on which models, BM25 and the fusion of both are measured alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from nestling.config.names import Kind
from nestling.evaluation.cell_search import CellSearch, Fitted, Vectors
from nestling.evaluation.cells import Cell, sizes_in
from nestling.evaluation.fusion_weight import fit_fusion
from nestling.evaluation.grid import RANKED, Seen, by_query, measure_cells, ranked
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.table import Judgments
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
        alone: a table as `measure_cells` returns.
        fused: the same with BM25 added, where it was asked for.
        fusions: for each cell the fusion that was fitted on dev.
        ranked, ranked_fused: the documents on top in the plain float32 cells, rows of `grid.RANKED`.
        texts: how many distinct texts of the test side were encoded, in `seconds` (none where a cache had them).
        engine: what encoded them.
    """

    alone: pl.DataFrame
    fused: pl.DataFrame | None
    fusions: dict[Cell, Fusion]
    ranked: pl.DataFrame
    ranked_fused: pl.DataFrame
    texts: int
    seconds: float
    engine: str = ""


@dataclass(frozen=True, eq=False)
class Contest:
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

    def lexical(self, name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Measure BM25, `bm25` or `bm25-stemmed`, on the test side.

        Returns:
            a table as `measure_cells` returns, dim 0; and the documents on top, rows of `grid.RANKED`.
        """
        index = self._index(stem=name == STEMMED)
        top = index.top_k(self.test.queries, max(measure.k for measure in self.measures))
        return by_query(None, top[0], self.test, self.measures), ranked(None, top, self.test)

    def model(self, embed: Embed, cells: Sequence[Cell], *, fuse: bool) -> Measured:
        """Measure a model in every cell, alone and, with `fuse` and a dev side, with stemmed BM25 added.

        Args:
            embed: encodes with the model.
        """
        start = time.perf_counter()
        vectors = self.vectors(embed)
        seconds = time.perf_counter() - start
        fitted = Fitted(lambda: self.training(embed), sizes_in(cells))
        tops: list[pl.DataFrame] = [pl.DataFrame(schema=RANKED)]
        fused_tops: list[pl.DataFrame] = [pl.DataFrame(schema=RANKED)]
        alone = measure_cells(vectors, self.test, cells, self.measures, fitted, seen=self._keep(tops))
        fusions: dict[Cell, Fusion] = {}
        fused = None
        if fuse and self.dev is not None:
            chooser = replace(self, test=self.dev, dev=None)
            fusions = chooser.fusions(embed, cells, fitted)
            fused = self.fused(vectors, fusions, fitted, seen=self._keep(fused_tops))
        texts = len(set(self.test.queries)) + len(set(self.test.documents))
        return Measured(alone, fused, fusions, pl.concat(tops), pl.concat(fused_tops), texts, seconds)

    def _keep(self, into: list[pl.DataFrame]) -> Seen:
        def keep(cell: Cell | None, top: Top) -> None:
            if cell is None or cell == Cell(cell.dim):
                into.append(ranked(cell, top, self.test))

        return keep

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

    def fused(
        self, vectors: Vectors, fusions: Mapping[Cell, Fusion], fitted: Fitted, *, seen: Seen | None = None
    ) -> pl.DataFrame:
        """Measure the fusion of each cell with BM25; a table as `measure_cells` returns."""
        top, pairs = self._words
        deepest = max(measure.k for measure in self.measures)
        tables = []
        for cell, fusion in fusions.items():
            search = CellSearch.make(cell, vectors, fitted)
            fused = fusion.fuse(
                search.top(self._depth),
                top,
                deepest,
                dense_scores=search.pair_scores,
                lexical_scores=pairs,
            )
            if seen is not None:
                seen(cell, fused)
            tables.append(by_query(cell, fused[0], self.test, self.measures))
        return pl.concat(tables)

    @property
    def _depth(self) -> int:
        # A ranking that is measured deeper would end with its candidates.
        return max(CANDIDATES, *(measure.k for measure in self.measures))

    @cached_property
    def _words(self) -> tuple[Top, PairScores]:
        index = self._index(stem=True)
        return index.top_k(self.test.queries, self._depth), index.pair_scores(self.test.queries)

    def _index(self, *, stem: bool) -> Lexical:
        return Lexical.fit(self.test.documents, stem=stem, language=self.language)
