"""The first stages, one function each: inspect, split, train. The verbs of the command line call these."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.config.experiment import (
    DataSettings,
    Experiment,
    Prompts,
    SplitSettings,
    Variant,
)
from nestling.config.names import DEFAULT_MODEL
from nestling.config.run_folder import fingerprint
from nestling.config.training import Matryoshka, TrainingSettings, layered
from nestling.errors import InputError
from nestling.judgments.inspection import Inspection, inspect_judgments
from nestling.judgments.sources import load_judgments
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.split_files import read_split, write_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import STUDY_SCALE, STUDY_THRESHOLD, dip, settle_threshold
from nestling.models.load import ModelSource, find_model, load_model, token_counter
from nestling.progress import Observer

if TYPE_CHECKING:
    from nestling.training.result import TrainingResult
    from nestling.training.spec import Job

logger = logging.getLogger(__name__)


def load(settings: DataSettings, *, seed: int) -> Judgments:
    """Load the judgments that `settings` name, and take a random sample of them where it asks for one.

    Args:
        seed: of the sample, and of the generated catalogue.

    Raises:
        InputError: they cannot be had, or hold fewer records than asked for.
    """
    judgments = load_judgments(
        settings.source,
        query=settings.query,
        document=settings.document,
        score=settings.score,
        query_id=settings.query_id,
        document_id=settings.document_id,
        scale=settings.scale,
        split=settings.hub_split,
        revision=settings.revision,
        records=settings.records,
        seed=seed,
        max_unpacked=settings.max_unpacked,
    )
    if settings.records is None or settings.records == len(judgments):
        return judgments
    return judgments.sample(settings.records, seed=seed)


def inspect(
    data: Judgments | DataSettings | str,
    *,
    model: str | ModelSource = DEFAULT_MODEL,
    threshold: float | None = None,
    seed: int = 0,
) -> Inspection:
    """Say what a table of judgments holds.

    Args:
        data: the table, its settings, or just its source.
        model: whose tokenizer counts text lengths, prompts included.
        threshold: by default 2.5 on a scale of 1 to 3, else where the scores dip, else the middle of the scale.

    Raises:
        InputError: the data or the model cannot be had.
    """
    judgments = _loaded(data, seed)
    if threshold is None:
        low, high = judgments.scale
        lowest = dip(judgments.frame["score"].to_numpy(), judgments.scale)
        middle = (low + high) / 2 if lowest is None else lowest
        threshold = STUDY_THRESHOLD if judgments.scale == STUDY_SCALE else middle
    count, limit = token_counter(find_model(model) if isinstance(model, str) else model)
    return inspect_judgments(judgments, threshold=threshold, count_tokens=count, max_tokens=limit)


def split_print(judgments: Judgments, settings: SplitSettings) -> str:
    """Return the fingerprint of what a split is made from, by which a run's folder knows its own."""
    return fingerprint(judgments.fingerprint, settings.model_dump(mode="json"))


def split(
    data: Judgments | DataSettings | str, *, out: Path | str | None = None, settings: SplitSettings | None = None
) -> Split:
    """Split judgments into train, dev and test that share no query, and but for `queries-only` no document.

    Args:
        data: the table, its settings, or just its source.
        out: a folder to write the split into.
        settings: shares, method and seed.

    Raises:
        InputError: the data cannot be had or cannot be split.
    """
    settings = settings or SplitSettings()
    judgments = _loaded(data, settings.seed)
    made = split_judgments(judgments, test=settings.test, dev=settings.dev, method=settings.method, seed=settings.seed)
    if made.warning:
        logger.warning("%s: %s", judgments.source, made.warning)
    leaks = made.leaks()
    if leaks:  # pragma: no cover - the algorithm rules it out; a check, since every figure rests on it
        raise AssertionError(f"the split leaks: {leaks[0]}")
    if out is not None:
        write_split(made, Path(out))
    return made


def job_of(
    recipe: str,
    *,
    base: ModelSource,
    matryoshka: Matryoshka | None,
    settings: TrainingSettings,
    threshold: float,
    dims: Sequence[int] | None,
    cache: Path | None = None,
) -> Job:
    """Settle what a variant is trained from: its base, and the prefixes with the full size first.

    Args:
        dims: the prefixes where `matryoshka` names none; by default as `sizes_of` has them.
        cache: a folder for tokens.

    Raises:
        InputError: the base cannot be loaded, or a size is larger than its embedding.
    """
    from nestling.evaluation.grid import sizes_of
    from nestling.training.spec import Job

    if matryoshka is None:
        return Job(base, recipe, settings, threshold, cache=cache)
    full = int(load_model(base).get_embedding_dimension() or 0)
    prefixes = sizes_of(full, matryoshka.dims or dims)
    weights = matryoshka.weights
    if weights is not None and len(prefixes) > len(weights):
        weights = (1.0, *weights)
    return Job(base, recipe, settings, threshold, prefixes, weights, cache)


def train(
    data: Split | Path | str,
    *,
    out: Path | str,
    recipe: str = "graded",
    base: str = DEFAULT_MODEL,
    matryoshka: Matryoshka | None = None,
    settings: TrainingSettings | None = None,
    threshold: float | None = None,
    dims: Sequence[int] | None = None,
    prompts: Mapping[str, str] | None = None,
    observer: Observer | None = None,
) -> TrainingResult:
    """Train one variant and save it as a SentenceTransformer folder.

    Args:
        data: a split or the folder of one.
        out: the model's folder. Checkpoints lie beside it, in `OUT.training`, so that the same call goes on after an
            interruption.
        settings: what is not given is as the recipe has it by default.
        dims: the sizes that Matryoshka trains where it names none; by default a model's own, its half, quarter and
            eighth.
        prompts: what to put before a query and a document, for bases that store none; kept in the model.

    Raises:
        InputError: something does not fit, or `out` exists and holds something else.
    """
    from nestling.config.recipes import find_recipe
    from nestling.training.trainer import fit

    given = settings.model_dump(exclude_unset=True) if settings else {}
    made = data if isinstance(data, Split) else read_split(Path(data))
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; give another folder with --out, or remove it first")
    job = job_of(
        recipe,
        base=find_model(base, prompts=prompts),
        matryoshka=matryoshka,
        settings=TrainingSettings.model_validate(layered(find_recipe(recipe).defaults, given)),
        threshold=settle_threshold(made.train, threshold),
        dims=dims,
        cache=out.with_name(f"{out.name}.training") / "tokens",
    )
    stage = f"train {out.name}"
    if observer is not None:
        from nestling.study.estimate import Texts, measure, trainings

        work = trainings(job, Texts(made.train), Texts(made.dev))
        rates = measure(job.base, made.train, job.settings)
        observer.plan({stage: [each.at(rates) for each in work]})
    observer = observer or Observer()
    observer.stage(stage)
    if made.warning:
        observer.note(made.warning)
    try:
        return fit(
            made.train,
            made.dev,
            job,
            output=out,
            work=out.with_name(f"{out.name}.training"),
            report=lambda progress: observer.training(out.name, progress),
            note=observer.note,
        )
    finally:
        observer.done()


def _loaded(data: Judgments | DataSettings | str, seed: int) -> Judgments:
    if isinstance(data, Judgments):
        return data
    return load(DataSettings(source=data) if isinstance(data, str) else data, seed=seed)


def source_of(experiment: Experiment, variant: Variant | None = None) -> ModelSource:
    """Return the model that a variant starts from, or the experiment's own, with its prompts.

    Raises:
        InputError: it cannot be had.
    """
    base = experiment.model if variant is None else experiment.base_of(variant)
    own = None if variant is None else variant.prompts
    prompts = own or (experiment.prompts if base == experiment.model else Prompts())
    return find_model(base, prompts=prompts.given())
