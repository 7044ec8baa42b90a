"""The routes answer as the index does, go on when it is replaced, and say when they are late or full."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fixtures.served import Shop, ids_of, make_service
from nestling.retrieval.vectors import truncate
from nestling.serving.index.files import MANIFEST
from nestling.serving.index.index import Index
from nestling.serving.service.answers import encoded, error_body
from nestling.serving.service.app import create_app
from nestling.serving.service.served import Source

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
TestClient = pytest.importorskip("starlette.testclient").TestClient

QUERY = "steel claw hammer"


@pytest.mark.parametrize("mode", [None, "fused", "dense", "lexical"])
def test_a_search_finds_what_the_index_finds(client: TestClient, index: Index, mode):
    asked = {"queries": [QUERY, "white paint"], "k": 5, "filters": {"brand": ["Malletine", "stubbinex"]}, "mode": mode}
    answer = client.post("/search", json=asked).json()
    expected = index.search(asked["queries"], 5, mode=mode, filters=asked["filters"])
    assert answer["mode"] == (mode or "fused")
    assert [result["query"] for result in answer["results"]] == asked["queries"]
    for result, hits in zip(answer["results"], expected, strict=True):
        assert ids_of(result["hits"]) == [hit.document_id for hit in hits]
        assert [hit["rank"] for hit in result["hits"]] == list(range(1, len(hits) + 1))
        assert [hit["score"] for hit in result["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)
        assert [hit["text"] for hit in result["hits"]] == [hit.text for hit in hits]
        assert [hit["fields"] for hit in result["hits"]] == [hit.fields for hit in hits]
    timings = answer["timings"]
    assert 0 <= timings["encode_ms"] <= timings["total_ms"]
    assert 0 < timings["search_ms"] <= timings["total_ms"]


def test_many_clients_at_once_each_get_their_own_results(client: TestClient, index: Index):
    queries = [f"{word} {size}" for word in ("hammer", "saw", "paint", "filter") for size in range(10)]
    alone = {query: [hit.document_id for hit in hits] for query in queries for hits in index.search([query], 3)}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda query: client.post("/search", json={"query": query, "k": 3}).json(), queries))
    assert [ids_of(answer["results"][0]["hits"]) for answer in answers] == [alone[query] for query in queries]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
@pytest.mark.parametrize("dim", [None, 8])
@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_the_encoders_cut_and_brought_to_length_one(client, index, path, dim, form):
    texts = [QUERY, "x", QUERY]
    asked = {"input": texts, "model": "shop", "encoding_format": form, "user": "someone"}
    answer = client.post(path, json=asked | ({"dimensions": dim} if dim else {})).json()
    rows = [one["embedding"] for one in answer["data"]]
    if form == "base64":
        rows = [np.frombuffer(base64.b64decode(row), dtype="<f4") for row in rows]
    expected = truncate(index.encoder.encode(texts, kind="document"), dim or 32)
    assert np.array(rows) == pytest.approx(expected, abs=1e-6)
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert (answer["object"], answer["data"][0]["object"], answer["model"]) == ("list", "embedding", "model")
    # [CLS] steel c ##l ##a ##w hammer [SEP] twice, [CLS] x [SEP] once: the vocabulary has no "claw".
    assert answer["usage"] == {"prompt_tokens": 8 + 3 + 8, "total_tokens": 19}


def test_a_filter_that_fits_nothing_finds_nothing(client: TestClient):
    answer = client.post("/search", json={"query": QUERY, "filters": {"brand": "nobody"}}).json()
    assert answer["results"] == [{"query": QUERY, "hits": []}]


class Slow:
    """An index's encoder that waits until it is let go, and fails on one text."""

    def __init__(self, inner) -> None:
        self.inner, self.go, self.entered = inner, threading.Event(), threading.Event()
        self.dim, self.fingerprint, self.codec = inner.dim, inner.fingerprint, inner.codec

    def encode(self, texts, *, kind="document"):
        self.entered.set()
        assert self.go.wait(10)
        if "poison" in texts:
            raise RuntimeError("/secret/path of the machine")
        return self.inner.encode(texts, kind=kind)


@pytest.fixture
def slow(shop: Shop, request: pytest.FixtureRequest) -> Iterator[tuple[TestClient, Slow]]:
    from dataclasses import replace

    opened = Index.open(shop.folder)
    encoder = Slow(opened.encoder)
    service = make_service(
        Source("shop", shop.folder),
        opener=lambda _: replace(opened, encoder=encoder),
        queue=64,
        timeout=request.param,
        max_batch=1,
    )
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client, encoder
    encoder.go.set()
    service.close()


# Long enough for the lexical search, which must be in time, on a loaded machine.
@pytest.mark.parametrize("slow", [1.0], indirect=True)
def test_a_late_answer_is_a_504_and_a_full_queue_a_429(slow):
    client, encoder = slow
    assert client.post("/search", json={"query": "a"}).status_code == 504
    assert encoder.entered.is_set()
    # The encoder still holds the first text, so that the next 64 fill the queue.
    assert client.post("/embed", json={"input": ["b"] * 64}).status_code == 504
    assert "nestling_queue_texts 64.0" in client.get("/metrics").text
    answer = client.post("/search", json={"query": "c"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert client.post("/search", json={"query": "c", "mode": "lexical"}).status_code == 200
    counters = client.get("/metrics").text
    assert 'nestling_rejected_total{reason="queue_full"}' in counters
    assert 'nestling_requests_total{route="/embed",status="504"} 1.0' in counters


@pytest.mark.parametrize("slow", [0.3], indirect=True)
def test_a_call_of_many_texts_may_take_longer_by_as_many_times_64(slow):
    client, encoder = slow
    one = client.post("/search", json={"query": "a"})
    assert (one.status_code, one.json()["error"]["message"]) == (504, "no answer within 0.3 s; try again")
    many = client.post("/v1/embeddings", json={"input": ["a"] * 129})
    assert (many.status_code, many.json()["error"]["message"]) == (504, "no answer within 0.9 s; try again")
    encoder.go.set()
    assert client.post("/search", json={"query": "a"}).status_code == 200


@pytest.mark.parametrize("slow", [60.0], indirect=True)
def test_a_text_that_breaks_the_encoder_fails_its_own_request_and_tells_nothing(slow):
    client, encoder = slow
    encoder.go.set()
    answer = client.post("/search", json={"query": "poison"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the encoder failed on a text of this request"
    assert client.post("/search", json={"query": "fine"}).status_code == 200


def test_answers_are_ascii_so_that_lone_surrogates_of_documents_can_be_sent():
    text = "\ud800 \u2028 \U0001f529"
    assert json.loads(encoded({"text": text}).decode("ascii")) == {"text": text}
    line = json.loads(error_body(422, f"a\nb\x1b[31m {text}" + "x" * 5_000))["error"]["message"]
    assert line.startswith("a b [31m \U0001f529x")
    assert len(line) == 400


def test_metrics_count_requests_and_batches(client: TestClient):
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)

    ok, texts = 'nestling_requests_total{route="/search",status="200"}', "nestling_encoder_batch_texts_sum"
    before = value(ok), value(texts)
    client.post("/search", json={"queries": ["a", "b", "c"]})
    client.post("/search", json={"query": "a", "mode": "lexical"})
    assert (value(ok), value(texts)) == (before[0] + 2, before[1] + 3)
    client.get("/some/made-up/route")
    assert value('nestling_requests_total{route="other",status="404"}') >= 1
    assert value("process_resident_memory_bytes") > 1e6


def test_a_new_generation_is_served_and_a_broken_one_is_not(shop: Shop, tmp_path: Path, caplog):
    folder = Path(shutil.copytree(shop.folder, tmp_path / "shop"))
    service = make_service(Source("shop", folder))
    with TestClient(create_app(service)) as client:

        def found(**more) -> list[str]:
            answer = client.post("/search", json={"query": QUERY, "k": 200, "mode": "dense", **more})
            assert answer.status_code == 200, answer.text
            return ids_of(answer.json()["results"][0]["hits"])

        assert service.indexes.refresh() == []
        assert len(found()) == 200
        encoder = service.indexes.get(None).index.encoder
        shop.write(slice(0, 50), folder=folder)
        # Whoever has opened the old generation goes on with it.
        assert len(found()) == 200
        brand = shop.frame["brand"][0]
        same = shop.frame.filter(shop.frame["brand"] == brand)["document_id"]
        assert sorted(found(filters={"brand": brand})) == sorted(same)
        assert service.indexes.refresh() == ["shop"]
        assert sorted(found()) == sorted(shop.frame["document_id"][:50])
        assert service.indexes.get(None).index.encoder is encoder
        shop.write(slice(0, 60), folder=folder)
        vectors = max(folder.glob("0*/vectors.npy"))
        content = vectors.read_bytes()
        vectors.write_bytes(content[:-5])
        for _ in range(2):
            assert service.indexes.refresh() == []
        assert len(found()) == 50
        told = [record.message for record in caplog.records if "the old one goes on" in record.message]
        assert len(told) == 1
        vectors.write_bytes(content)
        assert service.indexes.refresh(force=True) == ["shop"]
        assert len(found()) == 60
        (folder / MANIFEST).write_text("{")
        assert service.indexes.refresh() == []
        assert len(found()) == 60
    service.close()
