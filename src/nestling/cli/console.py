"""What a person at a terminal sees while stages run: a line for each stage, its notes, and a live progress bar."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from nestling.errors import clean
from nestling.progress import Observer

if TYPE_CHECKING:
    from nestling.progress import TrainingProgress
    from nestling.study.estimate import Timeline

SECONDS_BETWEEN_LINES = 20
"""Where there is no terminal to redraw, progress is a line this often."""
LONGEST = 3
"""Stages that are named with their time before a run begins."""


class TerminalObserver(Observer):
    """Writes to `console`: bars where it is a terminal, plain lines where it is not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._said = time.monotonic()
        self._timeline: Timeline | None = None

    def plan(self, stages: Mapping[str, Sequence[float]]) -> None:
        from nestling.study.estimate import Timeline, spoken

        self._timeline = Timeline(stages)
        seconds = {name: sum(parts) for name, parts in stages.items()}
        longest = sorted(seconds, key=lambda name: -seconds[name])[:LONGEST]
        parts = [f"{name} {spoken(seconds[name])}" for name in longest if seconds[name] and len(stages) > 1]
        text = f"{spoken(sum(seconds.values()))} on this machine" + (f": {', '.join(parts)}" if parts else "")
        self.console.print(escape(clean(text)), highlight=False, soft_wrap=not self.console.is_terminal)

    def stage(self, name: str, detail: str = "") -> None:
        self.done()
        if self._timeline and self._timeline.begin(name):
            detail = f"{detail}; {self._timeline.where()}" if detail else self._timeline.where()
        self.console.print(
            f"[bold]{escape(clean(name))}[/]  [dim]{escape(clean(detail))}[/]".rstrip(),
            highlight=False,
            soft_wrap=not self.console.is_terminal,
        )

    def note(self, text: str) -> None:
        style = "bold red" if text.startswith("WARNING") else None
        line = f"  {escape(clean(text))}"
        self.console.print(line, style=style, highlight=False, soft_wrap=not self.console.is_terminal)

    def training(self, variant: str, progress: TrainingProgress) -> None:
        loss = "-" if progress.loss is None else f"{progress.loss:.3f}"
        dev = "" if progress.dev is None else f"  dev {progress.dev:.4f}"
        text = f"loss {loss}  {progress.pairs_per_second:.1f} pairs/s{dev}  {_clock(progress.seconds_left)} left"
        if self._timeline:
            self._timeline.progress(progress.step, progress.steps)
            text += f"; {self._timeline.where()}"
        self._show(f"step {progress.step}/{progress.steps}", text, progress.step, progress.steps)

    def encoding(self, variant: str, done: int, total: int) -> None:
        self._show("encoding", f"{done:,}/{total:,} texts", done, total)

    def done(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _show(self, what: str, text: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
                self._said = time.monotonic()
                self.console.print(f"  {what}  {text}", highlight=False, soft_wrap=True)
            return
        if self._bar is None or self._task is None:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=18),
                TextColumn("{task.fields[text]}"),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(what, total=total, text=text)
            self._bar.start()
        self._bar.update(self._task, description=what, completed=done, total=total, text=text)


def observer() -> TerminalObserver:
    """Return an observer on standard error, so that standard output holds results alone."""
    return TerminalObserver(Console(stderr=True))


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
