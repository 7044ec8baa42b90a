"""Pseudo-queries: words of documents, the same ones for the same seed and epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from nestling.judgments.table import Judgments
from nestling.judgments.toolshed import generate
from nestling.training.batches.batching import PairCollator, Pairs
from nestling.training.batches.pseudo_queries import SEPARATOR, QueriesOfEpoch, crop, pseudo_queries, vary
from nestling.training.batches.tokens import TokenStore

ROWS = [
    ("hand saw", "Steel hand saw, 12 in.", "1", 3.0),
    ("drill", "Drill driver 18 v", "2", 3.0),
    ("drill", "Paint", "3", 1.0),
]
words = st.text("abcdefgh12.", min_size=1, max_size=8)


@pytest.fixture
def pairs() -> Pairs:
    frame = pl.DataFrame(ROWS, schema=["query", "document", "document_id", "score"], orient="row")
    return Pairs.from_judgments(Judgments.from_frame(frame, scale=(1, 3)), threshold=2.5)


def queries(pairs: Pairs, tokenizer: object, **options: float) -> QueriesOfEpoch:
    settings = {"crops": 2, "seed": 0, **options}
    return QueriesOfEpoch(pairs, lambda texts: TokenStore.build(texts, tokenizer, 64), **settings)  # type: ignore[arg-type]


@given(st.lists(words, min_size=1, max_size=12), st.sampled_from([" ", ", ", "; ", "  "]), st.integers(0, 99))
def test_a_crop_is_some_words_of_its_document(document: list[str], between: str, seed: int):
    found = crop(between.join(document), np.random.default_rng(seed)).split(" ")
    assert min(2, len(document)) <= len(found) <= 5
    assert not Counter(found) - Counter(document)


@pytest.mark.parametrize("document", ["", " ", ",;"])
def test_a_document_without_words_is_its_own_crop(document: str):
    assert crop(document, np.random.default_rng(0)) == document


def test_an_epoch_has_the_raters_queries_first_and_then_crops_that_belong_to_their_documents(pairs: Pairs):
    epoch = queries(pairs, None)
    texts = epoch.texts(0)
    query, document = epoch.with_crops()
    assert texts[: len(pairs.queries)] == pairs.queries
    assert len(texts) == len(pairs.queries) + 2 * len(pairs.documents)
    assert len(query) == len(document) == len(pairs) + 2 * len(pairs.documents)
    for number, of in list(zip(query, document, strict=True))[len(pairs) :]:
        known = SEPARATOR.split(pairs.documents[of])
        assert not Counter(texts[number].split(" ")) - Counter(known)


def test_epochs_differ_and_the_same_epoch_does_not(pairs: Pairs):
    one, again = queries(pairs, None), queries(pairs, None)
    assert one.texts(1) == again.texts(1)
    assert one.texts(1) != one.texts(2)
    assert one.texts(1) != queries(pairs, None, seed=1).texts(1)


def test_a_batch_holds_crops_without_negatives_of_their_own(pairs: Pairs, tiny_model: SentenceTransformer):
    epoch = queries(pairs, tiny_model.tokenizer)
    documents = TokenStore.build(pairs.documents, tiny_model.tokenizer, 64)
    query, document = epoch.with_crops()
    collator = PairCollator(pairs, epoch.batch, documents.batch, 0, query, document, negatives=1)
    with pytest.raises(RuntimeError, match="refresh"):
        collator([{"row": 0}])
    epoch.refresh(0)
    batch = collator([{"row": len(pairs)}])
    assert batch["label"]["query"].tolist() == [len(pairs.queries)]
    assert batch["label"]["document"].tolist() == [int(document[len(pairs)])]
    ids = batch["anchor_input_ids"][0][batch["anchor_attention_mask"][0] == 1]
    assert tiny_model.tokenizer.decode(ids, skip_special_tokens=True).split() != []


@given(st.lists(st.sampled_from(["hand", "saw", "18", "v"]), max_size=5), st.integers(0, 10**6))
def test_a_variation_has_a_word_less_a_word_more_or_another_one(words: list[str], seed: int):
    query, document = " ".join(words), "Steel Hand Saw, 18 in."
    made = vary(query, document, np.random.default_rng(seed)).split()
    new = {"steel", "hand", "saw", "18", "in."} - set(words)
    assert abs(len(made) - len(words)) <= 1
    assert set(made) <= {*words, *new}
    assert len(set(made) & new) <= 1
    if len(made) != len(words):
        assert made[-1] == words[-1]
        assert len(made) >= 2
    assert made if words else not made


def test_each_query_has_a_variation_by_a_document_of_its_own_and_a_crop():
    pairs = Pairs.from_judgments(generate(300, seed=0), threshold=2.5)
    made = pseudo_queries(pairs, seed=3)
    n = len(pairs.queries)
    assert len(made) == 2 * n
    assert pseudo_queries(pairs, seed=3) == made
    assert pseudo_queries(pairs, seed=4) != made
    for number in np.unique(pairs.query):
        mine = " ".join(pairs.documents[d].lower() for d in pairs.document[pairs.query == number])
        known = {*SEPARATOR.split(mine), *pairs.queries[number].split()}
        assert set(made[number].split()) <= known
    words = [set(SEPARATOR.split(document)) for document in pairs.documents]
    assert all(any(set(each.split()) <= document for document in words) for each in made[n:])
    assert sum(one != other for one, other in zip(made[:n], pairs.queries, strict=True)) > 0.9 * n
