"""Search in one cell of the grid: what is fitted once for a model, and the ranking that a cell gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import Rotation
from nestling.evaluation.cells import Cell
from nestling.retrieval.bm25 import PairScores
from nestling.retrieval.codec import Codec, Codes, fit_codec
from nestling.retrieval.exact_search import rescore, top_k
from nestling.retrieval.fusion import Top, inner_products
from nestling.retrieval.rotation import fit_search_rotation, rotated
from nestling.retrieval.trained_rotation import sampled, train_search_rotation
from nestling.retrieval.vectors import truncate

Matrix = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Full-size embeddings of queries and documents, rows of length 1.

    Attributes:
        queries: (n_queries, full) float32.
        documents: (n_documents, full) float32.
    """

    queries: Matrix
    documents: Matrix


@dataclass(eq=False)
class Fitted:
    """What cells need beside embeddings, fitted on those of the training side when it is first asked for.

    Attributes:
        train: gives the training side's embeddings; called once at most, and not at all for plain float32.
        dims: the prefixes that a trained rotation is for; as `train_search_rotation` has them by default.
    """

    train: Callable[[], Vectors]
    dims: tuple[int, ...] = ()
    _codecs: dict[tuple[str, int, str], Codec] = field(default_factory=dict)
    _rotations: dict[Rotation, Matrix] = field(default_factory=dict)

    @cached_property
    def vectors(self) -> Vectors:
        """The training side's embeddings."""
        return self.train()

    def rotation(self, name: Rotation) -> Matrix:
        """Return the rotation of cells that want one, (full, full) float32."""
        if name not in self._rotations:
            queries, documents = self.vectors.queries, self.vectors.documents
            if name == "pca":
                self._rotations[name] = fit_search_rotation(queries, documents)
            else:
                some = queries[sampled(len(queries))], documents[sampled(len(documents))]
                self._rotations[name] = train_search_rotation(*some, dims=self.dims)
        return self._rotations[name]

    def codec(self, cell: Cell) -> Codec:
        """Return the codec of a cell, fitted on training documents as the cell cuts them."""
        key = (cell.rotation, cell.dim, cell.precision)
        if key not in self._codecs:
            twin = self._codecs.get((cell.rotation, cell.dim, "int4" if cell.precision == "binary" else "binary"))
            if cell.precision in ("float32", "float16", "int8"):
                self._codecs[key] = Codec(cell.precision, cell.dim)
            elif twin is not None:
                # Both are fitted alike, and the fitting is most of what a small grid costs.
                self._codecs[key] = replace(twin, precision=cell.precision)
            else:
                self._codecs[key] = fit_codec(cell.precision, self.cut(cell, self.vectors.documents))
        return self._codecs[key]

    def cut(self, cell: Cell, embeddings: Matrix) -> Matrix:
        """Rotate embeddings (if at all), cut them to the cell's size and bring them back to length 1."""
        turned = embeddings if cell.rotation == "none" else rotated(embeddings, self.rotation(cell.rotation))
        return truncate(turned, cell.dim)


@dataclass(frozen=True, eq=False)
class CellSearch:
    """Queries and documents as one cell has them; `make` builds it.

    Attributes:
        queries: (n_queries, dim) float32, as the cell cuts them.
        full: embeddings at full size, for rescoring.
    """

    cell: Cell
    queries: Matrix
    codes: Codes
    codec: Codec
    full: Vectors

    @classmethod
    def make(cls, cell: Cell, vectors: Vectors, fitted: Fitted) -> CellSearch:
        """Cut and encode the embeddings of one side as `cell` says."""
        codec = fitted.codec(cell)
        codes = codec.encode(fitted.cut(cell, vectors.documents))
        return cls(cell, fitted.cut(cell, vectors.queries), codes, codec, vectors)

    def top(self, k: int) -> Top:
        """Return the `k` best documents of each query and their scores; equal scores go to the lower document."""
        if not self.cell.oversampling:
            return top_k(self.queries, self.codes, k, self.codec)
        found, _ = top_k(self.queries, self.codes, k * self.cell.oversampling, self.codec)
        return rescore(self.full.queries, found, self._stored, k)

    @cached_property
    def pair_scores(self) -> PairScores:
        """Scores any pair of query and document as the cell does in the end."""
        if self.cell.oversampling:
            return inner_products(self.full.queries, self._stored)
        return inner_products(self.queries, self.codec.decode(self.codes))

    @cached_property
    def _stored(self) -> Matrix:
        # What rescoring reads lies in float16, half the size.
        return self.full.documents.astype(np.float16).astype(np.float32)
