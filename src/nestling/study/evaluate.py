"""Evaluate models, BM25, fusions and other engines' runs on the test side of a split, in one comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from nestling.config.experiment import EvaluationSettings
from nestling.config.names import FUSED
from nestling.evaluation.benchmark import Benchmark, Embed
from nestling.evaluation.cells import Cell, cells_of
from nestling.evaluation.grid import RANKED, System, by_query, sizes_of
from nestling.evaluation.qrels import Qrels
from nestling.evaluation.results import Results
from nestling.evaluation.trec import read_run, run_to_ranking
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.load import ModelSource, find_model, load_model
from nestling.progress import Observer


@dataclass(frozen=True)
class Evaluation(Results):
    """The tables of an evaluation, and their test side."""

    test: Qrels

    @property
    def ceiling(self) -> float:
        """The highest recall@10 that any ranking could reach."""
        return self.test.ceiling(10)


Part = tuple[dict[str, System], dict[str, Any]]
"""Systems that are measured together, a model and its fusion or BM25, and of a model its engine and its times."""


def evaluate(
    data: Split | Judgments | Path | str,
    models: Mapping[str, str | ModelSource],
    *,
    settings: EvaluationSettings | None = None,
    threshold: float | None = None,
    prompts: Mapping[str, str] | None = None,
    runs: Mapping[str, Path] | None = None,
    reference: str | None = None,
    cache: Path | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Measure models, BM25 and the fusion of both in every cell of a grid, on the test side of a split.

    Args:
        data: a split, the folder of one, or a table of judgments, which is measured as it is, without fusion.
        models: names for the table, and for each a folder, a bundled model or a hub id.
        prompts: put before queries and documents, for models that store none; see `find_model`.
        runs: names, and for each a ranking of any other engine as a TREC run.
        reference: the variant that all are compared with; the first model by default.
        cache: a folder for embeddings, so that a second call encodes nothing again.
    """
    settings, observer = settings or EvaluationSettings(), observer or Observer()
    if isinstance(data, Path | str):
        data = read_split(Path(data))
    if isinstance(data, Split) and data.warning:
        observer.note(data.warning)
    threshold = settle_threshold(data.test if isinstance(data, Split) else data, threshold)
    benchmark = Benchmark.of(data, settings, threshold, observer=observer)
    sources = {
        name: find_model(model, prompts=prompts) if isinstance(model, str) else model for name, model in models.items()
    }
    systems = {name: _read_run(name, path, benchmark, observer) for name, path in (runs or {}).items()}
    for names, measure in parts(sources, benchmark, settings, cache=cache, observer=observer):
        observer.stage(f"evaluate {names[0]}")
        systems |= measure()[0]
    return compare(systems, benchmark, reference=reference or next(iter(sources), None))


def parts(
    models: Mapping[str, ModelSource],
    benchmark: Benchmark,
    settings: EvaluationSettings,
    *,
    cache: Path | None,
    observer: Observer,
) -> Iterator[tuple[list[str], Callable[[], Part]]]:
    """Yield the variants of each model and of BM25 that are measured together, and what measures them."""

    def lexical(name: str) -> Part:
        return {name: benchmark.lexical(name)}, {}

    for name, source in models.items():
        names = [name, name + FUSED] if settings.fusion and benchmark.dev is not None else [name]
        yield names, partial(_measure_model, name, source, benchmark, settings, cache, observer)
    for baseline in settings.baselines:
        yield [baseline], partial(lexical, baseline)


def compare(systems: Mapping[str, System], benchmark: Benchmark, *, reference: str | None) -> Evaluation:
    """Return the tables of what was measured on the benchmark."""
    results = Results.of(systems, benchmark.test, train=benchmark.train, reference=reference)
    return Evaluation(**vars(results), test=benchmark.test)


def _measure_model(
    name: str,
    source: ModelSource,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    cache: Path | None,
    observer: Observer,
) -> Part:
    """Measure a model in every cell that the settings ask for, alone and fused with BM25."""
    try:
        embed, cells, engine = grid_encoder(name, source, benchmark, settings, cache=cache, observer=observer)
        measured = benchmark.model(embed, cells, fuse=settings.fusion)
    finally:
        observer.done()
    systems = {name: measured.alone}
    if measured.fused is not None:
        systems[name + FUSED] = measured.fused
    fusions = {str(cell): fusion.as_dict() for cell, fusion in measured.fusions.items()}
    about = {"engine": engine, "texts": measured.texts, "seconds": measured.seconds, "fusions": fusions}
    return systems, about


def grid_encoder(
    name: str,
    source: ModelSource,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    *,
    cache: Path | None = None,
    observer: Observer,
) -> tuple[Embed, list[Cell], str]:
    """Load a model; return what encodes with it, its grid (the full float32 embedding first), and its engine's name."""
    from nestling.models.cached_encoder import CachedEncoder
    from nestling.models.torch_encoder import TorchEncoder

    encoder = TorchEncoder(
        load_model(source),
        source.fingerprint,
        engine=settings.engine,
        batch_size=settings.batch_size,
        progress=partial(observer.encoding, name),
        sample=benchmark.sample,
    )
    engine = encoder.engine
    if settings.engine == "auto":
        observer.note(f"engine {engine.name}: {engine.reason}")
    cached = CachedEncoder(encoder, cache)
    cells = cells_of(
        sizes_of(encoder.dim, settings.dims),
        precisions=settings.precisions,
        rotations=settings.rotations,
        oversampling=settings.oversampling,
    )
    return lambda texts, kind: cached.encode(texts, kind=kind), cells, engine.name


def _read_run(name: str, path: Path, benchmark: Benchmark, observer: Observer) -> System:
    observer.stage(f"read {name}")
    ranked = run_to_ranking(read_run(path), benchmark.test, depth=max(m.k for m in benchmark.measures))
    for count, what in (
        (ranked.unknown_queries, "queries of the run are not among the test queries"),
        (ranked.missing_queries, "test queries are missing in the run and count as 0"),
        (ranked.unknown_documents, "documents of the run are not in the corpus"),
    ):
        if count:
            observer.note(f"{count:,} {what}")
    return System(by_query(None, ranked.ranking, benchmark.test, benchmark.measures), pl.DataFrame(schema=RANKED))
