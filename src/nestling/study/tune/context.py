"""What a search and a learning curve stand on: one variant of an experiment, its settled threshold and its split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from nestling.config.experiment import Experiment, Variant
from nestling.config.names import PRETRAINED
from nestling.config.run_folder import RunFolder
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.progress import Observer
from nestling.study import stages
from nestling.training.recipes.registry import RECIPES
from nestling.training.result import selection

if TYPE_CHECKING:
    from nestling.training.spec import Job


@dataclass(frozen=True)
class Context:
    """One variant of an experiment on its data.

    Attributes:
        settings: the variant's training settings as the experiment has them.
        split: the run's own; of its sides only train and dev are for use here.
        split_print: fingerprint of what the split was made from, as in the run's state.
        source: where the judgments came from, as a person would name it.
        job: settings -> the training of the variant with these.
    """

    experiment: Experiment
    variant: Variant
    settings: TrainingSettings
    folder: RunFolder
    split: Split
    split_print: str
    threshold: float
    source: str
    job: Callable[[TrainingSettings], Job]

    @cached_property
    def metric(self) -> str:
        """Name of the dev figure that a training of the variant is worth."""
        return selection(self.job(self.settings).matryoshka)


def prepare(experiment: Experiment, variant: str | None, *, runs: Path, observer: Observer) -> Context:
    """Load the judgments and read the run's split, or make it where there is none yet.

    Everything is checked before anything is written.

    Args:
        variant: its name; by default the first that is trained.

    Raises:
        InputError: there is no such variant, the data or the model cannot be had, or the folder's split was made
            from other data or settings.
    """
    chosen = find_variant(experiment, variant)
    settings = experiment.training_of(chosen)
    judgments = stages.load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    RECIPES[chosen.recipe].check(judgments)

    def job(settings: TrainingSettings) -> Job:
        return stages.job_of(
            chosen.recipe,
            base=stages.source_of(experiment, chosen),
            matryoshka=chosen.matryoshka,
            settings=settings,
            threshold=threshold,
            dims=experiment.evaluation.dims,
        )

    job(settings)
    folder = RunFolder(runs / experiment.name)
    made_from = stages.split_print(judgments, experiment.split)
    split = _split(judgments, experiment, folder, made_from, observer)
    return Context(experiment, chosen, settings, folder, split, made_from, threshold, judgments.source, job)


def find_variant(experiment: Experiment, name: str | None) -> Variant:
    """Return the variant of that name, or the first that is trained.

    Raises:
        InputError: there is none, or it is not trained.
    """
    trained = {variant.name: variant for variant in experiment.variants if variant.recipe != PRETRAINED}
    if trained and name in (None, *trained):
        return trained[name or next(iter(trained))]
    names = ", ".join(trained) or "none"
    raise InputError(f"{experiment.name} trains no variant{f' {name!r}' if name else ''}; it trains {names}")


def _split(
    judgments: Judgments, experiment: Experiment, folder: RunFolder, made_from: str, observer: Observer
) -> Split:
    # Workers that start together wait here for the first one's split; a nestling run in the folder is met below.
    folder.path.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.path / ".split.lock"):
        known = folder.state.get("split")
        if known not in (None, made_from):
            raise InputError(
                f"{folder.path}: its split was made from other data or settings; choose another --name, or make it "
                "again with nestling run --overwrite"
            )
        if known and folder.split.exists():
            observer.stage("split", "done before")
            return read_split(folder.split)
        with folder.locked():
            observer.stage("split")
            made = stages.split(judgments, out=folder.split, settings=experiment.split)
            folder.mark("split", made_from)
        for line in made.told():
            observer.note(line)
        return made
