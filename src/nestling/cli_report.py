"""The verb that writes a run's page: report. Parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from nestling.errors import InputError


def report(
    run: Annotated[Path, Parameter(help="A finished run: its folder, or its name in RUNS.")],
    *,
    runs: Annotated[Path, Parameter(help="The folder that holds runs.")] = Path("runs"),
) -> None:
    """Write a finished run's page, report.html, from its tables alone."""
    from nestling.report.page import write_page
    from nestling.run_folder import RunFolder

    folder = run if run.is_dir() else runs / run
    if not folder.is_dir():
        raise InputError(f"there is no run {run}, here or in {runs}; give the folder of a finished nestling run")
    path = write_page(RunFolder(folder))
    size = path.stat().st_size / 1e6
    Console().print(f"page        {path}  ({size:.2f} MB)", soft_wrap=True, highlight=False, markup=False)
