"""A real server process: it needs little, ends cleanly, takes up new indexes, and says what is too much."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from fixtures.served import START, Running, Shop, ids_of, running
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
        time.sleep(1)
    return encode(self, texts, **options)
ExportedEncoder.encode = slowly
"""


@pytest.fixture(scope="module")
def server(light_shop: Shop) -> Iterator[Running]:
    with running(str(light_shop.folder), prelude=WITHOUT) as started:
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


def test_an_exported_model_is_served_without_torch_polars_pyarrow_or_scipy(light_shop: Shop, server: Running):
    expected = [hit.document_id for hit in Index.open(light_shop.folder).search(["claw hammer"], 5)[0]]
    assert ids_of(search(server, "claw hammer", k=5).json()["results"][0]["hits"]) == expected
    columns = [{"dim": 16, "precision": "binary"}, {"dim": 8, "precision": "int4"}]
    cells = {"query": "claw hammer", "columns": columns}
    assert httpx.post(f"{server.url}compare", json=cells).status_code == 200
    usage = httpx.post(f"{server.url}v1/embeddings", json={"input": "a b", "model": "shop"}).json()["usage"]
    assert usage == {"prompt_tokens": 2, "total_tokens": 2}


def ends(server: Running, sent: signal.Signals) -> None:
    """See that a signal ends the server once it has answered what is under way, and that it takes nothing new."""
    answers = []
    slow = threading.Thread(target=lambda: answers.append(search(server, "slowly")))
    slow.start()
    assert server.process.stdout.readline() == "encoding\n"
    server.process.send_signal(sent)
    until = time.monotonic() + 5
    with pytest.raises(httpx.ConnectError):  # noqa: PT012
        while time.monotonic() < until:
            # A connection that waits while the socket is closed is reset.
            with suppress(httpx.RemoteProtocolError, httpx.ReadError):
                search(server)
    slow.join(15)
    assert [answer.status_code for answer in answers] == [200]
    assert len(answers[0].json()["results"][0]["hits"]) == 10
    assert server.process.wait(15) == 0
    assert "Traceback" not in server.process.stderr.read()


def test_at_sigterm_it_finishes_what_is_under_way_and_refuses_what_is_new(light_shop: Shop):
    with running(str(light_shop.folder), prelude=WITHOUT + SLOW) as server:
        ready(server)
        ends(server, signal.SIGTERM)


def test_a_new_generation_is_taken_up_on_sighup_while_searches_go_on_and_ctrl_c_ends_it(
    light_shop: Shop, tmp_path: Path
):
    folder = Path(shutil.copytree(light_shop.folder, tmp_path / "shop"))
    with running(str(folder), prelude=WITHOUT + SLOW) as server:
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
            light_shop.write(slice(0, count), folder=folder)
            server.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 20
            asked_before = len(statuses)
            while documents(server) != count or len(statuses) < asked_before + 3:
                assert time.monotonic() < until
                time.sleep(0.05)
        over.set()
        asking.join(10)
        assert set(statuses) == {200}
        ends(server, signal.SIGINT)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_whose_body_is_too_large_reads_why_and_goes_on(server: Running, chunked: bool):
    with httpx.Client(timeout=20) as client:
        for path, most in (("search", "1,000,000"), ("v1/embeddings", "16,000,000")):
            body = [b" " * 1_000_000] * 20
            headers = {"Content-Type": "application/json"}
            content = iter(body) if chunked else b"".join(body)
            answer = client.post(f"{server.url}{path}", content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["message"] == f"a request's body may have {most} bytes"
            assert client.post(f"{server.url}search", json={"query": "saw"}).status_code == 200


def test_another_host_name_is_refused(server: Running):
    assert httpx.get(f"{server.url}health", headers={"Host": "evil.example"}).status_code == 400


def test_an_index_that_cannot_be_opened_ends_the_server_with_a_line(light_shop: Shop):
    none = light_shop.folder / "none"
    command = [
        sys.executable,
        "-c",
        WITHOUT + START,
        "serve",
        str(light_shop.folder),
        "--port",
        "0",
        "--model",
        str(none),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"nestling: {none} is no folder that nestling")
    assert "Traceback" not in done.stderr


def test_errors_of_a_served_index_are_json(server: Running):
    answer = search(server, mode="lexical", filters={"nothing": "x"})
    assert json.loads(answer.content)["error"]["type"] == "invalid_request_error"
