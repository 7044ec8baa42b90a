"""What a search comes to: the experiment with the best settings, the table of trials, the settings that mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from nestling.config.experiment import Experiment, Variant
from nestling.config.training import layered

if TYPE_CHECKING:
    import optuna

    from nestling.study.tune.space import Space, Value


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    Attributes:
        state: `complete` or `pruned`.
        value: what a complete trial is worth (`Search.metric`), the best seen of a pruned one; None where there was
            none.
        params: the setting's names and what was tried.
        by_epoch: the same figure after each epoch.
        seconds: of the process that finished it.
        reason: why it was pruned; empty for a complete trial.
    """

    number: int
    state: str
    value: float | None
    params: dict[str, Value]
    by_epoch: dict[int, float]
    seconds: float
    reason: str


@dataclass(frozen=True)
class Search:
    """A finished search.

    Attributes:
        experiment: the given one with the best settings in place, called `NAME-tuned`.
        variant: whose settings were searched.
        metric: name of the dev figure that a trial is worth: `dev_recall@10`, for Matryoshka `dev_recall@10_mean`.
        trials: the finished ones by number.
        best: the complete trial that is worth most.
        before: the same figure of the model before its training.
        importance: share of each setting in how that figure varies; empty where there were too few trials.
        files: best.yaml, trials.parquet and the PNG pictures.
    """

    experiment: Experiment
    variant: str
    metric: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord
    before: float
    importance: dict[str, float]
    folder: Path
    files: tuple[Path, ...]


def record_of(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    """Return a finished trial of Optuna's as plain data."""
    complete = trial.state.name == "COMPLETE"
    value = trial.value if complete else max(trial.intermediate_values.values(), default=None)
    return TrialRecord(
        number=trial.number,
        state=trial.state.name.lower(),
        value=value,
        params=dict(trial.params),
        by_epoch=dict(sorted(trial.intermediate_values.items())),
        seconds=float(trial.user_attrs.get("seconds", 0.0)),
        reason="" if complete else str(trial.user_attrs.get("reason", "")),
    )


def tuned(experiment: Experiment, variant: Variant, params: Mapping[str, Any]) -> Experiment:
    """Return the experiment with `params` in the settings of `variant`, under a name of its own."""
    training = layered(variant.training, params)
    variants = [
        {**each.model_dump(), "training": training} if each.name == variant.name else each.model_dump()
        for each in experiment.variants
    ]
    name = f"{experiment.name[:74]}-tuned"
    return Experiment.model_validate({**experiment.model_dump(exclude_unset=True), "name": name, "variants": variants})


def trials_frame(records: Sequence[TrialRecord], space: Space, *, metric: str) -> pl.DataFrame:
    """Return a row a trial: trial, state, the `metric`, seconds, reason, by_epoch, and a column a setting."""
    columns = {
        "trial": pl.Series([record.number for record in records], dtype=pl.Int64),
        "state": pl.Series([record.state for record in records], dtype=pl.String),
        metric: pl.Series([record.value for record in records], dtype=pl.Float64),
        "seconds": pl.Series([record.seconds for record in records], dtype=pl.Float64),
        "reason": pl.Series([record.reason for record in records], dtype=pl.String),
        "by_epoch": pl.Series([list(record.by_epoch.values()) for record in records], dtype=pl.List(pl.Float64)),
    }
    for dimension in space:
        values = [record.params.get(dimension.name) for record in records]
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and kinds != {int, float}:
            values = [None if value is None else str(value) for value in values]
        columns[dimension.name] = pl.Series(values, strict=False)
    return pl.DataFrame(columns)
