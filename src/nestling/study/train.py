"""Train a variant: its base, its spec, and the verb that makes a model of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nestling.config.experiment import Experiment, Prompts, Variant
from nestling.config.names import DEFAULT_MODEL
from nestling.config.recipes import find_recipe
from nestling.config.training import Matryoshka, TrainingSettings
from nestling.config.yaml_files import make_experiment
from nestling.errors import InputError
from nestling.evaluation.grid import sizes_of
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.models.engines.engine import engine_for
from nestling.models.load import ModelSource, find_model, load_model
from nestling.progress import Observer
from nestling.study.estimate import Texts, measure, trainings
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec


def source_of(experiment: Experiment, variant: Variant | None = None) -> ModelSource:
    """Return the model that a variant starts from, or the experiment's own, with its prompts."""
    base = experiment.model if variant is None else experiment.base_of(variant)
    own = None if variant is None else variant.prompts
    prompts = own or (experiment.prompts if base == experiment.model else Prompts())
    return find_model(base, prompts=prompts.given())


def spec_of(
    experiment: Experiment,
    variant: Variant,
    threshold: float,
    *,
    settings: TrainingSettings | None = None,
    cache: Path | None = None,
) -> TrainingSpec:
    """Settle what a variant is trained from: its base, its settings or those given, and prefixes, full size first."""
    base, settings = source_of(experiment, variant), settings or experiment.training_of(variant)
    matryoshka = variant.matryoshka
    if matryoshka is None:
        return TrainingSpec(base, variant.recipe, settings, threshold, cache=cache)
    full = int(load_model(base).get_embedding_dimension() or 0)
    prefixes, weights = sizes_of(full, matryoshka.dims or experiment.evaluation.dims), matryoshka.weights
    if weights is not None and len(prefixes) > len(weights):
        weights = (1.0, *weights)
    return TrainingSpec(base, variant.recipe, settings, threshold, prefixes, weights, cache)


def check_models(experiment: Experiment) -> None:
    """Find every base model and try the sizes and the engine on it, before hours are spent."""
    for name in dict.fromkeys(experiment.base_of(variant) for variant in experiment.variants):
        model = load_model(name)
        if experiment.evaluation.engine != "auto":
            engine_for(experiment.evaluation.engine, model)
        full = int(model.get_embedding_dimension() or 0)
        for dims in [experiment.evaluation.dims, *(v.matryoshka.dims for v in experiment.variants if v.matryoshka)]:
            try:
                sizes_of(full, dims)
            except InputError as error:
                raise InputError(f"model {name!r}: {error}") from None


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
        out: the model's folder. Checkpoints lie beside it, in `OUT.training`, so that the same call goes on after an
            interruption.
        settings: those not given are the recipe's.
        dims: the sizes that Matryoshka trains where it names none; by default a model's own, its half, quarter and
            eighth.
        prompts: put before queries and documents, for bases that store none; kept in the model.
    """
    find_recipe(recipe)
    given = settings.model_dump(exclude_unset=True) if settings else {}
    split = data if isinstance(data, Split) else read_split(Path(data))
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; give another folder with --out, or remove it first")
    work = out.with_name(f"{out.name}.training")
    variant = {"recipe": recipe, "matryoshka": matryoshka, "training": given}
    experiment = make_experiment(
        {"model": base, "prompts": prompts or {}, "variants": [variant], "evaluation": {"dims": dims}}
    )
    threshold = settle_threshold(split.train, threshold)
    spec = spec_of(experiment, experiment.variants[0], threshold, cache=work / "tokens")
    stage = f"train {out.name}"
    if observer is not None:
        rates = measure(spec.base, split.train, spec.settings)
        observer.plan({stage: trainings(spec, Texts(split.train), Texts(split.dev), rates)})
    observer = observer or Observer()
    observer.stage(stage)
    if split.warning:
        observer.note(split.warning)
    return fit_watched(out.name, split.train, split.dev, spec, output=out, work=work, observer=observer)


def fit_watched(
    name: str, train: Judgments, dev: Judgments, spec: TrainingSpec, *, output: Path, work: Path, observer: Observer
) -> TrainingResult:
    """Train a spec into the folder `output`, and report to the observer under the name."""
    from nestling.training.trainer import fit

    report = partial(observer.training, name)
    try:
        return fit(train, dev, spec, output=output, work=work, report=report, note=observer.note)
    finally:
        observer.done()
