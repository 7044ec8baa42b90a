"""Trainings with a cross-encoder as teacher: their order, what is kept of them, and what an interruption leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nestling.judgments.split import Split, split_judgments
from nestling.judgments.toolshed import generate
from nestling.models import find_model, load_model
from nestling.training.candidates import Candidates
from nestling.training.cross_encoder import RerankEvaluator
from nestling.training.job import Job
from nestling.training.lexical import join
from nestling.training.recipes import RECIPES, find_recipe, texts
from nestling.training.result import TrainingResult
from nestling.training.settings import TrainingSettings
from nestling.training.teaching import MINED, READ, RERANKED
from nestling.training.trainer import fit


@pytest.fixture(scope="module")
def split() -> Split:
    return split_judgments(generate(600, seed=0), test=0.2, dev=0.3, seed=0)


def trained(
    split: Split, tiny_model_path: Path, folder: Path, recipe: str = "mnrl", **settings: object
) -> tuple[TrainingResult, list[str]]:
    options = {"epochs": 1, "batch_size": 16, "precision": "fp32", "checkpoint_seconds": 0, **settings}
    job = Job(find_model(str(tiny_model_path)), recipe, TrainingSettings.model_validate(options), 2.5)
    notes: list[str] = []
    result = fit(split.train, split.dev, job, output=folder / "model", work=folder / "work", note=notes.append)
    return result, notes


@pytest.fixture
def helpful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take teacher and student whatever they are worth: a random transformer teaches nothing."""
    nothing = {"dev_recall@10": 0.0, "dev_mrr@10": 0.0}
    monkeypatch.setattr(RerankEvaluator, "of_base", lambda *_: nothing)
    monkeypatch.setattr(TrainingResult, "regression", False)


def weights(folder: Path) -> np.ndarray:
    return np.concatenate([value.numpy().ravel() for value in load_model(str(folder)).state_dict().values()])


@pytest.mark.usefixtures("helpful")
@pytest.mark.parametrize("lexical", [False, True])
def test_the_student_is_what_becomes_the_model(split: Split, tiny_model_path: Path, tmp_path: Path, lexical: bool):
    result, notes = trained(split, tiny_model_path, tmp_path, cross_encoder=1.0, lexical=lexical)
    parts = ["the transformer:", *(["the table:"] if lexical else []), "the cross-encoder:", "the student:"]
    assert [note for note in notes if note.startswith("the ") and note.endswith(":")] == parts
    work = tmp_path / "work"
    read = Candidates.load(work / "candidates-read" / "train.npz")
    assert read.logits is not None
    assert read.documents.shape[1] == READ
    assert Candidates.load(work / "candidates" / "train.npz").documents.shape[1] == MINED
    assert Candidates.load(work / "candidates" / "dev.npz").documents.shape[1] == RERANKED
    assert not np.array_equal(weights(work / "transformer"), weights(work / "student"))
    assert (work / "taught-table").is_dir() == lexical
    if lexical:
        assert any("the table is taught" in note for note in notes)
        model, old, new = (work / name for name in ("student", "table", "taught-table"))
        assert not np.array_equal(weights(old), weights(new))
        expected = join(load_model(str(model)), load_model(str(new)), *texts(split.train), dims=(32, 16, 8, 4))
        some = split.dev.frame["query"].to_list()[:20]
        found = load_model(str(tmp_path / "model")).encode(some)
        np.testing.assert_allclose(found, expected.encode(some), atol=1e-5)
    else:
        np.testing.assert_array_equal(weights(tmp_path / "model"), weights(work / "student"))
    alone, _ = trained(split, tiny_model_path, tmp_path / "b", lexical=lexical)
    assert not np.array_equal(weights(tmp_path / "model"), weights(tmp_path / "b" / "model"))
    assert result.steps == alone.steps
    assert result.base == alone.base


def test_a_teacher_that_knows_no_more_is_left_out(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    perfect = {"dev_recall@10": 1.1, "dev_mrr@10": 1.1}
    monkeypatch.setattr(RerankEvaluator, "of_base", lambda *_: perfect)
    result, notes = trained(split, tiny_model_path, tmp_path, cross_encoder=1.0)
    assert any("no better than the model that found them; left out" in note for note in notes)
    assert "the student:" not in notes
    assert not any("taught" in note for note in notes)
    alone, _ = trained(split, tiny_model_path, tmp_path / "b")
    np.testing.assert_array_equal(weights(tmp_path / "model"), weights(tmp_path / "b" / "model"))
    assert result.after == pytest.approx(alone.after)


def test_a_student_below_its_first_training_is_left_out(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    nothing = {"dev_recall@10": 0.0, "dev_mrr@10": 0.0}
    monkeypatch.setattr(RerankEvaluator, "of_base", lambda *_: nothing)
    monkeypatch.setattr(TrainingResult, "regression", True)
    _, notes = trained(split, tiny_model_path, tmp_path, cross_encoder=1.0)
    assert any("no better on dev; left as it was" in note for note in notes)
    np.testing.assert_array_equal(weights(tmp_path / "model"), weights(tmp_path / "work" / "transformer"))


@pytest.mark.usefixtures("helpful")
def test_an_interrupted_training_goes_on_where_it_was(
    split: Split, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = trained(split, tiny_model_path, tmp_path / "a", cross_encoder=1.0)
    with monkeypatch.context() as patch:
        patch.setattr("nestling.training.teaching._read", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(split, tiny_model_path, tmp_path / "b", cross_encoder=1.0)
    assert not (tmp_path / "b" / "model").exists()
    again, notes = trained(split, tiny_model_path, tmp_path / "b", cross_encoder=1.0)
    assert "the transformer:" not in notes
    assert "the cross-encoder:" not in notes
    assert again.after == whole.after
    np.testing.assert_array_equal(weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model"))


def test_distilled_is_graded_with_a_teacher_and_the_teacher_is_nobodys_recipe():
    distilled, graded = find_recipe("distilled").defaults, find_recipe("graded").defaults
    assert {**distilled, "cross_encoder": 0} == {**graded, "cross_encoder": 0}
    assert distilled["cross_encoder"] > 0
    assert "cross-encoder" not in RECIPES


@pytest.mark.parametrize(("recipe", "fast"), [("cosent", True), ("mnrl", False)])
def test_a_loss_of_the_library_has_no_teacher(
    split: Split, tiny_model_path: Path, tmp_path: Path, recipe: str, fast: bool
):
    _, notes = trained(split, tiny_model_path, tmp_path, recipe, cross_encoder=1.0, fast=fast, no_duplicates=False)
    assert not any("cross-encoder" in note for note in notes)
