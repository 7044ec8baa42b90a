"""The verb that writes pages: report, of one run or of several side by side. Parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.options import Json
from nestling.errors import InputError

if TYPE_CHECKING:
    from nestling.config.run_folder import RunFolder
    from nestling.report.runs_data import RunsData

COMPARISON = "comparison.html"


def report(
    *run: Annotated[Path, Parameter(help="Finished runs: their folders, or their names in RUNS.")],
    runs: Annotated[Path, Parameter(help="The folder that holds runs.")] = Path("runs"),
    out: Annotated[
        Path | None, Parameter(help=f"Where the comparison of several runs goes (RUNS/{COMPARISON}).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a finished run's page, report.html, from its tables alone; of several runs, a page that compares them.

    Runs can be compared that measured the same test queries in the same way: the same judgments, threshold, split,
    protocol and measures.
    """
    from nestling.config.run_folder import RunFolder

    if not run:
        raise InputError("report needs at least one run; give the folder of a finished nestling run, or its name")
    folders = [RunFolder(_found(one, runs)) for one in run]
    if len(folders) > 1:
        _compare(folders, out or runs / COMPARISON, as_json=as_json)
        return
    if out is not None:
        raise InputError(
            "--out is for the comparison of several runs; the page of one run is report.html in its folder"
        )
    _one(folders[0], as_json=as_json)


def _one(folder: RunFolder, *, as_json: bool) -> None:
    from nestling.report.page import write_pages

    path = write_pages(folder)
    if as_json:
        print(json.dumps({**json.loads(folder.results_json.read_text(encoding="utf-8")), "path": str(path)}))
        return
    _print_path(Console(), path)


def _compare(folders: list[RunFolder], out: Path, *, as_json: bool) -> None:
    from nestling.report.render.terminal import terminal
    from nestling.report.runs_data import load_runs
    from nestling.report.runs_page import check_out, narrow_full_table, verdict, write_runs_page

    check_out(out)
    data = load_runs(folders)
    path = write_runs_page(data, out)
    if as_json:
        print(json.dumps({**_as_json(data), "path": str(path)}))
        return
    console = Console()
    console.print(terminal(narrow_full_table(data)))
    for answer in verdict(data):
        console.print(f"{answer.question} {answer.word}. {answer.text}", highlight=False, markup=False)
    _print_path(console, path)


def _found(run: Path, runs: Path) -> Path:
    folder = run if run.is_dir() else runs / run
    if not folder.is_dir():
        raise InputError(f"there is no run {run}, here or in {runs}; give the folder of a finished nestling run")
    return folder


def _print_path(console: Console, path: Path) -> None:
    size = path.stat().st_size / 1e6
    console.print(f"page        {path}  ({size:.2f} MB)", soft_wrap=True, highlight=False, markup=False)


def _as_json(data: RunsData) -> dict[str, Any]:
    dev, ranked = data.dev, data.ranked
    runs = [
        {
            "name": name,
            "folder": str(folder),
            "finished": page.study.get("finished"),
            "pick": pick,
            "dev_recall@10": dev.get(n),
        }
        for n, (name, folder, page, pick) in enumerate(
            zip(data.labels, data.folders, data.pages, data.picks, strict=True)
        )
    ]
    return {
        "runs": runs,
        "settings": data.settings,
        "environment": data.environment,
        "best_on_dev": data.picks[ranked[0]] if ranked else None,
        "reference": data.reference,
        "variants": [
            {"name": line.name, "variant": line.variant, "runs": [data.labels[n] for n in line.runs]}
            for line in data.lines
        ],
        "results": data.results.to_dicts(),
        "gains": data.gains.to_dicts(),
        "pairs": data.pairs.to_dicts(),
    }
