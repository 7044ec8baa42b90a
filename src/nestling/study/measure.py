"""From settings to figures: models and the sides of a split become tables by query, for `run` and `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from nestling.config.experiment import EvaluationSettings
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.judgments.table import Judgments
from nestling.models.load import ModelSource, load_model
from nestling.progress import Observer

if TYPE_CHECKING:
    from nestling.evaluation.benchmark import Contest, Embed, Measured
    from nestling.evaluation.cells import Cell
    from nestling.evaluation.qrels import Qrels
    from nestling.models.engines.engine import Sample


@dataclass(frozen=True)
class Encoder:
    """A model that encodes: what `embedder_of` makes.

    Attributes:
        embed: encodes texts.
        full: its own embedding size.
        engine: what it computes with, and why.
    """

    embed: Embed
    full: int
    engine: str
    reason: str


def contest_of(
    data: Split | Judgments,
    settings: EvaluationSettings,
    threshold: float,
    *,
    side: str = "test",
    observer: Observer | None = None,
) -> Contest:
    """Return the contest on one side of a split, or on a table as it is.

    Args:
        side: `test`, or `dev`, which then is not learnt from.
        observer: told how many documents of that side have the text of another.

    Raises:
        InputError: nothing on that side is relevant.
    """
    from nestling.evaluation.benchmark import Contest
    from nestling.evaluation.measures import Measure
    from nestling.evaluation.qrels import Qrels

    def qrels(judgments: Judgments) -> Qrels:
        return Qrels.from_judgments(judgments, threshold=threshold, protocol=settings.protocol)

    measures = tuple(Measure.parse(text) for text in settings.measures)
    measured = qrels(data if isinstance(data, Judgments) else data.sides[side])
    if measured.n_merged and observer is not None:
        observer.note(f"{measured.n_merged:,} documents have the text of another one and count as one with it")
    if isinstance(data, Judgments):
        return Contest(measured, None, None, measures, settings.language)
    dev = None
    if side == "test":
        try:
            dev = qrels(data.dev)
        except InputError:
            # Nothing relevant to choose a weight by: the study goes on without fusions.
            dev = None
    return Contest(measured, dev, data.train, measures, settings.language)


def embedder_of(
    name: str,
    source: ModelSource,
    settings: EvaluationSettings,
    *,
    sample: Sample | None = None,
    cache: Path | None = None,
    observer: Observer | None = None,
) -> Encoder:
    """Load a model and return what encodes with it.

    Args:
        name: the variant's, for the observer.
        sample: of the texts to encode, for `engine_for`.
        cache: a folder for embeddings; None keeps them in memory, as long as what is returned lives.

    Raises:
        InputError: the model cannot be loaded, or the engine cannot be had.
    """
    from nestling.models.cached_encoder import CachedEncoder
    from nestling.models.torch_encoder import TorchEncoder

    encoder = TorchEncoder(
        load_model(source),
        source.fingerprint,
        engine=settings.engine,
        batch_size=settings.batch_size,
        progress=partial((observer or Observer()).encoding, name),
        sample=sample,
    )
    engine = encoder.engine
    cached = CachedEncoder(encoder, cache)
    return Encoder(lambda texts, kind: cached.encode(texts, kind=kind), encoder.dim, engine.name, engine.reason)


def sample_of(contest: Contest) -> Sample:
    """Return what an int8 engine is calibrated on, the training side, and tried on, the dev side."""
    from nestling.models.engines.engine import Sample

    sides = [side for side in (contest.test, contest.dev) if side is not None]
    texts = sum(side.n_queries + side.n_documents for side in sides)
    if contest.train is None:
        return Sample(contest.test.queries, contest.test.documents, texts, contest.dev)
    frame = contest.train.frame
    return Sample(frame["query"].to_list(), frame["document"].to_list(), texts, contest.dev)


def cells_for(full: int, settings: EvaluationSettings) -> list[Cell]:
    """Return the grid that the settings ask for, on a model of `full` dims."""
    from nestling.evaluation.cells import cells_of
    from nestling.evaluation.grid import sizes_of

    return cells_of(
        sizes_of(full, settings.dims),
        precisions=settings.precisions,
        rotations=settings.rotations,
        oversampling=settings.oversampling,
    )


def measure_model(
    name: str,
    source: ModelSource,
    contest: Contest,
    settings: EvaluationSettings,
    *,
    cache: Path | None = None,
    observer: Observer | None = None,
) -> Measured:
    """Measure one model in every cell that the settings ask for, alone and fused with BM25.

    Raises:
        InputError: as `embedder_of`; or a size is larger than the model's embedding.
    """
    observer = observer or Observer()
    try:
        encoder = embedder_of(name, source, settings, sample=sample_of(contest), cache=cache, observer=observer)
        if settings.engine == "auto":
            observer.note(f"engine {encoder.engine}: {encoder.reason}")
        measured = contest.model(encoder.embed, cells_for(encoder.full, settings), fuse=settings.fusion)
        return replace(measured, engine=encoder.engine)
    finally:
        observer.done()


def compare_variants(per_query: dict[str, pl.DataFrame], reference: str | None) -> pl.DataFrame:
    """Compare variants at their own full size, on each measure apart: rows of `significance.SCHEMA`.

    Args:
        per_query: variant -> a table as `measure_cells` returns.
        reference: the variant that all are compared with; None compares each with each.

    Returns:
        p is corrected for the number of comparisons on the same measure.
    """
    from nestling.evaluation.grid import measures_in
    from nestling.evaluation.significance import SCHEMA, compare_all

    if len(per_query) < 2:
        return pl.DataFrame(schema=SCHEMA)
    plain = {name: full_rows(table) for name, table in per_query.items()}
    measures = measures_in(next(iter(plain.values())))
    tables = [
        compare_all(
            {name: table[measure].to_numpy() for name, table in plain.items()},
            measures=(measure,),
            reference=reference,
        )
        for measure in measures
    ]
    return pl.concat(tables)


def full_rows(per_query: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a table by query that are of the full float32 embedding (of BM25: all)."""
    plain = per_query.filter(
        pl.col("precision").is_in(["float32", ""]), pl.col("rotation") == "none", pl.col("oversampling") == 0
    )
    return plain.filter(pl.col("dim") == pl.col("dim").max())
