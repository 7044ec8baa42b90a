"""Time exact top-k against the bare matrix product of the same size in the same blocks, and codes beside them.

Run from the repository's root: python benchmarks/retrieval.py [--quick]. The last line is `retrieval: RATIO`, seconds
of `top_k` over seconds of the product alone: lower is better, 1 would be a choice of the best that costs nothing.
Beside it are int8 and binary codes and sentence_transformers.util.semantic_search, each in its turn, and how much
memory each took beyond the vectors. top_k and the stock way must agree on all but near ties.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from sentence_transformers.util import semantic_search

from nestling.retrieval.codec import fit_codec
from nestling.retrieval.exact_search import top_k

DIM, K = 384, 100
QUERY_BLOCK, CORPUS_BLOCK = 512, 8192

Ranking = NDArray[np.int64]


def bare_product(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> None:
    """Multiply in the blocks of `top_k`, into one tile, and look at nothing."""
    asked, searched = torch.from_numpy(queries), torch.from_numpy(documents)
    tile = torch.empty(QUERY_BLOCK, CORPUS_BLOCK)
    for start in range(0, len(searched), CORPUS_BLOCK):
        block = searched[start : start + CORPUS_BLOCK]
        for first in range(0, len(asked), QUERY_BLOCK):
            some = asked[first : first + QUERY_BLOCK]
            torch.mm(some, block.T, out=tile[: len(some), : len(block)])


def stock(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Ranking:
    """Search as sentence-transformers does by default, the vectors being of length 1 already."""
    hits = semantic_search(torch.from_numpy(queries), torch.from_numpy(documents), top_k=K)
    return np.array([[hit["corpus_id"] for hit in row] for row in hits])


class PeakMemory:
    """The most bytes that the process held beyond those at the start, by a look every 5 ms."""

    def __init__(self) -> None:
        self._process = psutil.Process(os.getpid())
        self._done = threading.Event()
        self._start = self.bytes = 0
        self._watch = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._start = self._process.memory_info().rss
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._watch.join()

    def _run(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._start)


def vectors(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return n rows of length 1, scattered about 1,000 centres as documents are about topics."""
    centres = np.random.default_rng(0).standard_normal((1000, DIM)).astype(np.float32)
    rows = np.empty((n, DIM), dtype=np.float32)
    for start in range(0, n, CORPUS_BLOCK):
        block = rows[start : start + CORPUS_BLOCK]
        block[:] = centres[rng.integers(0, 1000, len(block))] + rng.standard_normal(block.shape, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="time exact top-k against the bare matrix product")
    parser.add_argument(
        "--quick", action="store_true", help="100,000 documents, 1,000 queries, under 50 s on two cores"
    )
    options = parser.parse_args()
    n_documents, n_queries, n_rounds = (100_000, 1000, 2) if options.quick else (1_000_000, 2000, 2)

    rng = np.random.default_rng(1)
    documents, queries = vectors(n_documents, rng), vectors(n_queries, rng)
    print(
        f"{n_documents:,} x {DIM} float32, {documents.nbytes / 2**30:.2f} GiB; {n_queries:,} queries, k {K}; "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    found: dict[str, Ranking] = {}
    ways: dict[str, Callable[[], object]] = {
        "bare product": lambda: bare_product(queries, documents),
        "top_k": lambda: found.update(top_k=top_k(queries, documents, K)[0]),
        "semantic_search": lambda: found.update(stock=stock(queries, documents)),
    }
    for precision in ("int8", "binary"):
        codec = fit_codec(precision, documents)
        start = perf_counter()
        codes = codec.encode(documents)
        print(f"{precision}: {codes.nbytes / 2**30:.3f} GiB, encoded in {perf_counter() - start:.1f} s")
        # Bound now, as the loop goes on.
        ways[precision] = lambda codes=codes, codec=codec: top_k(queries, codes, K, codec)  # type: ignore[misc]

    bare_product(queries, documents[:CORPUS_BLOCK])
    seconds = dict.fromkeys(ways, 0.0)
    peaks = dict.fromkeys(ways, 0)
    for turn in range(n_rounds):
        # A way may find the machine cooler or busier than the one before it, so they take turns at the first place.
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            with PeakMemory() as memory:
                start = perf_counter()
                ways[name]()
                seconds[name] += perf_counter() - start
            peaks[name] = max(peaks[name], memory.bytes)

    print(f"{'':>16} {'seconds':>9} {'x product':>10} {'MiB beyond':>11}")
    for name, total in seconds.items():
        times = total / seconds["bare product"]
        print(f"{name:>16} {total / n_rounds:>9.2f} {times:>10.2f} {peaks[name] / 2**20:>11.0f}")
    agreement = np.mean([len(np.intersect1d(a, b)) for a, b in zip(found["top_k"], found["stock"], strict=True)]) / K
    print(f"top_k and semantic_search share {agreement:.4%} of their results; load now {os.getloadavg()[0]:.1f}")
    if agreement < 0.999:
        raise SystemExit("top_k and semantic_search differ by more than near ties")
    print("seconds of top_k over seconds of the bare product; lower is better")
    print(f"retrieval: {seconds['top_k'] / seconds['bare product']:.2f}")


if __name__ == "__main__":
    main()
