"""BM25 as a teacher: the scores of the right texts, on every epoch's queries, in the recipes that ask for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fixtures.bm25 import scores_of
from fixtures.training import inputs_of, settings_of
from nestling.config.experiment import Experiment, Variant
from nestling.config.recipes import find_recipe
from nestling.config.training import Finetune
from nestling.errors import InputError
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model
from nestling.retrieval.bm25 import Lexical
from nestling.training.losses.bm25_teacher import SHARPNESS, BM25Teacher, teacher_for
from nestling.training.spec import TrainingInputs, TrainingSpec

DOCUMENTS = ["steel hand saw", "cordless drills 18 v", "white paint", "saw blade"]
QUERIES = [["drill", "hand saw"], ["paint", "white saw"]]


def teacher() -> BM25Teacher:
    return BM25Teacher(DOCUMENTS, QUERIES.__getitem__, language="english")


def numbers(*places: int) -> torch.Tensor:
    return torch.tensor(places, dtype=torch.int64)


@pytest.mark.parametrize("epoch", [0, 1])
def test_scores_are_those_of_bm25_by_number(epoch: int):
    taught = teacher()
    taught.refresh(epoch)
    expected = SHARPNESS * scores_of(Lexical.fit(DOCUMENTS), QUERIES[epoch])
    found = taught(numbers(1, 0), numbers(3, 0, 1)).numpy()
    np.testing.assert_allclose(found, expected[[1, 0]][:, [3, 0, 1]], rtol=1e-6)
    assert found.dtype == np.float32
    assert found.any()


def test_words_are_stemmed_in_the_language_asked_for():
    taught = teacher()
    taught.refresh(0)
    assert taught(numbers(0), numbers(1)).item() > 0
    with pytest.raises(InputError, match="no stemmer for 'klingon'"):
        BM25Teacher(DOCUMENTS, QUERIES.__getitem__, language="klingon")


def test_it_knows_nothing_before_the_first_epoch():
    with pytest.raises(RuntimeError, match="refresh"):
        teacher()(numbers(0), numbers(0))


def inputs(recipe: str, base: Path, **settings: float) -> TrainingInputs:
    judgments = generate(300, seed=0)
    return inputs_of(
        judgments, TrainingSpec(find_model(str(base)), recipe, settings_of(recipe, finetune=settings), 2.5)
    )


def teacher_of(found: TrainingInputs) -> BM25Teacher | None:
    loss = getattr(found.loss, "contrastive", found.loss)
    taught: BM25Teacher | None = loss.teacher
    return taught


@pytest.mark.parametrize("recipe", ["graded", "mnrl", "static", "adapter"])
def test_a_recipe_is_taught_where_the_setting_says_so(recipe: str, tiny_model_path: Path):
    assert teacher_of(inputs(recipe, tiny_model_path)) is None
    found = inputs(recipe, tiny_model_path, bm25=0.3)
    taught = teacher_of(found)
    assert taught is not None
    assert getattr(found.loss, "contrastive", found.loss).teacher_weight == 0.3
    assert taught.refresh in found.refresh


def test_crops_are_scored_too_each_highest_for_documents_with_its_words(tiny_model_path: Path):
    found = inputs("graded", tiny_model_path, bm25=0.5, crops=1)
    for refresh in found.refresh:
        refresh(3)
    collator = found.collator
    n_queries, n_documents = len(collator.pairs.queries), len(collator.pairs.documents)  # type: ignore[union-attr]
    scores = teacher_of(found)(  # type: ignore[misc]
        torch.arange(n_queries, n_queries + n_documents), torch.arange(n_documents)
    )
    own = scores.diagonal()
    # Documents of a catalogue share words; no other document holds more of a crop's than its own does by much.
    assert (own >= 0.8 * scores.max(dim=1).values).float().mean() > 0.9
    assert (own > scores.mean(dim=1)).all()


def test_graded_is_taught_by_default():
    assert find_recipe("graded").defaults["finetune"]["bm25"] > 0


@pytest.mark.parametrize(("training", "expected"), [({}, "german"), ({"language": "french"}, "french")])
def test_an_experiment_stems_in_training_as_in_the_evaluation(training: dict[str, str], expected: str):
    experiment = Experiment.model_validate(
        {"data": {"source": "toolshed"}, "evaluation": {"language": "german"}, "training": {"finetune": training}}
    )
    again = Experiment.model_validate(yaml.safe_load(experiment.to_yaml()))
    for each in (experiment, again):
        steps = [each.training_of(variant).finetune for variant in each.variants]
        assert [step.language for step in steps if step.bm25] == [expected]


def test_the_evaluations_language_does_not_touch_a_training_without_bm25():
    made = [Experiment.model_validate({"evaluation": {"language": name}}) for name in ("german", "french")]
    mnrl = [each.training_of(Variant(name="mnrl", recipe="mnrl")) for each in made]
    assert mnrl[0] == mnrl[1]


@pytest.mark.parametrize("place", ["training", "evaluation"])
def test_an_unknown_language_is_refused_when_the_experiment_is_read(place: str):
    language = {"language": "klingon"}
    with pytest.raises(ValueError, match="no stemmer for 'klingon'"):
        Experiment.model_validate({place: {"finetune": language} if place == "training" else language})


def test_documents_without_a_word_are_trained_without_it(caplog: pytest.LogCaptureFixture):
    assert teacher_for(Finetune(bm25=0.5), ["★ ★", "!!"], lambda _: []) is None
    assert "without BM25" in caplog.text
