"""Context of a search and of a learning curve: one variant of an experiment, its settled threshold and its split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from nestling.config.experiment import Experiment, Variant
from nestling.config.run_folder import RunFolder
from nestling.config.training import TrainingSettings
from nestling.errors import InputError
from nestling.judgments.split import Split
from nestling.judgments.split_files import read_split
from nestling.judgments.threshold import settle_threshold
from nestling.progress import Observer
from nestling.study.data import load, split, split_print
from nestling.study.train import spec_of
from nestling.training.inputs.scored import check_scores
from nestling.training.spec import TrainingSpec


@dataclass(frozen=True)
class Context:
    """One variant of an experiment on the run's split, of which only train and dev are for use here."""

    experiment: Experiment
    variant: Variant
    folder: RunFolder
    split: Split
    split_print: str
    threshold: float
    source: str

    @property
    def settings(self) -> TrainingSettings:
        """The variant's training settings as the experiment has them."""
        return self.experiment.training_of(self.variant)

    def spec(self, settings: TrainingSettings) -> TrainingSpec:
        """Return the training of the variant with these settings."""
        return spec_of(self.experiment, self.variant, self.threshold, settings=settings)


def prepare(experiment: Experiment, name: str | None, *, runs: Path, observer: Observer) -> Context:
    """Check everything, then read the run's split, or make it where there is none yet."""
    trained = experiment.trained
    variant = next((each for each in trained if name in (None, each.name)), None)
    if variant is None:
        names = ", ".join(each.name for each in trained) or "none"
        raise InputError(f"{experiment.name} trains no variant{f' {name!r}' if name else ''}; it trains {names}")
    judgments = load(experiment.data, seed=experiment.split.seed)
    threshold = settle_threshold(judgments, experiment.data.threshold)
    check_scores(judgments, experiment.training_of(variant))
    spec_of(experiment, variant, threshold)
    folder = RunFolder(runs / experiment.name)
    made_from = split_print(judgments, experiment.split)
    folder.path.mkdir(parents=True, exist_ok=True)
    # Workers that start together wait for the first one's split; a nestling run in the folder is met by its own lock.
    with FileLock(folder.path / ".split.lock"):
        if folder.state.get("split", made_from) != made_from:
            raise InputError(
                f"{folder.path}: its split was made from other data or settings; choose another --name, or make it "
                "again with nestling run --overwrite"
            )
        new = not folder.is_done("split", made_from, folder.split)
        observer.stage("split", "" if new else "done before")
        if new:
            with folder.locked():
                split(judgments, out=folder.split, settings=experiment.split)
                folder.mark("split", made_from)
    sides = read_split(folder.split)
    for line in sides.overview():
        observer.note(line)
    return Context(experiment, variant, folder, sides, made_from, threshold, judgments.source)
