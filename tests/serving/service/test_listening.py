"""A real server process: it needs little, ends cleanly, takes up new indexes, and cuts off who is slow or too much."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from fixtures.served import Running, Shop, ids_of, make_light_shop, run_to_end, running
from nestling.serving.index.index import Index

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

WITHOUT = """
import sys
for name in ("torch", "transformers", "sentence_transformers", "polars", "pyarrow", "scipy", "faiss", "pandas"):
    sys.modules[name] = None
"""
SLOW = """
import time
from nestling.models.exported_encoder import ExportedEncoder
encode = ExportedEncoder.encode
def slowly(self, texts, **options):
    if "slowly" in texts:
        print("encoding", flush=True)
        time.sleep(1.5)
    return encode(self, texts, **options)
ExportedEncoder.encode = slowly
"""
QUICK = """
from nestling.serving.service import limits
class Limits(limits.Limits):
    def __init__(self, **options):
        super().__init__(**{"reading": 0.5, "connections": 20, **options})
limits.Limits = Limits
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return make_light_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Running]:
    with running(str(shop.folder), prelude=QUICK) as started:
        ready(started)
        yield started


def ready(server: Running) -> None:
    until = time.monotonic() + 30
    while httpx.get(f"{server.url}health").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.05)


def search(server: Running, query: str = "hammer", **more):
    return httpx.post(f"{server.url}search", json={"query": query, **more}, timeout=20)


def documents(server: Running) -> int:
    return int(httpx.get(f"{server.url}indexes").json()["indexes"][0]["documents"])


def talk(server: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes piece by piece, and return what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=15) as client:
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        found = b""
        try:
            while more := client.recv(65_536):
                found += more
        except ConnectionResetError:
            pass
        return found


def test_an_exported_model_is_served_without_torch_polars_pyarrow_or_scipy(shop: Shop):
    expected = [hit.document_id for hit in Index.open(shop.folder).search(["claw hammer"], 5)[0]]
    with running(str(shop.folder), prelude=WITHOUT) as server:
        ready(server)
        assert ids_of(search(server, "claw hammer", k=5).json()["results"][0]["hits"]) == expected
        cells = {
            "query": "claw hammer",
            "columns": [{"dim": 16, "precision": "binary"}, {"dim": 8, "precision": "int4"}],
        }
        assert httpx.post(f"{server.url}compare", json=cells).status_code == 200
        assert httpx.post(f"{server.url}v1/embeddings", json={"input": "a b", "model": "shop"}).json()["usage"] == {
            "prompt_tokens": 2,
            "total_tokens": 2,
        }


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_finishes_what_is_under_way_and_refuses_what_is_new(shop: Shop, sent):
    with running(str(shop.folder), prelude=SLOW) as server:
        ready(server)
        answers = []
        slow = threading.Thread(target=lambda: answers.append(search(server, "slowly")))
        slow.start()
        assert server.process.stdout.readline() == "encoding\n"
        server.process.send_signal(sent)
        until = time.monotonic() + 5
        while httpx.get(f"{server.url}health").status_code != 503:
            assert time.monotonic() < until
        # Longer than the server takes to look whether it is to end.
        time.sleep(0.3)
        refused = search(server)
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        slow.join(15)
        assert [answer.status_code for answer in answers] == [200]
        assert len(answers[0].json()["results"][0]["hits"]) == 10
        assert server.process.wait(15) == 0
        assert "Traceback" not in server.process.stderr.read()


def test_a_new_generation_is_taken_up_on_sighup_while_searches_go_on(shop: Shop, tmp_path: Path):
    folder = Path(shutil.copytree(shop.folder, tmp_path / "shop"))
    with running(str(folder)) as server:
        ready(server)
        statuses, over = [], threading.Event()

        def keep_asking() -> None:
            with httpx.Client() as client:
                while not over.is_set():
                    asked = {"query": "hammer", "filters": {"brand": "Malletine"}}
                    statuses.append(client.post(f"{server.url}search", json=asked).status_code)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        for count in (50, 80):
            shop.write(slice(0, count), folder=folder)
            server.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 20
            asked_before = len(statuses)
            while documents(server) != count or len(statuses) < asked_before + 3:
                assert time.monotonic() < until
                time.sleep(0.05)
        over.set()
        asking.join(10)
        assert set(statuses) == {200}


def test_who_sends_headers_or_a_body_too_slowly_is_cut_off(server: Running):
    assert talk(server, b"POST /search HTTP/1.1\r\n", b"Host: localhost\r\n", *[b"X: y\r\n"] * 6, pause=0.2) == b""
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    answer = talk(server, head, *[b" "] * 6, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"the body did not come within 0.5 s"' in answer
    # Between requests too, but a request in time is answered.
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert talk(server, whole, whole[:10], pause=0.2).startswith(b"HTTP/1.1 200 ")


def test_many_large_bodies_at_once_are_refused_rather_than_held(shop: Shop):
    small = "from nestling.serving.service import guard\nguard.BODIES = 100_000\n"
    head = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n"
    with running(str(shop.folder), prelude=small) as server:
        ready(server)
        with socket.create_connection(("127.0.0.1", server.port), timeout=15) as first:
            first.sendall(head % 90_000 + b" " * 60_000)
            text = b'{"input": "saw"}'
            fits = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % len(text) + text
            assert talk(server, fits).startswith(b"HTTP/1.1 200 ")
            answer = talk(server, head % 90_000, b" " * 60_000)
            assert answer.startswith(b"HTTP/1.1 429 ")
        until = time.monotonic() + 15
        while not talk(
            server, head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % 90_000, b" " * 90_000
        ).startswith(b"HTTP/1.1 422 "):
            assert time.monotonic() < until


def test_a_body_without_end_is_refused_before_it_is_read_whole(server: Running):
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(server, head, *[b"ffff\r\n" + b" " * 65_535 + b"\r\n"] * 24)
    assert answer.startswith(b"HTTP/1.1 413 ")
    long = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
    assert talk(server, long).startswith(b"HTTP/1.1 413 ")
    assert talk(server, b"\x16\x03\x01 no http\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_another_host_name_is_refused(server: Running):
    assert httpx.get(f"{server.url}health", headers={"Host": "evil.example"}).status_code == 400


def test_idle_connections_are_bounded_and_dropped(server: Running):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    try:
        # More than 20 are open: a further request is refused until the idle ones are dropped.
        until = time.monotonic() + 10
        while True:
            try:
                if httpx.get(f"{server.url}health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < until
            time.sleep(0.05)
        for one in idle:
            one.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
    finally:
        for one in idle:
            one.close()


def test_an_index_that_cannot_be_opened_ends_the_server_with_a_line(shop: Shop):
    done = run_to_end(str(shop.folder), "--port", "0", "--model", str(shop.folder / "none"), prelude=WITHOUT)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.strip().splitlines()[-1].startswith(f"nestling: {shop.folder / 'none'} is no folder that nestling")
    )
    assert "Traceback" not in done.stderr


def test_errors_of_a_served_index_are_json(server: Running):
    answer = search(server, mode="lexical", filters={"nothing": "x"})
    assert json.loads(answer.content)["error"]["type"] == "invalid_request_error"
