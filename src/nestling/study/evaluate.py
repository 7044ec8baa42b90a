"""Evaluate models, BM25, fusions and other engines' runs on the test side of a split, in one comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    """The tables of an evaluation, and the test side that they are of."""

    test: Qrels

    @property
    def ceiling(self) -> float:
        """The highest recall@10 that any ranking could reach."""
        return self.test.ceiling(10)

    @property
    def protocol(self) -> str:
        """The unit that counts as a query: `per-query` or `per-pair`."""
        return self.test.protocol


class Part(NamedTuple):
    """What is measured at once: a model and its fusion, or BM25.

    Attributes:
        systems: by the variants' names.
        about: of a model its engine, the texts encoded and the seconds of that, and the fusion of each cell.
    """

    systems: dict[str, System]
    about: dict[str, Any]


Sink = Callable[[Sequence[str], Callable[[], Part]], Part]
"""Called with the variants of a part, the first of which names it, and what measures them: it may save the result, or
return what was saved instead."""


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
    sink: Sink | None = None,
    observer: Observer | None = None,
) -> Evaluation:
    """Measure models, BM25 and the fusion of both in every cell of a grid, on the test side of a split.

    Args:
        data: a split, the folder of one, or a table of judgments, which is measured as it is (then without fusion,
            for lack of a dev side to choose its weight on).
        models: names for the table, and for each a folder, a bundled model or a hub id.
        prompts: put before queries and documents, for models that store none; see `find_model`.
        runs: names, and for each a ranking of any other engine as a TREC run.
        reference: the variant that all are compared with; the first model by default.
        cache: a folder for embeddings, so that a second call encodes nothing again.
        sink: where the part of each model and of BM25 goes; by default nowhere.

    Raises:
        InputError: a model cannot be had, a size is larger than a model's embedding, nothing is relevant, or a run
            does not fit.
    """
    settings, observer = settings or EvaluationSettings(), observer or Observer()
    if isinstance(data, Path | str):
        data = read_split(Path(data))
    # Who keeps the parts has noted the warning with the split.
    if isinstance(data, Split) and data.warning and sink is None:
        observer.note(data.warning)
    judgments, train = (data.test, data.train) if isinstance(data, Split) else (data, None)
    benchmark = Benchmark.of(data, settings, settle_threshold(judgments, threshold), observer=observer)
    sources = {
        name: find_model(model, prompts=prompts) if isinstance(model, str) else model for name, model in models.items()
    }
    systems = {name: _read_run(name, path, benchmark, observer) for name, path in (runs or {}).items()}

    def watched(names: Sequence[str], measure: Callable[[], Part]) -> Part:
        observer.stage(f"evaluate {names[0]}")
        return measure()

    sink = sink or watched
    for name, source in sources.items():
        names = [name, name + FUSED] if settings.fusion and benchmark.dev is not None else [name]
        measure = partial(_measure_model, name, source, benchmark, settings, cache, observer)
        systems |= sink(names, measure).systems
    for name in settings.baselines:
        systems |= sink([name], lambda name=name: Part({name: benchmark.lexical(name)}, {})).systems  # type: ignore[misc]
    results = Results.of(systems, benchmark.test, train=train, reference=reference or next(iter(sources), None))
    return Evaluation(**vars(results), test=benchmark.test)


def _measure_model(
    name: str,
    source: ModelSource,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    cache: Path | None,
    observer: Observer,
) -> Part:
    """Measure one model in every cell that the settings ask for, alone and fused with BM25."""
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
    return Part(systems, about)


def grid_encoder(
    name: str,
    source: ModelSource,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    *,
    cache: Path | None = None,
    observer: Observer,
) -> tuple[Embed, list[Cell], str]:
    """Load a model; return what encodes with it, its grid (the full float32 embedding first), and its engine's name.

    Args:
        name: the variant's, for the observer.
        cache: a folder for embeddings; None keeps them in memory.

    Raises:
        InputError: the model cannot be loaded, the engine cannot be had, or a size is larger than the embedding.
    """
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
