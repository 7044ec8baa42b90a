"""What is odd, too much, from elsewhere or without the key is refused in one line, before and in the routes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.served import Shop, make_service
from nestling.serving.service.app import create_app, load_page
from nestling.serving.service.limits import CHARACTERS
from nestling.serving.service.served import Source
from nestling.serving.service.service import Service

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
TestClient = pytest.importorskip("starlette.testclient").TestClient


BAD = [
    ("/search", {}, 422, "give either query or queries"),
    ("/search", {"query": "a", "queries": ["b"]}, 422, "give either query or queries"),
    ("/search", {"query": ""}, 422, "query: String should have at least 1 character"),
    ("/search", {"query": " \t"}, 422, "query: is blank; give a text"),
    ("/search", {"queries": ["a", "\n"]}, 422, "queries.1: is blank; give a text"),
    ("/search", {"query": "x", "filters": {"brand": 12}}, 422, 'the field brand is compared as text; give "12"'),
    (
        "/search",
        {"query": "x", "filters": {"brand": ["a", 1.5]}},
        422,
        'the field brand is compared as text; give "1.5"',
    ),
    ("/search", {"query": "x", "filters": {"brand": True}}, 422, 'the field brand is compared as text; give "true"'),
    ("/search", {"query": "x" * (CHARACTERS + 1)}, 422, "query: String should have at most 8192 characters"),
    ("/search", {"queries": ["x"] * 65}, 422, "queries: List should have at most 64 items"),
    ("/search", {"query": " \t"}, 422, "blank"),
    ("/search", {"query": " ", "mode": "lexical"}, 422, "blank"),
    ("/search", {"query": "x", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
    ("/search", {"query": "x", "k": 1001}, 422, "k: Input should be less than or equal to 1000"),
    ("/search", {"queries": ["x"] * 11, "k": 1000}, 422, "11 queries of 1000 hits are more than 10000 hits"),
    ("/search", {"query": "x", "size": 3}, 422, "size: Extra inputs are not permitted"),
    ("/search", {"query": "x", "mode": "magic"}, 422, "mode: Input should be 'fused', 'dense' or 'lexical'"),
    ("/search", {"query": "x", "index": "other"}, 404, "no index of that name is served; there is shop"),
    ("/search", {"query": "x", "filters": {"colour": "red"}}, 422, "no field 'colour' to filter by; this index has"),
    ("/search", {"query": "x", "filters": {str(n): "a" for n in range(17)}}, 422, "at most 16 items"),
    ("/search", {"query": "x", "filters": {"brand": ["a"] * 65}}, 422, "at most 64 items"),
    ("/embed", {"input": [[1, 2]], "model": "shop"}, 422, "input: lists of tokens are not taken"),
    ("/embed", {"input": [1, 2], "model": "shop"}, 422, "input: lists of tokens are not taken"),
    ("/embed", {"input": [], "model": "shop"}, 422, "at least 1 item"),
    ("/embed", {"input": ["a", "b", "  "]}, 422, "input.2: is blank; give a text"),
    ("/embed", {"input": ["a", None]}, 422, "input.1: Input should be a valid string"),
    ("/embed", {"input": ["x"] * 2_049}, 422, "input: List should have at most 2048 items"),
    ("/v1/embeddings", {"input": " "}, 422, "input: is blank; give a text"),
    ("/compare", {"query": " ", "columns": [{}]}, 422, "query: is blank"),
    ("/sizes", {"query": " "}, 422, "query: is blank"),
    ("/embed", {"input": "x", "model": "gpt"}, 404, "no such model is served; there is model"),
    ("/embed", {"input": "x", "dimensions": 33}, 422, "dimensions: model has 32, so give 1 to 32"),
    ("/compare", {"query": "x", "columns": []}, 422, "at least 1 item"),
    ("/compare", {"query": "x", "columns": [{"dim": 31}]}, 422, "no cell of 31 dims and float32; dims are 32, 16, 8"),
    ("/sizes", {"query": "x", "precision": "int2"}, 422, "precision: Input should be"),
    ("/nowhere", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD)
def test_what_is_odd_or_too_much_is_refused_in_one_line(client: TestClient, shop: Shop, path, body, status, message):
    answer = client.post(path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert str(shop.folder.parent) not in answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"{", "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'{"query": "a", "k": ' + b"9" * 6_000 + b"}", "application/json", 400),
        (b'{"query": NaN}', "application/json", 422),
        (b'{"query": "a", "k": Infinity}', "application/json", 422),
        (b'{"query": "\\ud800"}', "application/json", 422),
        (b'{"query": "a", "filters": {"\\ud800": "b"}}', "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        # A page of another site can send this kind without asking the browser's leave.
        (b'{"query": "a"}', "text/plain", 415),
        (b'{"query": "a"}', "application/x-www-form-urlencoded", 415),
        (b'{"query": "a"}', "", 415),
    ],
)
def test_malformed_bodies_are_refused_and_never_a_server_error(client: TestClient, content, kind, status):
    answer = client.post("/search", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert (status == 415) == ("send JSON with the header Content-Type: application/json" in answer.text)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_large_body_is_refused_by_its_length_and_by_what_comes_in_chunks(service: Service):
    read = []

    def chunks() -> Iterator[bytes]:
        for n in range(4_000):
            read.append(n)
            yield b" " * 1_000

    with TestClient(create_app(service)) as client:
        for content in (b" " * 1_000_001, chunks()):
            answer = client.post("/search", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == "a request's body may have 1,000,000 bytes"
        fits = client.post(
            "/search", content=b'{"query": "a"}' + b" " * 999_000, headers={"Content-Type": "application/json"}
        )
        assert fits.status_code == 200


def test_embeddings_may_have_a_larger_body(client: TestClient):
    for size, status in ((15_000_000, 200), (16_000_001, 413)):
        content = b'{"input": "a"}' + b" " * (size - 14)
        answer = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status


def test_with_a_key_every_route_but_health_and_the_page_wants_it(service: Service):
    with TestClient(create_app(service, key="s3cret-ü")) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/").content == load_page(login=True).body
        routes = [
            ("GET", path) for path in ("/v1/models", "/indexes", "/queries", "/metrics", "/openapi.json", "/nowhere")
        ]
        for method, path in [*routes, *(("POST", path) for path in ("/search", "/embed", "/compare", "/sizes"))]:
            for header in (None, "Bearer", "Bearer s3cret", "Bearer s3cret-ü2", "Basic s3cret-ü", "s3cret-ü"):
                headers = {"Authorization": header.encode()} if header else {}
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, (path, header)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                error = answer.json()["error"]
                assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert client.get("/indexes", headers={"Authorization": "Bearer s3cret-ü".encode()}).status_code == 200


def test_on_loopback_only_the_local_names_are_served(service: Service):
    with TestClient(create_app(service, hosts={"localhost", "127.0.0.1", "[::1]"})) as client:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
            assert client.get("/health", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "", "[::2]:8000"):
            answer = client.get("/health", headers={"Host": host})
            assert answer.status_code == 400, host
        assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://evil"}).headers


def test_before_it_is_ready_it_says_so(shop: Shop):
    service = make_service(Source("shop", shop.folder))
    with TestClient(create_app(service)) as client:
        service.state = "loading"
        health = client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        answer = client.post("/search", json={"query": "a"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        service.state = "ready"
        assert client.get("/health").json() == {"status": "ready"}
    service.close()


def test_damaged_documents_are_told_in_the_log_and_the_client_is_told_whose_fault_it_is(shop: Shop, tmp_path, caplog):
    copy = Path(shutil.copytree(shop.folder, tmp_path / "copy"))
    [path] = copy.rglob("documents.jsonl")
    path.write_bytes(path.read_bytes().replace(b"{", b"\xff"))
    with TestClient(create_app(made := make_service(Source("shop", copy)))) as opened:
        answer = opened.post("/search", json={"query": "drill"})
    made.close()
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        500,
        "a file of this index is damaged; the server's log names it",
    )
    assert "documents.jsonl, line" in caplog.text
    assert "Traceback" not in caplog.text
