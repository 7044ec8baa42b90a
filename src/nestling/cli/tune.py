"""The verbs that look for better settings and ask for more data: tune and curve. Parse, call, print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer, print_tables
from nestling.cli.options import Json, RunOptions, Source, numbers

VariantName = Annotated[str | None, Parameter(help="The variant to train; by default the first that is trained.")]


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
    options: RunOptions = RunOptions(),
    as_json: Json = False,
) -> None:
    """Search the training settings of one variant for the best recall@10 on dev; the test split is not looked at.

    Called again it goes on; called in several terminals at once, the workers share the trials.
    """
    from nestling.study.tune import view
    from nestling.study.tune.search import tune as search
    from nestling.study.tune.space import load_space

    result = search(
        options.experiment(experiment),
        variant=variant,
        trials=trials,
        space=load_space(space) if space else None,
        storage=storage,
        runs=options.runs,
        seed=seed,
        observer=observer(),
    )
    if as_json:
        best = {"trial": result.best.number, result.metric: result.best.value, "params": result.best.params}
        trials_ = [asdict(trial) for trial in result.trials]
        print(json.dumps({"best": best, "before": result.before, "importance": result.importance, "trials": trials_}))
        return
    print_tables(view.trials_table(result))
    if result.importance:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in result.importance.items())
        Console().print(f"importance: {shares}", highlight=False)
    _print_files(result.files)
    print(f"next        nestling run {result.files[0]}")


def curve(
    experiment: Source = None,
    *,
    variant: VariantName = None,
    shares: Annotated[str, Parameter(help="Shares of the training data, as in 0.1,0.25,0.5,1.")] = "0.1,0.25,0.5,1",
    seeds: Annotated[int, Parameter(help="Trainings of each share, on samples of their own.")] = 1,
    options: RunOptions = RunOptions(),
    as_json: Json = False,
) -> None:
    """Train one variant on growing shares of the training data: would more judgments help?"""
    from nestling.study.curve import curve as learn
    from nestling.study.tune import view

    result = learn(
        options.experiment(experiment),
        variant=variant,
        shares=numbers(shares, float),
        seeds=seeds,
        runs=options.runs,
        observer=observer(),
    )
    if as_json:
        print((result.folder / "curve.json").read_text(encoding="utf-8"))
        return
    print_tables(view.curve_table(result))
    _print_files(result.files)


def _print_files(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"{'picture' if path.suffix == '.png' else 'file':<10}  {path}")
