"""Times search in an index against scanning whole float32 vectors: a catalogue of a million titles, one run.

    python benchmarks/index.py --model MODEL [--titles home-depot:PATH] [--documents 1000000] [--quick]

Both sides have the same vectors and the same queries, one query at a time and in turn. Agreement is the share of the
exact top 10 that the index returns; memory is what opening the index adds to the process beside files that are mapped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from million import multiplied
from nestling.judgments.catalogue import Catalogue
from nestling.judgments.sources import load_judgments
from nestling.models.encoder import open_encoder
from nestling.progress import Observer
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.fusion import Fusion
from nestling.serving.index.build import index
from nestling.serving.index.index import Index
from nestling.serving.index.settings import IndexSettings

QUERIES = 400
CHANGED = 0.01
MEMORY = """
import re, sys
from nestling.serving.index.index import Index
from nestling.models.encoder import open_encoder
import nestling.retrieval.exact_search
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
encoder = open_encoder(sys.argv[2])
encoder.encode(["warm"], kind="query")
try:
    import faiss
except ModuleNotFoundError:
    pass
before = anonymous()
index = Index.open(sys.argv[1])
index.top_k(index.encoder.encode(["warm"], kind="query"), 10)
print((anonymous() - before) / len(index))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="what encodes; a static model takes a minute for a million")
    parser.add_argument("--titles", default="toolshed", help="judgments whose documents are multiplied")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--shortlist", nargs="+", default=["48:int8", "auto"])
    parser.add_argument("--target", type=float, default=0.995)
    parser.add_argument("--keep", type=Path, help="a folder for the indexes, to be kept")
    parser.add_argument("--quick", action="store_true", help="50,000 documents")
    options = parser.parse_args()
    count = 50_000 if options.quick else options.documents
    frame = load_judgments(options.titles).frame
    queries = frame["query"].unique(maintain_order=True).to_list()
    known, queries = (queries[n :: -(-len(queries) // QUERIES)] for n in (1, 0))
    texts = multiplied(frame["document"].unique(maintain_order=True).to_list(), count)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        rows = [
            measured(folder / shortlist.replace(":", "-"), texts, (known, queries), shortlist, options)
            for shortlist in options.shortlist
        ]
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True
    ):
        print(pl.DataFrame(rows).transpose(include_header=True, header_name="", column_names=options.shortlist))
    print(f"index: {rows[-1]['exact p50, ms'] / rows[-1]['index p50, ms']:.1f}")


class Clock(Observer):
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since = "", time.perf_counter()

    def stage(self, name: str, detail: str = "") -> None:
        now = time.perf_counter()
        if self._name:
            self.seconds[self._name] = now - self._since
        self._name, self._since = name, now
        print(f"  {name} {detail}", file=sys.stderr, flush=True)


def measured(
    path: Path, texts: list[str], sides: tuple[list[str], list[str]], shortlist: str, options: Any
) -> dict[str, float]:
    """Build one index, by the first side's queries, and return its figures on the second's."""
    known, queries = sides
    clock = Clock()
    settings = IndexSettings(shortlist, exact_up_to=10_000, target=options.target)

    def written(catalogue_: Catalogue, observer: Observer | None = None) -> float:
        options_: dict[str, Any] = {"settings": settings, "fusion": Fusion(0.1), "queries": known}
        return timed(lambda: index(options.model, catalogue_, path, observer=observer, **options_))[0]

    built = written(catalogue(texts), clock)
    clock.stage("measure")
    encoder = open_encoder(options.model)
    opened = Index.open(path)
    asked = encoder.encode(queries, kind="query")
    whole = np.asarray(opened.vectors, dtype=np.float32)
    _, best = top_k(asked, whole, 10)
    _, found = opened.top_k(asked, 10)
    agreement = float((found >= best.min(axis=1, keepdims=True) - 1e-6).mean())

    def exact(vector: NDArray[np.float32]) -> None:
        scores = whole @ vector
        top = np.argpartition(-scores, 10)[:10]
        top[np.argsort(-scores[top])]

    times: dict[str, list[float]] = {"exact": [], "index": [], "words": [], "fused": []}
    for query, vector in zip(queries, asked, strict=True):
        times["exact"].append(timed(lambda v=vector: exact(v))[0])  # type: ignore[misc]
        times["index"].append(timed(lambda v=vector: opened.top_k(v[None], 10))[0])  # type: ignore[misc]
        times["words"].append(timed(lambda q=query: opened.search([q], mode="lexical"))[0])  # type: ignore[misc]
        times["fused"].append(timed(lambda q=query: opened.search([q], mode="fused"))[0])  # type: ignore[misc]
    p50 = {name: 1000 * float(np.median(values)) for name, values in times.items()}
    p99 = 1000 * float(np.quantile(times["index"], 0.99))
    memory = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), options.model], capture_output=True, text=True, check=True
    )
    changed = [f"{text} new" if row % round(1 / CHANGED) == 0 else text for row, text in enumerate(texts)]
    update = written(catalogue(changed))
    manifest = json.loads((path / "manifest.json").read_text())
    return {
        "documents": len(texts),
        "build, s": built,
        "of that encoding, s": clock.seconds["encode"],
        "inverted file, s": clock.seconds["inverted file"],
        "bm25, s": clock.seconds["bm25"],
        "update of 1 %, s": update,
        "candidates": manifest["shortlist"],
        "lists looked into": manifest["lists"],
        "agreement with exact top 10": agreement,
        "memory, bytes a document": float(memory.stdout),
        "on disk, bytes a document": sum(size for size, _ in manifest["files"].values()) / len(texts),
        "exact p50, ms": p50["exact"],
        "index p50, ms": p50["index"],
        "index p99, ms": p99,
        "exact / index": p50["exact"] / p50["index"],
        "bm25 p50, ms": p50["words"],
        "encode and fused p50, ms": p50["fused"],
    }


def catalogue(texts: list[str]) -> Catalogue:
    return Catalogue(pl.DataFrame({"document_id": [str(row) for row in range(len(texts))], "document": texts}))


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result of a call."""
    start = time.perf_counter()
    result = job()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
