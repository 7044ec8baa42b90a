"""Search in one cell of the grid: what is fitted once for a model, and the ranking that a cell gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Rotation
from nestling.evaluation.cells import Cell
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.codec import Codec, fit_codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.fusion import Top, inner_products
from nestling.retrieval.rotation import fit_search_rotation, rotated
from nestling.retrieval.trained_rotation import sampled, train_search_rotation
from nestling.retrieval.vectors import truncate

Matrix = NDArray[np.float32]


class Vectors(NamedTuple):
    """Full-size embeddings of queries and documents, (n, full) float32 each, rows of length 1."""

    queries: Matrix
    documents: Matrix


class Fitted:
    """Rotations and codecs of cells, fitted on the training side's embeddings when they are first needed."""

    def __init__(self, train: Callable[[], Vectors], dims: tuple[int, ...] = ()) -> None:
        """Take what gives those embeddings, which plain float32 never calls, and the sizes to train a rotation for."""
        self._train, self._dims = cache(train), dims
        self._codecs: dict[tuple[str, int], Codec] = {}
        self._rotations: dict[Rotation, Matrix] = {}

    def rotation(self, name: Rotation) -> Matrix:
        """Return a rotation, (full, full) float32."""
        if name not in self._rotations:
            queries, documents = self._train()
            if name == "pca":
                self._rotations[name] = fit_search_rotation(queries, documents)
            else:
                sample = queries[sampled(len(queries))], documents[sampled(len(documents))]
                self._rotations[name] = train_search_rotation(*sample, dims=self._dims)
        return self._rotations[name]

    def codec(self, cell: Cell) -> Codec:
        """Return the codec of a cell, fitted on training documents as the cell cuts them."""
        if cell.precision not in ("int4", "binary"):
            return Codec(cell.precision, cell.dim)
        # Both have the same fit, which is most of what a small grid costs.
        key = (cell.rotation, cell.dim)
        if key not in self._codecs:
            self._codecs[key] = fit_codec(cell.precision, self.cut(cell, self._train().documents))
        return replace(self._codecs[key], precision=cell.precision)

    def cut(self, cell: Cell, embeddings: Matrix) -> Matrix:
        """Rotate embeddings (if at all), cut them to the cell's size and bring them back to length 1."""
        if cell.rotation != "none":
            embeddings = rotated(embeddings, self.rotation(cell.rotation))
        return truncate(embeddings, cell.dim)


class CellSearch:
    """Search of documents that are stored as one cell says."""

    def __init__(self, cell: Cell, vectors: Vectors, fitted: Fitted) -> None:
        self._oversampling, self._full = cell.oversampling, vectors
        self.codec = fitted.codec(cell)
        self._queries = fitted.cut(cell, vectors.queries)
        self._codes = self.codec.encode(fitted.cut(cell, vectors.documents))

    def top(self, k: int) -> Top:
        """Return the `k` best documents of each query and their scores; equal scores go to the lower document."""
        if not self._oversampling:
            return top_k(self._queries, self._codes, k, self.codec)
        shortlist, _ = top_k(self._queries, self._codes, k * self._oversampling, self.codec)
        return rescore(self._full.queries, shortlist, self._stored, k)

    @cached_property
    def pair_scores(self) -> PairScores:
        """A function that scores any pair of query and document as the ranking does."""
        if self._oversampling:
            return inner_products(self._full.queries, self._stored)
        return inner_products(self._queries, self.codec.decode(self._codes))

    @cached_property
    def _stored(self) -> Matrix:
        # What rescoring reads lies in float16, half the size.
        return self._full.documents.astype(np.float16).astype(np.float32)
