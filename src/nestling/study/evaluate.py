"""The stage that measures: models, BM25, fusions and other engines' runs on the test side, in one comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from nestling.config.experiment import EvaluationSettings
from nestling.config.names import FUSED
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.load import find_model
from nestling.progress import Observer
from nestling.study.measure import compare_variants, contest_of, full_rows, measure_model


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        results: long table, columns as `grid.SCHEMA`: means over queries with their intervals.
        per_query: variant, the columns of `grid.CELL`, query_id, query and one column a measure.
        comparisons: variants at full size against the first model, columns as `significance.SCHEMA`.
        slices: variants at full size by group of queries (`slices.slice_table`).
        ceiling: the highest recall@10 that any ranking could reach.
        protocol: `per-query` or `per-pair`.
    """

    results: pl.DataFrame
    per_query: pl.DataFrame
    comparisons: pl.DataFrame
    slices: pl.DataFrame
    ceiling: float
    protocol: str


def evaluate(
    data: Split | Judgments | Path | str,
    models: Mapping[str, str],
    *,
    settings: EvaluationSettings | None = None,
    threshold: float | None = None,
    prompts: Mapping[str, str] | None = None,
    runs: Mapping[str, Path] | None = None,
    cache: Path | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Measure models, BM25 and the fusion of both in every cell of a grid, on the test side of a split.

    Args:
        data: a split, the folder of one, or a table of judgments, which is measured as it is (then without fusion,
            since no dev side is there to choose its weight on).
        models: names for the table, and for each a folder, a bundled model or a hub id. The first is what the others
            are compared with.
        prompts: what to put before a query and a document, for models that store none; see `find_model`.
        runs: names, and for each a ranking of any other engine as a TREC run.
        cache: a folder for embeddings, so that a second call encodes nothing again.

    Raises:
        InputError: a model cannot be had, a size is larger than a model's embedding, nothing is relevant, or a run
            does not fit.
    """
    from nestling.evaluation.grid import by_query, summarise
    from nestling.evaluation.slices import slice_table, slices_of
    from nestling.evaluation.trec import read_run, run_to_ranking

    settings = settings or EvaluationSettings()
    if isinstance(data, Path | str):
        data = read_split(Path(data))
    judgments = data.test if isinstance(data, Split) else data
    observer = observer or Observer()
    if isinstance(data, Split) and data.warning:
        observer.note(data.warning)
    contest = contest_of(data, settings, settle_threshold(judgments, threshold), observer=observer)
    sources = {name: find_model(model, prompts=prompts) for name, model in models.items()}
    found: dict[str, pl.DataFrame] = {}
    for name, path in (runs or {}).items():
        observer.stage(f"read {name}")
        ranked = run_to_ranking(read_run(path), contest.test, depth=max(m.k for m in contest.measures))
        for count, what in (
            (ranked.unknown_queries, "queries of the run are not among the test queries"),
            (ranked.missing_queries, "test queries are missing in the run and count as 0"),
            (ranked.unknown_documents, "documents of the run are not in the corpus"),
        ):
            if count:
                observer.note(f"{count:,} {what}")
        found[name] = by_query(None, ranked.ranking, contest.test, contest.measures)
    for name, source in sources.items():
        observer.stage(f"evaluate {name}")
        measured = measure_model(name, source, contest, settings, cache=cache, observer=observer)
        found[name] = measured.alone
        if measured.fused is not None:
            found[name + FUSED] = measured.fused
    for name in settings.baselines:
        observer.stage(f"evaluate {name}")
        found[name], _ = contest.lexical(name)
    train = data.train if isinstance(data, Split) else None
    per_query = pl.concat([table.select(pl.lit(name).alias("variant"), pl.all()) for name, table in found.items()])
    plain = [full_rows(table).select(pl.lit(name).alias("variant"), pl.all()) for name, table in found.items()]
    return Evaluation(
        results=pl.concat([summarise(name, table) for name, table in found.items()]),
        per_query=per_query,
        comparisons=compare_variants(found, next(iter(sources), None)),
        slices=slice_table(pl.concat(plain), slices_of(contest.test, train=train)),
        ceiling=contest.test.ceiling(10),
        protocol=settings.protocol,
    )
