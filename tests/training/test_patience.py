"""An early end: when it comes, what it leaves, and that an interruption changes nothing of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.training import KilledError, dying_at, script, small_split, trained, weights
from nestling import atomic
from nestling.config.training import TrainingSettings
from nestling.judgments.split import Split
from nestling.models.load import find_model
from nestling.training.callbacks import evaluations_since_best
from nestling.training.result import TrainingResult
from nestling.training.spec import TrainingSpec

# Best after the second of six epochs; the third is level with it, which is no better.
FIGURES = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7]


@pytest.fixture(scope="module")
def split() -> Split:
    return small_split(150)


def spec_of(tiny: Path, **changes: object) -> TrainingSpec:
    values = {"epochs": 6, "batch_size": 16, "checkpoint_seconds": 0, "precision": "fp32", "patience": 2, **changes}
    return TrainingSpec(find_model(str(tiny)), "mnrl", TrainingSettings.model_validate(values), threshold=2.5)


@pytest.fixture(scope="module", params=["best", "last"])
def unbroken(
    request: pytest.FixtureRequest, split: Split, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingSpec, TrainingResult, dict[str, np.ndarray]]:
    """What is trained, in one go, for either thing to keep: the spec, its result and its weights."""
    spec, folder = spec_of(tiny_model_path, keep=request.param), tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        script(patch, FIGURES)
        return spec, trained(split, spec, folder), weights(folder)


@given(st.lists(st.integers(0, 3)))
def test_evaluations_are_counted_from_the_first_of_the_best(values: list[int]):
    history = [entry for value in values for entry in ({"loss": 1.0}, {"eval_dev_recall@10": value / 3})]
    since, best = 0, -1
    for value in values:
        since, best = (0, value) if value > best else (since + 1, best)
    assert evaluations_since_best(history, "eval_dev_recall@10") == since


def test_the_training_ends_after_so_many_epochs_without_a_better_figure(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script(monkeypatch, FIGURES)
    notes: list[str] = []
    result = trained(split, spec_of(tiny_model_path), tmp_path, note=notes.append)
    assert [entry["epoch"] for entry in result.history if "eval_dev_recall@10" in entry] == [1, 2, 3, 4]
    assert result.steps == 4 * -(-result.examples // 16)
    assert result.kept_step == result.steps // 2
    assert notes[-1] == "stopped after epoch 4: no better dev recall@10 for 2 epochs"


@pytest.mark.parametrize(("patience", "epochs"), [(None, 6), (3, 6), (1, 3)])
def test_patience_says_how_long_it_is_waited(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
):
    script(monkeypatch, FIGURES)
    result = trained(split, spec_of(tiny_model_path, patience=patience), tmp_path)
    assert sum("eval_dev_recall@10" in entry for entry in result.history) == epochs


def test_a_training_that_reaches_its_last_epoch_is_not_called_stopped(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script(monkeypatch, FIGURES)
    notes: list[str] = []
    trained(split, spec_of(tiny_model_path, epochs=4), tmp_path, note=notes.append)
    assert not any("stopped" in note for note in notes)


@pytest.mark.parametrize("epoch", [2.5, 3.5])
def test_the_count_outlives_a_process_that_dies(
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: tuple[TrainingSpec, TrainingResult, dict[str, np.ndarray]],
    epoch: float,
):
    script(monkeypatch, FIGURES)
    spec, whole, one = unbroken
    with pytest.raises(KilledError):
        trained(split, spec, tmp_path, report=dying_at(round(epoch * whole.steps / 4)))
    notes: list[str] = []
    resumed = trained(split, spec, tmp_path, note=notes.append)
    assert resumed.resumed_at is not None
    assert (resumed.steps, resumed.kept_step) == (whole.steps, whole.kept_step)
    assert notes[-1] == "stopped after epoch 4: no better dev recall@10 for 2 epochs"
    other = weights(tmp_path)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_training_that_dies_when_only_its_end_is_missing_makes_no_further_step(
    split: Split,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: tuple[TrainingSpec, TrainingResult, dict[str, np.ndarray]],
):
    script(monkeypatch, FIGURES)
    spec, whole, one = unbroken
    new_folder = atomic.new_folder

    def dying(path: Path):
        if path.name == "model":
            raise KilledError
        return new_folder(path)

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "new_folder", dying)
        with pytest.raises(KilledError):
            trained(split, spec, tmp_path)
    notes: list[str] = []
    steps: list[int] = []
    resumed = trained(split, spec, tmp_path, note=notes.append, report=lambda progress: steps.append(progress.step))
    assert steps == []
    assert resumed.resumed_at == resumed.steps == whole.steps
    assert resumed.kept_step == whole.kept_step
    assert notes[-1] == "stopped after epoch 4: no better dev recall@10 for 2 epochs"
    other = weights(tmp_path)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_another_patience_is_another_training(tiny_model_path: Path):
    assert spec_of(tiny_model_path).fingerprint() != spec_of(tiny_model_path, patience=3).fingerprint()
