"""The verbs of the command line: parse, call, print."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError
from rich.console import Console

from nestling.atomic import FULL
from nestling.cli import export, index, measure, postgres, report, serve, tune
from nestling.cli.console import observer, print_results, print_tables, speaks
from nestling.cli.options import (
    Columns,
    Data,
    Dims,
    Json,
    Overrides,
    PromptOptions,
    RunOptions,
    Source,
    as_changes,
    numbers,
    save_picture,
)
from nestling.config.names import DEFAULT_MODEL
from nestling.environment import VERSION, grow_gpu_memory, missing, share_cores
from nestling.errors import InputError, clean

app = App(
    name="nestling",
    help="Fine-tune a small embedding model on your own search judgments, and learn how small its embeddings can get.",
    version=VERSION,
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=""),
)
BAD_INPUT, INTERRUPTED = 2, 130


@app.command
def run(
    experiment: Source = None,
    *,
    options: RunOptions = RunOptions(),
    overwrite: Annotated[bool, Parameter(help="Make again what was made with other data or settings.")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole study: judgments in, a table and a picture out. Without an argument it is the demo."""
    from nestling.study import run as study

    chosen = options.experiment(experiment)
    done = study.run(chosen, runs=options.runs, overwrite=overwrite, observer=observer() if speaks() else None)
    if as_json:
        print((done.folder / "results.json").read_text(encoding="utf-8"))
        return
    settings = done.experiment.evaluation
    print_results(
        done.results,
        done.comparisons,
        settings.measures,
        caption=f"{settings.protocol}, {done.queries:,} test queries; recall@10 can reach {done.ceiling:.4f} at most",
        reference=done.reference,
        regressions=done.regressions,
    )
    for picture in done.pictures:
        print(f"picture     {picture}")
    print(f"report      {done.report}")
    print(f"run folder  {done.folder}")


@app.command
def inspect(
    data: Data,
    *,
    columns: Columns = Columns(),
    model: Annotated[str, Parameter(help="Whose tokenizer counts lengths.")] = DEFAULT_MODEL,
    seed: int = 0,
    picture: Annotated[Path | None, Parameter(help="Write the histogram as PATH.png and PATH.svg.")] = None,
    as_json: Json = False,
) -> None:
    """Say what the data holds: counts, lengths, the score histogram, its dip, and what each threshold keeps."""
    from nestling.report import data_tables
    from nestling.study.data import inspect as inspect_data

    settings = columns.settings(data)
    inspection = inspect_data(settings, model=model, threshold=settings.threshold, seed=seed)
    if as_json:
        print(json.dumps(inspection.as_dict()))
    else:
        tables = (data_tables.counts_table, data_tables.histogram_table, data_tables.thresholds_table)
        print_tables(*(table(inspection) for table in tables))
    if picture is not None:
        from nestling.report.charts import score_histogram

        for path in save_picture(score_histogram(inspection), picture):
            print(f"picture  {path}", file=sys.stderr)


@app.command
def split(
    data: Data,
    out: Annotated[Path, Parameter(help="The folder to write train, dev, test and a summary into.")],
    *,
    columns: Columns = Columns(),
    test: Annotated[float, Parameter(help="Share of the records for test.")] = 0.2,
    dev: Annotated[float, Parameter(help="Share of the records for dev.")] = 0.1,
    method: Annotated[
        Literal["auto", "components", "queries", "queries-only"],
        Parameter(help="What sides share: components and queries nothing, queries-only documents."),
    ] = "auto",
    seed: int = 0,
    overwrite: Annotated[bool, Parameter(help="Replace OUT where it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Split into train, dev and test that share no query, and where the data allows it no document."""
    from nestling.config.experiment import SplitSettings
    from nestling.config.yaml_files import make_settings
    from nestling.judgments.split_files import SUMMARY, summarise
    from nestling.report.data_tables import split_table
    from nestling.study.data import split as split_data

    if out.exists() and (out.is_file() or any(out.iterdir())):
        if not overwrite:
            raise InputError(f"{out} exists; give another folder, or --overwrite")
        if not (out / SUMMARY).exists():
            raise InputError(f"{out} exists and is no split, so it is not replaced; give another folder")
    settings = make_settings(SplitSettings, test=test, dev=dev, method=method, seed=seed)
    sides = split_data(columns.settings(data), out=out, settings=settings)
    summary = summarise(sides)
    for note in filter(None, (*sides.train.notes, sides.warning)):
        observer().note(note)
    if as_json:
        print(json.dumps(summary))
        return
    print_tables(split_table(summary, source=summary["source"]))
    print(f"split  {out}")


@app.command
def train(
    split: Annotated[Path, Parameter(help="A folder that nestling split wrote.")],
    out: Annotated[Path, Parameter(help="The model's folder.")],
    *,
    recipe: Annotated[str, Parameter(help="graded, distilled, mnrl, static, adapter, cosine or cosent.")] = "graded",
    base: Annotated[str, Parameter(help="What to start from: a folder, a bundled name or a hub id.")] = DEFAULT_MODEL,
    matryoshka: Annotated[bool, Parameter(help="Train the prefixes of --dims too.")] = False,
    dims: Dims = None,
    weights: Annotated[str | None, Parameter(help="A weight for each of --dims, as in 1,1,1,2.")] = None,
    threshold: Annotated[float | None, Parameter(help="Positives score above this (2.5 on a scale of 1 to 3).")] = None,
    prompts: PromptOptions = PromptOptions(),
    change: Overrides = (),
    as_json: Json = False,
) -> None:
    """Train one variant and save it as a plain SentenceTransformer folder. Called again, it goes on where it stopped.

    Training settings are those of an experiment: --set epochs=3 --set batch_size=64 --set learning_rate=1e-4 ...
    """
    from nestling.config.training import Matryoshka, TrainingSettings
    from nestling.config.yaml_files import make_settings
    from nestling.study.train import train as train_model

    prefixes = None
    if matryoshka or weights:
        prefixes = make_settings(
            Matryoshka, dims=dims and numbers(dims, int), weights=weights and numbers(weights, float)
        )
    result = train_model(
        split,
        out=out,
        recipe=recipe,
        base=base,
        matryoshka=prefixes,
        settings=make_settings(TrainingSettings, **as_changes(change)),
        threshold=threshold,
        prompts=prompts.given(),
        observer=observer() if speaks() else None,
    )
    if not speaks():
        return
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    before, after = result.before, result.after
    for name in before:
        aside = f" (base model {result.base[name]:.4f})" if result.base != before else ""
        print(f"{name:<14} {before[name]:.4f} -> {after[name]:.4f}{aside}")
    if result.regression:
        Console().print(f"[bold red]REGRESSION[/]: the trained model retrieves worse on dev than {result.beaten_by}")
    print(f"{result.pairs_per_second:.1f} pairs/s, {result.seconds:.0f} s in steps")
    print(f"model  {out}")


for verb in (
    *(measure.evaluate, measure.shrink, report.report, export.push, export.export, index.index, index.search),
    *(serve.serve, postgres.postgres, index.encode, tune.tune, tune.curve),
):
    app.command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 when all went well, 2 on bad input, 130 on Ctrl-C."""
    _quiet_libraries()
    grow_gpu_memory(os.environ)
    share_cores(os.environ)
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except UnknownOptionError as error:
        _fail(_as_setting(error) or str(error))
    except (InputError, CycloptsError) as error:
        _fail(str(error))
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        if error.errno in FULL:
            what += "; free some, then give the same command again: it goes on where it stopped"
        _fail(f"{error.filename}: {what}" if error.filename else what)
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "nestling":
            raise
        _fail(str(missing("this", error)))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fail(message: str) -> NoReturn:
    line = " ".join(clean(part) for part in message.split())
    print(f"nestling: {line}", file=sys.stderr)
    sys.exit(BAD_INPUT)


def _as_setting(error: UnknownOptionError) -> str | None:
    """Return what to give in place of an unknown option that has the name of a training setting."""
    from nestling.config.training import TrainingSettings

    verb = " ".join(error.command_chain or ())
    option = (error.token.keyword or error.token.value).split("=")[0]
    name = option.lstrip("-").replace("-", "_")
    if verb not in ("train", "run", "tune", "curve") or name not in TrainingSettings.model_fields:
        return None
    section = "" if verb == "train" else "training."
    value = re.search(rf"{re.escape(option)}[= ]([^\s-]\S*)", " ".join(error.root_input_tokens or ()))
    given = value[1] if value else "VALUE"
    return f"Unknown option: {option}. It is a setting of the training: give --set {section}{name}={given}"


def _quiet_libraries() -> None:
    """Leave the terminal to our own lines: warnings of libraries stay, their progress and chatter go."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("sentence_transformers", "transformers", "datasets", "accelerate", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch|transformers|sentence_transformers|accelerate|datasets")
