"""What a search and a learning curve stand on: one variant of an experiment, its settled threshold and its split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from nestling.config.experiment import Experiment, Variant
from nestling.config.run_folder import RunFolder
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.table import Judgments
from nestling.judgments.threshold import settle_threshold
from nestling.progress import Observer
from nestling.study.data import load
from nestling.study.split import split, split_print
from nestling.study.train import spec_of_variant
from nestling.training.inputs.scored import check_scores
from nestling.training.result import selection

if TYPE_CHECKING:
    from nestling.training.spec import TrainingSpec


@dataclass(frozen=True)
class Context:
    """One variant of an experiment on its data.

    Attributes:
        settings: the variant's training settings as the experiment has them.
        split: the run's own; of its sides only train and dev are for use here.
        split_print: fingerprint of what the split was made from, as in the run's state.
        source: where the judgments came from, as a person would name it.
        spec: settings -> the training of the variant with these.
    """

    experiment: Experiment
    variant: Variant
    settings: TrainingSettings
    folder: RunFolder
    split: Split
    split_print: str
    threshold: float
    source: str

    def spec(self, settings: TrainingSettings) -> TrainingSpec:
        """Return the training of the variant with these settings."""
        return spec_of_variant(self.experiment, self.variant, self.threshold, settings=settings)

    @cached_property
    def metric(self) -> str:
        """Name of the dev figure that a training of the variant is worth."""
        return selection(self.spec(self.settings).matryoshka)


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
    judgments = load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    check_scores(judgments, settings)
    spec_of_variant(experiment, chosen, threshold)
    folder = RunFolder(runs / experiment.name)
    made_from = split_print(judgments, experiment.split)
    sides = _split(judgments, experiment, folder, made_from, observer)
    return Context(experiment, chosen, settings, folder, sides, made_from, threshold, judgments.source)


def find_variant(experiment: Experiment, name: str | None) -> Variant:
    """Return the variant of that name, or the first that is trained.

    Raises:
        InputError: there is none, or it is not trained.
    """
    trained = experiment.trained
    names = ", ".join(variant.name for variant in trained) or "none"
    if name is None and trained:
        return trained[0]
    for variant in trained:
        if variant.name == name:
            return variant
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
            made = split(judgments, out=folder.split, settings=experiment.split)
            folder.mark("split", made_from)
        for line in made.overview():
            observer.note(line)
        return made
