"""The verbs that look for better settings and ask for more data: tune and curve. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer
from nestling.cli.options import Columns, Json, Overrides, as_changes, numbers, run_name

if TYPE_CHECKING:
    from nestling.config.experiment import Experiment

Source = Annotated[str | None, Parameter(help="An experiment in YAML, or a source of judgments.")]
VariantName = Annotated[str | None, Parameter(help="The variant to train; by default the first that is trained.")]
RunName = Annotated[str | None, Parameter(help="Name of the run; its folder is RUNS/NAME.")]
Runs = Annotated[Path, Parameter(help="The folder that holds runs.")]


def tune(
    experiment: Source = None,
    *,
    variant: VariantName = None,
    trials: Annotated[int, Parameter(help="Finished trials to have in all, earlier calls and other workers too.")] = 20,
    space: Annotated[
        Path | None, Parameter(help="YAML: SETTING: {low: A, high: B, log: true} or {choices: []}.")
    ] = None,
    storage: Annotated[
        str | None, Parameter(help="What workers share: an SQLite file, or a database's URL; in the run folder else.")
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the search.")] = 0,
    columns: Columns = Columns(),
    name: RunName = None,
    runs: Runs = Path("runs"),
    change: Overrides = (),
    as_json: Json = False,
) -> None:
    """Search the training settings of one variant for the best recall@10 on dev; the test split is not looked at.

    Called again it goes on; called in several terminals at once, the workers share the trials.
    """
    from nestling.report.render.terminal import terminal
    from nestling.study.tune import view
    from nestling.study.tune.search import tune as search
    from nestling.study.tune.space import load_space

    found = search(
        experiment_of(experiment, columns=columns, name=name, change=change),
        variant=variant,
        trials=trials,
        space=load_space(space) if space else None,
        storage=storage,
        runs=runs,
        seed=seed,
        observer=observer(),
    )
    if as_json:
        best = {"trial": found.best.number, found.metric: found.best.value, "params": found.best.params}
        trials_ = [asdict(trial) for trial in found.trials]
        print(json.dumps({"best": best, "before": found.before, "importance": found.importance, "trials": trials_}))
        return
    out = Console()
    out.print(terminal(view.trials_table(found)))
    if found.importance:
        out.print(view.importance_line(found), highlight=False)
    for path in found.files:
        out.print(f"{'picture' if path.suffix == '.png' else 'file':<10}  {path}", soft_wrap=True, highlight=False)
    out.print(f"next        nestling run {found.files[0]}", soft_wrap=True, highlight=False)


def curve(
    experiment: Source = None,
    *,
    variant: VariantName = None,
    shares: Annotated[str, Parameter(help="Shares of the training data, as in 0.1,0.25,0.5,1.")] = "0.1,0.25,0.5,1",
    seeds: Annotated[int, Parameter(help="Trainings of each share, on samples of their own.")] = 1,
    columns: Columns = Columns(),
    name: RunName = None,
    runs: Runs = Path("runs"),
    change: Overrides = (),
    as_json: Json = False,
) -> None:
    """Train one variant on growing shares of the training data: would more judgments help?"""
    from nestling.report.render.terminal import terminal
    from nestling.study.curve import curve as learn
    from nestling.study.tune import view

    found = learn(
        experiment_of(experiment, columns=columns, name=name, change=change),
        variant=variant,
        shares=numbers(shares, float),
        seeds=seeds,
        runs=runs,
        observer=observer(),
    )
    if as_json:
        print((found.folder / "curve.json").read_text(encoding="utf-8"))
        return
    out = Console()
    out.print(terminal(view.curve_table(found)))
    for path in found.files:
        out.print(f"{'picture' if path.suffix == '.png' else 'file':<10}  {path}", soft_wrap=True, highlight=False)


def experiment_of(given: str | None, *, columns: Columns, name: str | None, change: tuple[str, ...]) -> Experiment:
    """Return the experiment that a verb's argument and options describe, as `nestling run` reads them."""
    from nestling.config.yaml_files import load_experiment

    path = Path(given) if given and given.endswith((".yaml", ".yml")) else None
    changes: dict[str, Any] = {}
    if given and path is None:
        # Not the demo's sizes: someone else's data are taken whole, with the defaults of a study.
        changes = {"name": run_name(given), "data": {"source": given}, "training": {}}
    changes.update({f"data.{key}": value for key, value in columns.given().items()})
    if name:
        changes["name"] = name
    changes.update(as_changes(change))
    return load_experiment(path, changes)
