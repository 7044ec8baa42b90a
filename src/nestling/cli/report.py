"""The verb that writes pages: report, of one run or of several side by side. Parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from nestling.cli.console import print_tables
from nestling.cli.options import Json, Runs, run_path
from nestling.errors import InputError

COMPARISON = "comparison.html"


def report(
    *run: Annotated[Path, Parameter(help="Finished runs: their folders, or their names in RUNS.")],
    runs: Runs = Path("runs"),
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
    from nestling.report import runs_page
    from nestling.report.page import write_pages
    from nestling.report.runs_data import load_runs

    if not run:
        raise InputError("report needs at least one run; give the folder of a finished nestling run, or its name")
    folders = [RunFolder(run_path(one, runs)) for one in run]
    if len(folders) == 1:
        if out is not None:
            raise InputError(
                "--out is for the comparison of several runs; the page of one run is report.html in its folder"
            )
        path = write_pages(folders[0])
        value = json.loads(folders[0].results_json.read_text(encoding="utf-8"))
    else:
        out = out or runs / COMPARISON
        runs_page.check_out(out)
        data = load_runs(folders)
        path, value = runs_page.write_runs_page(data, out), data.as_dict()
    if as_json:
        print(json.dumps({**value, "path": str(path)}))
        return
    if len(folders) > 1:
        print_tables(runs_page.narrow_full_table(data))
        for answer in runs_page.verdict(data):
            Console().print(f"{answer.question} {answer.word}. {answer.text}", highlight=False, markup=False)
    print(f"page        {path}  ({path.stat().st_size / 1e6:.2f} MB)")
