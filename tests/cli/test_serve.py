"""What cannot be served is said before anything listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fixtures.serving import catalogue, indexed, products
from nestling.cli.options import named_paths
from nestling.cli.serve import models, serve
from nestling.errors import InputError
from nestling.serving.service.listening import allowed_hosts, bind, is_loopback, url_of

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "shop"
    indexed(path, catalogue(products(30)))
    return path


@pytest.mark.parametrize(
    ("indexes", "options", "message"),
    [
        ([], {}, "serve needs at least one index"),
        (["{shop}"], {"host": "0.0.0.0"}, "lets other machines in; set NESTLING_API_KEY to a secret"),
        (["{shop}"], {"host": "192.0.2.7"}, "lets other machines in"),
        (["{shop}", "{shop}"], {}, "two indexes are called 'shop'"),
        (["{shop}"], {"model": ("a", "b")}, "--model is given 2 times for 1 indexes"),
        (["{shop}/none"], {}, r"is no index: it has no manifest\.json"),
        (["{shop}"], {"queue": 3}, "--queue must be 64 or more, not 3"),
        (["{shop}"], {"max_batch": 0}, "--max-batch must be 1 or more, not 0"),
        (["{shop}"], {"max_wait_ms": -1.0}, "--max-wait-ms must be between 0 and 1000, not -1"),
        (["{shop}"], {"timeout": 0.0}, "--timeout must be above 0"),
        (["{shop}"], {"threads": 0}, "--threads must be 1 or more"),
        (["{shop}"], {"port": 99_999}, "--port must be between 0 and 65535"),
        (["{shop}"], {"split": Path("/no/split")}, "no/split"),
    ],
)
def test_settings_that_make_no_sense_are_refused(folder: Path, monkeypatch, indexes, options, message: str):
    monkeypatch.delenv("NESTLING_API_KEY", raising=False)
    with pytest.raises(InputError, match=message):
        serve(*(text.format(shop=folder) for text in indexes), **options)


@pytest.mark.parametrize("key", [" ", "\n", "two words", "tab\tinside", "schlüssel", "nul\x7f"])
def test_a_key_that_no_header_carries_is_refused_before_anything_listens(folder: Path, monkeypatch, key: str):
    monkeypatch.setenv("NESTLING_API_KEY", key)
    with pytest.raises(InputError, match="NESTLING_API_KEY must be of printable ASCII characters without spaces"):
        serve(str(folder), port=0)


def test_a_missing_package_is_named_with_how_to_get_it(folder: Path, monkeypatch):
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        with monkeypatch.context() as patched:
            patched.setitem(__import__("sys").modules, name, None)
            with pytest.raises(InputError, match=rf"nestling serve needs {name}: pip install 'nestling\[serve\]'"):
                serve(str(folder), port=0)


def test_a_taken_port_and_an_unknown_host_are_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 is taken; give another with --port"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="no such host"):
        bind("no.such.host.invalid", 0)


def test_the_address_is_one_that_a_browser_opens():
    with bind("127.0.0.1", 0) as sock:
        assert url_of("127.0.0.1", sock) == f"http://127.0.0.1:{sock.getsockname()[1]}/"
        assert url_of("::1", sock).startswith("http://[::1]:")


def test_what_is_loopback_serves_local_names_alone():
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]")] == [True] * 5
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.com"))
    assert allowed_hosts("127.8.9.1") == ["localhost", "127.0.0.1", "[::1]", "127.8.9.1"]
    assert allowed_hosts("0.0.0.0") == ["*"]


def test_indexes_are_called_by_their_folders_or_as_they_are_named(tmp_path: Path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    named = named_paths([f"one={tmp_path}", str(odd), "x/y"], "indexes")
    assert named == {"one": str(tmp_path), "a=b": str(odd), "y": "x/y"}
    assert (models((), 2), models(("a",), 2), models(("a", "b"), 2)) == ([None, None], ["a", "a"], ["a", "b"])
