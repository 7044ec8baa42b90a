"""The stock `encode()` against each engine: the same texts, in turn, in one run.

    python benchmarks/encoding.py --quick

Two questions. Speed: texts a second on product titles and on descriptions of about 190 tokens, of
`SentenceTransformer.encode(texts)` as a user would write it (float32, batches of 32) and of `embed` with each engine.
All take a share of the texts after one another, several times, and the ratio is the median over the shares, so that
what else the machine does falls on all alike. Quality: recall@10 on titles with stock embeddings and with each
engine's, and which part of a query's ten nearest documents is the same.

Stock runs in a process of its own, as engines change how theirs keeps memory. `openvino-int8` is calibrated on other
records than those that are measured.

The last line is `encoding: RATIO`: of stock and the engines that lose at most 0.2 points of its recall@10, the fastest
one's smaller ratio of the two kinds of texts. Where no engine is faster that is stock's own, 1.0.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nestling.config.names import DEFAULT_MODEL, ENGINES
from nestling.environment import hardware, versions
from nestling.errors import InputError
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.sources import load_judgments
from nestling.judgments.split_files import read_split
from nestling.judgments.toolshed import generate
from nestling.models.engines.engine import Engine, Sample, engine_for
from nestling.models.load import load_model
from nestling.models.precision import choose_precision
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from training import REAL, THRESHOLD, descriptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STOCK = "stock"
LOSS = 0.002
ALL = tuple(name for name in ENGINES if name not in ("auto", "torch-fp16"))
QUICK = {
    "bf16": ("torch-bf16", "openvino-bf16"),
    "fp32": ("openvino-fp32", "openvino-int8"),
}
"""By what training takes on this CPU."""
K = 10


def judged(records: int, split: Path | None) -> tuple[Qrels, Sample]:
    """Return judged titles, and others to calibrate on.

    The dev and training sides of a split, else real ones where the data is there, else generated ones.
    """
    if split is not None:
        read = read_split(split)
        judgments, others = read.dev, read.train.frame
        judgments = judgments.sample(min(records, len(judgments)), seed=0)
    else:
        source = load_judgments(REAL) if REAL.exists() else generate(25_000, seed=0)
        judgments = source.sample(min(records, len(source)), seed=0)
        others = source.frame.filter(~source.frame["query"].is_in(judgments.frame["query"].implode()))
    sample = Sample(others["query"].to_list(), others["document"].to_list(), None)
    return Qrels.from_judgments(judgments, threshold=THRESHOLD), sample


Side = Callable[[list[str], bool], tuple[NDArray[np.float32], float, float]]
"""(texts, whether they are queries) -> (n, dim) float32 of rows of length 1, seconds, and the cores' seconds."""


@cache
def loaded(name: str) -> SentenceTransformer:
    """Return a model, loaded once a process."""
    return load_model(name, device="cpu")


def encode_stock(name: str, texts: list[str], query: bool) -> tuple[NDArray[np.float32], float, float]:
    """Encode as a user would write it: float32, batches of 32."""
    model = loaded(name)
    encode = model.encode_query if query else model.encode
    start, worked = time.perf_counter(), time.process_time()
    embeddings: NDArray[np.float32] = encode(texts, batch_size=32, show_progress_bar=False)
    seconds, work = time.perf_counter() - start, time.process_time() - worked
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).astype(np.float32), seconds, work


def encode_engine(engine: Engine, texts: list[str], query: bool) -> tuple[NDArray[np.float32], float, float]:
    """Encode with an engine."""
    start, worked = time.perf_counter(), time.process_time()
    embeddings = embed(engine.model, texts, kind="query" if query else "document", engine=engine)
    return embeddings, time.perf_counter() - start, time.process_time() - worked


def speeds(sides: dict[str, Side], texts: list[str], *, shares: int, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Return for each side the seconds, and the cores' seconds, of each share of the texts: least of the rounds."""
    parts = [texts[place::shares] for place in range(shares)]
    for side in sides.values():
        side(parts[0][:32], False)
    taken = {name: np.empty((rounds, 2, shares)) for name in sides}
    for turn in range(rounds):
        for place, part in enumerate(parts):
            for name, side in sides.items():
                taken[name][turn, :, place] = side(part, False)[1:]
    return {name: seconds.min(axis=0) for name, seconds in taken.items()}


def best_of(ratios: dict[str, list[float]], recall: dict[str, float]) -> str:
    """Return the fastest side, by its smaller ratio, of those that lose at most `LOSS` of stock's recall; or stock."""
    fit = [name for name in recall if recall[name] >= recall[STOCK] - LOSS]
    return max(fit, key=lambda name: min(ratios[name]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="a name or a folder, as for nestling")
    parser.add_argument("--split", type=Path, help="a run's split folder; recall is measured on its dev side")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="all for a CPU; with --quick two that suit it")
    options = parser.parse_args(arguments)

    model = loaded(options.model)
    machine = hardware()
    print(f"processor {machine['processor']}, cores {machine['cores']}, torch {versions()['torch']}, {options.model}")
    precision = choose_precision("auto")
    print(precision.reason)
    qrels, sample = judged(800 if options.quick else 5000, options.split)
    child = ProcessPoolExecutor(1, get_context("spawn"))
    sides: dict[str, Side] = {
        STOCK: lambda texts, query: child.submit(encode_stock, options.model, texts, query).result()
    }
    for name in options.engines or (QUICK[precision.name] if options.quick else ALL):
        start = time.perf_counter()
        try:
            sides[name] = partial(encode_engine, engine_for(name, model, sample=sample))
        except InputError as error:
            print(f"{name:<14} left out: {error}")
            continue
        print(f"{name:<14} ready in {time.perf_counter() - start:.1f} s")

    n_titles, n_descriptions = (256, 48) if options.quick else (2048, 384)
    kinds = {
        "titles": qrels.documents[:n_titles],
        "descriptions": descriptions(n_descriptions).frame["document"].to_list(),
    }
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    for kind, texts in kinds.items():
        seconds = speeds(sides, texts, shares=4, rounds=1 if options.quick else 3)
        for name, each in seconds.items():
            ratio, of_work = np.median(seconds[STOCK] / each, axis=1)
            ratios[name].append(float(ratio))
            speed = f"{len(texts) / each[0].sum():8.1f} texts/s   ratio {ratio:.2f}"
            print(f"{kind:<13} {name:<14} {speed}   of the cores' time {of_work:.2f}")

    recall, nearest = {}, {}
    for name, side in sides.items():
        nearest[name], _ = top_k(side(qrels.queries, True)[0], side(qrels.documents, False)[0], K)
        recall[name] = float(Measure.parse(f"recall@{K}").per_query(nearest[name], qrels).mean())
        same = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(nearest[STOCK], nearest[name], strict=True)])
        print(f"{name:<14} recall@{K} {recall[name]:.4f}   of stock's ten nearest {same:.4f}")
    print(f"{len(qrels.queries)} queries, {len(qrels.documents)} titles")
    best = best_of(ratios, recall)
    child.shutdown()
    print(f"best at unchanged recall: {best}")
    print(f"encoding: {min(ratios[best]):.1f}")


if __name__ == "__main__":
    main()
