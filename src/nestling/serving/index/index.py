"""Search in an index: a shortlist from few bytes, rescored by whole vectors, with BM25 added."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError, unread
from nestling.models.encoder import Encoder, open_encoder
from nestling.retrieval.bm25 import Lexical, PairScores
from nestling.retrieval.codec import Codec, Codes
from nestling.retrieval.exact_search import rescore
from nestling.retrieval.fusion import Fusion, Top, inner_products
from nestling.serving.index import files
from nestling.serving.index.documents import Documents, Filters
from nestling.serving.index.files import Manifest
from nestling.serving.index.shortlist import Allowed, Exact, Inverted, Shortlist, has_library, library

logger = logging.getLogger(__name__)

Mode = Literal["fused", "dense", "lexical"]
TOP = 10
LONGER = 4
"""A shortlist is at least so many times as long as the list of results."""


def refuse_blank(queries: Sequence[str]) -> None:
    """Raise InputError where a query has no words, whose vector would be near to nothing or to anything."""
    if not all(query.strip() for query in queries):
        raise InputError("the query is blank; give words to search for")


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        rank: from 1.
        score: cosine, BM25's, or their weighted sum; comparable within one query.
        row: the document's row in the index.
    """

    rank: int
    document_id: str
    score: float
    text: str
    fields: dict[str, str]
    row: int


@dataclass(frozen=True, eq=False)
class Index:
    """An index that `nestling index` wrote; `Index.open` reads one. Safe to search from several threads.

    Attributes:
        path: its folder.
        encoder: what encodes queries.
        vectors: (n, dim) float16, in the file; None where the shortlist's codes are all there is.
        lexical: BM25; None where the index has none.
        fusion: how BM25 is added; None where it is not.
    """

    path: Path
    manifest: Manifest
    encoder: Encoder
    documents: Documents
    shortlist: Shortlist
    vectors: NDArray[np.float16]
    lexical: Lexical | None
    fusion: Fusion | None

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        model: str | None = None,
        engine: str = "torch-fp32",
        threads: int | None = None,
        verify: bool = False,
    ) -> Index:
        """Open an index.

        Args:
            model: what encodes queries; by default the index's folder `model` where there is one, else the model that
                the index was made with, where it lay then.
            engine: of a model that was not exported.
            threads: of an exported model.
            verify: read every file and compare its checksum; sizes are always compared.

        Raises:
            InputError: the folder is no index or a damaged one, or its model cannot be had or is another.
        """
        path = Path(path)
        manifest = files.read_manifest(path)
        while True:
            try:
                return cls._opened(path, manifest, model=model, engine=engine, threads=threads, verify=verify)
            except InputError:
                # An index that was brought up to date meanwhile has lost the files of a generation before.
                before, manifest = manifest, files.read_manifest(path)
                if manifest == before:
                    raise

    @classmethod
    def _opened(
        cls, path: Path, manifest: Manifest, *, model: str | None, engine: str, threads: int | None, verify: bool
    ) -> Index:
        folder = files.check(path, manifest, content=verify)
        inside = path / "model"
        name = model or (str(inside) if inside.is_dir() else manifest.model)
        try:
            encoder = open_encoder(name, engine=engine, threads=threads)
        except InputError as error:
            more = "" if model else f"; give the model of {path} with --model, or put it into {inside}"
            raise InputError(f"{error}{more}") from None
        if encoder.fingerprint != manifest.fingerprint:
            raise InputError(
                f"{path} was made with another model than {name} (fingerprint {manifest.fingerprint}, not "
                f"{encoder.fingerprint}); give its own with --model, or index again"
            )
        try:
            return cls._read(path, folder, manifest, encoder)
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError) as error:
            raise unread(folder, error, f"{folder} cannot be read ({error}); {files.AGAIN}") from None

    @classmethod
    def _read(cls, path: Path, folder: Path, manifest: Manifest, encoder: Encoder) -> Index:
        codec = Codec.load(folder / files.CODEC)
        lists = manifest.lists
        if lists and not has_library():
            logger.warning(
                "faiss is not installed, so all of %d documents are scanned, which is slower", manifest.documents
            )
            lists = 0
        # With an inverted file the codes are for filters only, so they stay in the file.
        mode: Any = "r" if lists else None
        scales = np.load(folder / files.SCALES, mmap_mode=mode) if (folder / files.SCALES).exists() else None
        codes = Codes(np.load(folder / files.CODES, mmap_mode=mode), scales, codec.fingerprint)
        exact = Exact(codec, codes)
        shortlist: Shortlist = exact
        if lists:
            shortlist = Inverted(library().read_index(str(folder / files.INVERTED)), exact, lists)
        documents = Documents.load(folder)
        vectors = np.load(folder / files.VECTORS, mmap_mode="r")
        if not len(documents) == len(vectors) == len(codes) == manifest.documents:
            raise ValueError("its files are of different numbers of documents")
        lexical = folder / files.LEXICAL
        return cls(
            path,
            manifest,
            encoder,
            documents,
            shortlist,
            vectors,
            Lexical.load(lexical) if lexical.is_dir() else None,
            Fusion.from_dict(manifest.fusion) if manifest.fusion else None,
        )

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways in which this index can be searched, the best first."""
        modes: list[Mode] = ["dense"]
        if self.lexical is not None:
            modes.append("lexical")
            if self.fusion is not None:
                modes.insert(0, "fused")
        return tuple(modes)

    def search(
        self, queries: Sequence[str], k: int = TOP, *, mode: Mode | None = None, filters: Filters | None = None
    ) -> list[list[Hit]]:
        """Return the `k` best documents of each query, best first; fewer where fewer fit.

        Args:
            queries: texts; not one string.
            mode: `dense`, `lexical`, or `fused`: their weighted sum; by default the first of `modes`.
            filters: field -> a value or several of which one is enough; all fields must fit.

        Raises:
            InputError: the index cannot be searched in that way, or has no such field; or a query is blank.
            ValueError: k is below 1, or `queries` is one string.
        """
        if isinstance(queries, str):
            raise ValueError("search takes a list of queries, not one string")
        refuse_blank(queries)
        chosen = mode or self.modes[0]
        if chosen not in self.modes:
            raise InputError(f"{self.path} cannot be searched by {chosen!r}; it can by {', '.join(self.modes)}")
        allowed = self.documents.allowed(filters)
        if chosen == "lexical" and self.lexical is not None:
            return self.hits(self.lexical.top_k(queries, k, allowed=allowed))
        vectors = self.encoder.encode(queries, kind="query")
        return self.search_vectors(vectors, k, queries=queries if chosen == "fused" else None, allowed=allowed)

    def search_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int = TOP,
        *,
        queries: Sequence[str] | None = None,
        allowed: Allowed = None,
    ) -> list[list[Hit]]:
        """Search by vectors that the index's own encoder made; with the queries themselves BM25 is added.

        Args:
            vectors: (n_queries, dim) float32.
            queries: their texts, for fusion.
            allowed: (n_documents,) bool, of the documents to search.
        """

        def dense(n: int) -> Top:
            return self.top_k(vectors, n, allowed=allowed)

        if queries is None or self.fusion is None:
            return self.hits(dense(k))
        return self.hits(self.fuse(queries, k, dense, inner_products(vectors, self.vectors), allowed))

    def fuse(
        self,
        queries: Sequence[str],
        k: int,
        dense: Callable[[int], Top],
        dense_scores: PairScores,
        allowed: Allowed = None,
    ) -> Top:
        """Return the `k` best of a dense search with BM25 added as this index adds it; see `Fusion.fuse`.

        Args:
            dense: gives so many of the best documents of each query.

        Raises:
            InputError: the index adds no BM25.
        """
        if self.fusion is None or self.lexical is None:
            raise InputError("this index adds no BM25; choose dense or lexical")
        depth = max(self.fusion.depth, k)
        by_words = self.lexical.top_k(queries, depth, allowed=allowed)
        of_words = self.lexical.pair_scores(queries)
        return self.fusion.fuse(dense(depth), by_words, k, dense_scores=dense_scores, lexical_scores=of_words)

    def top_k(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        allowed: Allowed = None,
        shortlist: int | None = None,
        lists: int | None = None,
    ) -> Top:
        """Return the rows of the `k` best by vectors and their cosines, (n_queries, k) each; -1 and -inf pad.

        A vector of zeros finds nothing.

        Args:
            shortlist: candidates to rescore; by default the number that the index was made for, or four times `k`.
            lists: of an inverted file to look into; by default as the index was made.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        k = min(k, len(self))
        m = min(len(self), max(k, shortlist or max(self.manifest.shortlist, LONGER * k)))
        found = self.shortlist.candidates(vectors, m, allowed, lists)
        # A query without a single piece that the model knows is as near to any document as to any other.
        found[~vectors.any(axis=1)] = -1
        return rescore(vectors, found, self.vectors, k)

    def hits(self, top: Top) -> list[list[Hit]]:
        """Return the documents of rows and scores, (n_queries, k) each; -1 is no row."""
        return [
            [
                Hit(rank, document["id"], float(score), document["text"], document["fields"], int(row))
                for rank, (row, score) in enumerate(zip(rows[rows >= 0], scores[rows >= 0], strict=True), start=1)
                for document in [self.documents.get(int(row))]
            ]
            for rows, scores in zip(*top, strict=True)
        ]
