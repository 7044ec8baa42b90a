"""Steps after a training that make dev lower: left out, with a line, and none below where it began."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

from fixtures.training import Trained, begin, trained_and_kept, trained_with_notes, weights
from nestling.judgments.split import Split
from nestling.models.load import load_model
from nestling.retrieval.rotation import fit_search_rotation
from nestling.training.result import TrainingResult, read_result
from nestling.training.steps import concat_static
from nestling.training.steps.guard import Figures, Guard, choose

RECALL = "dev_recall@10"


def figures(*recall: list[float], mrr: float = 0.5) -> Figures:
    """Figures of a row a size, one recall a query; MRR the same everywhere."""
    return np.array([[row, [mrr] * len(row)] for row in recall])


def test_a_step_with_which_dev_is_lower_is_not_kept():
    assert choose([figures([0.5, 0.4])], figures([0.5, 0.5])) is None
    assert choose([figures([0.4, 0.7])], figures([0.5, 0.5])) == 0


def test_where_recall_is_equal_mrr_decides_and_where_both_are_the_step_is_kept():
    assert choose([figures([0.0, 1.0], mrr=0.4)], figures([1.0, 0.0])) is None
    assert choose([figures([0.0, 1.0])], figures([1.0, 0.0])) == 0


def test_the_best_option_is_taken_and_of_equal_ones_the_first():
    assert choose([figures([0.6] * 4), figures([0.7] * 4), figures([0.7] * 4)], figures([0.5] * 4)) == 1


def test_the_full_size_must_not_be_lower_though_the_mean_over_sizes_is_higher():
    assert choose([figures([0.4, 0.5], [0.9, 0.9])], figures([0.5, 0.5], [0.5, 0.5])) is None


def test_a_prefix_may_be_lower_by_noise_and_no_more():
    without = figures([0.5] * 100, [0.5] * 100)
    noise = [0.4, 0.59] * 50  # 0.005 lower, where the standard error is 0.0095
    assert choose([figures([0.6] * 100, noise)], without) == 0
    assert choose([figures([0.6] * 100, [0.45] * 100)], without) is None


def test_with_few_queries_the_luckiest_of_many_options_is_no_reason_to_keep_a_step():
    without = figures([0.5] * 4)
    # Each option gains by a query of its own, and loses by all others less than it gains.
    lucky = [figures([1.0 if n == query else 0.4 for n in range(4)]) for query in range(4)]
    assert choose(lucky[:1], without) == 0
    assert choose(lucky, without) is None


def test_what_is_left_out_is_said_and_recorded_with_its_figures():
    said: list[str] = []
    guard = Guard(said.append)
    assert guard.keep("the table", [figures([0.25, 0.25])], figures([0.5, 0.5])) is None
    assert guard.left_out == ["the table: dev recall@10 0.2500 with it, 0.5000 without"]
    assert said == ["left out: the table: dev recall@10 0.2500 with it, 0.5000 without"]


def trained(
    split: Split, base: Path, folder: Path, recipe: str = "mnrl", matryoshka: tuple[int, ...] = (), **settings: object
) -> tuple[TrainingResult, list[str]]:
    return trained_with_notes(split, base, folder, recipe, matryoshka, **{"learning_rate": 1e-3, **settings})


@pytest.fixture(scope="module")
def good(split: Split, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer that knows the toolshed."""
    folder = tmp_path_factory.mktemp("good")
    result, _ = trained(split, tiny_model_path, folder, epochs=6)
    assert result.after[RECALL] > result.base[RECALL]
    return folder / "model"


@pytest.fixture(scope="module")
def transformer(split: Split, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """That transformer trained once more, its folders kept."""
    return trained_and_kept(split, good, tmp_path_factory.mktemp("transformer"), learning_rate=1e-3)


@pytest.fixture(scope="module")
def given_back(inverted: Split, good: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training on wrong judgments, which gave back what it began with."""
    return trained_and_kept(inverted, good, tmp_path_factory.mktemp("back"), learning_rate=5e-3)


@pytest.fixture(scope="module")
def inverted(split: Split) -> Split:
    """The split with scores of 1 where raters gave 3, and the other way round, in its training side."""
    train = replace(split.train, frame=split.train.frame.with_columns((4.0 - pl.col("score")).alias("score")))
    return replace(split, train=train)


def test_a_table_that_hurts_is_left_out_with_a_line(
    split: Split, good: Path, transformer: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    side_by_side = concat_static.side_by_side

    def noisy(model: SentenceTransformer, table: SentenceTransformer) -> SentenceTransformer:
        # Rows of very unequal length: a text's vector is that of whichever of its pieces has the longest.
        generator = np.random.default_rng(0)
        rows = generator.normal(size=table[0].embedding.weight.shape)
        rows *= np.exp(4 * generator.normal(size=(len(rows), 1)))
        noise = StaticEmbedding(table[0].tokenizer, embedding_weights=rows.astype(np.float32))
        return side_by_side(model, SentenceTransformer(modules=[noise, Normalize()], device="cpu"))

    monkeypatch.setattr(concat_static, "side_by_side", noisy)
    result, notes = trained(split, good, begin(transformer, tmp_path), concat_static=True)
    lines = [line for line in result.left_out if line.startswith("the table of word pieces: dev recall@10")]
    assert len(lines) == 1
    assert f"left out: {lines[0]}" in notes
    assert read_result(tmp_path / "work").left_out == result.left_out
    some = split.dev.frame["query"].to_list()[:20]
    alone = load_model(str(transformer[2] / "model"))
    np.testing.assert_allclose(load_model(str(tmp_path / "model")).encode(some), alone.encode(some), atol=1e-6)
    assert not any(note.startswith("concatenated:") for note in notes)


def test_a_rotation_that_hurts_is_left_out_with_a_line(
    split: Split, good: Path, transformer: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def worst_first(queries: np.ndarray, documents: np.ndarray, **_: object) -> np.ndarray:
        return np.ascontiguousarray(fit_search_rotation(queries, documents)[:, ::-1])

    monkeypatch.setattr("nestling.training.steps.rotate.train_search_rotation", worst_first)
    result, notes = trained(split, good, begin(transformer, tmp_path), rotate=True)
    assert [line.split(":")[0] for line in result.left_out] == [
        *(line.split(":")[0] for line in transformer[0].left_out),
        "the rotation",
    ]
    assert f"left out: {result.left_out[-1]}" in notes
    one, other = weights(transformer[2]), weights(tmp_path)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("recipe", "matryoshka"), [("mnrl", ()), ("mnrl", (32, 8)), ("cosine", ()), ("graded", ())])
def test_a_training_on_wrong_judgments_gives_back_its_base(
    inverted: Split, good: Path, given_back: Trained, tmp_path: Path, recipe: str, matryoshka: tuple[int, ...]
):
    result, notes = given_back[:2]
    if (recipe, matryoshka) != ("mnrl", ()):
        result, notes = trained(inverted, good, tmp_path, recipe, matryoshka, learning_rate=5e-3)
    assert not result.regression
    assert result.after[RECALL] >= result.base[RECALL]
    assert any("of what the training changed: dev recall@10" in line for line in result.left_out)
    assert any("of what the training changed: dev recall@10" in note for note in notes)


def test_what_the_librarys_trainer_made_of_wrong_judgments_stays_and_is_a_regression(
    inverted: Split, good: Path, tmp_path: Path
):
    result, _ = trained(inverted, good, tmp_path, fast=False, no_duplicates=False, learning_rate=5e-3)
    assert result.regression
    assert result.left_out == []


def test_what_was_left_out_is_the_same_after_an_interruption(
    inverted: Split, good: Path, given_back: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = given_back[0]
    with monkeypatch.context() as patch:
        patch.setattr("nestling.training.steps.finetune.mixed", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(inverted, good, tmp_path, learning_rate=5e-3)
    assert not (tmp_path / "model").exists()
    again, _ = trained(inverted, good, tmp_path, learning_rate=5e-3)
    assert again.resumed_at == whole.steps
    assert (again.left_out, again.after) == (whole.left_out, whole.after)
    one, other = weights(given_back[2]), weights(tmp_path)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert json.loads((tmp_path / "work" / "summary.json").read_text(encoding="utf-8"))["left_out"] == whole.left_out
