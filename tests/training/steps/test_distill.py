"""Trainings with a cross-encoder as teacher: their order, what is kept of them, and what an interruption leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.training import KilledError, dying_at, keep_every_step, settings_of, trained_with_notes
from nestling.config.recipes import RECIPES
from nestling.config.training import Distill
from nestling.errors import InputError
from nestling.judgments.split import Split, split_judgments
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model, load_model
from nestling.training.distill.cross_encoder import Candidates, RerankEvaluator, logits
from nestling.training.inputs.static import build_static
from nestling.training.result import TrainingResult, read_result
from nestling.training.steps.distill import N_MINED, N_RERANKED, N_SCORED, _better
from nestling.training.steps.guard import Figures, Guard

FIGURES = {"dev_recall@10": 0.5, "dev_mrr@10": 0.5}


def trained(
    split: Split, tiny_model_path: Path, folder: Path, recipe: str = "mnrl", **settings: object
) -> tuple[TrainingResult, list[str]]:
    return trained_with_notes(split, tiny_model_path, folder, recipe, epochs=1, **settings)


def be_helpful(patch: pytest.MonkeyPatch) -> None:
    """Take teacher and student whatever they are worth: a random transformer teaches nothing. Leave their folders."""
    patch.setattr("nestling.training.steps.distill._better", lambda after, before: True)
    patch.setattr("nestling.training.trainer.clear", lambda work: None)
    patch.setattr("nestling.training.steps.distill.AT_ONCE", 300)
    patch.setattr(RerankEvaluator, "__call__", lambda *_, **__: dict(FIGURES))
    keep_every_step(patch)


@pytest.fixture(scope="module")
def split() -> Split:
    return split_judgments(generate(300, seed=0), test=0.2, dev=0.3, seed=0)


@pytest.fixture
def helpful(monkeypatch: pytest.MonkeyPatch) -> None:
    be_helpful(monkeypatch)


@pytest.fixture(scope="module")
def whole(
    split: Split, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingResult, list[str], Path]:
    """A training whose student was kept: its result, what was said, and its folder with those of all steps."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        be_helpful(patch)
        return (*trained(split, tiny_model_path, folder, distill={"weight": 1.0}), folder)


@pytest.fixture
def begun(whole: tuple[TrainingResult, list[str], Path], tmp_path: Path) -> Path:
    """The same training, ended before what the cross-encoder taught was judged."""
    shutil.copytree(whole[2] / "work", tmp_path / "work")
    (tmp_path / "work" / "summary.json").unlink()
    (tmp_path / "work" / "distill" / "result.json").unlink()
    shutil.rmtree(tmp_path / "work" / "distill" / "model")
    return tmp_path


def weights(folder: Path) -> np.ndarray:
    return np.concatenate([value.cpu().numpy().ravel() for value in load_model(str(folder)).state_dict().values()])


def test_the_student_is_what_becomes_the_model(whole: tuple[TrainingResult, list[str], Path]):
    result, notes, folder = whole
    assert [note for note in notes if note.startswith("the ") and note.endswith(":")] == [
        "the cross-encoder:",
        "the student:",
    ]
    work = folder / "work" / "distill"
    read = Candidates.load(work / "scored.npz")
    assert read.logits is not None
    assert read.documents.shape[1] == N_SCORED
    assert Candidates.load(work / "mined.npz").documents.shape[1] == N_MINED
    assert Candidates.load(work / "dev.npz").documents.shape[1] == N_RERANKED
    first, student = folder / "work" / "finetune", work / "student" / "model"
    assert not np.array_equal(weights(first / "model"), weights(student))
    np.testing.assert_array_equal(weights(folder / "model"), weights(student))
    alone = read_result(first)
    assert (result.steps, result.base) == (alone.steps, alone.base)
    assert result.seconds > alone.seconds


def test_a_teacher_that_knows_no_more_is_left_out(
    split: Split, tiny_model_path: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(begun / "work" / "distill" / "student")
    (begun / "work" / "distill" / "scored.npz").unlink()
    first, alone = weights(begun / "work" / "finetune" / "model"), read_result(begun / "work" / "finetune")
    monkeypatch.setattr("nestling.training.steps.distill._better", lambda after, before: False)
    result, notes = trained(split, tiny_model_path, begun, distill={"weight": 1.0})
    assert any("ranked no better than without" in note for note in notes)
    assert "the student:" not in notes
    assert any("ranked no better than without" in line for line in result.left_out)
    np.testing.assert_array_equal(weights(begun / "model"), first)
    assert result.after == pytest.approx(alone.after)


def test_what_was_taught_and_is_no_better_on_dev_is_left_out(
    split: Split, tiny_model_path: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
):
    keep, taught = Guard.keep, "what the cross-encoder taught"

    def refusing(self: Guard, step: str, options: list[Figures], without: Figures) -> int | None:
        return keep(self, step, [without - 1] if step == taught else options, without)

    first = weights(begun / "work" / "finetune" / "model")
    monkeypatch.setattr("nestling.training.steps.distill._better", lambda after, before: True)
    monkeypatch.setattr(Guard, "keep", refusing)
    result, notes = trained(split, tiny_model_path, begun, distill={"weight": 1.0})
    lines = [line for line in result.left_out if line.startswith(f"{taught}: dev recall@10")]
    assert len(lines) == 1
    assert f"left out: {lines[0]}" in notes
    np.testing.assert_array_equal(weights(begun / "model"), first)


def test_better_is_more_and_not_as_much():
    assert _better({**FIGURES, "dev_mrr@10": 0.51}, FIGURES)
    assert not _better(dict(FIGURES), FIGURES)
    assert not _better({**FIGURES, "dev_recall@10": 0.49}, FIGURES)


@pytest.mark.usefixtures("helpful")
def test_an_interrupted_training_goes_on_where_it_was(
    split: Split,
    tiny_model_path: Path,
    whole: tuple[TrainingResult, list[str], Path],
    begun: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    scored = 0

    def stopping(*given: object, **options: object) -> np.ndarray:
        nonlocal scored
        scored += 1
        if scored == 3:
            raise KeyboardInterrupt
        return logits(*given, **options)  # type: ignore[arg-type]

    def go_on(**options: object) -> tuple[TrainingResult, list[str]]:
        return trained(split, tiny_model_path, begun, distill={"weight": 1.0}, **options)

    work = begun / "work" / "distill"
    shutil.rmtree(work)
    torch.manual_seed(1)
    # The cross-encoder's training dies in its second epoch, then goes on from its checkpoint.
    with pytest.raises(KilledError):
        go_on(report=dying_at(read_result(whole[2] / "work" / "distill" / "cross-encoder").steps // 2 + 2))
    assert list((work / "cross-encoder").glob("checkpoint-*"))
    for name, stand_in in {
        "nestling.training.steps.distill.logits": stopping,
        "nestling.training.steps.context.Guard": interrupted,
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(name, stand_in)
            with pytest.raises(KeyboardInterrupt):
                go_on()
        assert not (begun / "model").exists()
        assert (work / "scored.blocks").is_dir() == (stand_in is stopping)
    assert read_result(work / "cross-encoder").resumed_at is not None
    again, notes = go_on()
    assert not {"the cross-encoder:", "the student:"} & set(notes)
    assert again.after == whole[0].after
    np.testing.assert_array_equal(weights(whole[2] / "model"), weights(begun / "model"))


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_static_base_is_refused_before_anything_is_trained(split: Split, tiny_model_path: Path, tmp_path: Path):
    table = build_static(find_model(str(tiny_model_path)), split.train.frame["query"].to_list())
    table.save_pretrained(str(tmp_path / "static"), create_model_card=False)
    with pytest.raises(InputError, match="is static; a cross-encoder needs a transformer"):
        trained(split, tmp_path / "static", tmp_path, distill={"weight": 1.0})
    assert not (tmp_path / "work").exists()


def test_distilled_is_graded_with_a_teacher():
    distilled, graded = RECIPES["distilled"], RECIPES["graded"]
    assert [step for step in distilled.steps if not isinstance(step, Distill)] == list(graded.steps)
    assert len(distilled.steps) == len(graded.steps) + 1
    assert distilled.training == graded.training


@pytest.mark.parametrize(("recipe", "fast"), [("cosent", True), ("mnrl", False)])
def test_a_loss_of_the_library_has_no_teacher(recipe: str, fast: bool):
    steps = settings_of(recipe, distill={"weight": 1.0}, fast=fast).steps
    assert not any(isinstance(step, Distill) for step in steps)
