"""Batches of documents alike: nothing lost, nothing twice, near each other, repeatable, without encoding a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from nestling.errors import InputError
from nestling.judgments.toolshed import generate
from nestling.models import find_model
from nestling.training.alike import AlikeBatches, word_vectors
from nestling.training.batching import LengthBatches
from nestling.training.job import Job
from nestling.training.recipes import find_recipe
from nestling.training.settings import TrainingSettings
from nestling.training.tokens import TokenStore, store_for


def points(n: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(n).normal(size=(n, dim)).astype(np.float32)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_batches_are_as_many_and_as_large_as_those_by_length(n, size, seed, epoch, processes):
    kinds = [AlikeBatches(points(n), size, seed=seed, processes=processes)]
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
    made = list(AlikeBatches(np.ones((100, 4), dtype=np.float32), 16, seed=0))
    assert sorted(row for batch in made for row in batch) == list(range(100))


def test_seed_and_epoch_decide_the_batches():
    vectors = points(500)

    def made(seed: int, epoch: int) -> list[list[int]]:
        batches = AlikeBatches(vectors, 16, seed=seed)
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

    assert clusters_met(AlikeBatches(vectors, 64, seed=0)) < 8
    assert clusters_met(LengthBatches(np.ones(2048, dtype=np.int64), 64, seed=0)) > 15


def test_texts_with_rare_words_in_common_are_near_each_other(tiny_model: SentenceTransformer):
    texts = ["door steel white", "steel hammer door", "sink steel white", "sink white water"] + ["steel white"] * 20
    store = TokenStore.build(texts, tiny_model.tokenizer, 64)
    vectors = word_vectors(tiny_model, store)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    near = vectors @ vectors.T
    # "door" and "sink" are rare, "steel" and "white" are in nearly all.
    assert near[0, 1] > near[0, 2]
    assert near[3, 2] > near[0, 2]


def test_vectors_are_the_weighted_mean_of_the_tables_rows(tiny_model: SentenceTransformer):
    store = TokenStore.build(["door steel", "steel", ""], tiny_model.tokenizer, 64)
    table = tiny_model[0].model.get_input_embeddings().weight.detach().numpy()
    used = np.bincount(store.ids, minlength=len(table))
    rows = table - table[used > 0].mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    weight = np.log(1 + 3 / np.maximum(used, 1))
    for row, vector in enumerate(word_vectors(tiny_model, store)):
        ids = store.ids[store.offsets[row] : store.offsets[row + 1]]
        expected = (rows[ids] * weight[ids, None]).sum(axis=0)
        assert vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_a_static_model_has_such_vectors_and_an_empty_text_one_of_length_0(tiny_model: SentenceTransformer):
    static = SentenceTransformer(
        modules=[StaticEmbedding(Tokenizer.from_str(tiny_model.tokenizer.backend_tokenizer.to_str()), None, 8)]
    )
    store = store_for(static).build(["door steel", "", "door"], static.tokenizer, None)
    assert np.linalg.norm(word_vectors(static, store), axis=1) == pytest.approx([1, 0, 1], abs=1e-5)


def test_a_model_without_word_pieces_is_refused():
    with pytest.raises(InputError, match="set alike: false"):
        word_vectors([object()], TokenStore(np.zeros(1, np.int32), np.array([0, 1]), 0))  # type: ignore[arg-type]


@pytest.mark.parametrize("recipe", ["graded", "mnrl", "adapter"])
def test_a_recipe_takes_such_batches_where_the_setting_says_so(recipe: str, tiny_model_path: Path):
    judgments = generate(200, seed=0)

    def kind(alike: bool) -> type:
        job = Job(find_model(str(tiny_model_path)), recipe, TrainingSettings(alike=alike, crops=1), 2.5)
        material = find_recipe(recipe).prepare(judgments, job, find_recipe(recipe).build(judgments, job))
        assert material.sampler is not None
        batches = material.sampler(16, 0, 1)
        assert sorted(row for batch in batches for row in batch) == list(range(len(material.examples)))
        return type(batches)

    assert kind(True) is AlikeBatches
    assert kind(False) is LengthBatches


def test_graded_takes_such_batches_by_default():
    assert find_recipe("graded").defaults["alike"] is True
