"""The estimate: its arithmetic with speeds and a clock made up, and the lines that a person sees, in order."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from fixtures.training import settings_of
from nestling.cli import console
from nestling.cli.console import TerminalObserver
from nestling.config.experiment import Experiment
from nestling.config.training import TrainingSettings
from nestling.config.yaml_files import make_experiment
from nestling.judgments.table import Judgments
from nestling.models.load import find_model
from nestling.progress import TrainingProgress
from nestling.study import run
from nestling.study.estimate import PIECE, TRAINING, Rates, Texts, Timeline, duration_text, measure, trainings
from nestling.training.spec import TrainingSpec


def clock_of(*times: float) -> Callable[[], float]:
    return iter(times).__next__


@pytest.fixture
def judged() -> Judgments:
    """Four queries of 2 letters and two documents of 10, judged each with each: half of them 3, half 1."""
    rows = [(f"q{q}", f"document {d}", 3.0 if q % 2 == d else 1.0) for q in range(4) for d in range(2)]
    return Judgments.from_frame(pl.DataFrame(rows, schema=["query", "document", "score"], orient="row"))


def spec(tiny: Path, recipe: str, **settings: object) -> TrainingSpec:
    return TrainingSpec(find_model(str(tiny)), recipe, settings_of(recipe, **settings), 2.5)


def test_a_training_counts_its_pairs_epochs_and_evaluations(judged: Judgments, tiny_model_path: Path):
    texts, rates = Texts(judged), Rates(trained=10, encoded=25, pieces=50)
    assert (texts.queries, texts.documents, texts.pairs(2.5)) == (8, 20, 4)
    plain = trainings(spec(tiny_model_path, "mnrl", epochs=3), texts, texts, rates)
    # Four pairs of 12 letters in each epoch; dev of 28 letters after each, before the first and at the end.
    trained, encoded = 3 * 4 * 12 / 10, 5 * 28 / 25
    assert plain == [trained + encoded + TRAINING]
    halved = trainings(spec(tiny_model_path, "mnrl", epochs=3), Texts(judged, 0.5), texts, rates)
    assert halved == [pytest.approx(trained / 2 + encoded + TRAINING)]
    all_pairs = trainings(spec(tiny_model_path, "cosent", epochs=3), texts, texts, rates)
    assert all_pairs == [pytest.approx(2 * trained + encoded + TRAINING)]
    assert trainings(spec(tiny_model_path, "static"), texts, texts, rates) == [(28 + 50 * PIECE) / 25 + TRAINING]


def test_what_a_recipe_adds_takes_longer(judged: Judgments, tiny_model_path: Path):
    texts, rates = Texts(judged), Rates(trained=10, encoded=30, pieces=100)

    def parts(recipe: str, **settings: object) -> list[float]:
        return trainings(spec(tiny_model_path, recipe, **settings), texts, texts, rates)

    plain = sum(parts("mnrl"))
    assert plain < sum(parts("graded"))
    for more in (
        {"finetune": {"crops": 1}},
        {"finetune": {"batches": "similar"}},
        {"concat_static": True},
        {"rotate": True},
    ):
        assert plain < sum(parts("mnrl", **more)), more
    assert sum(parts("graded", concat_static=True)) < sum(parts("graded", concat_static=True, distill=True))
    assert sum(parts("adapter")) < plain
    assert len(parts("distilled", concat_static=True, distill=True)) == 4


def test_the_speeds_are_characters_over_seconds_and_leave_chance_alone(judged: Judgments, tiny_model_path: Path):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    settings = TrainingSettings(batch_size=8)
    rates = measure(find_model(str(tiny_model_path)), judged, settings, clock=clock_of(0, 2, 10, 11, 14))
    assert torch.rand(1) == expected
    # Two documents of 10 letters in 2 s; two batches of eight pairs of 12 letters until 4 s were enough.
    assert (rates.encoded, rates.trained) == (10.0, 48.0)
    assert rates.pieces > 100


def test_the_time_left_is_set_right_by_what_stages_took():
    now = [0.0]
    timeline = Timeline({"split": [], "a": [100.0], "b": [200.0, 100.0]}, clock=lambda: now[0])
    assert timeline.left() == 400
    timeline.begin("split")
    timeline.begin("a")
    timeline.progress(1, 10)
    now[0] = 200.0
    timeline.progress(10, 10)
    # Twice as long as estimated, against a tenth of the whole that stands for the estimate: 240 / 140.
    assert timeline.left() == pytest.approx(300 * 240 / 140)
    timeline.begin("b")
    assert timeline.where() == f"stage 3 of 3, {duration_text(300 * 240 / 140)} left"
    now[0] = 600.0
    timeline.progress(1, 10)
    timeline.progress(10, 10)
    assert timeline.left() == pytest.approx(100 * 640 / 340)
    timeline.progress(5, 10)
    assert timeline.left() == pytest.approx(50 * 640 / 390)


def test_what_an_earlier_call_did_is_not_taken_for_speed():
    now = [0.0]
    timeline = Timeline({"a": [100.0]}, clock=lambda: now[0])
    timeline.begin("a")
    timeline.progress(51, 100)
    now[0] = 10.0
    timeline.progress(60, 100)
    assert timeline.left() == pytest.approx(40 * (10 + 5) / (10 + 5))


def test_a_stage_that_tells_nothing_is_taken_to_keep_to_its_estimate_and_never_to_less_than_none():
    now = [0.0]
    timeline = Timeline({"a": [100.0]}, clock=lambda: now[0])
    timeline.begin("a")
    now[0] = 60.0
    assert timeline.left() == pytest.approx(40)
    now[0] = 500.0
    assert timeline.left() == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (20, "less than a minute"),
        (60, "about 1 minute"),
        (700, "about 12 minutes"),
        (3600 * 2.5, "about 2.5 hours"),
    ],
)
def test_a_time_is_told_coarsely(seconds: float, words: str):
    assert duration_text(seconds) == words


def test_every_line_of_progress_shows_the_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0)
    written = io.StringIO()
    observer = TerminalObserver(Console(file=written, width=200))
    observer.plan({"split": [], "train mnrl": [600.0], "evaluate mnrl": [120.0]})
    observer.stage("split", "done before")
    observer.stage("train mnrl")
    for step in (1, 5):
        observer.training("mnrl", TrainingProgress(step, 10, 0.5, None, 10.0, 30.0, None))
    observer.stage("evaluate mnrl")
    observer.stage("something else")
    said = written.getvalue().splitlines()
    assert said[0] == "about 12 minutes on this machine: train mnrl about 10 minutes, evaluate mnrl about 2 minutes"
    assert said[1].startswith("split  done before; stage 1 of 3, about 12 minutes left")
    assert said[2].startswith("train mnrl  stage 2 of 3, about 12 minutes left")
    for line, step in ((3, 1), (4, 5)):
        assert said[line].startswith(f"  step {step}/10")
        assert "0:30 left; stage 2 of 3, " in said[line]
    assert said[5].startswith("evaluate mnrl  stage 3 of 3, ")
    assert said[6].strip() == "something else"


class Planned(console.Observer):
    def __init__(self) -> None:
        self.planned: dict[str, list[float]] = {}
        self.met: list[str] = []

    def plan(self, stages):  # type: ignore[no-untyped-def]
        self.planned = dict(stages)

    def stage(self, name: str, detail: str = "") -> None:
        self.met.append(name)


def tiny_study(tiny: Path, *variants: str) -> Experiment:
    return make_experiment(
        {
            "name": "tiny",
            "model": str(tiny),
            "data": {"records": 200},
            "training": {"epochs": 1, "batch_size": 16},
            "variants": list(variants),
            "evaluation": {"dims": [32, 8]},
        }
    )


@pytest.mark.usefixtures("without_pages")
def test_the_plan_of_a_run_is_the_stages_that_follow_and_what_is_done_costs_nothing(
    tiny_model_path: Path, tmp_path: Path
):
    first, again = Planned(), Planned()
    run.run(tiny_study(tiny_model_path, "pretrained", "mnrl"), runs=tmp_path, observer=first)
    assert first.met == list(first.planned)
    assert all(sum(first.planned[name]) > 0 for name in ("train mnrl", "evaluate pretrained", "evaluate mnrl"))
    run.run(tiny_study(tiny_model_path, "pretrained", "mnrl", "cosent"), runs=tmp_path, observer=again)
    assert again.met == list(again.planned)
    assert {name for name, parts in again.planned.items() if parts} == {
        "inspect",
        "train cosent",
        "evaluate cosent",
        "report",
    }


@pytest.mark.usefixtures("without_pages")
def test_without_an_observer_nothing_is_timed(tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> Rates:
        raise AssertionError("timed")

    monkeypatch.setattr("nestling.study.estimate.measure", never)
    assert run.run(tiny_study(tiny_model_path, "pretrained"), runs=tmp_path).queries
