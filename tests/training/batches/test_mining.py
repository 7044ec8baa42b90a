"""Hard negatives: never a judged positive, never nearer than the margin, hardest first."""

from __future__ import annotations

import numpy as np
import pytest

from nestling.judgments.toolshed import generate
from nestling.models.torch_encoder import embed
from nestling.training.batches.batching import Pairs
from nestling.training.batches.mining import mine


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.from_judgments(generate(300, seed=0), threshold=2.5)


def test_mined_documents_keep_the_margin_are_no_positives_and_come_hardest_first(pairs: Pairs, tiny_model):
    indptr, documents = mine(tiny_model, pairs, per_query=4, margin=0.02, depth=1000)
    similarity = embed(tiny_model, pairs.queries, kind="query") @ embed(tiny_model, pairs.documents, kind="document").T
    positives: dict[int, set[int]] = {}
    for query, document in zip(pairs.query.tolist(), pairs.document.tolist(), strict=True):
        positives.setdefault(query, set()).add(document)
    assert len(indptr) == len(pairs.queries) + 1
    assert len(documents)
    for query in range(len(pairs.queries)):
        mined = documents[indptr[query] : indptr[query + 1]]
        right = positives.get(query, set())
        if not right:
            assert not len(mined)
            continue
        limit = 0.98 * min(similarity[query, d] for d in right)
        allowed = [d for d in range(len(pairs.documents)) if d not in right and similarity[query, d] <= limit + 1e-6]
        expected = sorted(similarity[query, allowed], reverse=True)[:4]
        assert similarity[query, mined] == pytest.approx(expected, abs=1e-5)
        assert not set(mined.tolist()) & right


def test_mining_is_bounded_by_the_depth(pairs: Pairs, tiny_model):
    indptr, _ = mine(tiny_model, pairs, per_query=3, margin=0.0, depth=2)
    assert np.diff(indptr).max() <= 2
