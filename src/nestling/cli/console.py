"""Terminal output: stages with their notes, a live progress bar, and tables of results."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from nestling.errors import clean
from nestling.progress import Observer

if TYPE_CHECKING:
    import polars as pl

    from nestling.progress import TrainingProgress
    from nestling.report.table import Table
    from nestling.study.estimate import Timeline

SECONDS_BETWEEN_LINES = 20
"""Seconds between two lines of progress where there is no terminal to redraw."""
LONGEST = 3
"""Stages that are named with their time before a run begins."""


class TerminalObserver(Observer):
    """Writes to `console`: bars where it is a terminal, plain lines where it is not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._last_line = time.monotonic()
        self._timeline: Timeline | None = None

    def plan(self, stages: Mapping[str, Sequence[float]]) -> None:
        from nestling.study.estimate import Timeline, duration_text

        self._timeline = Timeline(stages)
        seconds = {name: sum(parts) for name, parts in stages.items()}
        longest = sorted(seconds, key=lambda name: -seconds[name])[:LONGEST]
        parts = [f"{name} {duration_text(seconds[name])}" for name in longest if seconds[name] and len(stages) > 1]
        text = f"{duration_text(sum(seconds.values()))} on this machine" + (f": {', '.join(parts)}" if parts else "")
        self._line(escape(clean(text)))

    def stage(self, name: str, detail: str = "") -> None:
        self.done()
        if self._timeline and self._timeline.begin(name):
            detail = "; ".join(filter(None, (detail, self._timeline.where())))
        self._line(f"[bold]{escape(clean(name))}[/]  [dim]{escape(clean(detail))}[/]".rstrip())

    def note(self, text: str) -> None:
        self._line(f"  {escape(clean(text))}", style="bold red" if text.startswith("WARNING") else None)

    def training(self, variant: str, progress: TrainingProgress) -> None:
        loss = "-" if progress.loss is None else f"{progress.loss:.3f}"
        dev = "" if progress.dev is None else f"  dev {progress.dev:.4f}"
        left = "?" if progress.seconds_left == float("inf") else timedelta(seconds=round(progress.seconds_left))
        text = f"loss {loss}  {progress.pairs_per_second:.1f} pairs/s{dev}  {left} left"
        if self._timeline:
            self._timeline.progress(progress.step, progress.steps)
            text += f"; {self._timeline.where()}"
        self._progress(f"step {progress.step}/{progress.steps}", text, progress.step, progress.steps)

    def encoding(self, variant: str, done: int, total: int) -> None:
        self._progress("encoding", f"{done:,}/{total:,} texts", done, total)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None

    def _line(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, soft_wrap=not self.console.is_terminal)

    def _progress(self, what: str, text: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                self._line(f"  {what}  {text}")
            return
        if self._bar is None:
            columns = (TextColumn("  {task.description}"), BarColumn(bar_width=18), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
            self._bar.add_task(what, text=text)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=what, completed=done, total=total, text=text)


def speaks() -> bool:
    """Whether this is the one of several processes (accelerate launch, torchrun) that talks to the user."""
    return os.environ.get("RANK", "0") == "0"


def observer() -> Observer:
    """Return an observer on standard error, so that standard output holds results alone."""
    return TerminalObserver(Console(stderr=True)) if speaks() else Observer()


def print_tables(*tables: Table) -> None:
    """Print tables on standard output."""
    from nestling.report.render.terminal import terminal

    console = Console()
    for table in tables:
        console.print(terminal(table))


def print_results(
    results: pl.DataFrame,
    comparisons: pl.DataFrame,
    measures: Sequence[str],
    *,
    caption: str,
    reference: str | None,
    regressions: Sequence[str] = (),
) -> None:
    """Print what variants have at full size and, of the first two measures, by size, then the comparisons of one."""
    from nestling.report.tables import by_dim, by_dim_table, comparison_table, full_size, narrow_full_size_table

    over = f"; gain over {reference}" if reference else ""
    full = full_size(results, reference=reference)
    print_tables(narrow_full_size_table(full, caption=caption + over, regressions=regressions))
    print_tables(*(by_dim_table(by_dim(results), measure) for measure in measures[:2]))
    compared = comparisons.filter(measure=measures[0])
    if not compared.is_empty():
        print_tables(comparison_table(compared))
