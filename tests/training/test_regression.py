"""The guard: a trained variant is held against the base model itself, also where another model is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixtures.training import KilledError, dying_at, settings_of, small_split, trained
from nestling.config.yaml_files import make_experiment
from nestling.judgments.split import Split
from nestling.models.load import find_model
from nestling.study.run import run
from nestling.training.dev import DevEvaluator
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec

QUICK = {"epochs": 2, "batch_size": 8, "checkpoint_seconds": 0, "precision": "fp32"}
SETTINGS = settings_of("mnrl", **QUICK)
TABLE, BASE = 0.4, 0.6


@pytest.fixture(scope="module")
def split() -> Split:
    return small_split()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Dev figures of 0.6 for a transformer and 0.4, rising by epoch, for a table; what was asked for, and when."""
    calls: list[tuple[str, bool]] = []

    def say(self: DevEvaluator, model: Any, output_path: object = None, epoch: float = -1, **_: Any) -> dict:
        first = type(model[0]).__name__
        calls.append((first, epoch >= 0))
        value = {"Transformer": BASE, "StaticEmbedding": TABLE + 0.05 * max(epoch, 0)}[first]
        return {"dev_recall@10": value, "dev_mrr@10": value}

    monkeypatch.setattr(DevEvaluator, "__call__", say)
    return calls


def result(base: float, before: float, after: float) -> TrainingResult:
    figures = ({"dev_recall@10": value} for value in (base, before, after))
    return TrainingResult(1, 1, 1.0, 1.0, None, *figures, 1, "fp32", "", 0, [])


@pytest.mark.parametrize(
    ("figures", "regression", "line"),
    [
        ((0.5, 0.5, 0.6), False, "dev recall@10 0.5000 -> 0.6000"),
        ((0.5, 0.5, 0.5), False, "dev recall@10 0.5000 -> 0.5000"),
        ((0.5, 0.5, 0.4), True, "dev recall@10 0.5000 -> 0.4000  REGRESSION"),
        ((0.7, 0.5, 0.6), True, "dev recall@10 0.5000 -> 0.6000 (base model 0.7000)  REGRESSION"),
        ((0.4, 0.6, 0.5), True, "dev recall@10 0.6000 -> 0.5000 (base model 0.4000)  REGRESSION"),
        ((0.4, 0.5, 0.6), False, "dev recall@10 0.5000 -> 0.6000 (base model 0.4000)"),
    ],
)
def test_a_result_below_its_base_or_its_start_is_a_regression(figures: Any, regression: bool, line: str):
    assert result(*figures).regression is regression
    assert result(*figures).summary() == line


@pytest.mark.parametrize(("figures", "what"), [((0.7, 0.5, 0.6), "its base"), ((0.4, 0.6, 0.5), "before its training")])
def test_what_a_regression_is_worse_than_is_named(figures: Any, what: str):
    assert result(*figures).beaten_by == what


def test_a_table_that_learnt_but_stays_below_the_transformer_is_a_regression(
    split: Split,
    tiny_model_path: Path,
    tmp_path: Path,
    asked: list[tuple[str, bool]],
    caplog: pytest.LogCaptureFixture,
):
    spec = TrainingSpec(find_model(str(tiny_model_path)), "static", settings_of("static", **QUICK), threshold=2.5)
    found = trained(split, spec, tmp_path)
    assert (found.base["dev_recall@10"], found.before["dev_recall@10"]) == (BASE, TABLE)
    assert found.regression
    assert "REGRESSION" in caplog.text


@pytest.mark.parametrize(("recipe", "base", "start"), [("static", 1, 1), ("mnrl", 1, 0)])
def test_the_base_is_measured_once_also_by_a_training_that_is_interrupted(
    split: Split,
    tiny_model_path: Path,
    tmp_path: Path,
    asked: list[tuple[str, bool]],
    recipe: str,
    base: int,
    start: int,
):
    spec = TrainingSpec(find_model(str(tiny_model_path)), recipe, settings_of(recipe, **QUICK), threshold=2.5)
    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(3))
    before = [model for model, while_training in asked if not while_training]
    assert (before.count("Transformer"), before.count("StaticEmbedding")) == (base, start)
    asked.clear()
    trained(split, spec, tmp_path)
    assert [while_training for _, while_training in asked].count(False) == 1


def test_a_length_limit_of_the_training_is_not_the_bases(split: Split, tiny_model_path: Path, tmp_path: Path):
    source = find_model(str(tiny_model_path))
    brief = SETTINGS.model_copy(update={"epochs": 0.2})
    free = trained(split, TrainingSpec(source, "mnrl", brief, threshold=2.5), tmp_path / "a")
    cut = brief.model_copy(update={"max_seq_length": 4})
    short = trained(split, TrainingSpec(source, "mnrl", cut, threshold=2.5), tmp_path / "b")
    assert free.base == free.before == short.base
    assert short.before != short.base


def test_a_run_marks_the_table_below_its_base(tiny_model_path: Path, tmp_path: Path, asked: list[tuple[str, bool]]):
    quick = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    study = make_experiment(
        {
            "name": "tiny",
            "model": str(tiny_model_path),
            "data": {"records": 300},
            "training": quick,
            "variants": ["pretrained", "mnrl", {"recipe": "static", "training": quick}],
            "evaluation": {"dims": [32, 8]},
        }
    )
    finished = run(study, runs=tmp_path)
    assert finished.regressions == ("static",)
    assert run(study, runs=tmp_path).regressions == ("static",)
    assert "REGRESSION" in (finished.folder / "log.jsonl").read_text(encoding="utf-8")
