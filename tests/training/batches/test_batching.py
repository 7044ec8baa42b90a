"""Batches of like length or of similar documents: nothing lost, nothing twice, repeatable; and their tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from fixtures.training import inputs_of, settings_of
from nestling.config.recipes import find_recipe
from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.models.load import find_model
from nestling.training.batches.batching import LengthBatches, PairCollator, Pairs, SimilarBatches
from nestling.training.batches.tokens import PAD_TO, BagStore, TokenStore, tokenised
from nestling.training.spec import TrainingSpec

ROWS = [
    ("saw", "hand saw", "1", 3.0),
    ("Saw", "bow saw", "2", 2.67),
    ("saw", "HAND saw", "3", 1.0),
    ("saw", "saw blade", "4", 1.0),
    ("drill", "hand saw", "1", 1.33),
    ("drill", "drill 18 v", "5", 3.0),
]


@pytest.fixture
def pairs() -> Pairs:
    frame = pl.DataFrame(ROWS, schema=["query", "document", "document_id", "score"], orient="row")
    return Pairs.from_judgments(Judgments.from_frame(frame, scale=(1, 3)), threshold=2.5)


def texts(pairs: Pairs, query: int, document: int) -> tuple[str, str]:
    return pairs.queries[query].lower(), pairs.documents[document].lower()


def test_positives_are_the_pairs_above_the_threshold_each_once(pairs: Pairs):
    found = {texts(pairs, q, d) for q, d in zip(pairs.query, pairs.document, strict=True)}
    assert found == {("saw", "hand saw"), ("saw", "bow saw"), ("drill", "drill 18 v")}
    assert len(pairs) == 3


def test_equal_texts_under_two_ids_are_one_document_whose_highest_score_counts(pairs: Pairs):
    assert sorted(text.lower() for text in pairs.documents) == ["bow saw", "drill 18 v", "hand saw", "saw blade"]
    assert len(pairs.judged_query) == 5


def test_low_documents_are_those_judged_for_the_same_query(pairs: Pairs):
    low = {
        (pairs.queries[query].lower(), pairs.documents[document].lower())
        for query in range(len(pairs.queries))
        for document in pairs.low_documents[pairs.low_indptr[query] : pairs.low_indptr[query + 1]]
    }
    assert low == {("saw", "saw blade"), ("drill", "hand saw")}


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(lengths, st.integers(1, 40), st.integers(0, 3), st.integers(0, 3))
def test_every_pair_is_in_one_batch(lengths, size, seed, epoch):
    batches = LengthBatches(np.array(lengths), size, seed=seed)
    batches.set_epoch(epoch)
    made = list(batches)
    assert sorted(row for batch in made for row in batch) == list(range(len(lengths)))
    assert len(made) == len(batches)
    assert max(map(len, made)) <= size


@given(lengths, st.integers(1, 40), st.integers(2, 4))
def test_processes_that_share_the_batches_get_equally_many(lengths, size, processes):
    made = list(LengthBatches(np.array(lengths), size, seed=0, processes=processes))
    all_of_them = list(LengthBatches(np.array(lengths), size, seed=0))
    assert len(made) % processes == 0
    assert len(all_of_them) - len(made) < processes
    assert bool(made) == (len(lengths) >= processes)


def test_seed_and_epoch_decide_the_batches():
    lengths = np.random.default_rng(0).integers(5, 50, 500)

    def made(seed: int, epoch: int) -> list[list[int]]:
        batches = LengthBatches(lengths, 16, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert made(0, 0) == made(0, 0)
    assert made(0, 0) != made(0, 1)
    assert made(0, 0) != made(1, 0)


def test_lengths_within_a_batch_are_alike_and_batches_come_in_no_order_of_length():
    lengths = np.random.default_rng(0).integers(5, 50, 64 * 32)
    batches = [lengths[batch] for batch in LengthBatches(lengths, 64, seed=0)]
    assert np.mean([batch.max() - batch.min() for batch in batches]) < 4
    means = [batch.mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


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


def test_seed_and_epoch_decide_the_batches_of_similar_documents():
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

    def kind(similar: bool) -> type:
        settings = settings_of(recipe, finetune={"batches": "similar" if similar else "length", "crops": 1})
        inputs = inputs_of(judgments, TrainingSpec(find_model(str(tiny_model_path)), recipe, settings, 2.5))
        assert inputs.sampler is not None
        batches = inputs.sampler(16, seed=0, processes=1)
        assert sorted(row for batch in batches for row in batch) == list(range(len(inputs.examples)))
        return type(batches)

    assert kind(True) is SimilarBatches
    assert kind(False) is LengthBatches


def test_graded_takes_such_batches_by_default():
    assert find_recipe("graded").defaults["finetune"]["batches"] == "similar"


def test_a_batch_holds_each_text_once_and_says_which_pairs_it_was_drawn_for(pairs: Pairs, tiny_model):
    stores = [TokenStore.build(each, tiny_model.tokenizer, 64).batch for each in (pairs.queries, pairs.documents)]
    batch = PairCollator(pairs, *stores, 0, pairs.query, pairs.document, negatives=1)(
        [{"row": row} for row in range(3)]
    )
    label = {name: value.numpy() for name, value in batch["label"].items()}
    assert len(label["query"]) == 2
    assert len(set(label["document"])) == len(label["document"]) == 4
    drawn = zip(label["query"][label["anchor"]], label["document"][label["positive"]], strict=True)
    assert [texts(pairs, q, d) for q, d in drawn] == [
        texts(pairs, q, d) for q, d in zip(pairs.query, pairs.document, strict=True)
    ]
    assert batch["anchor_input_ids"].shape[0] == 2
    assert batch["document_input_ids"].shape[0] == 4


def test_a_document_that_is_right_for_one_query_is_not_encoded_again_as_wrong_for_another(pairs: Pairs, tiny_model):
    stores = [TokenStore.build(each, tiny_model.tokenizer, 64).batch for each in (pairs.queries, pairs.documents)]
    with_negatives = PairCollator(pairs, *stores, 0, pairs.query, pairs.document, negatives=5)(
        [{"row": row} for row in range(3)]
    )
    without = PairCollator(pairs, *stores, 0, pairs.query, pairs.document, negatives=0)(
        [{"row": row} for row in range(3)]
    )
    assert len(without["label"]["document"]) == 3
    # Judged low are "saw blade", new, and "hand saw" for the drill, which is there already.
    assert len(with_negatives["label"]["document"]) == 4


def test_tokens_are_the_models_own(tiny_model):
    texts = ["steel drill", "white door " * 60, "saw"]
    store = TokenStore.build(texts, tiny_model.tokenizer, 64)
    expected = tiny_model.preprocess(texts)
    batch = store.batch([0, 1, 2])
    width = expected["input_ids"].shape[1]
    assert batch["input_ids"].shape[1] == -(-width // PAD_TO) * PAD_TO
    assert (batch["input_ids"][:, :width] == expected["input_ids"]).all()
    assert (batch["attention_mask"][:, :width] == expected["attention_mask"]).all()
    assert batch["attention_mask"][:, width:].sum() == 0


def test_tokens_are_read_back_from_disk_and_a_damaged_file_is_made_again(tiny_model, tmp_path: Path):
    texts = generate(60, seed=0).frame["document"].to_list()
    first = TokenStore.build(texts, tiny_model.tokenizer, 64, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = TokenStore.build(texts, tiny_model.tokenizer, 64, cache=tmp_path)
    assert path.stat().st_mtime_ns == before
    assert np.array_equal(first.ids, again.ids)
    path.write_bytes(b"half a file")
    mended = TokenStore.build(texts, tiny_model.tokenizer, 64, cache=tmp_path)
    assert np.array_equal(first.ids, mended.ids)
    TokenStore.build(texts[1:], tiny_model.tokenizer, 64, cache=tmp_path)
    TokenStore.build(texts, tiny_model.tokenizer, 32, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture(scope="module")
def static_model(tiny_model: SentenceTransformer) -> SentenceTransformer:
    tokenizer = tiny_model.tokenizer.backend_tokenizer
    return SentenceTransformer(modules=[StaticEmbedding(Tokenizer.from_str(tokenizer.to_str()), embedding_dim=4)])


def test_a_store_is_of_the_kind_that_the_model_takes(static_model, tiny_model):
    assert type(tokenised(static_model, ["saw"], kind="query")) is BagStore
    assert type(tokenised(tiny_model, ["saw"], kind="query")) is TokenStore


@given(
    st.lists(st.lists(st.sampled_from(["saw", "door", "12", "xyz"]), max_size=5).map(" ".join), min_size=1), st.data()
)
def test_a_static_model_gets_the_tokens_that_it_makes_itself(static_model: SentenceTransformer, texts, data):
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    batch = BagStore.build(texts, static_model.tokenizer, None).batch(rows)
    own = static_model[0].preprocess([texts[row] for row in rows])
    assert {name: value.tolist() for name, value in batch.items()} == {k: v.tolist() for k, v in own.items()}
