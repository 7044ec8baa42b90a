"""Search in an index: a shortlist from few bytes, rescored by whole vectors, with BM25 added."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nestling.errors import InputError, unread
from nestling.models.encoder import Encoder, open_encoder
from nestling.retrieval.bm25 import Lexical
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


def check_queries(queries: Sequence[str]) -> None:
    """Refuse one string, and a query without words, whose vector would be near to nothing or to anything."""
    if isinstance(queries, str):
        raise ValueError("search takes a list of queries, not one string")
    if not all(query.strip() for query in queries):
        raise InputError("the query is blank; give words to search for")


@dataclass(frozen=True)
class Hit:
    """One result, of a rank from 1; its score is a cosine, BM25's or their weighted sum, comparable within a query."""

    rank: int
    document_id: str
    score: float
    text: str
    fields: dict[str, str]
    row: int


@dataclass(frozen=True, eq=False)
class Index:
    """An index that `nestling index` wrote; `Index.open` reads one. Safe to search from several threads.

    `vectors` are (n, dim) float16, mapped; `lexical` and `fusion` are BM25 and how it is added.
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
        """Open an index; InputError where the folder is none, or is damaged, or its model is another or missing.

        Args:
            model: the encoder of queries; by default the index's folder `model` where there is one, else the model
                that the index was made with, where it lay then.
            engine: of a model that was not exported.
            threads: of an exported model.
            verify: compare every file's checksum; sizes are always compared.
        """
        path = Path(path)
        manifest = files.read_manifest(path)
        while True:
            try:
                folder = files.check(path, manifest, content=manifest.files if verify else ())
                encoder = _encoder(path, manifest, model, engine, threads)
                return cls._read(path, folder, manifest, encoder)
            except InputError:
                # An index that was brought up to date meanwhile has lost the files of a generation before.
                before, manifest = manifest, files.read_manifest(path)
                if manifest == before:
                    raise

    @classmethod
    def _read(cls, path: Path, folder: Path, manifest: Manifest, encoder: Encoder) -> Index:
        lists, n = manifest.lists, manifest.documents
        if lists and not has_library():
            lists = 0
            logger.warning("faiss is not installed, so all of %d documents are scanned, which is slower", n)
        try:
            codec = Codec.load(folder / files.CODEC)
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
            if not len(documents) == len(vectors) == len(codes) == n:
                raise ValueError("its files are of different numbers of documents")
            lexical = Lexical.load(folder / files.LEXICAL) if (folder / files.LEXICAL).is_dir() else None
            fusion = Fusion.from_dict(manifest.fusion) if manifest.fusion else None
        except InputError:
            raise
        except (OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError) as error:
            raise unread(folder, error, f"{folder} cannot be read ({error}); {files.AGAIN}") from None
        return cls(path, manifest, encoder, documents, shortlist, vectors, lexical, fusion)

    def __len__(self) -> int:
        return self.manifest.documents

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The ways to search this index, the best first."""
        if self.lexical is None:
            return ("dense",)
        return ("dense", "lexical") if self.fusion is None else ("fused", "dense", "lexical")

    def search(
        self,
        queries: Sequence[str],
        k: int = TOP,
        *,
        mode: Mode | None = None,
        filters: Filters | None = None,
        vectors: NDArray[np.float32] | None = None,
        cell: Exact | None = None,
    ) -> list[list[Hit]]:
        """Return the `k` best documents of each query, best first; fewer where fewer fit.

        Args:
            mode: `dense`, `lexical`, or `fused`: their weighted sum; by default the first of `modes`.
            vectors: of the queries, by the index's own encoder; (n_queries, dim).
            cell: codes to search instead of the index's own.
        """
        check_queries(queries)
        chosen = mode or self.modes[0]
        if chosen not in self.modes:
            raise InputError(f"{self.path} cannot be searched by {chosen!r}; it can by {', '.join(self.modes)}")
        allowed = self.documents.allowed(filters)
        if chosen == "lexical" and self.lexical is not None:
            return self._hits(self.lexical.top_k(queries, k, allowed=allowed))
        embedded = self.encoder.encode(queries, kind="query") if vectors is None else vectors
        dense = self.top_k if cell is None else cell.top_k
        if self.fusion is None or self.lexical is None or chosen == "dense":
            return self._hits(dense(embedded, k, allowed))
        depth = max(self.fusion.depth, k)
        top = self.fusion.fuse(
            dense(embedded, depth, allowed),
            self.lexical.top_k(queries, depth, allowed=allowed),
            k,
            dense_scores=cell.pair_scores(embedded) if cell else inner_products(embedded, self.vectors),
            lexical_scores=self.lexical.pair_scores(queries),
        )
        return self._hits(top)

    def top_k(self, vectors: NDArray[np.float32], k: int, allowed: Allowed = None) -> Top:
        """Return rows and cosines of the `k` best, (n_queries, k), padded by -1 and -inf; a zero vector has none."""
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        k = min(k, len(self))
        m = min(len(self), max(self.manifest.shortlist, LONGER * k))
        candidates = self.shortlist.candidates(vectors, m, allowed)
        # A query without a single piece that the model knows is as near to any document as to any other.
        candidates[~vectors.any(axis=1)] = -1
        return rescore(vectors, candidates, self.vectors, k)

    def _hits(self, top: Top) -> list[list[Hit]]:
        def hit(rank: int, row: int, score: float) -> Hit:
            document = self.documents[row]
            return Hit(rank, document.id, score, document.text, document.fields, row)

        kept = ((rows[rows >= 0].tolist(), scores[rows >= 0].tolist()) for rows, scores in zip(*top, strict=True))
        return [list(map(hit, range(1, len(rows) + 1), rows, scores)) for rows, scores in kept]


def _encoder(path: Path, manifest: Manifest, model: str | None, engine: str, threads: int | None) -> Encoder:
    """Open the encoder of an index's queries, which must be the model that the index was made with."""
    inside = path / "model"
    name = model or (str(inside) if inside.is_dir() else manifest.model)
    try:
        encoder = open_encoder(name, engine=engine, threads=threads)
    except InputError as error:
        more = "" if model else f"; give the model of {path} with --model, or put it into {inside}"
        raise InputError(f"{error}{more}") from None
    if encoder.fingerprint != manifest.fingerprint:
        fingerprints = f"fingerprint {manifest.fingerprint}, not {encoder.fingerprint}"
        what = f"{path} was made with another model than {name} ({fingerprints})"
        raise InputError(f"{what}; give its own with --model, or index again")
    return encoder
