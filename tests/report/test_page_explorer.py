"""The explorer's data give back the run's rankings and figures, and shrink to a budget in a fixed order."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.study import make_study
from nestling.evaluation.cells import Cell
from nestling.judgments.table import Judgments
from nestling.report.page_data import PageData, load_page_data
from nestling.report.page_explorer import BUDGET, explorer, safe_json
from nestling.report.render.html import shortened

N = 50


def share(found: int) -> list[float]:
    return [1.0] * found + [0.0] * (N - found)


FIGURES = {
    "pretrained": {Cell(64): share(20), Cell(32): share(15), Cell(16): share(10)},
    "mnrl": {Cell(64): share(30), Cell(32): share(25), Cell(16): share(18)},
    "mnrl+bm25": {Cell(64): share(33), Cell(16): share(24)},
    "bm25-stemmed": {None: share(22)},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PageData:
    path = tmp_path_factory.mktemp("runs") / "run"
    texts = [f"query {i:03} " + "long " * 60 for i in range(N)]
    return load_page_data(make_study(path, FIGURES, variants=["pretrained", "mnrl"], queries=texts, pages=False))


def made(data: PageData, budget: int = BUDGET) -> tuple[dict[str, Any], list[str]]:
    found = explorer(data, first="pretrained", second="mnrl", budget=budget)
    assert found is not None
    assert len(found.json.encode()) <= budget
    return json.loads(found.json), found.notes


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_rankings_scores_and_figures_come_back_as_they_were(data: PageData):
    found, _ = made(data)
    assert found["systems"] == [
        "pretrained, 64 dims",
        "pretrained, 16 dims",
        "mnrl, 64 dims",
        "mnrl, 16 dims",
        "mnrl+bm25, 64 dims",
        "mnrl+bm25, 16 dims",
        "bm25-stemmed",
    ]
    assert [found["systems"][n] for n in found["start"]] == ["pretrained, 64 dims", "mnrl, 64 dims"]
    assert data.rankings is not None
    assert data.test is not None
    texts = dict(data.test.frame.select("document_id", "document").iter_rows())
    queries = dict(data.test.frame.select("query_id", "query").iter_rows())
    relevant = data.test.frame.filter(pl.col("score") > 2.5)
    wanted = {(query, document) for query, document in relevant.select("query_id", "document_id").iter_rows()}
    for number, name in enumerate(found["systems"]):
        variant, _, dims = name.partition(", ")
        dim = int(dims.split()[0]) if dims else 0
        ranks = unpacked(found["ranks"][number], "<u2").reshape(N, found["top"])
        scores = found["scores"][number]
        steps = unpacked(scores["steps"], "<u2").reshape(N, found["top"]) / found["scale"]
        table = data.rankings.filter(pl.col("variant") == variant, pl.col("dim") == dim)
        recall = unpacked(found["values"][number][0], "<u2") / found["scale"]
        for (query,), top in table.group_by("query_id"):
            row = found["queries"].index(shortened(queries[query], 240))
            kept, rest = ranks[row][: top.height], ranks[row][top.height :]
            assert (rest == found["none"]).all()
            assert [found["documents"][n] for n in kept] == [texts[name] for name in top["document_id"]]
            told = scores["low"] + (scores["high"] - scores["low"]) * steps[row][: len(kept)]
            assert np.allclose(told, top["score"].to_numpy(), atol=1e-4)
            hits = [n in found["relevant"][row] for n in kept]
            assert hits == [(query, name) in wanted for name in top["document_id"]]
            assert recall[row] == float(any(hits))


def test_sizes_between_and_cut_texts_are_in_the_notes(data: PageData):
    _, notes = made(data)
    assert notes == [
        "Each model is here at its full and at its smallest size; sizes between are left out.",
        f"{N} texts longer than 240 characters are cut.",
    ]


def test_texts_then_small_fusions_then_queries_make_room(data: PageData):
    whole, _ = made(data)
    size = len(safe_json(whole).encode())
    shorter, _ = made(data, size - 1)
    assert max(map(len, shorter["queries"])) == 120
    shortest, _ = made(data, len(safe_json(shorter).encode()) - 1)
    assert max(map(len, shortest["queries"])) == 80
    assert len(shortest["systems"]) == 7
    fewer, notes = made(data, len(safe_json(shortest).encode()) - 1)
    assert "mnrl+bm25, 16 dims" not in fewer["systems"]
    assert "Fusions with BM25 at the smallest size are left out for the page's size." in notes
    assert len(fewer["queries"]) == N
    some, notes = made(data, len(safe_json(fewer).encode()) - 1)
    assert len(some["queries"]) == N // 2
    assert notes[-1].startswith("Of 50 queries the 25 are here on which the two models")
    # Those of 20 to 29 are won; all others tie.
    won = {f"query {i:03}" for i in range(20, 30)}
    assert won <= {text[:9] for text in some["queries"]}


def test_without_rankings_there_is_none(data: PageData):
    assert explorer(replace(data, rankings=None), first=None, second="mnrl") is None
    assert explorer(replace(data, test=None), first=None, second="mnrl") is None


def test_many_queries_of_many_systems_fit_the_budget_in_full(data: PageData):
    n, rng = 2_327, np.random.default_rng(0)
    ids = [f"q{i:04}" for i in range(n)]
    pairs = {
        "query_id": ids,
        "query": [f"query {i}" for i in range(n)],
        "document_id": [f"d{i:04}" for i in range(n)],
        "document": [f"{i} " + "a title of common length, as shops write them, " * 2 for i in range(n)],
        "score": [3.0] * n,
    }
    models = [f"{name}{suffix}" for name in ("pretrained", "mnrl", "graded", "cosent") for suffix in ("", "+bm25")]
    systems = [*((name, dim) for name in models for dim in (384, 48)), ("bm25", 0), ("bm25-stemmed", 0)]
    cells = pl.DataFrame(systems, schema=["variant", "dim"], orient="row").with_columns(
        pl.lit("float32").alias("precision"), pl.lit("none").alias("rotation"), pl.lit(0).alias("oversampling")
    )
    per_query = cells.join(pl.DataFrame({"query_id": ids}), how="cross")
    recall = pl.Series("recall@10", rng.integers(0, 2, per_query.height).astype(float))
    per_query = per_query.with_columns(recall, (recall / 2).alias("mrr@10"))
    # Ten documents a ranking, as a real run keeps.
    ranked = per_query.select("variant", "dim", "query_id").join(pl.DataFrame({"rank": range(1, 11)}), how="cross")
    ranked = ranked.with_columns(
        pl.Series("document_id", [f"d{i:04}" for i in rng.integers(0, n, ranked.height)]),
        pl.Series("score", rng.random(ranked.height)),
    )
    large = replace(
        data,
        results=cells,
        per_query=per_query,
        rankings=ranked,
        test=Judgments.from_frame(pl.DataFrame(pairs), scale=(1.0, 3.0), source="shop.csv"),
    )
    payload, notes = made(large)
    assert len(payload["queries"]) == n
    assert len(payload["systems"]) == 18
    assert not [note for note in notes if "left out for the page" in note]


@given(st.text())
def test_safe_json_reads_back_and_has_no_character_that_html_knows(text: str):
    written = safe_json({"text": text})
    assert json.loads(written) == {"text": text}
    assert not set(written) & set("<>&\u2028\u2029")
