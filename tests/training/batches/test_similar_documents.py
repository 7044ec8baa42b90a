"""Batches of documents alike: nothing lost, nothing twice, near each other, repeatable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.training import inputs_of, settings_of
from nestling.config.recipes import find_recipe
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model
from nestling.training.batches.batching import LengthBatches
from nestling.training.batches.similar_documents import SimilarBatches
from nestling.training.spec import TrainingSpec


def points(n: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_batches_are_as_many_and_as_large_as_those_by_length(n, size, seed, epoch, processes):
    kinds = [SimilarBatches(points(n), size, seed=seed, processes=processes)]
    kinds.append(LengthBatches(np.ones(n, dtype=np.int64), size, seed=seed, processes=processes))
    made = []
    for batches in kinds:
        batches.set_epoch(epoch)
        made.append([len(batch) for batch in batches])
        assert len(made[-1]) == len(batches)
    if processes == 1:
        assert sorted(made[0]) == sorted(made[1])
        assert sorted(row for batch in kinds[0] for row in batch) == list(range(n))
    rows = [row for batch in kinds[0] for row in batch]
    assert len(set(rows)) == len(rows)


def test_equal_documents_are_dealt_too():
    made = list(SimilarBatches(np.ones((100, 4), dtype=np.float32), 16, seed=0))
    assert sorted(row for batch in made for row in batch) == list(range(100))


def test_seed_and_epoch_decide_the_batches():
    vectors = points(500)

    def made(seed: int, epoch: int) -> list[list[int]]:
        batches = SimilarBatches(vectors, 16, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert made(0, 0) == made(0, 0)
    assert made(0, 0) != made(0, 1)
    assert made(0, 0) != made(1, 0)


def test_a_batch_meets_few_of_many_clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(16, dtype=np.float32) * 10
    cluster = rng.integers(0, 16, 2048)
    vectors = (centres[cluster] + rng.normal(size=(2048, 16))).astype(np.float32)

    def clusters_met(batches: LengthBatches) -> float:
        return float(np.mean([len(set(cluster[batch])) for batch in batches]))

    assert clusters_met(SimilarBatches(vectors, 64, seed=0)) < 8
    assert clusters_met(LengthBatches(np.ones(2048, dtype=np.int64), 64, seed=0)) > 15


@pytest.mark.parametrize("recipe", ["graded", "mnrl", "static", "adapter"])
def test_a_recipe_takes_such_batches_where_the_setting_says_so(recipe: str, tiny_model_path: Path):
    judgments = generate(200, seed=0)

    def kind(alike: bool) -> type:
        settings = settings_of(recipe, finetune={"batches": "similar" if alike else "length", "crops": 1})
        inputs = inputs_of(judgments, TrainingSpec(find_model(str(tiny_model_path)), recipe, settings, 2.5))
        assert inputs.sampler is not None
        batches = inputs.sampler(16, 0, 1)
        assert sorted(row for batch in batches for row in batch) == list(range(len(inputs.examples)))
        return type(batches)

    assert kind(True) is SimilarBatches
    assert kind(False) is LengthBatches


def test_graded_takes_such_batches_by_default():
    assert find_recipe("graded").defaults["finetune"]["batches"] == "similar"
