"""Cells of other sizes rank as decoding everything and comparing does; marks and shares are those of the judgments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.served import Shop, ids_of
from nestling.config.names import PRECISIONS
from nestling.errors import InputError
from nestling.judgments.split import split_judgments
from nestling.judgments.split_files import read_split, write_split
from nestling.judgments.table import Judgments
from nestling.retrieval.codec import fit_codec
from nestling.retrieval.vectors import truncate
from nestling.serving.index.index import Index
from nestling.serving.service.compare import CELLS, Cells, Judged, dims_of, make_cell, read_judged

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
TestClient = pytest.importorskip("starlette.testclient").TestClient


def oracle(vectors: np.ndarray, query: np.ndarray, dim: int, precision: str) -> np.ndarray:
    """Scores of all documents, by decoding every code; rounded to 127ths of its largest, a query meets integers."""
    rows = truncate(vectors.astype(np.float32), dim)
    codec = fit_codec(precision, rows)
    codes, [asked] = codec.encode(rows), truncate(query, dim)
    if codec.is_float:
        return codec.decode(codes) @ asked
    [projected], [shift] = codec.project(asked[None])
    unit = np.abs(projected).max() / 127
    return (codec.integers(codes) * codec.steps(codes)[:, None]) @ (np.rint(projected / unit) * unit) + shift


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [32, 16, 8])
def test_a_cell_ranks_as_decoding_every_code_does(client: TestClient, index: Index, precision: str, dim: int):
    query = "white wood paint"
    vector = index.encoder.encode([query], kind="query")
    scores = oracle(index.vectors, vector, dim, precision)
    column = {"mode": "dense", "dim": dim, "precision": precision}
    [answer] = client.post("/compare", json={"query": query, "columns": [column], "k": 20}).json()["columns"]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(np.sort(scores)[::-1][:20].tolist(), abs=1e-5)
    row = {index.documents[n].id: n for n in range(200)}
    assert [scores[row[key]] for key in ids_of(answer["hits"])] == pytest.approx(
        [hit["score"] for hit in answer["hits"]], abs=1e-5
    )
    assert len(set(ids_of(answer["hits"]))) == 20
    assert (answer["dim"], answer["precision"]) == (dim, precision)
    bits = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "binary": 1}[precision]
    assert answer["bytes"] == dim * bits / 8 + (0 if precision.startswith("float") else 2)


@given(st.integers(1, 20), st.integers(1, 400), st.integers(1, 50), st.sampled_from(PRECISIONS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_equal_documents_tie_in_the_order_of_their_rows(n, documents, k, precision, seed):
    rng = np.random.default_rng(seed)
    distinct = rng.standard_normal((n, 8))
    # So many that ties cross the end of the results and of the candidates.
    rows = distinct[rng.integers(0, n, documents)].astype(np.float16)
    query = truncate(rng.standard_normal((1, 8)).astype(np.float32), 8)
    cell = make_cell(rows, 8, precision)
    [found], [scores] = cell.top_k(query, k)
    assert len(found) == min(k, len(rows))
    exact = oracle(rows, query, 8, precision)
    assert scores == pytest.approx(np.sort(exact)[::-1][: len(found)], abs=1e-5)
    for place, row in enumerate(found):
        lower = np.flatnonzero((rows[:row] == rows[row]).all(axis=1))
        assert set(lower) <= set(found[:place])


def test_as_served_it_is_the_indexs_own_search_and_bm25_is_added_to_cells(client: TestClient, index: Index):
    query = "steel claw hammer"
    ways = [{}, {"mode": "fused", "dim": 32, "precision": "float32"}]
    served, cell = client.post("/compare", json={"query": query, "columns": ways}).json()["columns"]
    expected = [hit.document_id for hit in index.search([query], 10)[0]]
    assert (ids_of(served["hits"]), served["dim"], served["bytes"]) == (expected, None, 128)
    # At full size and precision the cell holds the same vectors, brought back to length 1 after float16.
    assert ids_of(cell["hits"]) == expected
    assert [hit["score"] for hit in cell["hits"]] == pytest.approx([h["score"] for h in served["hits"]], abs=1e-3)
    [words] = client.post("/compare", json={"query": query, "columns": [{"mode": "lexical"}]}).json()["columns"]
    assert ids_of(words["hits"]) == [hit.document_id for hit in index.search([query], 10, mode="lexical")[0]]
    assert words["bytes"] is None
    assert {hit["relevant"] for hit in words["hits"]} == {None}


def test_judged_queries_are_suggested_and_their_relevant_documents_marked(client: TestClient, shop: Shop):
    test = read_split(shop.split).test.frame
    there = set(shop.frame["document_id"])
    queries = client.get("/queries").json()["queries"]
    assert len(queries) > 10
    assert client.get("/queries", params={"limit": 3}).json()["queries"] == queries[:3]
    for query in queries[:5]:
        of_query = test.filter((test["query"] == query) & (test["score"] > 2.5))
        relevant = set(of_query["document_id"]) & there
        # Upper case and spaces make no other query.
        answer = client.post("/compare", json={"query": f" {query.upper()} ", "columns": [{"mode": "lexical"}]}).json()
        [column] = answer["columns"]
        found = ids_of(column["hits"])
        assert answer["judged"] is True
        assert [hit["relevant"] for hit in column["hits"]] == [key in relevant for key in found]
        assert column["recall"] == pytest.approx(len(relevant & set(found)) / len(relevant))
        assert client.post("/sizes", json={"query": query}).json()["against"] == "judged"


@pytest.mark.parametrize("precision", ["float32", "binary"])
def test_sizes_tell_which_share_of_the_whole_vectors_top_10_is_kept(client: TestClient, index: Index, precision: str):
    query = "white wood paint"
    vector = index.encoder.encode([query], kind="query")
    answer = client.post("/sizes", json={"query": query, "precision": precision}).json()
    assert (answer["against"], answer["wanted"]) == ("full size", 10)
    best = set(np.argsort(-oracle(index.vectors, vector, 32, "float32"))[:10])
    for size in answer["sizes"]:
        top = set(np.argsort(-oracle(index.vectors, vector, size["dim"], precision))[:10])
        assert size["recall"] == len(best & top) / 10
    assert [size["dim"] for size in answer["sizes"]] == [32, 16, 8]


def test_large_indexes_offer_their_own_search_only_and_say_so(index: Index):
    cells = Cells(index, most_documents=199)
    assert (cells.dims, cells.precisions) == ((), ())
    assert cells.note == "more than 199 documents: searched only as served"
    with pytest.raises(InputError, match="too large for other sizes"):
        cells.cell(16, "int8")
    assert Cells(index, most_documents=200).note is None


def test_cells_are_made_once_and_the_longest_unused_go_when_they_are_too_many(index: Index):
    cells = Cells(index)
    every = [(dim, precision) for precision in cells.precisions for dim in cells.dims]
    sizes = every[: CELLS + len(cells.dims) + 1]
    assert cells.dims == (32, 16, 8)
    assert len(sizes) == CELLS + 4
    first, second = cells.cell(*sizes[0]), cells.cell(*sizes[1])
    for size in (*sizes[2:-1], sizes[0], sizes[-1]):
        cells.cell(*size)
    assert cells.cell(*sizes[0]) is first
    assert cells.cell(*sizes[1]) is not second


def test_sizes_are_the_full_one_and_its_halves_down_to_8():
    assert dims_of(384) == (384, 192, 96, 48, 24, 12)
    assert dims_of(8) == (8,)
    assert dims_of(5) == (5,)


def test_documents_that_an_index_lacks_are_not_asked_of_it(index: Index):
    have = index.documents[3].id
    judged = Judged(("Has One", "has none"), {"has one": frozenset({have, "gone"}), "has none": frozenset({"gone"})})
    assert judged.within(index.documents) == Judged(("Has One",), {"has one": frozenset({have})})


def test_a_scale_that_is_not_1_to_3_needs_a_threshold(shop: Shop, monkeypatch):
    from dataclasses import replace

    split = read_split(shop.split)
    other = replace(split, test=replace(split.test, scale=(0.0, 5.0)))
    monkeypatch.setattr("nestling.judgments.split_files.read_split", lambda _: other)
    with pytest.raises(InputError, match="on a scale of 0 to 5 give the threshold above which a document is relevant"):
        read_judged(shop.split)
    low, high = (read_judged(shop.split, threshold=threshold).relevant for threshold in (1.5, 2.5))
    assert all(high[query] <= low[query] for query in high)
    assert sum(map(len, low.values())) > sum(map(len, high.values()))


def test_positives_alone_need_no_threshold(tmp_path: Path):
    rows = [(f"query {n}", f"document {n}", 1.0) for n in range(20)]
    table = Judgments.from_frame(pl.DataFrame(rows, schema=["query", "document", "score"], orient="row"))
    split = split_judgments(table)
    write_split(split, tmp_path / "split")
    assert len(read_judged(tmp_path / "split").relevant) == len(split.test)
