"""Train a variant: what it starts from, its spec, and the verb that makes a model of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nestling.config.experiment import Experiment, Prompts, Variant
from nestling.config.names import DEFAULT_MODEL
from nestling.config.recipes import find_recipe
from nestling.config.training import Matryoshka, TrainingSettings, layered
from nestling.errors import InputError
from nestling.evaluation.grid import sizes_of
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.load import ModelSource, find_model, load_model
from nestling.progress import Observer
from nestling.study.estimate import Texts, measure, trainings
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec


def source_of(experiment: Experiment, variant: Variant | None = None) -> ModelSource:
    """Return the model that a variant starts from, or the experiment's own, with its prompts.

    Raises:
        InputError: it cannot be had.
    """
    base = experiment.model if variant is None else experiment.base_of(variant)
    own = None if variant is None else variant.prompts
    prompts = own or (experiment.prompts if base == experiment.model else Prompts())
    return find_model(base, prompts=prompts.given())


def spec_of(
    recipe: str,
    *,
    base: ModelSource,
    matryoshka: Matryoshka | None,
    settings: TrainingSettings,
    threshold: float,
    dims: Sequence[int] | None,
    cache: Path | None = None,
) -> TrainingSpec:
    """Settle what a variant is trained from: its base, and the prefixes with the full size first.

    Args:
        dims: the prefixes where `matryoshka` names none; by default as `sizes_of` has them.
        cache: a folder for tokens.

    Raises:
        InputError: the base cannot be loaded, or a size is larger than its embedding.
    """
    if matryoshka is None:
        return TrainingSpec(base, recipe, settings, threshold, cache=cache)
    full = int(load_model(base).get_embedding_dimension() or 0)
    prefixes = sizes_of(full, matryoshka.dims or dims)
    weights = matryoshka.weights
    if weights is not None and len(prefixes) > len(weights):
        weights = (1.0, *weights)
    return TrainingSpec(base, recipe, settings, threshold, prefixes, weights, cache)


def spec_of_variant(
    experiment: Experiment,
    variant: Variant,
    threshold: float,
    *,
    settings: TrainingSettings | None = None,
    cache: Path | None = None,
) -> TrainingSpec:
    """Settle what a variant of an experiment is trained from; `settings` stand in for its own."""
    return spec_of(
        variant.recipe,
        base=source_of(experiment, variant),
        matryoshka=variant.matryoshka,
        settings=settings or experiment.training_of(variant),
        threshold=threshold,
        dims=experiment.evaluation.dims,
        cache=cache,
    )


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
    given = settings.model_dump(exclude_unset=True) if settings else {}
    made = data if isinstance(data, Split) else read_split(Path(data))
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; give another folder with --out, or remove it first")
    work = out.with_name(f"{out.name}.training")
    spec = spec_of(
        recipe,
        base=find_model(base, prompts=prompts),
        matryoshka=matryoshka,
        settings=TrainingSettings.model_validate(layered(find_recipe(recipe).defaults, given)),
        threshold=settle_threshold(made.train, threshold),
        dims=dims,
        cache=work / "tokens",
    )
    stage = f"train {out.name}"
    if observer is not None:
        rates = measure(spec.base, made.train, spec.settings)
        observer.plan({stage: [part.at(rates) for part in trainings(spec, Texts(made.train), Texts(made.dev))]})
    observer = observer or Observer()
    observer.stage(stage)
    if made.warning:
        observer.note(made.warning)
    return fit_watched(out.name, made.train, made.dev, spec, output=out, work=work, observer=observer)


def fit_watched(
    name: str, train: Judgments, dev: Judgments, spec: TrainingSpec, *, output: Path, work: Path, observer: Observer
) -> TrainingResult:
    """Train a spec into the folder `output`, and tell the observer of it by the name."""
    from nestling.training.trainer import fit

    try:
        return fit(
            train, dev, spec, output=output, work=work, report=partial(observer.training, name), note=observer.note
        )
    finally:
        observer.done()
