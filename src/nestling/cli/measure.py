"""The verbs that measure: evaluate and shrink. Parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import observer, print_results, print_tables
from nestling.cli.options import Dims, Json, PromptOptions, named_files, named_paths, numbers, save_picture
from nestling.errors import InputError

if TYPE_CHECKING:
    from nestling.study.shrink import Choice, Shrunk

Threshold = Annotated[float | None, Parameter(help="Relevant above this (2.5 on a scale of 1 to 3).")]
EngineName = Annotated[
    str, Parameter(help="What encodes: torch-fp32, torch-bf16, openvino-bf16, ..., or auto for the machine's fastest.")
]
Cache = Annotated[Path | None, Parameter(help="A folder that keeps embeddings for the next call.")]
EVERY = "float32,float16,int8,int4,binary"


def evaluate(
    split: Annotated[Path, Parameter(help="A folder that nestling split wrote; its test side is measured.")],
    *models: Annotated[str, Parameter(help="Folders, bundled names or hub ids; NAME=MODEL names one.")],
    dims: Dims = None,
    precisions: Annotated[str, Parameter(help=f"Of {EVERY}.")] = "float32",
    rotate: Annotated[bool, Parameter(help="Measure each cell rotated too.")] = False,
    oversampling: Annotated[str, Parameter(help="Rescored shortlists, so many times as long, as in 2,4,8.")] = "",
    baselines: Annotated[bool, Parameter(help="Measure BM25, plain and stemmed.", negative="--no-baselines")] = True,
    fusion: Annotated[bool, Parameter(help="Measure each model with BM25 added.", negative="--no-fusion")] = True,
    run: Annotated[tuple[str, ...], Parameter(help="NAME=FILE: another engine's ranking, a TREC run.")] = (),
    protocol: Literal["per-query", "per-pair"] = "per-query",
    measures: Annotated[str, Parameter(help="As in recall@10,mrr@10,ndcg@10.")] = "recall@10,mrr@10,ndcg@10",
    threshold: Threshold = None,
    prompts: PromptOptions = PromptOptions(),
    engine: EngineName = "torch-fp32",
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Measure models, BM25 and both together at every size and precision on the test side of a split.

    The first model is what the others are compared with.
    """
    import polars as pl

    from nestling.config.experiment import EvaluationSettings
    from nestling.config.names import LEXICAL
    from nestling.config.yaml_files import make_settings
    from nestling.evaluation.recommend import kept_by
    from nestling.report.grid_view import grid_table
    from nestling.report.tables import slices_table
    from nestling.study import evaluate as evaluating

    if not models:
        raise InputError("evaluate needs at least one model after the split; give a folder, a bundled name or a hub id")
    named = named_paths(models, "models")
    settings = make_settings(
        EvaluationSettings,
        dims=dims and numbers(dims, int),
        protocol=protocol,
        measures=tuple(measures.split(",")),
        precisions=tuple(precisions.split(",")),
        rotations=("none", "trained") if rotate else ("none",),
        oversampling=numbers(oversampling, int) if oversampling else (),
        baselines=LEXICAL if baselines else (),
        fusion=fusion,
        engine=engine,
    )
    measured = evaluating.evaluate(
        split,
        named,
        settings=settings,
        threshold=threshold,
        prompts=prompts.given(),
        runs=named_files(run),
        cache=cache,
        observer=observer(),
    )
    if as_json:
        tables = {name: getattr(measured, name).to_dicts() for name in ("results", "comparisons", "slices")}
        print(json.dumps({"protocol": protocol, "ceiling@10": measured.ceiling, **tables}))
        return
    first = settings.measures[0]
    caption = f"{protocol}; recall@10 can reach {measured.ceiling:.4f} at most"
    results = (measured.results, measured.comparisons, settings.measures)
    print_results(*results, caption=caption, reference=next(iter(named)))
    print_tables(slices_table(measured.slices.filter(pl.col("measure") == first)))
    if len(settings.precisions) > 1 or rotate or oversampling:
        for name in named:
            cells = measured.per_query.filter(pl.col("variant") == name).drop("variant")
            print_tables(grid_table(kept_by(cells, first), first, title=name))


def shrink(
    model: Annotated[str, Parameter(help="A model: a run's (RUNS/NAME/models/VARIANT), a folder or a hub id.")],
    *,
    split: Annotated[Path | None, Parameter(help="A split's folder; the run's own by default.")] = None,
    keep: Annotated[float, Parameter(help="Share of the full embedding's recall@10 to keep.")] = 0.98,
    strict: Annotated[
        bool | None,
        Parameter(
            help="The interval's lower end must reach it; by default with over 50 cells.", negative="--no-strict"
        ),
    ] = None,
    documents: Annotated[float, Parameter(help="How many documents you have, as in 10e6.")] = 1e6,
    dims: Dims = None,
    precisions: Annotated[str, Parameter(help=f"Of {EVERY}.")] = EVERY,
    oversampling: Annotated[str, Parameter(help="Rescored shortlists, so many times as long.")] = "2,4,8",
    measure: Annotated[str, Parameter(help="What quality is.")] = "recall@10",
    rescoring: Annotated[bool, Parameter(help="Write the rescored cell, if smaller.")] = False,
    fusion: Annotated[bool, Parameter(help="Count quality with stemmed BM25 added.")] = False,
    threshold: Threshold = None,
    prompts: PromptOptions = PromptOptions(),
    engine: EngineName = "torch-fp32",
    out: Annotated[Path | None, Parameter(help="Write the small model into this folder.")] = None,
    picture: Annotated[Path | None, Parameter(help="Write the Pareto front as PATH.png and PATH.svg.")] = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Find the smallest embeddings that keep a share of a model's quality: chosen on dev, confirmed on test."""
    from nestling.config.experiment import EvaluationSettings
    from nestling.config.run_folder import RunFolder
    from nestling.config.yaml_files import make_settings
    from nestling.study import shrink as shrinking

    settings = make_settings(
        EvaluationSettings,
        dims=dims and numbers(dims, int),
        precisions=tuple(precisions.split(",")),
        rotations=("none", "trained"),
        oversampling=numbers(oversampling, int) if oversampling else (),
        measures=(measure,),
        engine=engine,
    )
    if documents < 1:
        raise InputError(f"--documents must be 1 or more, not {documents:g}")
    if split is None:
        run = RunFolder.of_model(model)
        if run is None or not run.split.is_dir():
            raise InputError(f"{model} is not in a run's folder, so give the split that it was trained on with --split")
        split, cache = run.split, cache or run.embeddings
    shrunk = shrinking.shrink(
        model,
        split,
        keep=keep,
        strict=strict,
        measure=measure,
        settings=settings,
        threshold=threshold,
        prompts=prompts.given(),
        rescoring=rescoring,
        fuse=fusion,
        out=out,
        cache=cache,
        observer=observer(),
    )
    pictures: tuple[Path, ...] = ()
    if picture is not None:
        from nestling.report.grid_charts import pareto

        chart = pareto(shrunk.kept, measure, subtitle=f"{Path(model).name}, on dev", keep=keep)
        pictures = save_picture(chart, picture)
    if as_json:
        print(json.dumps({**asdict(shrunk), "kept": shrunk.kept.to_dicts(), "out": out and str(out)}))
        return
    _print_advice(shrunk, documents=int(documents))
    for path in pictures:
        print(f"picture     {path}")
    if out is not None:
        print(f"model       {out}")


def _print_advice(shrunk: Shrunk, *, documents: int) -> None:
    from nestling.report.grid_view import advice_lines, grid_table

    print_tables(grid_table(shrunk.kept, shrunk.measure, front_only=True))
    lines = []
    for choice in filter(None, (shrunk.alone, shrunk.rescored)):
        lines += advice_lines(choice.dev, choice.test, measure=shrunk.measure, full=shrunk.full, documents=documents)
        lines += _doubt(choice, shrunk)
    if shrunk.alone is None:
        lower = " at the lower end of its interval (--no-strict asks for the share itself)" if shrunk.strict else ""
        lines.append(f"nothing smaller in the grid keeps {shrunk.keep:.1%} of {shrunk.measure} on dev{lower}")
    Console().print(*lines, sep="\n", highlight=False, markup=False)


def _doubt(choice: Choice, shrunk: Shrunk) -> list[str]:
    """Return a line where test does not bear the choice out: the smallest of many cells is partly the luckiest."""
    if choice.test["kept"] >= shrunk.keep:
        return []
    advice = "a higher --keep leaves a margin" if shrunk.strict else "--strict chooses with a margin"
    return [f"on test that is less than the {shrunk.keep:.1%} asked for: {advice}"]
